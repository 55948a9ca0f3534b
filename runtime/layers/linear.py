"""Linear layers. A packed one holds several projections of the same input as rows of one matrix."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runtime.parallel.group import Group

# Without AVX-512, MKL adds up products of fewer rows of float32 in another order: an output would depend on its batch.
_LEAST_ROWS = 1 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 4


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T (+ b), x [rows, in], W [out, in]; what a row gives does not depend on the number of rows on a CPU with one thread."""
    rows = len(x)
    if x.device.type != "cpu" or not 0 < rows < _LEAST_ROWS:
        return F.linear(x, weight, bias)
    return F.linear(F.pad(x, (0, 0, 0, _LEAST_ROWS - rows)), weight, bias)[:rows]


class Linear(nn.Module):
    """y = x W^T (+ b), x [tokens, in], W [out, in]. With a `group` each rank has some of the inputs: products are summed."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        dtype: torch.dtype,
        *,
        bias: bool = False,
        group: Group | None = None,
    ) -> None:
        super().__init__()
        self.group = group
        self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(outputs, dtype=dtype)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.group is None:
            return product(x, self.weight, self.bias)
        y = self.group.all_reduce(product(x, self.weight))
        return y if self.bias is None else y + self.bias


class Packed(Linear):
    """Projections by name and size, one below the other; `parts` tells the rows of each."""

    def __init__(self, inputs: int, sizes: dict[str, int], dtype: torch.dtype, *, bias: bool = False) -> None:
        super().__init__(inputs, sum(sizes.values()), dtype, bias=bias)
        self.parts: dict[str, tuple[int, int]] = {}
        at = 0
        for name, size in sizes.items():
            self.parts[name] = (at, at + size)
            at += size
