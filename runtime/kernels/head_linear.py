"""A narrow model's head over up to 64 rows on Hopper, which finds the likeliest tokens on the way (cuda/head_linear.cu)."""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch
from torch import Tensor

from runtime.kernels import nvrtc
from runtime.kernels.argmax import join_parts
from runtime.kernels.hopper_linear import Build, HopperLinear, why_not
from runtime.kernels.tensor_map import TensorMap, takes
from runtime.kernels.tuning import processors

ROWS = 64  # of x, at most
# Rows where it is quicker than the library and `argmax`: 64 of 151,936 by 896 take 78.5 us instead of 83.6, of 262,144 by 640 103
# instead of 133; 32 73.6 instead of 75.9 and 94.6 instead of 91.3; 16 are slower (H200).
QUICKER = range(33, ROWS + 1)
COLUMNS = 128  # rows of the matrix in a tile
_DEEP = 64
_THREADS = 192
_FEWEST_STAGES = 4  # of the matrix: a microsecond of what a multiprocessor reads
_FEWEST_TILES = 4  # of a program, so that its beginning and its last tile do not count


class _Arguments(ctypes.Structure):
    """`Args` of cuda/head_linear.cu, whose maps make it a multiple of 64 bytes."""

    _fields_ = (
        *((name, TensorMap) for name in ("x", "w")),
        *((name, ctypes.c_void_p) for name in ("out", "best", "index")),
        *((name, ctypes.c_int64) for name in ("rows", "n", *(f"unused_{i}" for i in range(3)))),
    )


def defines(k: int) -> dict[str, int]:
    """Macros of cuda/head_linear.cu, of a matrix with k columns; STAGES are too few if k is too large."""
    depth, x, w = -(-k // _DEEP), ROWS * _DEEP * 2 + 8, COLUMNS * _DEEP * 2 + 16
    stages = max(0, (nvrtc.MOST_SHARED - 1024 - depth * x) // w)
    return {
        "COLUMNS": COLUMNS,
        "DEPTH": depth,
        "STAGES": stages,
        "SHARED_BYTES": 1024 + depth * x + stages * w,
    }


class HeadLinear(HopperLinear):
    """Products with matrices of k columns on one device."""

    def __init__(
        self, device: torch.device, k: int, *, build: Build | None = None, programs: int | None = None
    ) -> None:
        """
        build, programs  how the kernel and maps of matrices are made, and how many programs it has, where there is no GPU

        Raises ValueError if k is too large for it.
        """
        macros = defines(k)
        if macros["STAGES"] < _FEWEST_STAGES:
            raise ValueError(f"HeadLinear: {ROWS} rows of {k} numbers leave too little room for the matrix")
        self.k = k
        super().__init__(device, "head_linear", macros, programs or processors(device), _THREADS, build)

    def __call__(self, x: Tensor, w: Tensor, *, early: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """x [rows, k] times w [n, k] -> bfloat16 [rows, n], the maxima float32 [rows] of its rows, their first indices int64 [rows].

        A maximum is inf where the row has NaN. Sums run in float32.

        early  it may begin while the launch before it ends, for which it waits before it reads x

        Raises ValueError if shapes do not fit.
        """
        (rows, k), n = x.shape, len(w)
        if (k, *w.shape[1:]) != (self.k, self.k) or rows > ROWS or x.stride(1) != 1 or w.stride(1) != 1:
            raise ValueError(
                f"HeadLinear: x {tuple(x.shape)} and w {tuple(w.shape)} do not fit {self.k} columns"
            )
        for dtype in (x.dtype, w.dtype):
            if (reason := why_not(n, k, dtype)) is not None:
                raise ValueError(f"HeadLinear: {reason}")
        out = torch.empty(rows, n, dtype=x.dtype, device=x.device)
        best = torch.empty(rows, self.programs, dtype=torch.float32, device=x.device)
        index = torch.empty(rows, self.programs, dtype=torch.int32, device=x.device)
        if rows:
            launch, maps = self.loaded()
            tiles = maps(x, ROWS, _DEEP), maps(w, COLUMNS, _DEEP)
            pointers = (t.data_ptr() for t in (out, best, index))
            launch(_Arguments(*tiles, *pointers, rows, n), early)
        return out, *join_parts(best, index)


@lru_cache(maxsize=16)
def _linear(device: torch.device, k: int) -> HeadLinear | None:
    """None where nobody can compile it."""
    return None if nvrtc.why_not(device) is not None else HeadLinear(device, k)


def head_of(w: Tensor) -> HeadLinear | None:
    """What multiplies by w [n, k], being compiled; None if nothing does, or all of it is too little to be worth it."""
    n, k = w.shape
    if why_not(n, k, w.dtype) is not None or not takes(w) or defines(k)["STAGES"] < _FEWEST_STAGES:
        return None
    if n < _FEWEST_TILES * COLUMNS * processors(w.device):
        return None
    return _linear(w.device, k)
