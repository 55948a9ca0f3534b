"""The likeliest token of each row, of ranks that each have some of the vocabulary: what `argmax` found goes from each to all.

Mailboxes and how they are waited for are those of kernels/sum_ranks.py, with a row's maximum and token as two words.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels.sum_ranks import Mailboxes, box_of, end_turn
from runtime.kernels.tuning import early_starts

WORDS = 2
_BLOCK = 64  # rows of a program
_EMPTY = tl.constexpr(-0x80000000)


def argmax_ranks_reference(
    best: list[Tensor], tokens: list[Tensor], firsts: list[int]
) -> tuple[Tensor, Tensor]:
    """Of each rank's maxima [rows] and tokens [rows], counted from its first: the highest, and the lowest of its tokens."""
    values = torch.stack(best)
    places = torch.stack([t + first for t, first in zip(tokens, firsts, strict=True)])
    top = values.amax(0)
    return top, torch.where(values == top, places, torch.iinfo(torch.int64).max).amin(0)


@triton.jit(do_not_specialize=["first", "rank", "rows", "looks"])
def _argmax_ranks(
    best,
    tokens,
    high_out,
    token_out,
    boxes,
    state,
    first,
    rank,
    rows,
    looks,
    BOX: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    SEND: tl.constexpr,
    TAKE: tl.constexpr,
    EARLY: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = row < rows
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    turn = tl.load(state, volatile=True)
    high = tl.load(best + row, mask=live, other=0.0)
    bits = high.to(tl.int32, bitcast=True)
    bits = tl.where(bits == _EMPTY, 0, bits)
    token = tl.load(tokens + row, mask=live, other=0).to(tl.int32) + first
    if SEND:
        for i in tl.static_range(1, SIZE):
            to = box_of(boxes, (rank + i) % SIZE) + (turn * SIZE + rank) * BOX + row * 2
            tl.store(to, bits, mask=live)
            tl.store(to + 1, token, mask=live)
    if TAKE:
        mine = box_of(boxes, rank)
        before = (turn + 2) % 3
        used = tl.load(state + 4 + before, volatile=True)
        for begin in range(tl.program_id(0) * BLOCK, used, tl.num_programs(0) * BLOCK):
            old = begin + tl.arange(0, BLOCK)
            for i in tl.static_range(1, SIZE):
                stale = mine + (before * SIZE + (rank + i) % SIZE) * BOX + old * 2
                tl.store(stale, tl.full((BLOCK,), _EMPTY, tl.int32), mask=old < used)
                tl.store(stale + 1, tl.full((BLOCK,), _EMPTY, tl.int32), mask=old < used)
        left = tl.where(tl.load(state + 2, volatile=True) == 0, looks, 0)
        for i in tl.static_range(SIZE):
            if i != rank:
                at = mine + (turn * SIZE + i) * BOX + row * 2
                seen = tl.load(at, mask=live, other=0, volatile=True)
                place = tl.load(at + 1, mask=live, other=0, volatile=True)
                missing = tl.max(((seen == _EMPTY) | (place == _EMPTY)).to(tl.int32), 0)
                while (missing != 0) & (left > 0):
                    seen = tl.load(at, mask=live, other=0, volatile=True)
                    place = tl.load(at + 1, mask=live, other=0, volatile=True)
                    missing = tl.max(((seen == _EMPTY) | (place == _EMPTY)).to(tl.int32), 0)
                    left -= 1
                value = seen.to(tl.float32, bitcast=True)
                if missing != 0:
                    tl.store(state + 2, 1)
                    value = tl.full(
                        (BLOCK,), float("inf"), tl.float32
                    )  # not a maximum that stands for a token
                better = (value > high) | ((value == high) & (place < token))
                high = tl.where(better, value, high)
                token = tl.where(better, place, token)
        tl.store(high_out + row, high, mask=live)
        tl.store(token_out + row, tl.maximum(token, 0).to(tl.int64), mask=live)
        end_turn(state, turn, rows)


def argmax_ranks(
    best: Tensor,
    tokens: Tensor,
    first: int,
    *,
    mail: Mailboxes,
    send: bool = True,
    take: bool = True,
) -> tuple[Tensor, Tensor]:
    """The highest of all ranks' maxima, and its token in the whole vocabulary; the lowest of several.

    best, tokens  float32 and int64 [rows]: what `argmax` found in this rank's columns, of which `first` is the first
    mail          boxes of two words a row; every rank makes the same launches in the same order
    send, take    halves of the exchange; tests without a second device launch them apart

    Returns float32 and int64 [rows], equal on every rank; the maximum is inf where a rank did not answer.
    """
    (rows,) = best.shape
    if tokens.shape != best.shape or mail.words != WORDS or rows > mail.rows:
        raise ValueError(
            f"argmax_ranks: {tuple(best.shape)} maxima and {tuple(tokens.shape)} tokens do not fit boxes of {mail.rows} rows of "
            f"{mail.words} words"
        )
    high, token = torch.empty_like(best), torch.empty_like(tokens)
    if not rows:
        return high, token
    early = early_starts(best.device, rows)
    _argmax_ranks[(triton.cdiv(rows, _BLOCK),)](
        best,
        tokens,
        high,
        token,
        mail.boxes,
        mail.state,
        first,
        mail.rank,
        rows,
        mail.looks,
        BOX=mail.rows * WORDS,
        SIZE=mail.size,
        BLOCK=_BLOCK,
        SEND=send,
        TAKE=take,
        EARLY=early,
        num_warps=_BLOCK // 32,
        **({"launch_pdl": True} if early else {}),
    )
    return high, token
