"""How work is cut for a device: block sizes, warps, pipeline stages and splits of each kernel.

Tables are by device name and shape class, filled from benchmarks/gpu/kernels.py; a device that is not in them gets
the row of "". Nothing here changes results beyond the order of sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Literal

import torch

FreshPath = Literal["pages", "rows", "cudnn", "flash"]


@dataclass(frozen=True)
class DecodeTiles:
    """`shortest`: tokens that a split holds at least; `packed`: rotation and storing in the same launch are worth it."""

    block_n: int
    warps: int
    stages: int
    splits: int
    shortest: int = 128
    packed: bool = True


@dataclass(frozen=True)
class LatentTiles:
    """MLA decode: `block_h` heads share what a program reads."""

    block_h: int
    block_n: int
    warps: int
    stages: int
    splits: int


@dataclass(frozen=True)
class PrefillTiles:
    block_m: int
    block_n: int
    warps: int
    stages: int


@dataclass(frozen=True)
class LinearTiles:
    """`gemv`: one row, `stages` is how far its loop is unrolled; `tiled`: any; `cluster`: `block_n` columns, `splits` programs of a
    cluster; `library`: torch, `wgmma`: many rows with a gate, both without sizes."""

    kind: Literal["gemv", "tiled", "cluster", "library", "wgmma"]
    block_m: int = 16
    block_n: int = 64
    block_k: int = 128
    warps: int = 4
    stages: int = 4
    splits: int = 1


@lru_cache(maxsize=16)
def device_name(index: int) -> str:
    return torch.cuda.get_device_name(index)


@lru_cache(maxsize=16)
def processors(device: torch.device) -> int:
    """Multiprocessors of a device; 4 where there is no GPU, so that tests split too."""
    if device.type != "cuda":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count


def _name(device: torch.device) -> str:
    return device_name(device.index or 0) if device.type == "cuda" else "cpu"


# Devices on which a kernel may start while the one before it ends (programmatic dependent launch, Hopper and later).
EARLY_STARTS = frozenset({"NVIDIA H200", "NVIDIA H100 80GB HBM3"})
EARLY_WEIGHTS = (
    12 << 20
)  # of a matrix times one row: larger ones run long enough, and waiting costs their loop registers
# Rows of steps whose attention is quicker in CUDA C++ (kernels/paged_decode.py), where a position has at least so many bytes; of 512
# none were timed. 33 to 64 rows of equal contexts took 0.7 % longer by it (8B; before contexts were cut alike), of different ones 2 %
# less. Of 256 bytes 128 rows took 3.4 % of a step less, 256 rows 1.6 % more.
_PACKED = ((1024, (range(1, 33), range(65, 257))), (512, ()), (0, (range(17, 161),)))
EARLY_ROWS = 256  # more rows fill the device, and what waits takes room from what works


def early_starts(device: torch.device, rows: int, most: int | None = None) -> bool:
    """Whether kernels over so many rows (`most`, else EARLY_ROWS, at most) are launched so that they start early; each waits before it
    touches what others write."""
    return rows <= (EARLY_ROWS if most is None else most) and _name(device) in EARLY_STARTS


def packed_rows(position_bytes: int) -> tuple[range, ...]:
    """Numbers of single tokens whose attention is quicker in CUDA C++, of positions of so many bytes (of heads that lie together)."""
    return next(rows for least, rows in _PACKED if position_bytes >= least)


_WHOLE_STEPS = _WGMMA = EARLY_STARTS
WGMMA_ROWS = 65  # from so many on, gate and up are quicker by the own kernel (kernels/wgmma_linear.py)
_HALF_EMPTY = range(129, 193)  # but not where its second tile of rows would be
# (block_n, warps, stages, programs per multiprocessor) by head size of at most so many bytes
_DECODE = MappingProxyType(
    {
        "": ((128, (128, 4, 3, 2)), (256, (64, 4, 4, 4)), (512, (32, 4, 3, 3)), (1 << 30, (16, 4, 2, 2))),
        "cpu": ((1 << 30, (16, 4, 1, 1)),),
    }
)
_MOST_SPLITS = 32  # more take longer to join than they save: 8,192 tokens took 25 us in 16 or 32, 33 us in 64
# (block_m, block_n, warps, stages) by head size of at most so many bytes; float32 has no matrix units to feed
_PREFILL = MappingProxyType(
    {
        "": (
            (128, (128, 64, 8, 3)),
            (256, (128, 128, 8, 3)),
            (512, (64, 64, 8, 2)),
            (1 << 30, (32, 32, 4, 1)),
        ),
        "float32": ((256, (32, 32, 4, 1)), (1 << 30, (16, 16, 4, 1))),
        "cpu": ((1 << 30, (16, 16, 4, 1)),),
    }
)


def decode_tiles(
    device: torch.device, requests: int, kv_heads: int, dim: int, dtype: torch.dtype
) -> DecodeTiles:
    """Tiles and the number of splits that fills the device with so many requests."""
    table = _DECODE.get(_name(device)) or _DECODE[""]
    size = triton_width(dim) * max(2, dtype.itemsize)
    block_n, warps, stages, per = next(row for most, row in table if size <= most)
    programs = processors(device) * per
    splits = min(_MOST_SPLITS, max(1, programs // max(1, requests * kv_heads)))
    # Registers of the rotation cost large heads more than the launch that they save: 178 us instead of 167 a layer of 32
    # rows of 128, but 41 instead of 44 of 64.
    packed = requests == 1 or size <= 128
    return DecodeTiles(block_n, warps, stages, 1 << (splits.bit_length() - 1), packed=packed)


def latent_tiles(device: torch.device, requests: int, heads: int, dtype: torch.dtype) -> LatentTiles:
    """Tiles of MLA decode for latents of 512: the accumulators of 16 heads fill 4 warps, of 64 heads 8."""
    block_h = min(64, triton_width(heads)) if dtype.itemsize == 2 else 16
    block_n, stages = (32, 2) if dtype.itemsize == 2 else (16, 1)
    groups = -(-heads // block_h)
    splits = min(_MOST_SPLITS, max(1, 2 * processors(device) // max(1, requests * groups)))
    return LatentTiles(block_h, block_n, 4 if block_h == 16 else 8, stages, 1 << (splits.bit_length() - 1))


def prefill_tiles(device: torch.device, dim: int, dtype: torch.dtype) -> PrefillTiles:
    name = _name(device)
    table = _PREFILL.get("float32" if dtype == torch.float32 and name != "cpu" else name) or _PREFILL[""]
    size = triton_width(dim) * max(2, dtype.itemsize)
    return PrefillTiles(*next(row for most, row in table if size <= most))


# prompts of at least so many tokens, without window or softcap: who attends their rows; shorter ones: the first
_FRESH: Mapping[str, tuple[tuple[int, FreshPath], ...]] = MappingProxyType(
    {
        "": ((0, "pages"),),
        "NVIDIA H200": ((0, "pages"), (256, "rows"), (1024, "cudnn")),
        "NVIDIA H100 80GB HBM3": ((0, "pages"), (256, "rows"), (1024, "cudnn")),
    }
)


_PLANNED = 1024  # a library builds a plan for every new length, so only lengths that come again are worth one


def fresh_path(
    device: torch.device, dim: int, dtype: torch.dtype, tokens: Sequence[int], plain: bool
) -> FreshPath:
    """How prompts of `tokens` that nothing precedes are attended: from the pages, from the batch's rows, or by torch."""
    rows = _FRESH.get(_name(device)) or _FRESH[""]
    path = next(path for least, path in reversed(rows) if min(tokens) >= least)
    if path in ("cudnn", "flash"):
        again = all(n % _PLANNED == 0 for n in tokens)
        if not (plain and again and dtype.itemsize == 2 and dim == 128):
            return "rows"
    return path


@lru_cache(maxsize=256)
def _measured(name: str, n: int, k: int, gated: bool) -> tuple[tuple[int, LinearTiles], ...]:
    from runtime.kernels.tuned import HOPPER, LINEAR  # a table of this module's classes

    return LINEAR.get((n, k, gated), ()) if name in HOPPER else ()


def linear_tiles(
    device: torch.device, rows: int, n: int, k: int, dtype: torch.dtype, gated: bool
) -> LinearTiles:
    """How to multiply `rows` rows by a matrix [n, k] (twice n if gated)."""
    if gated and rows >= WGMMA_ROWS and dtype == torch.bfloat16 and _name(device) in _WGMMA:
        return LinearTiles("library" if rows in _HALF_EMPTY else "wgmma")
    if dtype.itemsize == 2 and (measured := _measured(_name(device), n, k, gated)):
        return next((tiles for most, tiles in measured if rows <= most), LinearTiles("library"))
    return usual_tiles(device, rows, n, k, dtype, gated)


def cluster_tiles(device: torch.device, n: int, k: int, gated: bool) -> tuple[LinearTiles, ...]:
    """Those of kind `cluster` with which a matrix is multiplied, by whatever number of rows."""
    return tuple(t for _, t in _measured(_name(device), n, k, gated) if t.kind == "cluster")


def usual_tiles(
    device: torch.device, rows: int, n: int, k: int, dtype: torch.dtype, gated: bool
) -> LinearTiles:
    """The same for a shape that nobody has measured."""
    if rows == 1:
        block_k = min(1024, k & -k) if k & -k >= 128 else min(1024, triton_width(k))
        block_n = max(1, 4096 // block_k // (2 if gated else 1))
        return LinearTiles("gemv", 1, min(block_n, 16), block_k, 4, 1)
    if rows > 64 or dtype == torch.float32:
        return LinearTiles("library")
    block_k = 64 if gated else 128
    splits = min(k // (4 * block_k), 2 * processors(device) // max(1, n // 64))
    return LinearTiles("tiled", triton_width(rows), 64, block_k, 4, 4, max(1, splits))


def step_rows(device: torch.device) -> int:
    """Up to how many rows a step is quickest in one launch (kernels/whole_step.py; benchmarks/gpu/whole_step.py); 0: at none."""
    return 16 if _name(device) in _WHOLE_STEPS else 0


def triton_width(size: int) -> int:
    """The power of two that holds `size`, 16 at least."""
    return max(16, 1 << (size - 1).bit_length())
