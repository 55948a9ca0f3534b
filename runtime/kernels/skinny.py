"""Linear layers of few rows, where reading the weights is all the time there is.

One row takes a kernel of plain multiply-adds that can also hold the norm before it and the residual sum after it.
More rows take a tiled product in which the weights are the tall operand, so that the matrix units' 64 rows are all
used; where the tiles would not fill the device the sum over the inner dimension is split, and whichever program
comes last adds the parts in their order, so that results do not change from run to run. What the tables say the
library does better goes to the library; many rows with a gate go to kernels/wgmma_linear.py, 17 to 64 rows of small matrices to
kernels/cluster_linear.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from runtime.kernels import cluster_linear, wgmma_linear
from runtime.kernels.activation import ACTIVATIONS, activated, gated_mul, gated_reference
from runtime.kernels.merge import arrive
from runtime.kernels.norm import rms_norm, rms_norm_reference
from runtime.kernels.tuning import EARLY_WEIGHTS, LinearTiles, early_starts, linear_tiles, usual_tiles


@dataclass(frozen=True)
class RowNorm:
    """The RMS norm before a linear layer."""

    weight: Tensor
    eps: float
    offset: float = 0.0


@dataclass(frozen=True)
class LinearScratch:
    """Where parts of split sums wait: `partial` float32 [elements], `arrived` int32, zero between launches."""

    partial: Tensor
    arrived: Tensor


def linear_scratch(device: torch.device, elements: int = 1 << 23) -> LinearScratch:
    """Scratch that serves every layer of a stream."""
    return LinearScratch(
        torch.empty(elements, dtype=torch.float32, device=device),
        torch.zeros(1 << 16, dtype=torch.int32, device=device),
    )


def skinny_linear_reference(
    x: Tensor,
    w: Tensor,
    *,
    bias: Tensor | None = None,
    norm: RowNorm | None = None,
    gated: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """The same in float64."""
    wide = x.double()
    if norm is not None:
        wide = rms_norm_reference(wide, norm.weight.double(), norm.eps, norm.offset)
    wide = F.linear(wide, w.double(), None if bias is None else bias.double())
    if gated is not None:
        wide = gated_reference(wide, gated)
    if residual is not None:
        wide = wide + residual.double()
    return wide.to(x.dtype)


@triton.jit
def _gemv(
    x,
    w,
    bias,
    norm,
    residual,
    out,
    eps,
    offset,
    n,
    w_stride,
    K: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    UNROLL: tl.constexpr,
    EARLY: tl.constexpr,
):
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    live = row < n
    w_row = w + row.to(tl.int64)[:, None] * w_stride
    acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    other = acc
    squares = tl.zeros((BLOCK_K,), tl.float32)
    for start in tl.range(0, K, BLOCK_K, loop_unroll_factor=UNROLL):
        col = start + tl.arange(0, BLOCK_K)
        if K % BLOCK_K == 0:
            a = tl.load(w_row + col[None, :], mask=live[:, None], other=0.0)
        else:
            a = tl.load(w_row + col[None, :], mask=live[:, None] & (col < K)[None, :], other=0.0)
        if EARLY:
            if (
                start == 0
            ):  # weights are under way; what the kernel before writes is read, and written over, after this
                tl.extra.cuda.gdc_wait()
        if K % BLOCK_K == 0:
            value = tl.load(x + col).to(tl.float32)
        else:
            value = tl.load(x + col, mask=col < K, other=0.0).to(tl.float32)
        if norm is not None:
            squares += value * value
            value *= tl.load(norm + col, mask=col < K, other=0.0).to(tl.float32) + offset
        acc += a.to(tl.float32) * value[None, :]
        if GATED is not None:
            if K % BLOCK_K == 0:
                b = tl.load(w_row + n * w_stride + col[None, :], mask=live[:, None], other=0.0)
            else:
                b = tl.load(
                    w_row + n * w_stride + col[None, :], mask=live[:, None] & (col < K)[None, :], other=0.0
                )
            other += b.to(tl.float32) * value[None, :]
    y = tl.sum(acc, 1)
    factor = 1.0
    if norm is not None:
        factor = tl.rsqrt(tl.sum(squares, 0) / K + eps)
        y *= factor
    if bias is not None:
        y += tl.load(bias + row, mask=live, other=0.0).to(tl.float32)
    if GATED is not None:
        up = tl.sum(other, 1) * factor
        if bias is not None:
            up += tl.load(bias + n + row, mask=live, other=0.0).to(tl.float32)
        y = activated(y, GATED) * up
    if residual is not None:
        y += tl.load(residual + row, mask=live, other=0.0).to(tl.float32)
    tl.store(out + row, y.to(out.dtype.element_ty), mask=live)


@triton.jit
def _finish(acc, other, at, m, n, live, bias, residual, out, GATED: tl.constexpr):
    """acc [columns of w, rows of x]: bias, gate, residual, store."""
    if bias is not None:
        acc += tl.load(bias + at, mask=at < n, other=0.0).to(tl.float32)[:, None]
        if GATED is not None:
            other += tl.load(bias + n + at, mask=at < n, other=0.0).to(tl.float32)[:, None]
    if GATED is not None:
        acc = activated(acc, GATED) * other
    place = m.to(tl.int64)[None, :] * n + at[:, None]
    if residual is not None:
        acc += tl.load(residual + place, mask=live, other=0.0).to(tl.float32)
    tl.store(out + place, acc.to(out.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["rows"])
def _tiled(
    x,
    w,
    bias,
    residual,
    out,
    partial,
    arrived,
    rows,
    n,
    x_stride,
    w_stride,
    K: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
    SHARE: tl.constexpr,
    STAGES: tl.constexpr,
    EARLY: tl.constexpr,
):
    tile_m = tl.program_id(0)  # tiles that read the same weights run together
    tile_n = tl.program_id(1)
    split = tl.program_id(2)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    at = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    w_row = w + at.to(tl.int64)[:, None] * w_stride
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    x_row = x + m.to(tl.int64)[:, None] * x_stride
    live_m = (m < rows)[:, None]
    live_n = (at < n)[:, None]
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    other = acc
    first = split * SHARE
    for start in tl.range(first, tl.minimum(first + SHARE, K), BLOCK_K, num_stages=STAGES):
        col = (start + tl.arange(0, BLOCK_K))[None, :]
        if K % BLOCK_K == 0:
            a = tl.load(w_row + col, mask=live_n, other=0.0)
            b = tl.load(x_row + col, mask=live_m, other=0.0)
        else:
            a = tl.load(w_row + col, mask=live_n & (col < K), other=0.0)
            b = tl.load(x_row + col, mask=live_m & (col < K), other=0.0)
        b = tl.trans(b)
        acc = tl.dot(a, b, acc, input_precision="ieee")
        if GATED is not None:
            if K % BLOCK_K == 0:
                c = tl.load(w_row + n * w_stride + col, mask=live_n, other=0.0)
            else:
                c = tl.load(w_row + n * w_stride + col, mask=live_n & (col < K), other=0.0)
            other = tl.dot(c, b, other, input_precision="ieee")
    live = (at < n)[:, None] & (m < rows)[None, :]
    if SPLITS == 1:
        _finish(acc, other, at, m, n, live, bias, residual, out, GATED)
    else:
        PARTS: tl.constexpr = 1 if GATED is None else 2
        SIZE: tl.constexpr = BLOCK_N * BLOCK_M
        tile = tile_n * tl.num_programs(0) + tile_m
        inner = tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
        place = partial + tile.to(tl.int64) * (SPLITS * PARTS * SIZE) + inner
        tl.store(place + split * (PARTS * SIZE), acc)
        if GATED is not None:
            tl.store(place + split * (PARTS * SIZE) + SIZE, other)
        if arrive(arrived + tile) == SPLITS - 1:
            # .cg: other multiprocessors wrote these, so the nearest cache may be stale
            parts = tl.num_programs(2)  # SPLITS, but unknown to the compiler: unrolled sums spill
            acc = tl.load(place, cache_modifier=".cg")
            for i in range(1, parts):
                acc += tl.load(place + i * (PARTS * SIZE), cache_modifier=".cg")
            if GATED is not None:
                other = tl.load(place + SIZE, cache_modifier=".cg")
                for i in range(1, parts):
                    other += tl.load(place + i * (PARTS * SIZE) + SIZE, cache_modifier=".cg")
            _finish(acc, other, at, m, n, live, bias, residual, out, GATED)
            tl.store(arrived + tile, 0)


def skinny_linear(
    x: Tensor,
    w: Tensor,
    *,
    bias: Tensor | None = None,
    norm: RowNorm | None = None,
    gated: str | None = None,
    residual: Tensor | None = None,
    scratch: LinearScratch | None = None,
    out: Tensor | None = None,
    tiles: LinearTiles | None = None,
) -> Tensor:
    """norm(x) W^T + bias, gated if asked, plus residual: one launch where that is quickest.

    x         [rows, k]; w [n, k], or [2 * size, k] = [gate | up] if `gated`
    norm      RMS norm of x's rows first
    gated     one of ACTIVATIONS: the result is act(gate) * up
    residual  [rows, columns], added last; `out` may be the same tensor
    scratch   linear_scratch(), kept by a caller that captures graphs; made for the call if needed and None

    Returns [rows, columns] in x's dtype; sums run in float32.
    """
    rows, k = x.shape
    if w.dim() != 2 or w.shape[1] != k or x.stride(1) != 1 or w.stride(1) != 1 or x.dtype != w.dtype:
        raise ValueError(
            f"skinny_linear: x {tuple(x.shape)} {x.dtype} does not fit w {tuple(w.shape)} {w.dtype}"
        )
    if gated is not None and (gated not in ACTIVATIONS or w.shape[0] % 2):
        raise ValueError(
            f"skinny_linear: {gated!r} over {w.shape[0]} columns; a gate is one of {', '.join(ACTIVATIONS)} "
            "over an even number"
        )
    n = w.shape[0] // 2 if gated else w.shape[0]
    for name, value in (("residual", residual), ("out", out)):
        if value is not None and (value.shape != (rows, n) or not value.is_contiguous()):
            raise ValueError(
                f"skinny_linear: {name} must be contiguous {(rows, n)}, got {tuple(value.shape)}"
            )
    if not rows:
        return x.new_empty(0, n) if out is None else out
    t = tiles or linear_tiles(x.device, rows, n, k, x.dtype, gated is not None)
    if t.kind == "gemv" and rows != 1:
        raise ValueError(f"skinny_linear: gemv tiles take one row, got {rows}")
    if norm is not None and t.kind != "gemv":
        x = rms_norm(x, norm.weight, norm.eps, norm.offset)
    if t.kind == "cluster":
        product = cluster_linear.linear_of(x, w, gated, t.block_n, t.splits)
        if product is not None:
            y = product(
                x, w, bias=bias, out=out if residual is None else None, early=early_starts(x.device, rows)
            )
            return y if residual is None else torch.add(y, residual, out=out)
        t = usual_tiles(x.device, rows, n, k, x.dtype, gated is not None)
    if t.kind in ("library", "wgmma"):
        return _many_rows(x, w, bias, gated, residual, out, t.kind == "wgmma")
    if out is None:
        out = torch.empty((rows, n), dtype=x.dtype, device=x.device)
    if not rows:
        return out
    if t.kind == "gemv":
        early = early_starts(x.device, rows) and w.numel() <= EARLY_WEIGHTS
        _gemv[(triton.cdiv(n, t.block_n),)](
            x,
            w,
            bias,
            None if norm is None else norm.weight,
            residual,
            out,
            0.0 if norm is None else norm.eps,
            0.0 if norm is None else norm.offset,
            n,
            w.stride(0),
            K=k,
            GATED=gated,
            BLOCK_N=t.block_n,
            BLOCK_K=t.block_k,
            UNROLL=t.stages,
            EARLY=early,
            num_warps=t.warps,
            **({"launch_pdl": True} if early else {}),
        )
        return out
    splits = max(1, min(t.splits, triton.cdiv(k, t.block_k)))
    share = triton.cdiv(triton.cdiv(k, t.block_k), splits) * t.block_k
    splits = triton.cdiv(k, share)
    grid = (triton.cdiv(rows, t.block_m), triton.cdiv(n, t.block_n), splits)
    if splits > 1:
        need = grid[0] * grid[1] * splits * (2 if gated else 1) * t.block_m * t.block_n
        scratch = scratch or linear_scratch(x.device, need)
        if scratch.partial.numel() < need or scratch.arrived.numel() < grid[0] * grid[1]:
            raise ValueError(
                f"skinny_linear: {rows} rows of {n} in {splits} splits need a scratch of {need} elements, "
                f"got {scratch.partial.numel()}; make it with linear_scratch(device, elements)"
            )
    early = early_starts(x.device, rows)
    _tiled[grid](
        x,
        w,
        bias,
        residual,
        out,
        scratch.partial if scratch else None,
        scratch.arrived if scratch else None,
        rows,
        n,
        x.stride(0),
        w.stride(0),
        K=k,
        GATED=gated,
        BLOCK_M=t.block_m,
        BLOCK_N=t.block_n,
        BLOCK_K=t.block_k,
        SPLITS=splits,
        SHARE=share,
        STAGES=t.stages,
        EARLY=early,
        num_warps=t.warps,
        **({"launch_pdl": True} if early else {}),
    )
    return out


def _many_rows(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    gated: str | None,
    residual: Tensor | None,
    out: Tensor | None,
    wgmma: bool,
) -> Tensor:
    if wgmma and gated and bias is None and wgmma_linear.runs(x, w, gated):
        y = wgmma_linear.gated_linear(x, w, gated)
    else:
        y = F.linear(x, w, bias)
        if gated is not None:
            y = gated_mul(y, gated)
    if residual is not None:
        return torch.add(y, residual, out=out)
    return y if out is None else out.copy_(y)
