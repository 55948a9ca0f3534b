"""Linear layers of many rows on Hopper, where the tensor units are all the time there is (cuda/wgmma_linear.cu).

The gate of a feed-forward layer is taken along: neither factor goes through memory.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from runtime.kernels import nvrtc
from runtime.kernels.activation import ACTIVATIONS
from runtime.kernels.hopper_linear import Build, HopperLinear, why_not
from runtime.kernels.tensor_map import TensorMap, takes
from runtime.kernels.tuning import early_starts, processors

_ROWS = 128  # of a tile
_DEEP = 64
_PAIR = 2
_THREADS = 384
_EARLY_ROWS = 512  # more rows take so long that their beginning does not count


@dataclass(frozen=True)
class PairTiles:
    """What two multiprocessors take at a time: 128 rows each, by `columns` rows of the matrix.

    across  they are neighbours across the matrix and share x; else they are neighbours along x and share the matrix
    """

    columns: int = 256
    across: bool = False

    def rounds(self, rows: int, n: int, gated: bool, programs: int) -> int:
        """How long a product takes, in columns that a multiprocessor passes one after another."""
        wide = self.columns // 2 if gated else self.columns
        high, wide = (_ROWS, _PAIR * wide) if self.across else (_PAIR * _ROWS, wide)
        pairs = -(-rows // high) * -(-n // wide)
        return -(-pairs // (programs // _PAIR)) * self.columns


TILES = tuple(PairTiles(columns, across) for columns in (256, 224, 160) for across in (False, True))


class _Arguments(ctypes.Structure):
    """`Args` of cuda/wgmma_linear.cu, whose maps make it a multiple of 64 bytes."""

    _fields_ = (
        *((name, TensorMap) for name in ("x", "w", "out")),
        *((name, ctypes.c_int64) for name in ("rows", "n", "k", *(f"unused_{i}" for i in range(5)))),
    )


def _box(tiles: PairTiles, gated: bool) -> int:
    """Columns of results that are stored together."""
    return 16 if tiles.columns // (2 if gated else 1) % 64 else 64


def defines(tiles: PairTiles, gated: str | None) -> dict[str, int]:
    """Macros of cuda/wgmma_linear.cu."""
    stage = (_ROWS + tiles.columns) * _DEEP * 2 + 16
    results = _ROWS * (tiles.columns // 2 if gated else tiles.columns) * 2 + 1024
    stages = (nvrtc.MOST_SHARED - results) // stage
    return {
        "GATE": -1 if gated is None else ACTIVATIONS.index(gated),
        "COLUMNS": tiles.columns,
        "ACROSS": int(tiles.across),
        "STAGES": stages,
        "SHARED_BYTES": stages * stage + results,
    }


class WgmmaLinear(HopperLinear):
    """Products of one form on one device."""

    def __init__(
        self,
        device: torch.device,
        tiles: PairTiles = TILES[0],
        gated: str | None = None,
        *,
        build: Build | None = None,
        programs: int | None = None,
    ) -> None:
        """
        gated            one of ACTIVATIONS: the result is act(gate) * up of a matrix [gate | up]
        build, programs  how the kernel and maps of matrices are made, and how many programs it has, where there is no GPU
        """
        self.gated = gated
        own = _ROWS // 2 if tiles.across else _ROWS
        self._boxes = (own, _DEEP), (tiles.columns // 2, _DEEP), (64, _box(tiles, gated is not None))
        programs = (programs or processors(device)) // _PAIR * _PAIR
        super().__init__(device, "wgmma_linear", defines(tiles, gated), programs, _THREADS, build)

    def __call__(self, x: Tensor, w: Tensor, *, early: bool = False) -> Tensor:
        """x [rows, k] times w [n, k], or [2 n, k] if gated: [rows, n] in bfloat16, sums run in float32.

        early  it may begin while the launch before it ends, for which it waits before it reads anything

        Raises ValueError if shapes do not fit.
        """
        rows, k = x.shape
        n = w.shape[0] // 2 if self.gated else w.shape[0]
        if w.shape[1:] != (k,) or x.stride(1) != 1 or w.stride(1) != 1:
            raise ValueError(f"WgmmaLinear: x {tuple(x.shape)} does not fit w {tuple(w.shape)}")
        for dtype in (x.dtype, w.dtype):
            if (reason := why_not(n, k, dtype)) is not None:
                raise ValueError(f"WgmmaLinear: {reason}")
        out = torch.empty(rows, n, dtype=x.dtype, device=x.device)
        if rows:
            launch, maps = self.loaded()
            tiles = (maps(t, *box) for t, box in zip((x, w, out), self._boxes, strict=True))
            launch(_Arguments(*tiles, rows, n, k), early)
        return out


def best_tiles(rows: int, n: int, gated: bool, programs: int) -> PairTiles:
    """Those of TILES that fill so many multiprocessors best; n: columns of the result."""
    return min(TILES, key=lambda tiles: tiles.rounds(rows, n, gated, programs))


@lru_cache(maxsize=16)
def _linears(device: torch.device, gated: str) -> dict[PairTiles, WgmmaLinear] | None:
    """Of all tiles; None where nobody can compile them."""
    if nvrtc.why_not(device) is not None:
        return None
    return {tiles: WgmmaLinear(device, tiles, gated) for tiles in TILES}


def prepare(device: torch.device, gated: str) -> None:
    """Have the kernels of `gated_linear` compiled, by threads, where they can be."""
    _linears(device, gated)


def runs(x: Tensor, w: Tensor, gated: str) -> bool:
    """Whether `gated_linear` multiplies these, there."""
    known = why_not(w.shape[0] // 2, w.shape[1], x.dtype) is None and takes(x) and takes(w)
    return known and _linears(x.device, gated) is not None


def gated_linear(x: Tensor, w: Tensor, gated: str) -> Tensor:
    """act(gate) * up of x [rows, k] and w [2 n, k] = [gate | up], by the tiles that fill the device best; [rows, n].

    Raises ValueError if shapes do not fit, and where there is no Hopper or no compiler.
    """
    linears = _linears(x.device, gated)
    if linears is None:
        raise ValueError(f"gated_linear: {nvrtc.why_not(x.device)}")
    rows = len(x)
    tiles = best_tiles(rows, w.shape[0] // 2, True, processors(x.device))
    return linears[tiles](x, w, early=early_starts(x.device, rows, _EARLY_ROWS))
