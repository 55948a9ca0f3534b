"""What surrounds the model in a captured decode step: rows to its inputs before it, tokens to the next step's rows behind it.

A step's rows are `control`, int64 [4, size]: the seat, the position (-1: nothing to compute), the steps that are left, this one
included (0: nobody asks for the row's token), and the id that stands there (-1: the seat's newest). The end of a step writes
the next one's rows there, so a turn of several steps is so many replays.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels.tuning import early_starts

_BLOCK = 128  # rows of a program, whatever their number: each other block would be another kernel to compile


@dataclass(frozen=True)
class StepInputs:
    """Of each row: id int64, position int64 (0 where there is none), slot int64 (-1: none), seat and length int32."""

    ids: Tensor
    positions: Tensor
    slots: Tensor
    seats: Tensor
    lengths: Tensor


def begin_reference(control: Tensor, table: Tensor, newest: Tensor, page_size: int) -> StepInputs:
    seats, positions, _, given = control
    at = positions.clamp(min=0)
    slots = table[seats, at // page_size].long() * page_size + at % page_size
    ids = torch.where(given >= 0, given, newest[seats])
    return StepInputs(ids, at, torch.where(positions >= 0, slots, -1), seats.int(), (positions + 1).int())


@triton.jit(do_not_specialize=["size"])
def _begin(
    control,
    table,
    newest,
    ids,
    places,
    slots,
    seats,
    lengths,
    size,
    width,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = at < size
    seat = tl.load(control + at, mask=live, other=0)
    position = tl.load(control + size + at, mask=live, other=-1)
    place = tl.maximum(position, 0)
    page = tl.load(table + seat * width + place // PAGE, mask=live, other=0).to(tl.int64)
    given = tl.load(control + 3 * size + at, mask=live, other=-1)
    tl.store(ids + at, tl.where(given >= 0, given, tl.load(newest + seat, mask=live, other=0)), mask=live)
    tl.store(places + at, place, mask=live)
    tl.store(slots + at, tl.where(position >= 0, page * PAGE + place % PAGE, -1), mask=live)
    tl.store(seats + at, seat.to(tl.int32), mask=live)
    tl.store(lengths + at, (position + 1).to(tl.int32), mask=live)


@triton.jit(do_not_specialize=["size"])
def _end(control, tokens, best, newest, marked, size, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = at < size
    token = tl.load(tokens + at, mask=live, other=0)
    high = tl.load(best + at, mask=live, other=0.0)
    seat = tl.load(control + at, mask=live, other=0)
    position = tl.load(control + size + at, mask=live, other=-1)
    left = tl.load(control + 2 * size + at, mask=live, other=0) - 1
    finite = (high == high) & (tl.abs(high) != float("inf"))
    tl.store(newest + seat, token, mask=live & (left >= 0))
    tl.store(marked + at, tl.where(finite, token, -1), mask=live)
    tl.store(control + size + at, tl.where((position >= 0) & (left > 0), position + 1, -1), mask=live)
    tl.store(control + 2 * size + at, left, mask=live)


def begin_step(control: Tensor, table: Tensor, newest: Tensor, page_size: int) -> StepInputs:
    """control int64 [4, size], table int32 [seats, width], newest int64 [seats] -> what the model takes."""
    size = _check(control)
    device = control.device
    apart = (
        triton.cdiv(size, 4) * 4
    )  # rows that begin at 16 bytes, so that no kernel has a variant for others
    wide = torch.empty(3, apart, dtype=torch.int64, device=device)[:, :size]
    short = torch.empty(2, apart, dtype=torch.int32, device=device)[:, :size]
    found = StepInputs(*wide, *short)
    _begin[(triton.cdiv(size, _BLOCK),)](
        control,
        table,
        newest,
        found.ids,
        found.positions,
        found.slots,
        found.seats,
        found.lengths,
        size,
        table.stride(0),
        PAGE=page_size,
        BLOCK=_BLOCK,
        num_warps=_BLOCK // 32,
    )
    return found


def end_step(control: Tensor, tokens: Tensor, best: Tensor, newest: Tensor) -> Tensor:
    """Make each row's token its seat's newest if the row has steps left, move `control` on.

    Returns int64 [size], the tokens, -1 where `best` is not finite.
    """
    size = _check(control)
    marked = torch.empty(size, dtype=torch.int64, device=control.device)
    early = early_starts(control.device, size)
    _end[(triton.cdiv(size, _BLOCK),)](
        control,
        tokens,
        best,
        newest,
        marked,
        size,
        BLOCK=_BLOCK,
        EARLY=early,
        num_warps=_BLOCK // 32,
        **({"launch_pdl": True} if early else {}),
    )
    return marked


def _check(control: Tensor) -> int:
    if (
        control.dim() != 2
        or control.shape[0] != 4
        or control.dtype != torch.int64
        or not control.is_contiguous()
    ):
        raise ValueError(f"a step's rows are int64 [4, size], got {control.dtype} {tuple(control.shape)}")
    return control.shape[1]
