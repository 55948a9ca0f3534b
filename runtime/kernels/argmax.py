"""The likeliest token of each row, in two short launches: parts of a row first, then the parts' best."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels.tuning import early_starts

_PART = 2048  # columns of one program; four times as many took 5 us more for 256 rows of 151,936


def argmax_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    """float32 maximum and its first index of each row; a row with NaN has the maximum inf."""
    wide = torch.nan_to_num(x.double(), nan=float("inf"), posinf=float("inf"), neginf=float("-inf"))
    best = wide.amax(dim=-1)
    return best.float(), (wide == best[:, None]).int().argmax(dim=-1)


@triton.jit
def _parts(x, best, index, columns, stride, parts, PART: tl.constexpr, EARLY: tl.constexpr):
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    part = parts - 1 - tl.program_id(1)  # what was written last may still be in the last cache
    at = part * PART + tl.arange(0, PART)
    value = tl.load(x + row * stride + at, mask=at < columns, other=float("-inf")).to(tl.float32)
    value = tl.where(value != value, float("inf"), value)
    top = tl.max(value, axis=0)
    tl.store(best + row * parts + part, top)
    tl.store(index + row * parts + part, tl.min(tl.where(value == top, at, 2147483647), axis=0))


@triton.jit
def _join(best, index, high, token, parts, PARTS: tl.constexpr, EARLY: tl.constexpr):
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, PARTS)
    value = tl.load(best + row * parts + at, mask=at < parts, other=float("-inf"))
    where = tl.load(index + row * parts + at, mask=at < parts, other=2147483647)
    top = tl.max(value, axis=0)
    tl.store(high + row, top)
    tl.store(token + row, tl.min(tl.where(value == top, where, 2147483647), axis=0).to(tl.int64))


def argmax(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [rows, columns] -> its maxima float32 [rows] and their first indices int64 [rows].

    A NaN counts as inf, so a row whose maximum is not finite tells of either.
    """
    if x.dim() != 2 or x.stride(1) != 1 or x.shape[1] == 0:
        raise ValueError(
            f"argmax: needs rows of adjacent columns, got {tuple(x.shape)} with strides {x.stride()}"
        )
    rows, columns = x.shape
    parts = triton.cdiv(columns, _PART)
    best = torch.empty(rows, parts, dtype=torch.float32, device=x.device)
    index = torch.empty(rows, parts, dtype=torch.int32, device=x.device)
    if rows:
        _parts[(rows, parts)](
            x, best, index, columns, x.stride(0), parts, PART=_PART, num_warps=4, **_how(x.device, rows)
        )
    return join_parts(best, index)


def join_parts(best: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Maxima float32 [rows, parts] and where they are, int32 -> float32 [rows] the largest, int64 [rows] the first place that has it."""
    rows, parts = best.shape
    high = torch.empty(rows, dtype=torch.float32, device=best.device)
    token = torch.empty(rows, dtype=torch.int64, device=best.device)
    if rows:
        size = triton.next_power_of_2(parts)
        _join[(rows,)](best, index, high, token, parts, PARTS=size, num_warps=1, **_how(best.device, rows))
    return high, token


def _how(device: torch.device, rows: int) -> dict[str, bool]:
    early = early_starts(device, rows)
    return {"EARLY": early, **({"launch_pdl": True} if early else {})}
