"""Finite constraints on the device: logits of tokens that may not follow are cut away, and a drawn token moves its row's place.

A constraint is one int16 table (runtime/constrain/device.py packs it). A seat's place says where its table lies and which state it
is in, so rows of one batch may have different constraints, or none. Nothing is read by the host.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

FIELDS = 6
"""Of a place, int64: address of the table, its columns (0: no constraint), its states, tokens, the state, tokens left."""


def follow_reference(table: Tensor, place: Tensor, tokens: Tensor) -> Tensor:
    """int64, the state after each of `tokens` from `place`; -1 where the constraint, or what is left, forbids it."""
    _, columns, states, size, state, left = place.tolist()
    steps, rest = table[: states * columns].view(states, columns), table[states * columns :]
    distance, class_of = rest[:states], rest[states : states + size]
    known = tokens < size
    goal = steps[state, class_of[torch.where(known, tokens, 0)].long()].long()
    return torch.where(known & (goal >= 0) & (distance[goal.clamp(min=0)] < left), goal, -1)


@triton.jit(do_not_specialize_on_alignment=["seats"])
def _mask(logits, seats, places, width, stride, FIELDS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = places + tl.load(seats + row) * FIELDS
    columns = tl.load(place + 1)
    if columns > 0:
        table = tl.load(place).to(tl.pointer_type(tl.int16))
        states = tl.load(place + 2)
        size = tl.load(place + 3)
        state = tl.load(place + 4)
        left = tl.load(place + 5)
        at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        distance = table + states * columns
        kind = tl.load(distance + states + at, mask=at < size, other=0)
        goal = tl.load(table + state * columns + kind)
        far = tl.load(distance + tl.maximum(goal, 0))
        cell = logits + row * stride + at
        value = tl.load(cell, mask=at < width, other=0.0).to(tl.float32)
        broken = (value != value) | (value == float("inf"))  # stays, so that whoever draws can tell
        cut = (goal < 0) | (far >= left) | (at >= size)
        tl.store(cell, float("-inf"), mask=(at < width) & cut & ~broken)


@triton.jit(do_not_specialize_on_alignment=["tokens", "seats"])
def _advance(tokens, seats, places, FIELDS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = places + tl.load(seats + row) * FIELDS
    columns = tl.load(place + 1)
    if columns > 0:
        table = tl.load(place).to(tl.pointer_type(tl.int16))
        states = tl.load(place + 2)
        size = tl.load(place + 3)
        token = tl.load(tokens + row)
        known = token < size
        kind = tl.load(table + states * columns + states + token, mask=known, other=0)
        goal = tl.load(table + tl.load(place + 4) * columns + kind)
        tl.store(place + 4, tl.where(goal >= 0, goal, states - 1).to(tl.int64))
        tl.store(place + 5, tl.load(place + 5) - 1)


@triton.jit(do_not_specialize_on_alignment=["rows", "bits"])
def _mask_bits(logits, rows, bits, width, stride, words, BLOCK: tl.constexpr):
    number = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + number).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(bits + number * words + at // 32, mask=at // 32 < words, other=0)
    cut = ((word >> (at % 32)) & 1) == 0
    tl.store(logits + row * stride + at, float("-inf"), mask=(at < width) & cut)


def mask(logits: Tensor, seats: Tensor, places: Tensor) -> None:
    """Set logits [rows, vocabulary] to -inf where the row's constraint forbids the token; NaN and inf stay as they are.

    seats   int64 [rows]
    places  int64 [seats, FIELDS]
    """
    _check(logits.shape[0], seats, places)
    if logits.dim() != 2 or logits.stride(1) != 1:
        raise ValueError(
            f"mask: needs rows of adjacent columns, got {tuple(logits.shape)} with strides {logits.stride()}"
        )
    rows, width = logits.shape
    if rows:
        grid = (rows, triton.cdiv(width, 4096))
        _mask[grid](logits, seats, places, width, logits.stride(0), FIELDS=FIELDS, BLOCK=4096, num_warps=8)


def mask_bits(logits: Tensor, rows: Tensor, bits: Tensor) -> None:
    """Set logits [any, vocabulary] of `rows`, int32 [n], to -inf where their bit in `bits`, int32 [n, words], is not set."""
    if logits.dim() != 2 or logits.stride(1) != 1:
        raise ValueError(
            f"mask_bits: needs rows of adjacent columns, got {tuple(logits.shape)} with strides {logits.stride()}"
        )
    if (
        bits.dim() != 2
        or rows.shape != bits.shape[:1]
        or bits.dtype != torch.int32
        or rows.dtype != torch.int32
    ):
        raise ValueError(
            f"mask_bits: rows and bits are int32 [n] and [n, words], got {rows.dtype} {tuple(rows.shape)} and "
            f"{bits.dtype} {tuple(bits.shape)}"
        )
    width = logits.shape[1]
    if len(rows):
        grid = (len(rows), triton.cdiv(width, 4096))
        _mask_bits[grid](
            logits, rows, bits.contiguous(), width, logits.stride(0), bits.shape[1], BLOCK=4096, num_warps=8
        )


def advance(tokens: Tensor, seats: Tensor, places: Tensor) -> None:
    """Move each row's place over the token that was drawn, int64 [rows]; the last state stands for the end."""
    _check(tokens.shape[0], seats, places)
    if len(tokens):
        _advance[(len(tokens),)](tokens, seats, places, FIELDS=FIELDS, num_warps=1)


def _check(rows: int, seats: Tensor, places: Tensor) -> None:
    if seats.shape != (rows,) or seats.dtype != torch.int64 or not seats.is_contiguous():
        raise ValueError(
            f"mask: {rows} rows need int64 seats [{rows}], got {seats.dtype} {tuple(seats.shape)}"
        )
    if places.dim() != 2 or places.shape[1] != FIELDS or places.dtype != torch.int64:
        raise ValueError(
            f"mask: places must be int64 [seats, {FIELDS}], got {places.dtype} {tuple(places.shape)}"
        )
