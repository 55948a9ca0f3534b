"""RMS norm, and the addition to the residual stream that comes before it.

One row per program. Roundings are those of the plain layers: the normalised row is rounded to the row's type
before it is scaled where the offset is 0, the sum of residual and update is rounded before it is normalised.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels.tuning import early_starts

_WIDEST = 1 << 16


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    wide = x.double()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (wide * (weight.double() + offset)).to(x.dtype)


@triton.jit
def normed(wide, weight, factor, offset, dtype: tl.constexpr, OFFSET: tl.constexpr):
    """wide * factor, scaled by the weight as the plain layer rounds it; float32."""
    if OFFSET:
        return wide * factor * (weight.to(tl.float32) + offset)
    else:
        return (wide * factor).to(dtype).to(tl.float32) * weight.to(tl.float32)


@triton.jit
def _rms_norm(
    x,
    residual,
    weight,
    out,
    eps,
    offset,
    width,
    stride,
    ADD: tl.constexpr,
    OFFSET: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, BLOCK)
    live = col < width
    scale = tl.load(weight + col, mask=live, other=0.0)
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    value = tl.load(x + row * stride + col, mask=live, other=0.0)
    if ADD:
        held = tl.load(residual + row * width + col, mask=live, other=0.0)
        value = (value.to(tl.float32) + held.to(tl.float32)).to(residual.dtype.element_ty)
        tl.store(residual + row * width + col, value, mask=live)
    wide = value.to(tl.float32)
    factor = tl.rsqrt(tl.sum(wide * wide, 0) / width + eps)
    y = normed(wide, scale, factor, offset, out.dtype.element_ty, OFFSET)
    tl.store(out + row * width + col, y.to(out.dtype.element_ty), mask=live)


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, offset: float = 0.0, *, out: Tensor | None = None
) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * (weight + offset) of each row; x [rows, width], weight [width]."""
    return _launch(x, None, weight, eps, offset, out)


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    offset: float = 0.0,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Add x to `residual` in place and return the norm of the sum; both [rows, width]."""
    return _launch(x, residual, weight, eps, offset, out)


def _launch(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, offset: float, out: Tensor | None
) -> Tensor:
    if x.dim() != 2 or weight.shape != x.shape[1:] or x.stride(1) != 1:
        raise ValueError(
            f"rms_norm: x {tuple(x.shape)} needs a weight of its width, got {tuple(weight.shape)}"
        )
    if x.shape[1] > _WIDEST:
        raise ValueError(f"rms_norm: rows of {x.shape[1]} are wider than {_WIDEST}; use the plain layer")
    if residual is not None and (residual.shape != x.shape or not residual.is_contiguous()):
        raise ValueError(
            f"rms_norm: residual must be contiguous {tuple(x.shape)}, got {tuple(residual.shape)}"
        )
    if out is None:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    elif out.shape != x.shape or not out.is_contiguous():
        raise ValueError(f"rms_norm: out must be contiguous {tuple(x.shape)}, got {tuple(out.shape)}")
    if x.shape[0]:
        block = triton.next_power_of_2(x.shape[1])
        early = early_starts(x.device, len(x))
        _rms_norm[(x.shape[0],)](
            x,
            residual,
            weight,
            out,
            eps,
            offset,
            x.shape[1],
            x.stride(0),
            ADD=residual is not None,
            OFFSET=offset != 0.0,
            BLOCK=block,
            EARLY=early,
            num_warps=min(16, max(1, block // 512)),
            **({"launch_pdl": True} if early else {}),
        )
    return out
