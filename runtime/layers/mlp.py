"""The feed-forward part of a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from runtime.layers.linear import Linear, Packed
from runtime.layers.norm import activation
from runtime.models.spec import MlpSpec
from runtime.parallel.group import Group


class Mlp(nn.Module):
    """Gated: down(act(gate(x)) * up(x)); plain: down(act(up(x)))."""

    def __init__(self, hidden: int, spec: MlpSpec, dtype: torch.dtype, group: Group | None = None) -> None:
        super().__init__()
        self.spec = spec
        sizes = {"gate": spec.size, "up": spec.size} if spec.gated else {"up": spec.size}
        self.up = Packed(hidden, sizes, dtype, bias=spec.bias)
        self.down = Linear(spec.size, hidden, dtype, bias=spec.bias, group=group)
        self.act = activation(spec.activation)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        if self.spec.gated:
            gate, up = y.chunk(2, dim=-1)
            return self.down(self.act(gate) * up)
        return self.down(self.act(y))
