"""The gate of a feed-forward layer: act(gate) * up over packed [gate | up] rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from runtime.kernels.tuning import early_starts

ACTIVATIONS = ("silu", "gelu", "gelu_tanh")


def gated_reference(x: Tensor, kind: str) -> Tensor:
    gate, up = x.double().chunk(2, dim=-1)
    if kind == "silu":
        return (F.silu(gate) * up).to(x.dtype)
    return (F.gelu(gate, approximate="tanh" if kind == "gelu_tanh" else "none") * up).to(x.dtype)


@triton.jit
def activated(x, KIND: tl.constexpr):
    """The activation of float32 x."""
    if KIND == "silu":
        return x * tl.sigmoid(x)
    elif KIND == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        # 0.5 * (1 + tanh(z)) is sigmoid(2 z)
        return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


@triton.jit
def _gated(x, out, width, stride, KIND: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = col < width
    gate = tl.load(x + row * stride + col, mask=live, other=0.0)
    up = tl.load(x + row * stride + width + col, mask=live, other=0.0)
    y = activated(gate.to(tl.float32), KIND).to(gate.dtype).to(tl.float32) * up.to(tl.float32)
    tl.store(out + row * width + col, y.to(out.dtype.element_ty), mask=live)


def gated_mul(x: Tensor, kind: str, *, out: Tensor | None = None) -> Tensor:
    """act(x[:, :size]) * x[:, size:]; x [rows, 2 * size], kind one of ACTIVATIONS; returns [rows, size]."""
    if kind not in ACTIVATIONS:
        raise ValueError(f"gated_mul: {kind!r} is not one of {', '.join(ACTIVATIONS)}")
    if x.dim() != 2 or x.shape[1] % 2 or x.stride(1) != 1:
        raise ValueError(f"gated_mul: x must be [rows, 2 * size], got {tuple(x.shape)}")
    rows, size = x.shape[0], x.shape[1] // 2
    if out is None:
        out = torch.empty((rows, size), dtype=x.dtype, device=x.device)
    elif out.shape != (rows, size) or not out.is_contiguous():
        raise ValueError(f"gated_mul: out must be contiguous {(rows, size)}, got {tuple(out.shape)}")
    if rows:
        block = min(2048, triton.next_power_of_2(size))
        early = early_starts(x.device, rows)
        _gated[(rows, triton.cdiv(size, block))](
            x,
            out,
            size,
            x.stride(0),
            KIND=kind,
            BLOCK=block,
            EARLY=early,
            num_warps=max(1, min(8, block // 256)),
            **({"launch_pdl": True} if early else {}),
        )
    return out
