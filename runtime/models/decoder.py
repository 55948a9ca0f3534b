"""The one decoder: executes any ArchSpec."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from runtime.attention.base import AttentionImpl
from runtime.layers.attention import Attention
from runtime.layers.latent_attention import LatentAttention
from runtime.layers.linear import Linear, product
from runtime.layers.mlp import Mlp
from runtime.layers.moe import Moe
from runtime.layers.norm import Norm
from runtime.layers.rope import Rope
from runtime.models.shards import Shards
from runtime.models.spec import ArchSpec, LayerSpec, MoeSpec, RopeSpec
from runtime.parallel.group import Group


class Layer(nn.Module):
    def __init__(
        self,
        hidden: int,
        spec: LayerSpec,
        rope: Rope | None,
        index: int,
        dtype: torch.dtype,
        group: Group | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.attn_norm = Norm(hidden, spec.norm, dtype)
        kind = LatentAttention if spec.attention.mla else Attention
        self.attention = kind(hidden, spec.attention, rope, index, dtype, group)
        mlp = spec.mlp
        self.mlp = (
            Moe(hidden, mlp, dtype, group) if isinstance(mlp, MoeSpec) else Mlp(hidden, mlp, dtype, group)
        )
        if spec.form != "parallel":
            self.mlp_norm = Norm(hidden, spec.norm, dtype)
        if spec.form == "sandwich":
            self.attn_post = Norm(hidden, spec.norm, dtype)
            self.mlp_post = Norm(hidden, spec.norm, dtype)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor] | None, impl: AttentionImpl) -> Tensor:
        s, scale = self.spec, self.spec.residual_scale
        h = self.attn_norm(x)
        y = self.attention(h, turn, impl)
        if s.form == "parallel":
            return x + scale * (y + self.mlp(h))
        if s.form == "sandwich":
            x = x + scale * self.attn_post(y)
            return x + scale * self.mlp_post(self.mlp(self.mlp_norm(x)))
        x = x + y if scale == 1.0 else x + scale * y
        y = self.mlp(self.mlp_norm(x))
        return x + y if scale == 1.0 else x + scale * y


class Decoder(nn.Module):
    """ids [tokens] at `positions` [tokens] -> hidden [tokens, hidden]; `logits` for the rows that need them.

    With `shards` it is one rank's part, and `spec` the local one; hidden states and logits are the whole model's on each rank.
    """

    def __init__(
        self, spec: ArchSpec, dtype: torch.dtype, shards: Shards | None = None, group: Group | None = None
    ) -> None:
        super().__init__()
        spec = spec if shards is None else shards.local
        self.spec = spec
        self.shards = shards
        self.group = group
        self.dtype = dtype
        self.embedding = nn.Embedding(spec.vocabulary, spec.hidden, dtype=dtype)
        ropes: dict[RopeSpec, Rope] = {}
        layers: list[Layer] = []
        for i, layer in enumerate(spec.layers):
            rope_spec = layer.attention.rope
            if rope_spec is not None and rope_spec not in ropes:
                ropes[rope_spec] = Rope(rope_spec, spec.context)
            rope = ropes[rope_spec] if rope_spec is not None else None
            layers.append(Layer(spec.hidden, layer, rope, i, dtype, group))
        self._layers = layers  # the same modules, with their type
        self.layers = nn.ModuleList(layers)
        self.norm = Norm(spec.hidden, spec.norm, dtype)
        first, last = (0, spec.vocabulary) if shards is None else shards.vocabulary
        self._rows = slice(first, last)
        self.head = None if spec.tied else Linear(spec.hidden, last - first, dtype)
        self.score = Linear(spec.hidden, spec.labels, dtype) if spec.task == "reward" else None

    def forward(self, ids: Tensor, positions: Tensor, impl: AttentionImpl) -> Tensor:
        x = self.embedding(ids)
        if self.spec.embed_scale != 1.0:
            x = x * torch.tensor(self.spec.embed_scale, dtype=x.dtype)
        turns: dict[int, tuple[Tensor, Tensor]] = {}
        for layer in self._layers:
            rope = layer.attention.rope
            if rope is not None and id(rope) not in turns:
                turns[id(rope)] = rope.at(positions)
            x = layer(x, turns[id(rope)] if rope is not None else None, impl)
        return self.norm(x)

    @property
    def head_weight(self) -> Tensor:
        """[vocabulary, hidden]; this rank's rows of it."""
        return self.embedding.weight[self._rows] if self.head is None else self.head.weight

    def raw_logits(self, hidden: Tensor) -> Tensor:
        """[rows, vocabulary] in the model's dtype, before scale and cap, which keep their order."""
        return self.gathered(self.own_logits(hidden))

    def own_logits(self, hidden: Tensor) -> Tensor:
        """Of this rank's part of the vocabulary."""
        return product(hidden, self.head_weight)

    def likeliest(self, own: Tensor) -> tuple[Tensor, Tensor]:
        """float32 and int64 [rows]: the maximum of each row of all ranks' `own_logits` and its first token; inf for a row with NaN."""
        from runtime.kernels.argmax import argmax  # triton is not everywhere

        if self.shards is None or self.group is None:
            return argmax(own)
        if own.shape[1]:
            best, tokens = argmax(own)
        else:  # a vocabulary that the ranks before have among them
            best = own.new_full((len(own),), float("-inf"), dtype=torch.float32)
            tokens = own.new_zeros(len(own), dtype=torch.int64)
        return self.group.likeliest(best, tokens, self.shards.vocabulary[0])

    def likeliest_of(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`own_logits` and what is `likeliest` of them."""
        own = self.own_logits(hidden)
        return own, *self.likeliest(own)

    def gathered(self, raw: Tensor) -> Tensor:
        """Logits of the whole vocabulary from this rank's."""
        if self.shards is None or self.group is None:
            return raw
        missing = self.shards.share - raw.shape[1]
        if missing:
            raw = torch.nn.functional.pad(raw, (0, missing))
        return self.group.gather_columns(raw)[:, : self.spec.vocabulary]

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [rows, vocabulary]."""
        return self.finished(self.raw_logits(hidden))

    def finished(self, raw: Tensor) -> Tensor:
        """Scale and cap of raw logits, in float32."""
        out = raw.float()
        if self.spec.logit_scale != 1.0:
            out = out * self.spec.logit_scale
        if self.spec.logit_softcap is not None:
            out = self.spec.logit_softcap * torch.tanh(out / self.spec.logit_softcap)
        return out
