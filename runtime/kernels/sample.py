"""One token of each row by temperature, top-k, top-p and min-p: two launches, nothing sorted, nothing waited for.

Parts of a row come first: each one's largest logit, and the mass relative to it. Then one program a row picks: without a cut
it goes straight to the part in which the share `u` of the mass lies. With one it first looks for the least logit that is kept:
a search among the values that floats can have, three guesses a pass, each judged by the number and the mass of the logits
above it. What is kept is the definition of `runtime.sampling.sampler.Draws`, and `draw` there is the reference.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_PART = 8192  # columns of one program of the first launch
_UNUSED_BITS = {
    torch.float32: 0,
    torch.bfloat16: 16,
    torch.float16: 13,
}  # low bits of a float32 that are always 0


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["packed"])
def _parts(
    x, packed, high, index, mass, rows, columns, stride, parts, PART: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    where = tl.full((BLOCK,), 2147483647, tl.int32)
    for start in range(0, PART, BLOCK):
        at = part * PART + start + tl.arange(0, BLOCK)
        value = tl.load(x + row * stride + at, mask=at < columns, other=float("-inf")).to(tl.float32)
        value = tl.where(value != value, float("inf"), value)
        better = (value > best) | ((value == best) & (where == 2147483647) & (at < columns))
        best = tl.where(better, value, best)
        where = tl.where(better, at, where)
    top = tl.max(best, axis=0)
    tl.store(high + row * parts + part, top)
    tl.store(index + row * parts + part, tl.min(tl.where(best == top, where, 2147483647), axis=0))
    temperature = tl.load(packed + row).to(tl.float32)
    if temperature > 0:
        total = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, PART, BLOCK):
            at = part * PART + start + tl.arange(0, BLOCK)
            value = tl.load(x + row * stride + at, mask=at < columns, other=float("-inf")).to(tl.float32)
            total += tl.where(value > float("-inf"), tl.exp((value - top) / temperature), 0.0)
        tl.store(mass + row * parts + part, tl.sum(total, axis=0))


@triton.jit
def _key(value, UNUSED: tl.constexpr):
    """An integer that orders as the float32 does."""
    bits = (value + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF) >> UNUSED


@triton.jit
def _share(key, top, temperature, UNUSED: tl.constexpr):
    """exp((value - top) / temperature) of the value with this key."""
    full = key << UNUSED
    bits = tl.where(key >= 0, full, (full | ((1 << UNUSED) - 1)) ^ 0x7FFFFFFF).to(tl.int32)
    return tl.exp((bits.to(tl.float32, bitcast=True) - top) / temperature)


@triton.jit
def _fits(number, mass, share, top_k, top_p, min_p, total):
    """Whether a logit is kept: how many, and how much of the total, are above it; its own share of the largest."""
    few = (top_k == 0) | (number < top_k)
    light = (top_p >= 1.0) | (mass.to(tl.float64) <= top_p * total)
    return few & light & ((min_p <= 0.0) | (share.to(tl.float64) >= min_p))


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["packed"])
def _pick(
    x, packed, high, index, mass, tokens, best, rows, columns, stride, parts,
    PART: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr, UNUSED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, PARTS)
    highs = tl.load(high + row * parts + lane, mask=lane < parts, other=float("-inf"))
    first = tl.load(index + row * parts + lane, mask=lane < parts, other=2147483647)
    top = tl.max(highs, axis=0)
    tl.store(best + row, top)
    temperature = tl.load(packed + row).to(tl.float32)
    token = tl.min(tl.where(highs == top, first, 2147483647), axis=0)
    if temperature > 0:
        top_k = tl.load(packed + rows + row).to(tl.int32)
        top_p = tl.load(packed + 2 * rows + row)
        min_p = tl.load(packed + 3 * rows + row)
        u = tl.load(packed + 4 * rows + row)
        masses = tl.load(mass + row * parts + lane, mask=lane < parts, other=0.0).to(tl.float64)
        masses = tl.where(masses > 0, masses * tl.exp((highs - top) / temperature).to(tl.float64), 0.0)
        total = tl.sum(masses, axis=0)
        least = -2147483648 >> UNUSED
        begin = 0
        end = columns
        wanted = u * total
        if (top_k > 0) | (top_p < 1.0) | (min_p > 0.0):
            low = -2147483648 >> UNUSED
            upper = _key(top, UNUSED)
            while low < upper:
                span = (upper.to(tl.int64) - low).to(tl.int64)
                one = (low + span // 4).to(tl.int32)
                two = (low + span // 2).to(tl.int32)
                three = (low + span * 3 // 4).to(tl.int32)
                n1 = tl.zeros((BLOCK,), tl.int32)
                n2 = tl.zeros((BLOCK,), tl.int32)
                n3 = tl.zeros((BLOCK,), tl.int32)
                m1 = tl.zeros((BLOCK,), tl.float32)
                m2 = tl.zeros((BLOCK,), tl.float32)
                m3 = tl.zeros((BLOCK,), tl.float32)
                for offset in range(0, columns, BLOCK):
                    at = offset + tl.arange(0, BLOCK)
                    value = tl.load(x + row * stride + at, mask=at < columns, other=float("-inf")).to(
                        tl.float32
                    )
                    key = _key(value, UNUSED)
                    share = tl.exp((value - top) / temperature)
                    n1 += (key > one).to(tl.int32)
                    n2 += (key > two).to(tl.int32)
                    n3 += (key > three).to(tl.int32)
                    m1 += tl.where(key > one, share, 0.0)
                    m2 += tl.where(key > two, share, 0.0)
                    m3 += tl.where(key > three, share, 0.0)
                s1 = _share(one, top, temperature, UNUSED)
                s2 = _share(two, top, temperature, UNUSED)
                s3 = _share(three, top, temperature, UNUSED)
                f1 = _fits(tl.sum(n1, axis=0), tl.sum(m1, axis=0), s1, top_k, top_p, min_p, total)
                f2 = _fits(tl.sum(n2, axis=0), tl.sum(m2, axis=0), s2, top_k, top_p, min_p, total)
                f3 = _fits(tl.sum(n3, axis=0), tl.sum(m3, axis=0), s3, top_k, top_p, min_p, total)
                low = tl.where(f1, low, tl.where(f2, one + 1, tl.where(f3, two + 1, three + 1)))
                upper = tl.where(f1, one, tl.where(f2, two, tl.where(f3, three, upper)))
            least = upper
            kept = tl.zeros((BLOCK,), tl.float32)
            for offset in range(0, columns, BLOCK):
                at = offset + tl.arange(0, BLOCK)
                value = tl.load(x + row * stride + at, mask=at < columns, other=float("-inf")).to(tl.float32)
                keep = (_key(value, UNUSED) >= least) & (value > float("-inf"))
                kept += tl.where(keep, tl.exp((value - top) / temperature), 0.0)
            wanted = u * tl.sum(kept, axis=0).to(tl.float64)
        else:
            before = tl.cumsum(masses, axis=0)
            part = tl.sum((before <= wanted).to(tl.int32), axis=0)
            last = tl.max(tl.where(masses > 0, lane, 0), axis=0)
            part = tl.minimum(part, last)
            wanted -= tl.sum(tl.where(lane < part, masses, 0.0), axis=0)
            begin = part * PART
            end = tl.minimum(begin + PART, columns)
        # The first column at which the running mass is more than wanted; the last one with any if rounding hides it.
        found = -1
        backup = token
        start = begin
        while start < end:
            at = start + tl.arange(0, BLOCK)
            value = tl.load(x + row * stride + at, mask=at < end, other=float("-inf")).to(tl.float32)
            keep = (_key(value, UNUSED) >= least) & (value > float("-inf"))
            share = tl.where(keep, tl.exp((value - top) / temperature), 0.0)
            running = tl.cumsum(share, axis=0).to(tl.float64)
            place = tl.min(tl.where((running > wanted) & (share > 0), at, 2147483647), axis=0)
            block_last = tl.max(tl.where(share > 0, at, -1), axis=0)
            backup = tl.where(block_last >= 0, block_last, backup)
            found = tl.where(place < 2147483647, place, found)
            wanted -= tl.sum(share, axis=0).to(tl.float64)
            start = tl.where(found >= 0, end, start + BLOCK)
        token = tl.where(found >= 0, found, backup)
    tl.store(tokens + row, tl.minimum(token, columns - 1).to(tl.int64))


def sample(logits: Tensor, packed: Tensor) -> tuple[Tensor, Tensor]:
    """One token per row int64 [rows], and the largest logit float32 [rows] (inf if one is NaN, so that it tells of both).

    logits  [rows, vocabulary], float32, bfloat16 or float16; rows of adjacent columns
    packed  float64 [5, rows]: temperature (0: the likeliest), top_k (0: any number), top_p, min_p, u in [0, 1)
    """
    if logits.dim() != 2 or logits.stride(1) != 1 or logits.shape[1] == 0:
        raise ValueError(
            f"sample: needs rows of adjacent columns, got {tuple(logits.shape)} with strides {logits.stride()}"
        )
    rows, columns = logits.shape
    if packed.shape != (5, rows) or packed.dtype != torch.float64 or not packed.is_contiguous():
        raise ValueError(
            f"sample: packed must be float64 [5, {rows}], got {packed.dtype} {tuple(packed.shape)}"
        )
    parts = triton.cdiv(columns, _PART)
    device = logits.device
    high = torch.empty(rows, parts, dtype=torch.float32, device=device)
    index = torch.empty(rows, parts, dtype=torch.int32, device=device)
    mass = torch.empty(rows, parts, dtype=torch.float32, device=device)
    tokens = torch.empty(rows, dtype=torch.int64, device=device)
    best = torch.empty(rows, dtype=torch.float32, device=device)
    if rows:
        shape = (rows, columns, logits.stride(0), parts)
        _parts[(rows, parts)](logits, packed, high, index, mass, *shape, PART=_PART, BLOCK=2048, num_warps=8)
        _pick[(rows,)](
            logits, packed, high, index, mass, tokens, best, *shape, PART=_PART,
            PARTS=max(2, triton.next_power_of_2(parts)), BLOCK=2048, UNUSED=_UNUSED_BITS[logits.dtype], num_warps=8,
        )  # fmt: skip
    return tokens, best
