"""The tensors that hold keys and values, or the latents that both are made of.

One slot is one token position: `page * page_size + offset`. Layers are separate tensors' first dimension so that
a layer's slice is contiguous.
"""

from __future__ import annotations

import torch
from torch import Tensor

from runtime.models.spec import ArchSpec


class KVStore:
    """Keys and values [layers, slots, kv_heads, head_dim]. Of latent attention the values are the first numbers of the keys."""

    def __init__(self, spec: ArchSpec, pages: int, page_size: int, dtype: torch.dtype, device: str) -> None:
        attention = spec.layers[0].attention
        if any(
            (s.attention.kv_heads, s.attention.head_dim, s.attention.mla)
            != (attention.kv_heads, attention.head_dim, attention.mla)
            for s in spec.layers
        ):
            raise ValueError("KVStore: layers differ in kv_heads, head_dim or latents")
        shape = (len(spec.layers), pages * page_size, attention.kv_heads, attention.head_dim)
        self.page_size = page_size
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        latent = attention.mla
        self.v = self.k[..., : latent.kv_rank] if latent else torch.zeros(shape, dtype=dtype, device=device)

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor | None) -> None:
        """Store k, v [tokens, kv_heads, head_dim] at int64 slots [tokens]; of latents there is no other `v`."""
        self.k[layer].index_copy_(0, slots, k.to(self.k.dtype))
        if v is not None:
            self.v[layer].index_copy_(0, slots, v.to(self.v.dtype))


def bytes_per_token(spec: ArchSpec, dtype: torch.dtype) -> int:
    """KV memory of one token, all layers."""
    return sum(s.attention.kept for s in spec.layers) * dtype.itemsize
