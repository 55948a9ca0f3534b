"""The tensors that hold keys and values.

One slot is one token position: `page * page_size + offset`. Layers are separate tensors' first dimension so that
a layer's slice is contiguous.
"""

from __future__ import annotations

import torch
from torch import Tensor

from runtime.models.spec import ArchSpec


class KVStore:
    """Keys and values [layers, slots, kv_heads, head_dim]."""

    def __init__(self, spec: ArchSpec, pages: int, page_size: int, dtype: torch.dtype, device: str) -> None:
        attention = spec.layers[0].attention
        if any(
            (s.attention.kv_heads, s.attention.head_dim) != (attention.kv_heads, attention.head_dim)
            for s in spec.layers
        ):
            raise ValueError("KVStore: layers differ in kv_heads or head_dim")
        shape = (len(spec.layers), pages * page_size, attention.kv_heads, attention.head_dim)
        self.page_size = page_size
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros(shape, dtype=dtype, device=device)

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Store k, v [tokens, kv_heads, head_dim] at int64 slots [tokens]."""
        self.k[layer].index_copy_(0, slots, k.to(self.k.dtype))
        self.v[layer].index_copy_(0, slots, v.to(self.v.dtype))


def bytes_per_token(spec: ArchSpec, dtype: torch.dtype) -> int:
    """KV memory of one token, all layers."""
    return sum(2 * s.attention.kv_heads * s.attention.head_dim for s in spec.layers) * dtype.itemsize
