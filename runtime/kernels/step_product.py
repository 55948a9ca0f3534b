"""A phase of kernels/whole_step.py: a matrix times one row, each program some of the matrix's rows.

What a program reads first does not depend on what the others still compute, so it is under way before they meet.
"""

from __future__ import annotations

import triton
import triton.language as tl

from runtime.kernels.activation import activated
from runtime.kernels.ahead import fetch_rows_ahead
from runtime.kernels.grid_barrier import leave, meet


@triton.jit
def aligned(address, dtype: tl.constexpr):
    """The pointer to what lies at an address. Tells the compiler what `why_not` checked; an argument that is a pointer cannot."""
    return tl.multiple_of(address.to(tl.pointer_type(dtype)), 16)


@triton.jit
def _rows(w, at, last, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """Rows `at` [rows, 1] of w, two numbers to an int32: [rows, BLOCK_K / 2]; zeros from row `last` on.

    Numbers of two bytes would each take a register while they wait.
    """
    pair = tl.arange(0, BLOCK_K // 2)[None, :]
    live = at < last
    if K != BLOCK_K:
        live = live & (pair < K // 2)
    return tl.load(aligned(w, tl.int32) + (at * (K // 2) + pair), mask=live, other=0)


@triton.jit
def _wide(pairs, dtype: tl.constexpr):
    """The two numbers of each int32 in float32."""
    if dtype == tl.bfloat16:
        return (pairs << 16).to(tl.float32, bitcast=True), (pairs & -65536).to(tl.float32, bitcast=True)
    else:
        low = (pairs & 65535).to(tl.int16).to(dtype, bitcast=True)
        high = (pairs >> 16).to(tl.int16).to(dtype, bitcast=True)
        return low.to(tl.float32), high.to(tl.float32)


@triton.jit
def _products(pairs, even, odd, dtype: tl.constexpr):
    low, high = _wide(pairs, dtype)
    return low * even + high * odd


@triton.jit
def _put(y, up, at, last, factor, bias, residual, out, GATED: tl.constexpr):
    live = at < last
    y *= factor
    if bias is not None:
        y += tl.load(bias + at, mask=live, other=0.0).to(tl.float32)
    if GATED is not None:
        y = activated(y, GATED) * (up * factor)
    if residual is not None:
        y += tl.load(residual + at, mask=live, other=0.0, cache_modifier=".cg").to(tl.float32)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=live)


@triton.jit(noinline=True)
def product(
    w,
    bias,
    norm,
    x,
    residual,
    out,
    eps,
    offset,
    counter,
    target,
    after,
    after_first,
    after_last,
    after_n,
    n,
    first,
    last,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr,
    GATED: tl.constexpr,
    AFTER_K: tl.constexpr,
    AFTER_LINES: tl.constexpr,
    AFTER_GATED: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """out[first:last] = w[first:last] x, after all programs have met at `target`; then leave.

    norm   of x; None: x as it is
    after  weights that are asked for before the meeting, once the first rows of w are under way

    Two blocks of ROWS rows are under way, each asked for again as soon as it has been multiplied.
    """
    dtype: tl.constexpr = out.dtype.element_ty
    STEP: tl.constexpr = ROWS if GATED is not None else 2 * ROWS
    row = tl.arange(0, ROWS)
    col = tl.arange(0, BLOCK_K)
    live = col < K
    a = _rows(w, first + row[:, None], last, K, BLOCK_K)
    if GATED is not None:
        b = _rows(w, n + first + row[:, None], n + last, K, BLOCK_K)
    else:
        b = _rows(w, first + ROWS + row[:, None], last, K, BLOCK_K)
    if norm is not None:
        scale = tl.load(aligned(norm, dtype) + col, mask=live, other=0.0).to(tl.float32) + offset
    fetch_rows_ahead(
        after.to(tl.pointer_type(dtype)), after_n, after_first, after_last, AFTER_K, AFTER_LINES, AFTER_GATED
    )
    meet(counter, target, INTERPRETED)
    factor = 1.0
    # .cg: other multiprocessors wrote this, so the nearest cache may be stale
    value = tl.load(x + col, mask=live, other=0.0, cache_modifier=".cg").to(tl.float32)
    if norm is not None:
        factor = tl.rsqrt(tl.sum(value * value, 0) / K + eps)
        value *= scale
    even, odd = tl.split(tl.reshape(value, (BLOCK_K // 2, 2)))
    even = even[None, :]
    odd = odd[None, :]
    for start in range(first, last, STEP):
        at = start + STEP + row[:, None]
        products = _products(a, even, odd, dtype)
        a = _rows(w, at, last, K, BLOCK_K)
        y = tl.sum(products, 1)
        products = _products(b, even, odd, dtype)
        if GATED is not None:
            b = _rows(w, n + at, n + last, K, BLOCK_K)
            _put(y, tl.sum(products, 1), start + row, last, factor, bias, residual, out, GATED)
        else:
            b = _rows(w, at + ROWS, last, K, BLOCK_K)
            _put(y, None, start + row, last, factor, bias, residual, out, GATED)
            _put(tl.sum(products, 1), None, start + ROWS + row, last, factor, bias, residual, out, GATED)
    leave(counter, INTERPRETED)
