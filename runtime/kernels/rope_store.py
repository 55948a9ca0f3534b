"""Between the packed projection and attention: norms of q and k, rotary embedding, keys and values into their slots.

One launch reads q, k and v of a token once. q comes out as a tensor of its own: rotating it in place would have
threads read coordinates that others have already turned.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels.norm import normed
from runtime.kernels.tuning import early_starts


@dataclass(frozen=True)
class Turning:
    """How heads of a projection become q and k.

    cos, sin            float32 [context, turned / 2]; the first `turned` coordinates of a head are rotated; None: none are
    q_weight, k_weight  [head_dim]: RMS norm of each head first, with `eps` and `offset`; None: no norm
    """

    cos: Tensor | None
    sin: Tensor | None
    interleaved: bool = False
    q_weight: Tensor | None = None
    k_weight: Tensor | None = None
    eps: float = 0.0
    offset: float = 0.0

    def width(self, dim: int) -> int:
        """Rotated coordinates of a head of `dim`; ValueError if the tables do not fit it."""
        if (self.q_weight is None) != (self.k_weight is None) or (self.cos is None) != (self.sin is None):
            raise ValueError("rope: weights of q and k, and cos and sin, come together")
        turned = 0 if self.cos is None else 2 * self.cos.shape[-1]
        if turned > dim or (self.cos is not None and not self.cos.is_contiguous()):
            raise ValueError(f"rope: {turned} turned coordinates do not fit a head of {dim}")
        return turned


def rope_store_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    positions: Tensor,
    slots: Tensor,
    pool_k: Tensor,
    pool_v: Tensor,
    *,
    interleaved: bool = False,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = 0.0,
    offset: float = 0.0,
) -> Tensor:
    """The same with torch, in float32 with the plain layers' roundings."""

    def turn(x: Tensor, weight: Tensor | None) -> Tensor:
        if weight is not None:
            wide = x.float()
            wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
            x = (wide * (weight.float() + offset)).to(x.dtype) if offset else weight * wide.to(x.dtype)
        if cos is None or sin is None:
            return x
        dim = 2 * cos.shape[-1]
        c, s = cos[positions].unsqueeze(1), sin[positions].unsqueeze(1)
        turned, rest = x[..., :dim].float(), x[..., dim:]
        if interleaved:
            a, b = turned[..., ::2], turned[..., 1::2]
            turned = torch.stack((a * c - b * s, b * c + a * s), dim=-1).flatten(-2)
        else:
            a, b = turned.chunk(2, dim=-1)
            turned = torch.cat((a * c - b * s, b * c + a * s), dim=-1)
        return torch.cat((turned.to(x.dtype), rest), dim=-1)

    keep = slots >= 0
    pool_k[slots[keep]] = turn(k, k_weight)[keep].to(pool_k.dtype)
    pool_v[slots[keep]] = v[keep].to(pool_v.dtype)
    return turn(q, q_weight)


@triton.jit
def rotated(
    row,
    live,
    d,
    weight,
    cos,
    sin,
    position,
    eps,
    offset,
    DIM: tl.constexpr,
    TURNED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    NORM: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """Heads that begin at `row`, normed and rotated for `position`, in their type; d counts coordinates.

    row [heads, 1] and d [1, width], or of one head a pointer and d [width].
    """
    x = tl.load(row + d, mask=live, other=0.0)
    wide = x.to(tl.float32)
    factor = 1.0
    if NORM:
        factor = tl.rsqrt(tl.sum(wide * wide, len(x.shape) - 1, keep_dims=True) / DIM + eps)
        w = tl.load(weight + d, mask=d < DIM, other=0.0)
        wide = normed(wide, w, factor, offset, x.dtype, OFFSET).to(x.dtype).to(tl.float32)
    if TURNED > 0:
        HALF: tl.constexpr = TURNED // 2
        turned = d < TURNED
        if INTERLEAVED:
            pair = d // 2
            other = d ^ 1
            sign = tl.where(d % 2 == 0, -1.0, 1.0)
        else:
            pair = d % HALF
            other = tl.where(d < HALF, d + HALF, d - HALF)
            sign = tl.where(d < HALF, -1.0, 1.0)
        across = tl.load(row + other, mask=live & turned, other=0.0).to(tl.float32)
        if NORM:
            w = tl.load(weight + other, mask=turned, other=0.0)
            across = normed(across, w, factor, offset, x.dtype, OFFSET).to(x.dtype).to(tl.float32)
        c = tl.load(cos + position * HALF + pair, mask=turned, other=1.0)
        s = tl.load(sin + position * HALF + pair, mask=turned, other=0.0)
        wide = wide * c + sign * across * s
    return wide.to(x.dtype)


@triton.jit(do_not_specialize_on_alignment=["positions", "slots"])
def _rope_store(
    q,
    k,
    v,
    cos,
    sin,
    positions,
    slots,
    pool_k,
    pool_v,
    q_weight,
    k_weight,
    out,
    k_out,
    eps,
    offset,
    q_stride,
    k_stride,
    v_stride,
    pool_stride,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    TURNED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    NORM: tl.constexpr,
    OFFSET: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EARLY: tl.constexpr,
):
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]  # q's, then k's, then v's
    d = tl.arange(0, BLOCK_D)[None, :]
    inside = d < DIM
    is_q = (head < HEADS) & inside
    is_k = (head >= HEADS) & (head < HEADS + KV_HEADS) & inside
    is_v = (head >= HEADS + KV_HEADS) & (head < HEADS + 2 * KV_HEADS) & inside
    q_row = q + token * q_stride + head * DIM
    k_row = k + token * k_stride + (head - HEADS) * DIM
    v_row = v + token * v_stride + (head - HEADS - KV_HEADS) * DIM
    raw = tl.load(v_row + d, mask=is_v, other=0.0)
    place = 0
    if TURNED > 0:
        place = tl.load(positions + token)
    turned_q = rotated(
        q_row, is_q, d, q_weight, cos, sin, place, eps, offset, DIM, TURNED, INTERLEAVED, NORM, OFFSET
    )
    turned_k = rotated(
        k_row, is_k, d, k_weight, cos, sin, place, eps, offset, DIM, TURNED, INTERLEAVED, NORM, OFFSET
    )
    result = tl.where(is_k, turned_k, turned_q)
    tl.store(out + (token * HEADS + head) * DIM + d, result, mask=is_q)
    if k_out is not None:
        tl.store(k_out + (token * KV_HEADS + head - HEADS) * DIM + d, result, mask=is_k)
    slot = tl.load(slots + token + head * 0)
    stored = slot >= 0  # padding of a captured graph
    k_slot = pool_k + slot * pool_stride + (head - HEADS) * DIM
    v_slot = pool_v + slot * pool_stride + (head - HEADS - KV_HEADS) * DIM
    tl.store(k_slot + d, result.to(pool_k.dtype.element_ty), mask=is_k & stored)
    tl.store(v_slot + d, raw.to(pool_v.dtype.element_ty), mask=is_v & stored)


def rope_store(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    positions: Tensor,
    slots: Tensor,
    pool_k: Tensor,
    pool_v: Tensor,
    *,
    interleaved: bool = False,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = 0.0,
    offset: float = 0.0,
    out: Tensor | None = None,
    k_out: Tensor | None = None,
) -> Tensor:
    """Return q normed and rotated; store k, normed and rotated, and v at `slots`.

    q               [tokens, heads, head_dim], k and v [tokens, kv_heads, head_dim]: views of a packed projection will do
    cos, sin        float32 [context, turned / 2], the first `turned` coordinates of a head are rotated; None: none are
    positions       int64 [tokens]; slots int64 [tokens], -1 stores nothing
    pool_k, pool_v  [slots, kv_heads, head_dim], of q's dtype or float8
    q_weight, k_weight  [head_dim]: RMS norm of each head with `eps` and `offset`; None: no norm
    k_out           [tokens, kv_heads, head_dim], contiguous: the keys that were stored, for prompts attended from rows

    Returns [tokens, heads, head_dim], contiguous.
    """
    tokens, heads, dim = q.shape
    kv_heads = k.shape[1]
    if k.shape != (tokens, kv_heads, dim) or v.shape != k.shape or pool_k.shape[1:] != k.shape[1:]:
        raise ValueError(
            f"rope_store: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} and pools "
            f"{tuple(pool_k.shape)} do not fit"
        )
    if (
        any(x.stride()[1:] != (dim, 1) for x in (q, k, v, pool_k, pool_v))
        or pool_k.stride() != pool_v.stride()
    ):
        raise ValueError("rope_store: heads of q, k, v and the pools must lie next to each other")
    if positions.shape != (tokens,) or slots.shape != (tokens,):
        raise ValueError(
            f"rope_store: {tokens} tokens need as many positions and slots, "
            f"got {positions.numel()} and {slots.numel()}"
        )
    turned = Turning(cos, sin, interleaved, q_weight, k_weight, eps, offset).width(dim)
    if out is None:
        out = torch.empty((tokens, heads, dim), dtype=q.dtype, device=q.device)
    elif out.shape != q.shape or not out.is_contiguous():
        raise ValueError(f"rope_store: out must be contiguous {tuple(q.shape)}, got {tuple(out.shape)}")
    if k_out is not None and (k_out.shape != k.shape or not k_out.is_contiguous()):
        raise ValueError(f"rope_store: k_out must be contiguous {tuple(k.shape)}, got {tuple(k_out.shape)}")
    if tokens:
        width = triton.next_power_of_2(dim)
        early = early_starts(q.device, tokens)
        block = max(1, 1024 // width)
        _rope_store[(tokens, triton.cdiv(heads + 2 * kv_heads, block))](
            q,
            k,
            v,
            cos,
            sin,
            positions,
            slots,
            pool_k,
            pool_v,
            q_weight,
            k_weight,
            out,
            k_out,
            eps,
            offset,
            q.stride(0),
            k.stride(0),
            v.stride(0),
            pool_k.stride(0),
            HEADS=heads,
            KV_HEADS=kv_heads,
            DIM=dim,
            TURNED=turned,
            INTERLEAVED=interleaved,
            NORM=q_weight is not None,
            OFFSET=offset != 0.0,
            BLOCK_H=block,
            BLOCK_D=width,
            EARLY=early,
            num_warps=4,
            **({"launch_pdl": True} if early else {}),
        )
    return out
