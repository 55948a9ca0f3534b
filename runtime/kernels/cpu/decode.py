"""A whole forward pass in one compiled call.

On small models a decoder spends its time between operations, not in them. Here all layers run in one call without
Python; weights are read as the upper halves of float32 numbers where that loses nothing; sums run in float32.
Everything that numba compiles is here and in vectors.py: its cache looks at this file only, build.py at both.
"""

# mypy: disable-error-code="no-untyped-def, call-arg, var-annotated"
# numba reads these functions, and it is numba that infers their types

from __future__ import annotations

import llvmlite.binding as llvm
import numpy as np
from numba import njit, prange

from runtime.kernels.cpu.vectors import (
    LOWEST,
    QUERIES,
    TILE,
    WIDTH,
    float_of_bits,
    mix,
    score,
    soften,
    turn_keys,
    wide,
)

BLOCK = 32  # tokens whose attention shares the reading of keys
LOG2_E = np.float32(1.4426950408889634)
ROWS = 32  # outputs of a linear layer computed before the next
TOKEN = 1000  # work of a token beside attention, in keys that it could see for the same
MATH = {"reassoc", "contract", "arcp", "nsz"}  # sums in any order; NaN and infinity keep their meaning


if "+avx512f" not in llvm.get_host_cpu_features().flatten():
    # With few registers loops over four tokens are unrolled less than those over one, and add up in another order: an output
    # would depend on its batch.
    llvm.set_option("", "--force-vector-interleave=2")


@njit(fastmath=MATH, nogil=True, inline="always")
def _exp(x):
    """e ** x in float32 for vectors: 2 ** n times a polynomial of the rest; x is cut to [-87, 88]."""
    x = min(max(x, np.float32(-87.0)), np.float32(88.0))
    n = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    return p * float_of_bits((np.int32(n) + np.int32(127)) << np.int32(23))


@njit(fastmath=MATH, nogil=True)
def _rows(x, w, y, low, high, add):
    """y[:, low:high] = (y +) x w[low:high]^T. A row of w is read once for four tokens."""
    tokens, k = x.shape
    zero = np.float32(0)
    t = 0
    while t + 4 <= tokens:
        x0, x1, x2, x3 = x[t], x[t + 1], x[t + 2], x[t + 3]
        for o in range(low, high):
            row = w[o]
            a = b = c = d = zero
            for i in range(k):
                v = wide(row[i])
                a += v * x0[i]
                b += v * x1[i]
                c += v * x2[i]
                d += v * x3[i]
            if add:
                y[t, o] += a
                y[t + 1, o] += b
                y[t + 2, o] += c
                y[t + 3, o] += d
            else:
                y[t, o] = a
                y[t + 1, o] = b
                y[t + 2, o] = c
                y[t + 3, o] = d
        t += 4
    while t < tokens:
        x0 = x[t]
        for o in range(low, high):
            row = w[o]
            a = zero
            for i in range(k):
                a += wide(row[i]) * x0[i]
            if add:
                y[t, o] += a
            else:
                y[t, o] = a
        t += 1


@njit(fastmath=MATH, nogil=True)
def _linear(x, w, y, add):
    """y = (y +) x w^T, rows of w by the block, so that they stay near while all tokens pass."""
    n = w.shape[0]
    for low in range(0, n, ROWS):
        _rows(x, w, y, low, min(n, low + ROWS), add)


@njit(fastmath=MATH, nogil=True)
def _norm(x, weight, eps, y):
    tokens, n = x.shape
    for t in range(tokens):
        row, out = x[t], y[t]
        total = np.float32(0)
        for i in range(n):
            total += row[i] * row[i]
        scale = np.float32(1) / np.sqrt(total / np.float32(n) + eps)
        for i in range(n):
            out[i] = weight[i] * (row[i] * scale)


@njit(fastmath=MATH, nogil=True)
def _turn_and_store(qkv, positions, slots, cos, sin, k, v, heads):
    """Rotate q in place; rotate k and put it and v into the store."""
    kv_heads, dim = k.shape[1], k.shape[2]
    half = dim // 2
    for t in range(qkv.shape[0]):
        c, s, row, slot = cos[positions[t]], sin[positions[t]], qkv[t], slots[t]
        for h in range(heads):
            at = h * dim
            for i in range(half):
                a, b = row[at + i], row[at + half + i]
                row[at + i] = a * c[i] - b * s[i]
                row[at + half + i] = b * c[i] + a * s[i]
        for h in range(kv_heads):
            at = (heads + h) * dim
            value = at + kv_heads * dim
            for i in range(half):
                a, b = row[at + i], row[at + half + i]
                k[slot, h, i] = a * c[i] - b * s[i]
                k[slot, h, half + i] = b * c[i] + a * s[i]
            for i in range(dim):
                v[slot, h, i] = row[value + i]


@njit(fastmath=MATH, nogil=True)
def _fold(
    queries, k, v, places, head, at, seen, low, high, keys, weights, limits, keeps, tops, totals, out, lanes
):  # fmt: skip
    """Fold up to TILE slots, the first at place `at`, into the running softmax of the queries low .. high - 1; query r
    sees seen[r] places."""
    count = len(places)
    for j in range(0, count, WIDTH):
        turn_keys(k, places, head, j, keys, lanes)
    for r in range(low, high, QUERIES):
        most = 0
        for i in range(QUERIES):
            limits[i] = max(0, min(count, seen[r + i] - at))
            most = max(most, limits[i])
        if most > 0:
            score(queries, r, keys, weights, lanes)
            soften(weights, limits, r, tops, totals, keeps)
            mix(weights, keeps, v, places, head, most, out, r, lanes)


@njit(fastmath=MATH, nogil=True)
def _attend(q, k, v, context, first, positions, low, high, shared, head, group, scale, out, lanes):
    """One kv head of the tokens low .. high - 1, which have the first `shared` slots in common."""
    dim = len(lanes)
    one, stride = head * group * dim, (group + QUERIES - 1) // QUERIES * QUERIES
    rows = (high - low) * stride
    queries, mixed = np.zeros(rows * dim, np.float32), np.zeros(rows * dim, np.float32)
    seen = np.zeros(rows, np.int64)
    for t in range(low, high):
        for g in range(group):
            row = (t - low) * stride + g
            seen[row] = positions[t] + 1
            for i in range(dim):
                queries[row * dim + i] = q[t, one + g * dim + i] * (scale * LOG2_E)
    keys = np.zeros(dim * TILE, np.float32)
    weights, keeps = np.empty(QUERIES * TILE, np.float32), np.empty(QUERIES, np.float32)
    limits = np.empty(QUERIES, np.int64)
    tops, totals = np.full(rows, LOWEST), np.zeros(rows * WIDTH, np.float32)
    for at in range(0, shared, TILE):
        places = context[first[low] + at : first[low] + min(at + TILE, shared)]
        _fold(
            queries,
            k,
            v,
            places,
            head,
            at,
            seen,
            0,
            rows,
            keys,
            weights,
            limits,
            keeps,
            tops,
            totals,
            mixed,
            lanes,
        )
    for t in range(low, high):
        row = (t - low) * stride
        for at in range(shared, positions[t] + 1, TILE):
            places = context[first[t] + at : first[t] + min(at + TILE, positions[t] + 1)]
            _fold(
                queries, k, v, places, head, at, seen, row, row + stride,
                keys, weights, limits, keeps, tops, totals, mixed, lanes,
            )  # fmt: skip
        for g in range(group):
            total = np.float32(0)
            for i in range(WIDTH):
                total += totals[(row + g) * WIDTH + i]
            inverse = np.float32(1) / total
            for i in range(dim):
                out[t, one + g * dim + i] = mixed[(row + g) * dim + i] * inverse


@njit(nogil=True)
def _blocks(context, first, positions):
    """Neighbouring tokens that begin with the same slots: the first token of each block (and the end), and how many
    slots its tokens share. In a block either all tokens have the same row, or each has its own."""
    tokens = len(first)
    starts, shared = np.empty(tokens + 1, np.int64), np.empty(tokens, np.int64)
    count = low = 0
    for t in range(tokens):
        seen = positions[t] + 1
        if t > 0 and t - low < BLOCK:
            if first[t] == first[t - 1]:
                if first[low] == first[t]:
                    shared[count - 1] = max(shared[count - 1], seen)
                    continue
            elif t - low == 1 or first[low] != first[low + 1]:
                have = shared[count - 1]
                a, b, same = first[low], first[t], 0
                while same < min(have, seen) and context[a + same] == context[b + same]:
                    same += 1
                if same >= TILE and 2 * same >= have:
                    shared[count - 1] = same
                    continue
        starts[count], shared[count] = t, seen
        low = t
        count += 1
    starts[count] = tokens
    return starts[: count + 1], shared[:count]


@njit(fastmath=MATH, nogil=True)
def _attention(q, k, v, context, first, positions, scale, out, lanes):
    starts, shared = _blocks(context, first, positions)
    group = out.shape[1] // (k.shape[1] * len(lanes))
    for b in range(len(shared)):
        low, high = starts[b], starts[b + 1]
        for h in range(k.shape[1]):
            _attend(q, k, v, context, first, positions, low, high, shared[b], h, group, scale, out, lanes)


@njit(fastmath=MATH, nogil=True)
def _gate(both, out):
    """silu(gate) * up of rows [gate, up]."""
    n = out.shape[1]
    for t in range(out.shape[0]):
        row, o = both[t], out[t]
        for i in range(n):
            g = row[i]
            o[i] = g / (np.float32(1) + _exp(-g)) * row[n + i]


@njit(fastmath=MATH, nogil=True)
def _before(x, positions, slots, qkv, norm, eps, cos, sin, k, v, q):
    """First part of a layer, up to where tokens see each other: q into rows [q, k, v], k and v into the store."""
    h = np.empty(x.shape, np.float32)
    _norm(x, norm, eps, h)
    _linear(h, qkv, q, False)
    heads = q.shape[1] // k.shape[2] - 2 * k.shape[1]
    _turn_and_store(q, positions, slots, cos, sin, k, v, heads)


@njit(fastmath=MATH, nogil=True)
def _after(x, q, context, first, positions, out, up, down, norm, eps, scale, k, v, lanes):
    """The rest of the layer, added to x in place."""
    tokens = len(x)
    attended = np.empty((tokens, out.shape[1]), np.float32)
    _attention(q, k, v, context, first, positions, scale, attended, lanes)
    _linear(attended, out, x, True)
    h = np.empty(x.shape, np.float32)
    _norm(x, norm, eps, h)
    both, inner = np.empty((tokens, up.shape[0]), np.float32), np.empty((tokens, down.shape[1]), np.float32)
    _linear(h, up, both, False)
    _gate(both, inner)
    _linear(inner, down, x, True)


@njit(fastmath=MATH, nogil=True)
def _alone(
    x, positions, slots, context, first,
    qkv, out, up, down, attn_norms, mlp_norms, eps, cos, sin, scale, k, v, lanes,
):  # fmt: skip
    """All layers of tokens that see no other new tokens than these."""
    q = np.empty((len(x), qkv.shape[1]), np.float32)
    for i in range(len(qkv)):
        _before(x, positions, slots, qkv[i], attn_norms[i], eps, cos, sin, k[i], v[i], q)
        _after(
            x,
            q,
            context,
            first,
            positions,
            out[i],
            up[i],
            down[i],
            mlp_norms[i],
            eps,
            scale,
            k[i],
            v[i],
            lanes,
        )


@njit(nogil=True)
def _share(first, positions, parts):
    """Where to cut the tokens into `parts` of about the same work, and whether no row of slots is cut."""
    tokens = len(first)
    work = np.cumsum(positions + TOKEN)
    cuts = np.zeros(parts + 1, np.int64)
    whole = True
    for p in range(1, parts):
        even = np.searchsorted(work, work[-1] * p // parts)
        low = high = even
        while low > 0 and first[low] == first[low - 1]:
            low -= 1
        while 0 < high < tokens and first[high] == first[high - 1]:
            high += 1
        near = low if even - low <= high - even else high
        if abs(near - even) * 8 * parts > tokens:
            near, whole = even, False
        cuts[p] = max(near, cuts[p - 1])
    cuts[parts] = tokens
    return cuts, whole


@njit(fastmath=MATH, nogil=True, parallel=True)
def _together(
    x, positions, slots, context, first, cuts, whole,
    qkv, out, up, down, attn_norms, mlp_norms, eps, cos, sin, scale, k, v, lanes,
):  # fmt: skip
    """All layers, by several threads. They need not wait for each other if each has whole rows."""
    parts = len(cuts) - 1
    if whole:
        for p in prange(parts):
            a, b = cuts[p], cuts[p + 1]
            _alone(
                x[a:b], positions[a:b], slots[a:b], context, first[a:b],
                qkv, out, up, down, attn_norms, mlp_norms, eps, cos, sin, scale, k, v, lanes,
            )  # fmt: skip
        return
    q = np.empty((len(x), qkv.shape[1]), np.float32)
    for i in range(len(qkv)):
        for p in prange(parts):
            a, b = cuts[p], cuts[p + 1]
            _before(
                x[a:b], positions[a:b], slots[a:b], qkv[i], attn_norms[i], eps, cos, sin, k[i], v[i], q[a:b]
            )
        for p in prange(parts):
            a, b = cuts[p], cuts[p + 1]
            _after(
                x[a:b], q[a:b], context, first[a:b], positions[a:b],
                out[i], up[i], down[i], mlp_norms[i], eps, scale, k[i], v[i], lanes,
            )  # fmt: skip


@njit(fastmath=MATH, nogil=True, cache=True)
def run_layers(
    ids, positions, slots, context, first,
    embedding, qkv, out, up, down, attn_norms, mlp_norms, norm, eps, cos, sin, scale,
    k, v, lanes, threads,
):  # fmt: skip
    """Hidden states float32 [tokens, hidden] of one batch, its keys and values stored.

    ids, positions, slots  int64 [tokens]; slots are where the tokens' own k and v go
    context, first         token t sees the slots context[first[t] : first[t] + positions[t] + 1]
    qkv, out, up, down     [layers, outputs, inputs]; norms float32 [layers, hidden], the last one [hidden]
    cos, sin               float32 [positions, head_dim / 2]
    k, v                   float32 [layers, slots, kv_heads, head_dim]
    lanes                  a tuple of head_dim elements: its length is a constant of the compiled code
    """
    tokens, hidden = len(ids), embedding.shape[1]
    x = np.empty((tokens, hidden), np.float32)
    for t in range(tokens):
        row, word = x[t], embedding[ids[t]]
        for i in range(hidden):
            row[i] = wide(word[i])
    if threads == 1:
        _alone(
            x, positions, slots, context, first,
            qkv, out, up, down, attn_norms, mlp_norms, eps, cos, sin, scale, k, v, lanes,
        )  # fmt: skip
    else:
        cuts, whole = _share(first, positions, min(threads, tokens))
        _together(
            x, positions, slots, context, first, cuts, whole,
            qkv, out, up, down, attn_norms, mlp_norms, eps, cos, sin, scale, k, v, lanes,
        )  # fmt: skip
    h = np.empty((tokens, hidden), np.float32)
    _norm(x, norm, eps, h)
    return h


@njit(fastmath=MATH, nogil=True, parallel=True)
def _head_together(x, w, y, threads):
    n = w.shape[0]
    size = (n // ROWS // threads + 1) * ROWS
    for p in prange(threads):
        for low in range(p * size, min(n, (p + 1) * size), ROWS):
            _rows(x, w, y, low, min(n, low + ROWS), False)


@njit(fastmath=MATH, nogil=True, cache=True)
def run_head(x, w, threads):
    """x w^T, float32 [rows, vocabulary]."""
    y = np.empty((x.shape[0], w.shape[0]), np.float32)
    if threads == 1:
        _linear(x, w, y, False)
    else:
        _head_together(x, w, y, threads)
    return y
