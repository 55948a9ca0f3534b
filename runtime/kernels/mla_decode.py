"""Decode attention over latents (MLA, absorbed): one cached vector per token serves every head as key and value.

A token's row in the pool is its latent followed by its rotary key. Queries come already multiplied into the latent
space, results go out of it again in the layer, so a program reads a latent once, scores a block of heads against it
and sums it into their outputs. Splits and their join are those of the other decode kernel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels.decode import LOG2E
from runtime.kernels.merge import SplitScratch, arrive, check_scratch, join_parts, split_scratch
from runtime.kernels.tuning import LatentTiles, latent_tiles


def mla_decode_reference(
    q: Tensor,
    q_rope: Tensor,
    pool: Tensor,
    table: Tensor,
    seats: Tensor,
    lengths: Tensor,
    *,
    page_size: int,
    scale: float,
) -> Tensor:
    """The same by plain sums in float64, one request after another."""
    out = torch.zeros(q.shape, dtype=torch.float64, device=q.device)
    latent = q.shape[2]
    whole = torch.cat((q, q_rope), dim=-1).double()
    for i, (seat, length) in enumerate(zip(seats.tolist(), lengths.tolist(), strict=True)):
        at = torch.arange(length, device=q.device)
        rows = pool[table[seat].long()[at // page_size] * page_size + at % page_size].double()
        out[i] = (whole[i] @ rows.T * scale).softmax(-1) @ rows[:, :latent]
    return out.to(q.dtype)


@triton.jit(do_not_specialize_on_alignment=["seats", "lengths"])
def _mla_decode(
    q,
    q_rope,
    pool,
    table,
    seats,
    lengths,
    out,
    partial,
    weights,
    arrived,
    scale,
    heads,
    stride,
    width,
    LATENT: tl.constexpr,
    ROPE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    JOINED: tl.constexpr,
    STAGES: tl.constexpr,
):
    group = tl.program_id(0)
    split = tl.program_id(1)
    splits = 1
    if JOINED:
        splits = tl.num_programs(1)  # no constant: each number would be another kernel to compile
    request = tl.program_id(2).to(tl.int64)
    length = tl.load(lengths + request)
    seat = tl.load(seats + request).to(tl.int64)  # here, so that it does not wait for the length
    share = tl.maximum(tl.cdiv(tl.cdiv(length, splits), BLOCK_N), 2) * BLOCK_N
    used = tl.cdiv(length, share)
    if split < tl.maximum(used, 1):
        row = table + seat * width
        h = group * BLOCK_H + tl.arange(0, BLOCK_H)
        latent = tl.arange(0, BLOCK_L)
        turned = tl.arange(0, BLOCK_R)
        in_latent = (latent < LATENT)[None, :]
        in_rope = (turned < ROPE)[None, :]
        own = (request * heads + h)[:, None]
        rows = (h < heads)[:, None] & in_latent
        queries = tl.load(q + own * LATENT + latent[None, :], mask=rows, other=0.0)
        turned_queries = tl.load(
            q_rope + own * ROPE + turned[None, :], mask=(h < heads)[:, None] & in_rope, other=0.0
        )
        top = tl.full((BLOCK_H,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_H,), tl.float32)
        acc = tl.zeros((BLOCK_H, BLOCK_L), tl.float32)
        begin = split * share
        end = tl.minimum(begin + share, length)
        for start in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
            pos = start + tl.arange(0, BLOCK_N)
            live = pos < end
            page = tl.load(row + pos // PAGE, mask=live, other=0)
            slot = pool + (page.to(tl.int64) * PAGE + pos % PAGE)[:, None] * stride
            values = tl.load(slot + latent[None, :], mask=live[:, None] & in_latent, other=0.0)
            values = values.to(queries.dtype)
            keys = tl.load(slot + LATENT + turned[None, :], mask=live[:, None] & in_rope, other=0.0)
            scores = tl.dot(queries, tl.trans(values), input_precision="ieee")
            scores += tl.dot(turned_queries, tl.trans(keys.to(queries.dtype)), input_precision="ieee")
            scores = tl.where(live[None, :], scores * scale, float("-inf"))
            higher = tl.maximum(top, tl.max(scores, 1))
            keep = tl.exp2(top - higher)
            probs = tl.exp2(scores - higher[:, None])
            acc = acc * keep[:, None]
            acc += tl.dot(probs.to(queries.dtype), values, input_precision="ieee")
            total = total * keep + tl.sum(probs, 1)
            top = higher
        acc = acc / tl.where(total > 0, total, 1.0)[:, None]
        if JOINED:
            place = request * tl.num_programs(0) + group
            if used > 1:
                i = tl.arange(0, BLOCK_H)
                base = (place * splits + split) * BLOCK_H
                tl.store(weights + base + i, top + tl.log2(total))
                tl.store(partial + base * LATENT + i[:, None] * LATENT + latent[None, :], acc, mask=in_latent)
                if arrive(arrived + place) == used - 1:
                    join_parts(
                        partial + place * splits * BLOCK_H * LATENT,
                        weights + place * splits * BLOCK_H,
                        used,
                        out + (request * heads + group * BLOCK_H) * LATENT,
                        tl.minimum(BLOCK_H, heads - group * BLOCK_H),
                        1.0,
                        BLOCK_H,
                        LATENT,
                        512,
                        4,
                    )
                    tl.store(arrived + place, 0)
            else:
                tl.store(out + own * LATENT + latent[None, :], acc.to(out.dtype.element_ty), mask=rows)
        else:
            tl.store(out + own * LATENT + latent[None, :], acc.to(out.dtype.element_ty), mask=rows)


def mla_scratch(
    requests: int, heads: int, latent: int, tiles: LatentTiles, device: torch.device
) -> SplitScratch:
    """Scratch for so many requests, cut as `tiles` says."""
    return split_scratch(
        requests, triton.cdiv(heads, tiles.block_h), tiles.splits, tiles.block_h, latent, device
    )


def mla_decode_attention(
    q: Tensor,
    q_rope: Tensor,
    pool: Tensor,
    table: Tensor,
    seats: Tensor,
    lengths: Tensor,
    *,
    page_size: int,
    scale: float,
    scratch: SplitScratch | None = None,
    out: Tensor | None = None,
    tiles: LatentTiles | None = None,
) -> Tensor:
    """Attend the newest token of each request to its latents, its own stored before.

    q        [requests, heads, latent]: queries multiplied into the latent space, contiguous
    q_rope   [requests, heads, rope]: their rotated part, contiguous
    pool     [slots, latent + rope], of q's dtype or float8; slot = page * page_size + offset
    table    int32 [seats, width]; seats int32 [requests]; lengths int32 [requests], 0 gives a row of zeros
    scratch  mla_scratch(), kept by a caller that captures graphs; made for the call if None

    Returns [requests, heads, latent] in q's dtype: means of latents, to be multiplied out by the layer.
    Source: DeepSeek-V2, arXiv:2405.04434.
    """
    requests, heads, latent = q.shape
    rope = q_rope.shape[2]
    if q_rope.shape[:2] != q.shape[:2] or pool.dim() != 2 or pool.shape[1] != latent + rope:
        raise ValueError(
            f"mla_decode_attention: q {tuple(q.shape)} and q_rope {tuple(q_rope.shape)} need rows of "
            f"{latent + rope}, the pool is {tuple(pool.shape)}"
        )
    if seats.shape != (requests,) or lengths.shape != (requests,):
        raise ValueError(
            f"mla_decode_attention: {requests} requests need as many seats and lengths, "
            f"got {tuple(seats.shape)} and {tuple(lengths.shape)}"
        )
    if not q.is_contiguous() or not q_rope.is_contiguous() or pool.stride(1) != 1:
        raise ValueError("mla_decode_attention: q, q_rope and rows of the pool must be contiguous")
    if out is None:
        out = torch.empty_like(q)
    elif out.shape != q.shape or not out.is_contiguous():
        raise ValueError(
            f"mla_decode_attention: out must be contiguous {tuple(q.shape)}, got {tuple(out.shape)}"
        )
    if requests == 0:
        return out
    t = tiles or latent_tiles(q.device, requests, heads, q.dtype)
    groups = triton.cdiv(heads, t.block_h)
    if t.splits > 1:
        scratch = scratch or mla_scratch(requests, heads, latent, t, q.device)
        check_scratch(scratch, requests, groups, t.splits, t.block_h, latent)
    _mla_decode[(groups, t.splits, requests)](
        q,
        q_rope,
        pool,
        table,
        seats,
        lengths,
        out,
        scratch.partial if scratch else None,
        scratch.weights if scratch else None,
        scratch.arrived if scratch else None,
        scale * LOG2E.value,
        heads,
        pool.stride(0),
        table.stride(0),
        LATENT=latent,
        ROPE=rope,
        BLOCK_H=t.block_h,
        BLOCK_L=max(16, triton.next_power_of_2(latent)),
        BLOCK_R=max(16, triton.next_power_of_2(rope)),
        PAGE=page_size,
        BLOCK_N=t.block_n,
        JOINED=t.splits > 1,
        STAGES=t.stages,
        num_warps=t.warps,
    )
    return out
