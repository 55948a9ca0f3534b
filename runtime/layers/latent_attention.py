"""Multi-head latent attention around the KV store: of a token it keeps one latent and one rotated key."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from runtime.attention.base import AttentionImpl
from runtime.layers.linear import Linear, Packed
from runtime.layers.norm import Norm
from runtime.layers.rope import Rope
from runtime.models.spec import AttnSpec
from runtime.parallel.group import Group


class LatentAttention(nn.Module):
    """One layer's attention. `rope` is shared between layers; `index` is the layer's place in the store.

    Every rank makes and keeps the latents; heads, and so `q`, `kv` and `out`, are divided.
    """

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
        m = spec.mla
        assert m is not None and rope is not None and spec.norm is not None
        self.spec = spec
        self.mla = m
        self.index = index
        self.rope = rope
        latents = {"q": m.q_rank} if m.q_rank else {}
        self.down = Packed(hidden, {**latents, "kv": m.kv_rank + m.rope}, dtype, bias=spec.qkv_bias)
        self.q_norm = Norm(m.q_rank, spec.norm, dtype) if m.q_rank else None
        self.q = Linear(m.q_rank or hidden, spec.heads * (m.nope + m.rope), dtype)
        self.kv_norm = Norm(m.kv_rank, spec.norm, dtype)
        self.kv = Linear(m.kv_rank, spec.heads * (m.nope + m.value), dtype)
        self.out = Linear(spec.heads * m.value, hidden, dtype, bias=spec.out_bias, group=group)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor] | None, impl: AttentionImpl) -> Tensor:
        """x [tokens, hidden]; `turn` is cos and sin of the tokens' positions."""
        assert turn is not None
        m, heads = self.mla, self.spec.heads
        down = self.down(x)
        row = down[:, m.q_rank or 0 :]
        q = self.q(x if self.q_norm is None else self.q_norm(down[:, : m.q_rank])).unflatten(1, (heads, -1))
        q = torch.cat((q[..., : m.nope], self.rope(q[..., m.nope :], *turn)), dim=-1)
        latent, key = row.unsqueeze(1).split((m.kv_rank, m.rope), dim=-1)
        rows = torch.cat((self.kv_norm(latent), self.rope(key, *turn)), dim=-1)
        up = self.kv.weight.unflatten(0, (heads, -1))
        return self.out(impl.run_latent(q, rows, up, self.index, self.spec).flatten(1))
