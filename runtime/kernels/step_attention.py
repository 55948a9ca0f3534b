"""The attention phase of kernels/whole_step.py: the newest token of one request, each program a part of a KV head's context.

Keys and values of earlier steps depend on nobody: a program's first ones are under way before all meet. Which sums are made
is as in kernels/decode.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from runtime.kernels.ahead import fetch_rows_ahead
from runtime.kernels.decode import LOG2E, capped, newest_token
from runtime.kernels.grid_barrier import leave, meet
from runtime.kernels.merge import arrive, join_parts
from runtime.kernels.rope_store import rotated
from runtime.kernels.step_product import aligned


@triton.jit
def _run(
    pool,
    pages,
    start,
    end,
    head,
    dtype: tl.constexpr,
    STRIDE: tl.constexpr,
    PAGE: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Positions [start, end) of a head of a pool, BLOCK_N at most."""
    pos = start + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)[None, :]
    live = pos < end
    page = tl.load(pages + pos // PAGE, mask=live, other=0)
    slot = (page.to(tl.int64) * PAGE + pos % PAGE) * STRIDE
    mask = live[:, None]
    if BLOCK_D != DIM:
        mask = mask & (d < DIM)
    return tl.load(aligned(pool, dtype) + slot[:, None] + head * DIM + d, mask=mask, other=0.0)


@triton.jit
def _scored(queries, keys, values, live, top, total, acc, scale, softcap, SOFTCAP: tl.constexpr):
    """One block of the online softmax."""
    scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
    if SOFTCAP:
        scores = capped(scores, softcap) * LOG2E
    scores = tl.where(live[None, :], scores, float("-inf"))
    higher = tl.maximum(top, tl.max(scores, 1))
    keep = tl.exp2(top - higher)
    probs = tl.exp2(scores - higher[:, None])
    acc = acc * keep[:, None]
    acc += tl.dot(probs.to(queries.dtype), values, input_precision="ieee")
    return higher, total * keep + tl.sum(probs, 1), acc


@triton.jit
def _unit(
    unit,
    keys,
    values,
    memory,
    numbers,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    SOFTCAP: tl.constexpr,
    NORM: tl.constexpr,
    OFFSET: tl.constexpr,
    TURNED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr,
    COLS: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """One KV head's queries over part of the context, of which keys and values of the first block are at hand.

    memory, numbers  what `attention` takes
    """
    qkv, attended, partial, weights, arrived, pool_k, pool_v, pages, cos, sin, q_norm, k_norm = memory
    length, oldest, share, used, own_slot, scale, softcap, eps, offset = numbers
    dtype: tl.constexpr = qkv.dtype.element_ty
    STRIDE: tl.constexpr = KV_HEADS * DIM
    split = unit // KV_HEADS
    head = unit % KV_HEADS
    g = tl.arange(0, BLOCK_G)
    d = tl.arange(0, BLOCK_D)
    inside = d < DIM
    heads_live = (g < GROUP)[:, None] & inside[None, :]
    within = g[:, None] * DIM + d[None, :]
    cached = tl.maximum(length - 1, 0)
    position = cached.to(tl.int64)
    begin = oldest + split * share
    end = tl.minimum(begin + share, cached)
    queries = rotated(
        qkv + (head * GROUP + g)[:, None] * DIM, heads_live, d[None, :], q_norm, cos, sin, position,
        eps, offset, DIM, TURNED, INTERLEAVED, NORM, OFFSET,
    )  # fmt: skip
    top = tl.full((BLOCK_G,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_G,), tl.float32)
    acc = tl.zeros((BLOCK_G, BLOCK_D), tl.float32)
    if (split == 0) & (length > 0):  # the new token itself, which no pool has yet
        top, value = newest_token(
            queries, qkv + (GROUP * KV_HEADS + head) * DIM, qkv + ((GROUP + 1) * KV_HEADS + head) * DIM,
            own_slot + 0 * d, STRIDE, head, pool_k.to(tl.pointer_type(dtype)), pool_v.to(tl.pointer_type(dtype)),
            k_norm, cos, sin, position, d, scale, softcap, eps, offset, DIM, TURNED, INTERLEAVED, NORM, OFFSET, SOFTCAP,
        )  # fmt: skip
        total = tl.full((BLOCK_G,), 1.0, tl.float32)
        acc += value[None, :]
    if begin < end:
        live = begin + tl.arange(0, BLOCK_N) < end
        top, total, acc = _scored(queries, keys, values, live, top, total, acc, scale, softcap, SOFTCAP)
    for start in tl.range(begin + BLOCK_N, end, BLOCK_N, num_stages=2):
        live = start + tl.arange(0, BLOCK_N) < end
        more_keys = _run(pool_k, pages, start, end, head, dtype, STRIDE, PAGE, DIM, BLOCK_D, BLOCK_N)
        more = _run(pool_v, pages, start, end, head, dtype, STRIDE, PAGE, DIM, BLOCK_D, BLOCK_N)
        top, total, acc = _scored(queries, more_keys, more, live, top, total, acc, scale, softcap, SOFTCAP)
    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    if used > 1:
        weight = tl.where(total > 0, top + tl.log2(total), 0.0)
        base = (head * SPLITS + split) * GROUP
        tl.store(weights + base + g, weight, mask=g < GROUP)
        tl.store(partial + base * DIM + within, acc, mask=heads_live)
        if arrive(arrived + head) == used - 1:
            join_parts(
                partial + head * (SPLITS * GROUP * DIM), weights + head * (SPLITS * GROUP), used,
                attended + head * (GROUP * DIM), GROUP, 1.0, GROUP, DIM, COLS, AT_ONCE,
            )  # fmt: skip
            tl.store(arrived + head, 0)
    else:
        tl.store(attended + head * (GROUP * DIM) + within, acc.to(attended.dtype.element_ty), mask=heads_live)


@triton.jit(noinline=True)
def attention(
    qkv,
    attended,
    partial,
    weights,
    arrived,
    pool_k,
    pool_v,
    pages,
    cos,
    sin,
    q_norm,
    k_norm,
    length,
    oldest,
    share,
    used,
    own_slot,
    scale,
    softcap,
    eps,
    offset,
    counter,
    target,
    after,
    after_first,
    after_last,
    after_n,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    SOFTCAP: tl.constexpr,
    NORM: tl.constexpr,
    OFFSET: tl.constexpr,
    TURNED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr,
    COLS: tl.constexpr,
    AT_ONCE: tl.constexpr,
    MORE_UNITS: tl.constexpr,
    AFTER_K: tl.constexpr,
    AFTER_LINES: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Rotate, store the new token's k and v, attend to `used` parts of `share` positions from `oldest` on; then leave.

    after       weights that are asked for before all programs meet at `target`
    MORE_UNITS  there may be more parts of heads than programs
    """
    memory = (qkv, attended, partial, weights, arrived, pool_k, pool_v, pages, cos, sin, q_norm, k_norm)
    numbers = (length, oldest, share, used, own_slot, scale, softcap, eps, offset)
    dtype: tl.constexpr = qkv.dtype.element_ty
    STRIDE: tl.constexpr = KV_HEADS * DIM
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    begin = oldest + (program // KV_HEADS) * share
    end = tl.minimum(begin + share, tl.maximum(length - 1, 0))
    head = program % KV_HEADS
    keys = _run(pool_k, pages, begin, end, head, dtype, STRIDE, PAGE, DIM, BLOCK_D, BLOCK_N)
    values = _run(pool_v, pages, begin, end, head, dtype, STRIDE, PAGE, DIM, BLOCK_D, BLOCK_N)
    fetch_rows_ahead(
        after.to(tl.pointer_type(dtype)), after_n, after_first, after_last, AFTER_K, AFTER_LINES, None
    )
    meet(counter, target, INTERPRETED)
    if program < KV_HEADS * used:
        _unit(
            program, keys, values, memory, numbers, GROUP, KV_HEADS, DIM, SOFTCAP, NORM, OFFSET, TURNED, INTERLEAVED, PAGE,
            BLOCK_G, BLOCK_D, BLOCK_N, SPLITS, COLS, AT_ONCE,
        )  # fmt: skip
    if MORE_UNITS:
        for unit in range(program + programs, KV_HEADS * used, programs):
            begin = oldest + (unit // KV_HEADS) * share
            end = tl.minimum(begin + share, tl.maximum(length - 1, 0))
            head = unit % KV_HEADS
            keys = _run(pool_k, pages, begin, end, head, dtype, STRIDE, PAGE, DIM, BLOCK_D, BLOCK_N)
            values = _run(pool_v, pages, begin, end, head, dtype, STRIDE, PAGE, DIM, BLOCK_D, BLOCK_N)
            _unit(
                unit, keys, values, memory, numbers, GROUP, KV_HEADS, DIM, SOFTCAP, NORM, OFFSET, TURNED, INTERLEAVED, PAGE,
                BLOCK_G, BLOCK_D, BLOCK_N, SPLITS, COLS, AT_ONCE,
            )  # fmt: skip
    leave(counter, INTERPRETED)
