"""Attention in plain torch: the reference, and what runs on a CPU; on a GPU it is right but not fast.

Decode tokens of a batch go together, padded to the longest; prompts go one by one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from runtime.attention.base import AttentionInputs, Span
from runtime.attention.latent import absorbed, attend_prompt, heads_of
from runtime.kv.store import KVStore
from runtime.models.spec import AttnSpec


class PlainAttention:
    """`AttentionImpl` over a KVStore."""

    def __init__(self, store: KVStore) -> None:
        self.store = store
        self._inputs: AttentionInputs | None = None
        self._decodes: list[Span] = []
        self._prompts: list[Span] = []
        self._firsts: Tensor | None = None
        self._slots: Tensor | None = None
        self._lengths: Tensor | None = None

    def plan(self, inputs: AttentionInputs) -> None:
        self._inputs = inputs
        self._decodes = [s for s in inputs.spans if s.count == 1]
        self._prompts = [s for s in inputs.spans if s.count > 1]
        if self._decodes:
            device = inputs.slots.device
            lengths = [s.start + 1 for s in self._decodes]
            self._slots = torch.nn.utils.rnn.pad_sequence([s.slots for s in self._decodes], batch_first=True)
            self._lengths = torch.tensor(lengths, device=device)
            self._firsts = torch.tensor([s.first for s in self._decodes], device=device)

    def run(self, q: Tensor, k: Tensor, v: Tensor, layer: int, spec: AttnSpec) -> Tensor:
        assert self._inputs is not None
        self.store.write(layer, self._inputs.slots, k, v)
        out = torch.empty_like(q)
        for span in self._prompts:
            rows = slice(span.first, span.first + span.count)
            out[rows] = self._prompt(q[rows], layer, span, spec)
        if self._decodes:
            out[self._firsts] = self._decode(q[self._firsts], layer, spec)
        return out

    def run_latent(self, q: Tensor, rows: Tensor, up: Tensor, layer: int, spec: AttnSpec) -> Tensor:
        assert self._inputs is not None
        self.store.write(layer, self._inputs.slots, rows, None)
        out = q.new_empty(*q.shape[:2], spec.value_dim)
        for span in self._prompts:
            own = slice(span.first, span.first + span.count)
            kept = self.store.k[layer][span.slots, 0].to(q.dtype)
            out[own] = attend_prompt(q[own], kept, span.start, up, spec)
        if self._decodes:
            folded = torch.cat(absorbed(q[self._firsts], up, spec), dim=-1)
            out[self._firsts] = heads_of(self._decode(folded, layer, spec), up, spec)
        return out

    def _prompt(self, q: Tensor, layer: int, span: Span, spec: AttnSpec) -> Tensor:
        length = span.start + span.count
        keys = torch.arange(length, device=q.device)
        queries = torch.arange(span.start, length, device=q.device)[:, None]
        k = self.store.k[layer][span.slots].to(q.dtype)
        v = self.store.v[layer][span.slots].to(q.dtype)
        if span.start == 0 and spec.window is None and spec.softcap is None:
            return _sdpa(q, k, v, spec, None, causal=True)
        mask = keys <= queries
        if spec.window is not None:
            mask &= keys > queries - spec.window
        return _sdpa(q, k, v, spec, mask)

    def _decode(self, q: Tensor, layer: int, spec: AttnSpec) -> Tensor:
        """q [requests, heads, head_dim], each against its own row of slots."""
        assert self._slots is not None and self._lengths is not None
        k = self.store.k[layer][self._slots].to(q.dtype).transpose(1, 2)
        if spec.mla is not None:
            v = k[..., : spec.mla.kv_rank]
        else:
            v = self.store.v[layer][self._slots].to(q.dtype).transpose(1, 2)
        keys = torch.arange(self._slots.shape[1], device=q.device)
        mask = keys < self._lengths[:, None]
        if spec.window is not None:
            mask &= keys >= self._lengths[:, None] - spec.window
        grouped = q.unflatten(1, (spec.kv_heads, -1))  # [requests, kv_heads, group, head_dim]
        out = _attend(grouped, k, v, mask[:, None, None, :], spec)
        return out.flatten(1, 2)


def _sdpa(
    q: Tensor, k: Tensor, v: Tensor, spec: AttnSpec, mask: Tensor | None, causal: bool = False
) -> Tensor:
    """One request: q [tokens, heads, dim], k, v [length, kv_heads, dim]."""
    if spec.softcap is not None:
        assert mask is not None
        grouped = q.unflatten(1, (spec.kv_heads, -1)).permute(1, 2, 0, 3)
        kk, vv = k.transpose(0, 1)[:, None], v.transpose(0, 1)[:, None]
        scores = grouped.float() @ kk.float().transpose(-1, -2) * spec.scale
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
        weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
        return (weights @ vv.float()).to(q.dtype).permute(2, 0, 1, 3).flatten(1, 2)
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        k.transpose(0, 1)[None],
        v.transpose(0, 1)[None],
        attn_mask=mask,
        is_causal=causal,
        scale=spec.scale,
        enable_gqa=spec.heads != spec.kv_heads,
    )
    return out[0].transpose(0, 1)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, spec: AttnSpec) -> Tensor:
    """q [requests, kv_heads, group, dim], k, v [requests, kv_heads, length, dim]; sums run in float32."""
    scores = (q @ k.transpose(-1, -2)).float() * spec.scale
    if spec.softcap is not None:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    return weights.to(v.dtype) @ v
