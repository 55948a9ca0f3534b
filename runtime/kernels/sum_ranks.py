"""Sums over the ranks of a tensor-parallel layer, with the residual addition and RMS norm that follow, in one launch.

Each rank writes its rows straight into the memory of the others, and adds what has arrived in its own in the order of ranks,
so that all have the same sum. No flags: memory that waits holds a value that no row has (-0.0), and a program reads until it is
gone. Three turns of buffers follow each other; a launch clears the one before its own, which nobody writes until the launch
after next. The idea is that of the one-shot Lamport all-reduce of TensorRT-LLM.

A rank that does not answer makes the rows NaN after a bounded number of looks, and every launch after it at once: requests
fail, nothing hangs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels.norm import normed, rms_norm_reference
from runtime.kernels.tuning import early_starts

TURNS = 3
_EMPTY = -0x80000000  # int32 bits of float32 -0.0
_EMPTY_PAIR = -0x7FFF8000  # of two 16-bit -0.0


@dataclass(frozen=True)
class Mailboxes:
    """What a rank holds for sums of up to `rows` rows of `words` 32-bit words each.

    boxes   int64 [ranks]: where each rank's box lies, as seen from here; a box is int32 [TURNS, ranks, rows, words]
    state   int32 [4 + TURNS]: the turn, programs that have arrived, a rank is lost, (spare), rows that each turn's box last took
    looks   how often a program looks before it gives a rank up
    """

    rank: int
    boxes: Tensor
    state: Tensor
    rows: int
    words: int
    looks: int = 1 << 26

    @property
    def size(self) -> int:
        return len(self.boxes)

    def fits(self, x: Tensor) -> bool:
        """Whether rows like x's [rows, width] can go through the boxes."""
        return len(x) <= self.rows and x.shape[1] * x.element_size() == 4 * self.words


def empty_word(dtype: torch.dtype) -> int:
    """The 32 bits of a box's memory in which nothing has arrived."""
    return _EMPTY if dtype.itemsize == 4 else _EMPTY_PAIR


def sum_ranks_reference(
    parts: list[Tensor], residual: Tensor, weight: Tensor, eps: float, offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The new residual, and its norm: parts [rows, width] of each rank; the sum in float64."""
    total = residual.double()
    for part in parts:
        total = total + part.double()
    total = total.to(residual.dtype)
    return total, rms_norm_reference(total, weight, eps, offset)


@triton.jit
def _low(words, dtype: tl.constexpr):
    """The first number of each word, float32."""
    if dtype.primitive_bitwidth == 32:
        return words.to(tl.float32, bitcast=True)
    else:
        return (words & 0xFFFF).to(tl.int16).to(dtype, bitcast=True).to(tl.float32)


@triton.jit
def _high(words, dtype: tl.constexpr):
    """The second of two 16-bit numbers, float32."""
    return ((words >> 16) & 0xFFFF).to(tl.int16).to(dtype, bitcast=True).to(tl.float32)


@triton.jit
def _word(low, high, dtype: tl.constexpr):
    if dtype.primitive_bitwidth == 32:
        return low.to(tl.int32, bitcast=True)
    else:
        first = low.to(dtype).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
        second = high.to(dtype).to(tl.int16, bitcast=True).to(tl.int32) << 16
        return first | second


@triton.jit
def box_of(boxes, rank):
    """Where a rank's box lies."""
    return tl.load(boxes + rank).to(tl.pointer_type(tl.int32))


@triton.jit
def end_turn(state, turn, rows):
    """This program has taken its rows of a turn; the last one begins the next."""
    tl.debug_barrier()
    if tl.atomic_add(state + 1, 1, sem="acq_rel") == tl.num_programs(0) - 1:
        tl.store(state + 1, 0)
        tl.store(state + 4 + turn, rows)
        tl.store(state, (turn + 1) % 3)


@triton.jit(do_not_specialize=["rank", "rows", "looks"])
def _sum_ranks(
    x,
    bias,
    residual,
    weight,
    out,
    boxes,
    state,
    eps,
    offset,
    rank,
    rows,
    looks,
    WORDS: tl.constexpr,
    BOX: tl.constexpr,
    SIZE: tl.constexpr,
    DTYPE: tl.constexpr,
    EMPTY: tl.constexpr,
    OFFSET: tl.constexpr,
    BLOCK: tl.constexpr,
    SEND: tl.constexpr,
    TAKE: tl.constexpr,
    EARLY: tl.constexpr,
):
    PAIRED: tl.constexpr = DTYPE.primitive_bitwidth == 16
    WIDTH: tl.constexpr = WORDS * 2 if PAIRED else WORDS
    row = tl.program_id(0)  # boxes are some megabytes: no offset in them passes 2**31
    col = tl.arange(0, BLOCK)
    live = col < WORDS
    scale = tl.load(weight + col, mask=live, other=0)
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    turn = tl.load(state, volatile=True)
    own = tl.load(x + row * WORDS + col, mask=live, other=0)
    own = tl.where(own == EMPTY, 0, own)
    place = row * WORDS + col
    if SEND:
        for i in tl.static_range(1, SIZE):
            other = (rank + i) % SIZE
            tl.store(box_of(boxes, other) + (turn * SIZE + rank) * BOX + place, own, mask=live)
    if TAKE:
        mine = box_of(boxes, rank)
        before = (turn + 2) % 3
        used = tl.load(state + 4 + before, volatile=True)
        for old in range(row, used, tl.num_programs(0)):
            for i in tl.static_range(1, SIZE):
                stale = (before * SIZE + (rank + i) % SIZE) * BOX + old * WORDS + col
                tl.store(mine + stale, tl.full((BLOCK,), EMPTY, tl.int32), mask=live)
        held = tl.load(residual + place, mask=live, other=0)
        low = tl.zeros((BLOCK,), tl.float32)
        high = tl.zeros((BLOCK,), tl.float32)
        left = tl.where(tl.load(state + 2, volatile=True) == 0, looks, 0)
        for i in tl.static_range(SIZE):
            part = own
            if i != rank:
                at = mine + (turn * SIZE + i) * BOX + place
                part = tl.load(at, mask=live, other=0, volatile=True)
                missing = tl.max((part == EMPTY).to(tl.int32), 0)
                while (missing != 0) & (left > 0):
                    part = tl.load(at, mask=live, other=0, volatile=True)
                    missing = tl.max((part == EMPTY).to(tl.int32), 0)
                    left -= 1
                if missing != 0:
                    tl.store(state + 2, 1)
                    part = tl.full((BLOCK,), -1, tl.int32)  # NaN
            low += _low(part, DTYPE)
            if PAIRED:
                high += _high(part, DTYPE)
        if bias is not None:
            more = tl.load(bias + col, mask=live, other=0)
            low += _low(more, DTYPE)
            if PAIRED:
                high += _high(more, DTYPE)
        low += _low(held, DTYPE)
        if PAIRED:
            high += _high(held, DTYPE)
        total = _word(low, high, DTYPE)
        tl.store(residual + place, total, mask=live)
        low = _low(total, DTYPE)
        squares = tl.where(live, low * low, 0.0)
        if PAIRED:
            high = _high(total, DTYPE)
            squares += tl.where(live, high * high, 0.0)
        factor = tl.rsqrt(tl.sum(squares, 0) / WIDTH + eps)
        first = normed(low, _low(scale, DTYPE), factor, offset, DTYPE, OFFSET)
        second = first
        if PAIRED:
            second = normed(high, _high(scale, DTYPE), factor, offset, DTYPE, OFFSET)
        tl.store(out + place, _word(first, second, DTYPE), mask=live)
        end_turn(state, turn, rows)


def sum_ranks(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    offset: float = 0.0,
    *,
    mail: Mailboxes,
    bias: Tensor | None = None,
    send: bool = True,
    take: bool = True,
) -> Tensor:
    """Add the x of all ranks (and `bias`) to `residual` in place and return the norm of the sum.

    x         [rows, width], this rank's part; residual [rows, width], the same on every rank
    weight    [width], of the norm
    mail      of this rank; every rank makes the same launches in the same order
    send, take  halves of the exchange; tests without a second device launch them apart

    Returns [rows, width] in x's dtype, equal on every rank; sums run in float32, and are rounded once.
    """
    rows, width = x.shape
    for name, value, shape in (
        ("residual", residual, x.shape),
        ("weight", weight, (width,)),
        ("bias", bias, (width,)),
    ):
        if value is not None and (value.shape != shape or value.dtype != x.dtype):
            raise ValueError(
                f"sum_ranks: {name} {tuple(value.shape)} {value.dtype} does not fit x {tuple(x.shape)} {x.dtype}"
            )
    if not mail.fits(x) or not (x.is_contiguous() and residual.is_contiguous()):
        raise ValueError(
            f"sum_ranks: x {tuple(x.shape)} {x.dtype} must be contiguous and fit boxes of {mail.rows} rows of {mail.words} words"
        )
    out = torch.empty_like(x)
    if not rows:
        return out
    block = triton.next_power_of_2(mail.words)
    early = early_starts(x.device, rows)
    _sum_ranks[(rows,)](
        x.view(torch.int32),
        None if bias is None else bias.view(torch.int32),
        residual.view(torch.int32),
        weight.view(torch.int32),
        out.view(torch.int32),
        mail.boxes,
        mail.state,
        eps,
        offset,
        mail.rank,
        rows,
        mail.looks,
        WORDS=mail.words,
        BOX=mail.rows * mail.words,
        SIZE=mail.size,
        DTYPE={torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[x.dtype],
        EMPTY=empty_word(x.dtype),
        OFFSET=offset != 0.0,
        BLOCK=block,
        SEND=send,
        TAKE=take,
        EARLY=early,
        num_warps=min(16, max(1, block // 256)),
        **({"launch_pdl": True} if early else {}),
    )
    return out
