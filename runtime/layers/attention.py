"""Attention around the KV store: projections, norms of q and k, rotary embedding, the attention itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from runtime.attention.base import AttentionImpl
from runtime.layers.linear import Linear, Packed
from runtime.layers.norm import Norm
from runtime.layers.rope import Rope
from runtime.models.spec import AttnSpec
from runtime.parallel.group import Group


class Attention(nn.Module):
    """One layer's attention. `rope` is shared between layers; `index` is the layer's place in the store."""

    def __init__(
        self,
        hidden: int,
        spec: AttnSpec,
        rope: Rope | None,
        index: int,
        dtype: torch.dtype,
        group: Group | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.index = index
        self.rope = rope
        width = spec.kv_heads * spec.head_dim
        sizes = {"q": spec.heads * spec.head_dim, "k": width, "v": width}
        self.qkv = Packed(hidden, sizes, dtype, bias=spec.qkv_bias)
        self.out = Linear(sizes["q"], hidden, dtype, bias=spec.out_bias, group=group)
        if spec.qk_norm:
            assert spec.norm is not None
            whole = spec.qk_norm == "all"
            self.q_norm = Norm(sizes["q"] if whole else spec.head_dim, spec.norm, dtype)
            self.k_norm = Norm(width if whole else spec.head_dim, spec.norm, dtype)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor] | None, impl: AttentionImpl) -> Tensor:
        """x [tokens, hidden]; `turn` is cos and sin of the tokens' positions."""
        s, tokens = self.spec, x.shape[0]
        width = s.kv_heads * s.head_dim
        q, k, v = self.qkv(x).split((s.heads * s.head_dim, width, width), dim=-1)
        if s.qk_norm == "all":
            q, k = self.q_norm(q), self.k_norm(k)
        q = q.reshape(tokens, s.heads, s.head_dim)
        k = k.reshape(tokens, s.kv_heads, s.head_dim)
        v = v.reshape(tokens, s.kv_heads, s.head_dim)
        if s.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rope is not None and turn is not None:
            q, k = self.rope(q, *turn), self.rope(k, *turn)
        y = impl.run(q, k, v, self.index, s)
        return self.out(y.reshape(tokens, -1))
