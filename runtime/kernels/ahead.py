"""Memory that is asked for before it is needed.

While a kernel waits (a norm, an exchange between ranks, attention of few tokens, the last programs of a product), the memory
is idle. Programs added to such a launch, or its last ones, bring the first rows of the matrix that comes next into the
device's last cache; the product then starts with what is there. Nothing waits for it and no result depends on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

_PIECE = tl.constexpr(1024)  # bytes that a thread asks for at once


@dataclass(frozen=True)
class Ahead:
    """The first `size` bytes of a contiguous matrix: of both its halves, if a gate makes a product read both at once."""

    weights: Tensor
    halves: int
    size: int

    def shares(self, warps: int, most: int = 1 << 16) -> int:
        """Programs of so many warps that ask for all of it, each for its share; `most` of them at most."""
        bytes_ = min(self.size, self.weights.numel() * self.weights.element_size())
        return min(most, max(1, bytes_ // (32 * warps * _PIECE.value)))

    def options(self, shares: int) -> dict[str, Any]:
        """Arguments of a kernel that takes it."""
        half = self.weights.numel() * self.weights.element_size() // self.halves
        return {"ahead": self.weights, "ahead_half": half, "AHEAD": shares, "HALVES": self.halves}


NOTHING: dict[str, Any] = {"ahead": None, "ahead_half": 0, "AHEAD": 0, "HALVES": 1}


@triton.jit
def fetch_ahead(pointers):
    """Bring these lines of memory into the device's last cache; nothing waits for them."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [pointers.to(tl.int64, bitcast=True)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def fetch_share(weights, half, share, HALVES: tl.constexpr, WARPS: tl.constexpr):
    """A program's share of what is fetched ahead: _PIECE bytes for each of its threads."""
    at = ((share // HALVES) * (32 * WARPS) + tl.arange(0, 32 * WARPS)).to(tl.int64) * _PIECE
    at = tl.maximum(tl.minimum(at, half - _PIECE), 0) + (share % HALVES) * half
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], 1024; mov.u32 $0, 0;",
        "=r,l",
        [weights.to(tl.int64, bitcast=True) + at],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
