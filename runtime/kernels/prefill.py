"""Attention of prompts' new tokens over what is cached before them and over themselves.

Any mixture of lengths runs in one launch: a program takes one head and a tile of one request's new tokens. Heavy
tiles start first, since the last tokens of a prompt see the most keys. Keys come from the pages, where the new
ones are already stored, or, for prompts that nothing precedes, straight from the rows of the batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels.decode import LOG2E, capped
from runtime.kernels.tuning import PrefillTiles, prefill_tiles

_FOREVER = 1 << 30


def prefill_reference(
    q: Tensor,
    pool_k: Tensor,
    pool_v: Tensor,
    table: Tensor,
    seats: Tensor,
    starts: Tensor,
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
    bounds = starts.tolist()
    for i, (seat, length) in enumerate(zip(seats.tolist(), lengths.tolist(), strict=True)):
        rows = slice(bounds[i], bounds[i + 1])
        at = torch.arange(length, device=q.device)
        own = at[length - (bounds[i + 1] - bounds[i]) :, None]
        slots = table[seat].long()[at // page_size] * page_size + at % page_size
        k = pool_k[slots].to(torch.float64).repeat_interleave(group, 1)
        v = pool_v[slots].to(torch.float64).repeat_interleave(group, 1)
        scores = torch.einsum("mhd,nhd->hmn", q[rows].to(torch.float64), k) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if slopes is not None:
            scores = scores + slopes.to(torch.float64)[:, None, None] * (at - own)
        hidden = at > own
        if window is not None:
            hidden |= at <= own - window
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        out[rows] = torch.einsum("hmn,nhd->mhd", weights, v) * v_scale
    return out.to(q.dtype)


@triton.jit
def _attend(
    acc,
    total,
    top,
    queries,
    k_head,
    v_head,
    row,
    own,
    slope,
    begin,
    end,
    scale,
    softcap,
    window,
    stride,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASK: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SLOPES: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Take keys [begin, end) in; with MASK a key may be hidden from a query."""
    d = tl.arange(0, BLOCK_D)
    for start in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
        pos = start + tl.arange(0, BLOCK_N)
        live = pos < end
        if PAGE == 0:
            slot = pos.to(tl.int64) * stride
        elif MASK:
            page = tl.load(row + pos // PAGE, mask=live, other=0)
            slot = (page.to(tl.int64) * PAGE + pos % PAGE) * stride
        else:
            page = tl.load(row + pos // PAGE)
            slot = (page.to(tl.int64) * PAGE + pos % PAGE) * stride
        if MASK or BLOCK_D != DIM:
            mask = live[:, None] & (d < DIM)[None, :]
            keys = tl.load(k_head + slot[:, None], mask=mask, other=0.0).to(queries.dtype)
        else:
            keys = tl.load(k_head + slot[:, None]).to(queries.dtype)
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
        if SOFTCAP:
            scores = capped(scores, softcap) * LOG2E
        if SLOPES:
            scores += slope * LOG2E * (pos[None, :] - own[:, None]).to(tl.float32)
        if MASK:
            seen = pos[None, :] <= own[:, None]
            if WINDOW:
                seen = seen & (pos[None, :] > own[:, None] - window)
            scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        base = higher
        if MASK:
            base = tl.where(higher == float("-inf"), 0.0, higher)  # a row may see nothing of this block
        keep = tl.exp2(top - base)
        probs = tl.exp2(scores - base[:, None])
        if MASK or BLOCK_D != DIM:
            mask = live[:, None] & (d < DIM)[None, :]
            values = tl.load(v_head + slot[:, None], mask=mask, other=0.0).to(queries.dtype)
        else:
            values = tl.load(v_head + slot[:, None]).to(queries.dtype)
        acc = acc * keep[:, None]
        acc += tl.dot(probs.to(queries.dtype), values, input_precision="ieee")
        total = total * keep + tl.sum(probs, 1)
        top = higher
    return acc, total, top


# A batch's prompts come after its single tokens, so these begin anywhere.
@triton.jit(do_not_specialize_on_alignment=["seats", "starts", "lengths"])
def _prefill(
    q,
    k,
    v,
    table,
    seats,
    starts,
    lengths,
    slopes,
    out,
    scale,
    softcap,
    v_scale,
    window,
    q_stride,
    stride,
    width,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SLOPES: tl.constexpr,
    STAGES: tl.constexpr,
):
    head = tl.program_id(0)
    request = tl.program_id(2)
    begin = tl.load(starts + request)
    count = tl.load(starts + request + 1) - begin
    tile = tl.cdiv(count, BLOCK_M) - 1 - tl.program_id(1)
    if tile >= 0:
        length = tl.load(lengths + request)
        before = length - count
        new = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        own = before + new
        d = tl.arange(0, BLOCK_D)
        rows = (new < count)[:, None] & (d < DIM)[None, :]
        token = (begin + new).to(tl.int64)[:, None]
        queries = tl.load(q + token * q_stride + head * DIM + d[None, :], mask=rows, other=0.0)
        k_head = k + head // GROUP * DIM + d[None, :]
        v_head = v + head // GROUP * DIM + d[None, :]
        row = table
        if PAGE == 0:
            k_head += begin.to(tl.int64) * stride
            v_head += begin.to(tl.int64) * stride
        else:
            row = table + tl.load(seats + request).to(tl.int64) * width
        slope = 0.0
        if SLOPES:
            slope = tl.load(slopes + head)
        top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        first_query = before + tile * BLOCK_M
        end = tl.minimum(first_query + BLOCK_M, length)
        if WINDOW:
            first = tl.maximum(first_query + 1 - window, 0) // BLOCK_N * BLOCK_N
            border = first
        else:
            first = 0
            border = (first_query + 1) // BLOCK_N * BLOCK_N  # keys before it are seen by the whole tile
            acc, total, top = _attend(
                acc, total, top, queries, k_head, v_head, row, own, slope, first, border,
                scale, softcap, window, stride,
                DIM, BLOCK_D, PAGE, BLOCK_N, False, False, SOFTCAP, SLOPES, STAGES,
            )  # fmt: skip
        acc, total, top = _attend(
            acc, total, top, queries, k_head, v_head, row, own, slope, border, end,
            scale, softcap, window, stride,
            DIM, BLOCK_D, PAGE, BLOCK_N, True, WINDOW, SOFTCAP, SLOPES, STAGES,
        )  # fmt: skip
        acc = acc / tl.where(total > 0, total, 1.0)[:, None] * v_scale
        heads = tl.num_programs(0)
        tl.store(
            out + (token * heads + head) * DIM + d[None, :],
            acc.to(out.dtype.element_ty),
            mask=rows,
        )


def prefill_attention(
    q: Tensor,
    pool_k: Tensor,
    pool_v: Tensor,
    table: Tensor,
    seats: Tensor,
    starts: Tensor,
    lengths: Tensor,
    *,
    page_size: int,
    max_new: int,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    slopes: Tensor | None = None,
    v_scale: float = 1.0,
    out: Tensor | None = None,
    tiles: PrefillTiles | None = None,
) -> Tensor:
    """Attend new tokens of prompts, causally, to their request's pages; their own k and v are stored before.

    q               [tokens, heads, head_dim]; rows may be apart by more than heads * head_dim
    pool_k, pool_v  [slots, kv_heads, head_dim], of q's dtype or float8; slot = page * page_size + offset
    table           int32 [seats, width]; seats int32 [requests]
    starts          int32 [requests + 1]: request i's new tokens are rows [starts[i], starts[i + 1]) of q
    lengths         int32 [requests]: cached and new tokens together
    max_new         bound of the new tokens of one request
    scale, window, softcap, slopes, v_scale: as for decode_attention

    Returns [tokens, heads, head_dim] in q's dtype; rows of no request are not written; sums run in float32.
    """
    out = _output(q, out)
    _launch(
        q, pool_k, pool_v, starts, lengths, table, seats, page_size, max_new, scale, window, softcap, slopes,
        v_scale, out, tiles,
    )  # fmt: skip
    return out


def fresh_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor,
    *,
    max_new: int,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    slopes: Tensor | None = None,
    out: Tensor | None = None,
    tiles: PrefillTiles | None = None,
) -> Tensor:
    """The same for prompts that nothing precedes: k, v [tokens, kv_heads, head_dim] are rows beside q's."""
    lengths = starts[1:] - starts[:-1]
    out = _output(q, out)
    _launch(  # no table and no seats are read
        q, k, v, starts, lengths, lengths, lengths, 0, max_new, scale, window, softcap, slopes, 1.0,
        out, tiles,
    )  # fmt: skip
    return out


def _output(q: Tensor, out: Tensor | None) -> Tensor:
    if out is None:
        return torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if out.shape != q.shape or not out.is_contiguous():
        raise ValueError(
            f"prefill_attention: out must be contiguous {tuple(q.shape)}, got {tuple(out.shape)}"
        )
    return out


def _launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor,
    lengths: Tensor,
    table: Tensor,
    seats: Tensor,
    page_size: int,
    max_new: int,
    scale: float,
    window: int | None,
    softcap: float | None,
    slopes: Tensor | None,
    v_scale: float,
    out: Tensor,
    tiles: PrefillTiles | None,
) -> None:
    _, heads, dim = q.shape
    if k.shape != v.shape or k.shape[2] != dim or heads % k.shape[1]:
        raise ValueError(
            f"prefill_attention: q {tuple(q.shape)} does not fit k {tuple(k.shape)} and v {tuple(v.shape)}"
        )
    requests = starts.numel() - 1
    if lengths.numel() != requests or (page_size and seats.numel() != requests):
        raise ValueError(
            f"prefill_attention: starts are of {requests} requests, lengths of {lengths.numel()}, "
            f"seats of {seats.numel()}"
        )
    if k.stride() != v.stride() or k.stride()[1:] != (dim, 1) or q.stride()[1:] != (dim, 1):
        raise ValueError("prefill_attention: heads of q, k and v must lie next to each other")
    if not requests or not max_new:
        return
    t = tiles or prefill_tiles(q.device, dim, q.dtype)
    _prefill[(heads, triton.cdiv(max_new, t.block_m), requests)](
        q,
        k,
        v,
        table,
        seats,
        starts,
        lengths,
        slopes,
        out,
        scale if softcap is not None else scale * LOG2E.value,
        softcap or 1.0,
        v_scale,
        _FOREVER if window is None else window,
        q.stride(0),
        k.stride(0),
        table.stride(0),
        GROUP=heads // k.shape[1],
        DIM=dim,
        BLOCK_D=max(16, triton.next_power_of_2(dim)),
        PAGE=page_size,
        BLOCK_M=t.block_m,
        BLOCK_N=t.block_n,
        WINDOW=window is not None,
        SOFTCAP=softcap is not None,
        SLOPES=slopes is not None,
        STAGES=t.stages,
        num_warps=t.warps,
    )
