"""Linear layers. A packed one holds several projections of the same input as rows of one matrix."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Linear(nn.Module):
    """y = x W^T (+ b), x [tokens, in], W [out, in]."""

    def __init__(self, inputs: int, outputs: int, dtype: torch.dtype, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(outputs, dtype=dtype)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Packed(Linear):
    """Projections by name and size, one below the other; `parts` tells the rows of each."""

    def __init__(self, inputs: int, sizes: dict[str, int], dtype: torch.dtype, *, bias: bool = False) -> None:
        super().__init__(inputs, sum(sizes.values()), dtype, bias=bias)
        self.parts: dict[str, tuple[int, int]] = {}
        at = 0
        for name, size in sizes.items():
            self.parts[name] = (at, at + size)
            at += size
