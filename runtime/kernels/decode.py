"""Attention of the newest token of each request over paged keys and values.

Bound by memory: a program reads a run of one request's keys and values once and scores all query heads of their
group in one product. The context of a request is split over programs so that few requests still fill the device;
how many of the splits have work depends on lengths that only the device knows, so a captured graph stays valid.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels.ahead import fetch_ahead
from runtime.kernels.merge import SplitScratch, arrive, check_scratch, join_parts, split_scratch
from runtime.kernels.rope_store import Turning, rotated
from runtime.kernels.tuning import DecodeTiles, decode_tiles, early_starts

LOG2E = tl.constexpr(1.4426950408889634)  # exponentials are taken in base 2
_FOREVER = 1 << 30
_EARLY_ROWS = 32  # what more rows ask for ahead does not come sooner
_AS_IT_IS = Turning(None, None)


def decode_reference(
    q: Tensor,
    pool_k: Tensor,
    pool_v: Tensor,
    table: Tensor,
    seats: Tensor,
    lengths: Tensor,
    *,
    page_size: int,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    slopes: Tensor | None = None,
    v_scale: float = 1.0,
) -> Tensor:
    """The same by plain sums in float64, one request after another."""
    out = torch.zeros(q.shape, dtype=torch.float64, device=q.device)
    group = q.shape[1] // pool_k.shape[1]
    for i, (seat, length) in enumerate(zip(seats.tolist(), lengths.tolist(), strict=True)):
        if length == 0:
            continue
        first = 0 if window is None else max(0, length - window)
        at = torch.arange(first, length, device=q.device)
        slots = table[seat].long()[at // page_size] * page_size + at % page_size
        k = pool_k[slots].to(torch.float64).repeat_interleave(group, 1)
        v = pool_v[slots].to(torch.float64).repeat_interleave(group, 1)
        scores = torch.einsum("hd,nhd->hn", q[i].to(torch.float64), k) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if slopes is not None:
            scores = scores + slopes.to(torch.float64)[:, None] * (at - (length - 1))
        out[i] = torch.einsum("hn,nhd->hd", scores.softmax(-1), v) * v_scale
    return out.to(q.dtype)


@triton.jit
def capped(scores, softcap):
    """softcap * tanh(scores / softcap)."""
    turned = tl.exp(-2.0 * tl.abs(scores) / softcap)  # at most 1: never overflows
    size = softcap * (1.0 - turned) / (1.0 + turned)
    return tl.where(scores < 0, -size, size)


@triton.jit
def newest_token(
    queries,
    packed_k,
    packed_v,
    slot,
    slot_stride,
    head,
    pool_k,
    pool_v,
    k_weight,
    cos,
    sin,
    position,
    d,
    scale,
    softcap,
    eps,
    offset,
    DIM: tl.constexpr,
    TURNED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    NORM: tl.constexpr,
    OFFSET: tl.constexpr,
    SOFTCAP: tl.constexpr,
):
    """Store the new token's key and value of a head, at `slot` [width] (-1: nowhere); its scores [group] and value [width]."""
    inside = d < DIM
    key = rotated(
        packed_k, inside, d, k_weight, cos, sin, position, eps, offset, DIM, TURNED, INTERLEAVED, NORM, OFFSET
    ).to(pool_k.dtype.element_ty)
    value = tl.load(packed_v + d, mask=inside, other=0.0).to(pool_v.dtype.element_ty)
    stored = inside & (slot >= 0)
    own = slot * slot_stride + head * DIM + d
    tl.store(pool_k + own, key, mask=stored)
    tl.store(pool_v + own, value, mask=stored)
    key = key.to(queries.dtype).to(tl.float32)
    scores = tl.sum(queries.to(tl.float32) * key[None, :], 1) * scale
    if SOFTCAP:
        scores = capped(scores, softcap) * LOG2E
    return scores, value.to(queries.dtype).to(tl.float32)


@triton.jit(
    do_not_specialize=["window"],  # one of 1 leaves an empty loop, which Triton 3.6 does not compile
    do_not_specialize_on_alignment=["seats", "lengths", "slots"],
)
def _decode(
    q,
    pool_k,
    pool_v,
    table,
    seats,
    lengths,
    slopes,
    cos,
    sin,
    q_weight,
    k_weight,
    slots,
    out,
    partial,
    weights,
    arrived,
    scale,
    softcap,
    v_scale,
    window,
    eps,
    offset,
    q_stride,
    slot_stride,
    width,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    JOINED: tl.constexpr,
    SHORTEST: tl.constexpr,
    COLS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    STAGES: tl.constexpr,
    PACKED: tl.constexpr,
    TURNED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    NORM: tl.constexpr,
    OFFSET: tl.constexpr,
    EARLY: tl.constexpr,
    LINES: tl.constexpr,
):
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    head = tl.program_id(0)
    split = tl.program_id(1)
    request = tl.program_id(2).to(tl.int64)
    groups = tl.num_programs(0)
    splits = 1
    if JOINED:
        splits = tl.num_programs(1)  # no constant: each number would be another kernel to compile
    length = tl.load(lengths + request)
    seat = tl.load(seats + request).to(tl.int64)  # here, so that it does not wait for the length
    first = tl.maximum(length - window, 0)
    cached = length  # positions that are attended to from the pool
    if PACKED:
        cached = tl.maximum(length - 1, 0)
    share = tl.cdiv(tl.cdiv(cached - first, splits), BLOCK_N) * BLOCK_N
    share = tl.maximum(share, SHORTEST)  # a part shorter than this costs more to join than to read
    used = tl.cdiv(cached - first, share)
    if split < tl.maximum(used, 1):
        row = table + seat * width
        g = tl.arange(0, BLOCK_G)
        d = tl.arange(0, BLOCK_D)
        rows = (g < GROUP)[:, None] & (d < DIM)[None, :]
        at = (head * GROUP + g)[:, None] * DIM + d[None, :]
        k_head = pool_k + head * DIM + d[None, :]
        v_head = pool_v + head * DIM + d[None, :]
        begin = first + split * share
        end = tl.minimum(begin + share, cached)
        if EARLY:
            # what earlier steps stored is on its way while the kernel before ends
            for start in tl.range(begin, tl.minimum(end, begin + 2 * BLOCK_N), BLOCK_N):
                pos = tl.minimum(start + tl.arange(0, BLOCK_N), end - 1)
                page = tl.load(row + pos // PAGE).to(tl.int64)
                line = tl.arange(0, LINES) * (1024 // pool_k.dtype.element_ty.primitive_bitwidth)
                place = (page * PAGE + pos % PAGE)[:, None] * slot_stride + head * DIM + line[None, :]
                fetch_ahead(pool_k + place)
                fetch_ahead(pool_v + place)
            tl.extra.cuda.gdc_wait()
        top = tl.full((BLOCK_G,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_G,), tl.float32)
        acc = tl.zeros((BLOCK_G, BLOCK_D), tl.float32)
        if PACKED:
            heads = groups * GROUP
            packed = q + request * q_stride
            place = cached.to(tl.int64)
            queries = rotated(
                packed + (head * GROUP + g)[:, None] * DIM, rows, d[None, :], q_weight, cos, sin, place,
                eps, offset, DIM, TURNED, INTERLEAVED, NORM, OFFSET,
            )  # fmt: skip
            if (split == 0) & (length > 0):  # the new token itself, which no pool has yet
                top, value = newest_token(
                    queries, packed + (heads + head) * DIM, packed + (heads + groups + head) * DIM,
                    tl.load(slots + request + 0 * d), slot_stride, head, pool_k, pool_v, k_weight, cos, sin, place, d,
                    scale, softcap, eps, offset, DIM, TURNED, INTERLEAVED, NORM, OFFSET, SOFTCAP,
                )  # fmt: skip
                total = tl.full((BLOCK_G,), 1.0, tl.float32)
                acc += value[None, :]
        else:
            queries = tl.load(q + request * q_stride + at, mask=rows, other=0.0)
        for start in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
            pos = start + tl.arange(0, BLOCK_N)
            live = pos < end
            page = tl.load(row + pos // PAGE, mask=live, other=0)
            slot = (page.to(tl.int64) * PAGE + pos % PAGE) * slot_stride
            if BLOCK_D == DIM:
                mask = live[:, None]
            else:
                mask = live[:, None] & (d < DIM)[None, :]
            keys = tl.load(k_head + slot[:, None], mask=mask, other=0.0).to(queries.dtype)
            scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
            if SOFTCAP:
                scores = capped(scores, softcap) * LOG2E
            if slopes is not None:
                slope = tl.load(slopes + head * GROUP + g, mask=g < GROUP, other=0.0)
                scores += slope[:, None] * LOG2E * (pos - (length - 1))[None, :].to(tl.float32)
            scores = tl.where(live[None, :], scores, float("-inf"))
            higher = tl.maximum(top, tl.max(scores, 1))
            keep = tl.exp2(top - higher)
            probs = tl.exp2(scores - higher[:, None])
            values = tl.load(v_head + slot[:, None], mask=mask, other=0.0).to(queries.dtype)
            acc = acc * keep[:, None]
            acc += tl.dot(probs.to(queries.dtype), values, input_precision="ieee")
            total = total * keep + tl.sum(probs, 1)
            top = higher
        acc = acc / tl.where(total > 0, total, 1.0)[:, None]
        result = out + request * groups * GROUP * DIM + at
        if JOINED:
            place = request * groups + head
            if used > 1:
                base = (place * splits + split) * GROUP
                tl.store(weights + base + g, top + tl.log2(total), mask=g < GROUP)
                tl.store(partial + base * DIM + g[:, None] * DIM + d[None, :], acc, mask=rows)
                if arrive(arrived + place) == used - 1:
                    join_parts(
                        partial + place * splits * GROUP * DIM,
                        weights + place * splits * GROUP,
                        used,
                        out + place * GROUP * DIM,
                        GROUP,
                        v_scale,
                        GROUP,
                        DIM,
                        COLS,
                        4,
                    )
                    tl.store(arrived + place, 0)
            else:
                tl.store(result, (acc * v_scale).to(out.dtype.element_ty), mask=rows)
        else:
            tl.store(result, (acc * v_scale).to(out.dtype.element_ty), mask=rows)


def decode_attention(
    q: Tensor,
    pool_k: Tensor,
    pool_v: Tensor,
    table: Tensor,
    seats: Tensor,
    lengths: Tensor,
    *,
    page_size: int,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    slopes: Tensor | None = None,
    v_scale: float = 1.0,
    splits: int | None = None,
    scratch: SplitScratch | None = None,
    out: Tensor | None = None,
    tiles: DecodeTiles | None = None,
) -> Tensor:
    """Attend the newest token of each request to that request's KV pages, its own k and v stored before.

    q               [requests, heads, head_dim]; rows may be apart by more than heads * head_dim
    pool_k, pool_v  [slots, kv_heads, head_dim], of q's dtype or float8; slot = page * page_size + offset
    table           int32 [seats, width]; entries past ceil(length / page_size) are not read
    seats           int32 [requests], rows of `table`
    lengths         int32 [requests]; tokens attended to; 0 gives a row of zeros
    scale           multiplies q.k (and the scale of float8 keys, if any); v_scale multiplies the result
    slopes          float32 [heads]: ALiBi, adds slope * (key position - query position)
    splits          programs per request and KV head, at most; None: as many as fill the device
    scratch         split_scratch(requests, kv_heads, splits, heads // kv_heads, head_dim), kept by a caller that
                    captures graphs; made for the call if None

    Returns [requests, heads, head_dim] in q's dtype; sums run in float32.
    Source: online softmax, arXiv:1805.02867; split over the context as in Flash-Decoding.
    """
    if q.stride()[1:] != (q.shape[2], 1):
        raise ValueError("decode_attention: heads of q must lie next to each other")
    return _launch(
        q, q.shape[1], None, None, pool_k, pool_v, table, seats, lengths, page_size, scale, window, softcap,
        slopes, v_scale, splits, scratch, out, tiles,
    )  # fmt: skip


def packed_decode_attention(
    qkv: Tensor,
    heads: int,
    turning: Turning,
    slots: Tensor,
    pool_k: Tensor,
    pool_v: Tensor,
    table: Tensor,
    seats: Tensor,
    lengths: Tensor,
    *,
    page_size: int,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    v_scale: float = 1.0,
    splits: int | None = None,
    scratch: SplitScratch | None = None,
    out: Tensor | None = None,
    tiles: DecodeTiles | None = None,
) -> Tensor:
    """`rope_store` and `decode_attention` in one launch: the new tokens' k and v are made, stored and attended to here.

    qkv      [requests, (heads + 2 * kv_heads) * head_dim], as the projection wrote them
    turning  how heads become q and k, at position length - 1
    slots    int64 [requests]: where the new tokens' k and v go; -1 stores nothing

    All else is as for `decode_attention`; `lengths` count the new tokens.
    """
    requests, kv_heads, dim = len(qkv), pool_k.shape[1], pool_k.shape[2]
    if qkv.shape != (requests, (heads + 2 * kv_heads) * dim) or qkv.stride(1) != 1:
        raise ValueError(
            f"packed_decode_attention: qkv {tuple(qkv.shape)} is not of {heads} heads and pools {tuple(pool_k.shape)}"
        )
    if slots.shape != (requests,):
        raise ValueError(
            f"packed_decode_attention: {requests} requests need as many slots, got {slots.numel()}"
        )
    return _launch(
        qkv.unflatten(1, (-1, dim)), heads, turning, slots, pool_k, pool_v, table, seats, lengths, page_size,
        scale, window, softcap, None, v_scale, splits, scratch, out, tiles,
    )  # fmt: skip


def _launch(
    q: Tensor,
    heads: int,
    turning: Turning | None,
    slots: Tensor | None,
    pool_k: Tensor,
    pool_v: Tensor,
    table: Tensor,
    seats: Tensor,
    lengths: Tensor,
    page_size: int,
    scale: float,
    window: int | None,
    softcap: float | None,
    slopes: Tensor | None,
    v_scale: float,
    splits: int | None,
    scratch: SplitScratch | None,
    out: Tensor | None,
    tiles: DecodeTiles | None,
) -> Tensor:
    requests, _, dim = q.shape
    kv_heads = pool_k.shape[1]
    if pool_k.shape != pool_v.shape or pool_k.shape[2] != dim or heads % kv_heads:
        raise ValueError(
            f"decode_attention: q {tuple(q.shape)} does not fit pools {tuple(pool_k.shape)}, {tuple(pool_v.shape)}"
        )
    if seats.shape != (requests,) or lengths.shape != (requests,):
        raise ValueError(
            f"decode_attention: {requests} requests need as many seats and lengths, "
            f"got {tuple(seats.shape)} and {tuple(lengths.shape)}"
        )
    if pool_k.stride() != pool_v.stride() or pool_k.stride()[1:] != (dim, 1):
        raise ValueError("decode_attention: heads of the pools must lie next to each other")
    group = heads // kv_heads
    t = tiles or decode_tiles(q.device, requests, kv_heads, dim, pool_k.dtype)
    splits = t.splits if splits is None else splits
    if out is None:
        out = torch.empty((requests, heads, dim), dtype=q.dtype, device=q.device)
    elif not out.is_contiguous():
        raise ValueError("decode_attention: out must be contiguous")
    if requests == 0:
        return out
    if splits > 1:
        scratch = scratch or split_scratch(requests, kv_heads, splits, group, dim, q.device)
        check_scratch(scratch, requests, kv_heads, splits, group, dim)
    early = early_starts(q.device, requests, _EARLY_ROWS)
    turn = turning or _AS_IT_IS
    _decode[(kv_heads, splits, requests)](
        q,
        pool_k,
        pool_v,
        table,
        seats,
        lengths,
        slopes,
        turn.cos,
        turn.sin,
        turn.q_weight,
        turn.k_weight,
        slots,
        out,
        scratch.partial if scratch else None,
        scratch.weights if scratch else None,
        scratch.arrived if scratch else None,
        scale if softcap is not None else scale * LOG2E.value,
        softcap or 1.0,
        v_scale,
        _FOREVER if window is None else window,
        turn.eps,
        turn.offset,
        q.stride(0),
        pool_k.stride(0),
        table.stride(0),
        GROUP=group,
        BLOCK_G=max(16, triton.next_power_of_2(group)),
        DIM=dim,
        BLOCK_D=max(16, triton.next_power_of_2(dim)),
        PAGE=page_size,
        BLOCK_N=t.block_n,
        JOINED=splits > 1,
        SHORTEST=max(t.shortest, t.block_n),
        COLS=min(512, triton.next_power_of_2(group * dim)),
        SOFTCAP=softcap is not None,
        STAGES=t.stages,
        PACKED=turning is not None,
        TURNED=turn.width(dim),
        INTERLEAVED=turn.interleaved,
        NORM=turn.q_weight is not None,
        OFFSET=turn.offset != 0.0,
        EARLY=early,
        LINES=triton.next_power_of_2(max(1, dim * pool_k.element_size() // 128)),
        num_warps=t.warps,
        **({"launch_pdl": True} if early else {}),
    )
    return out
