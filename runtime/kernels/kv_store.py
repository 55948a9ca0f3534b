"""New keys and values into their slots, where no other kernel has stored them already."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


def store_kv_reference(k: Tensor, v: Tensor | None, pool_k: Tensor, pool_v: Tensor, slots: Tensor) -> None:
    keep = slots >= 0
    pool_k[slots[keep]] = k[keep].to(pool_k.dtype)
    if v is not None:
        pool_v[slots[keep]] = v[keep].to(pool_v.dtype)


@triton.jit(do_not_specialize_on_alignment=["slots"])
def _store_kv(
    k, v, pool_k, pool_v, slots, k_stride, v_stride, pool_stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, BLOCK)
    slot = tl.load(slots + token + col * 0)
    live = (col < WIDTH) & (slot >= 0)  # padding of a captured graph has slot -1
    place = slot * pool_stride + col
    keys = tl.load(k + token * k_stride + col, mask=live, other=0.0)
    if v is not None:
        values = tl.load(v + token * v_stride + col, mask=live, other=0.0)
        tl.store(pool_v + place, values.to(pool_v.dtype.element_ty), mask=live)
    tl.store(pool_k + place, keys.to(pool_k.dtype.element_ty), mask=live)


def store_kv(k: Tensor, v: Tensor | None, pool_k: Tensor, pool_v: Tensor, slots: Tensor) -> None:
    """Write keys and values [tokens, kv_heads, head_dim] to `slots` (int64 [tokens]; -1 skips).

    Without `v` only the keys: of latents, whose values are among them.
    """
    tokens, heads, dim = k.shape
    alike = v is None or (v.shape == k.shape and pool_k.stride() == pool_v.stride())
    if not alike or pool_k.shape[1:] != k.shape[1:]:
        values = "none" if v is None else tuple(v.shape)
        raise ValueError(
            f"store_kv: k {tuple(k.shape)}, v {values} and pools {tuple(pool_k.shape)} do not fit"
        )
    if slots.shape != (tokens,):
        raise ValueError(f"store_kv: {tokens} tokens need as many slots, got {slots.numel()}")
    if any(x.stride()[1:] != (dim, 1) for x in (k, v, pool_k) if x is not None):
        raise ValueError("store_kv: heads of k, v and the pools must lie next to each other")
    if tokens:
        block = triton.next_power_of_2(heads * dim)
        _store_kv[(tokens,)](
            k, v, pool_k, pool_v, slots, k.stride(0), 0 if v is None else v.stride(0), pool_k.stride(0),
            WIDTH=heads * dim, BLOCK=block, num_warps=max(1, min(8, block // 256)),
        )  # fmt: skip
