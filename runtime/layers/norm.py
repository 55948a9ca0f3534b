"""RMS and layer norm, computed in float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from runtime.models.spec import NormSpec


class Norm(nn.Module):
    """Normalise the last dimension of x as `NormSpec` says."""

    def __init__(self, size: int, spec: NormSpec, dtype: torch.dtype) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.empty(size, dtype=dtype)) if spec.affine else None
        self.bias = nn.Parameter(torch.empty(size, dtype=dtype)) if spec.bias else None

    def forward(self, x: Tensor) -> Tensor:
        s = self.spec
        wide = x.float()
        if s.kind == "layer":
            wide = wide - wide.mean(-1, keepdim=True)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + s.eps)
        if self.weight is None:
            return wide.to(x.dtype)
        if s.offset == 0.0 and self.bias is None:
            return self.weight * wide.to(x.dtype)
        wide = wide * (self.weight.float() + s.offset)
        if self.bias is not None:
            wide = wide + self.bias.float()
        return wide.to(x.dtype)


def activation(name: str) -> nn.Module:
    """The function of an MLP by its name in config.json."""
    table = {
        "silu": nn.SiLU(),
        "gelu": nn.GELU(),
        "gelu_new": nn.GELU(approximate="tanh"),
        "gelu_pytorch_tanh": nn.GELU(approximate="tanh"),
        "relu": nn.ReLU(),
    }
    if name not in table:
        from runtime.errors import ModelError

        raise ModelError(f"activation {name!r} is not supported; supported: {', '.join(table)}")
    return table[name]
