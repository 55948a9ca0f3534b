"""Rotary position embedding with a table of cos and sin, shared by layers of equal settings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from runtime.models.spec import RopeSpec


class Rope(nn.Module):
    """Rotate the first `dim` coordinates of each head by the angles of its position."""

    def __init__(self, spec: RopeSpec, context: int) -> None:
        super().__init__()
        self.spec = spec
        frequencies = torch.tensor(spec.frequencies, dtype=torch.float32)
        angles = torch.arange(context, dtype=torch.float32)[:, None] * frequencies
        self.register_buffer("cos", angles.cos() * spec.mscale, persistent=False)
        self.register_buffer("sin", angles.sin() * spec.mscale, persistent=False)
        self.cos: Tensor
        self.sin: Tensor

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [tokens, 1, dim / 2] at these positions."""
        return self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [tokens, heads, head_dim]; sums run in float32."""
        dim = self.spec.dim
        turned, rest = x[..., :dim].float(), x[..., dim:]
        if self.spec.interleaved:
            a, b = turned[..., ::2], turned[..., 1::2]
            turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
        else:
            a, b = turned[..., : dim // 2], turned[..., dim // 2 :]
            turned = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
        turned = turned.to(x.dtype)
        return turned if dim == x.shape[-1] else torch.cat((turned, rest), dim=-1)
