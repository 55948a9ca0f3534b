"""The decoder of the usual families on a GPU: few launches a layer, by own kernels and packed projections.

It stands in for a `Decoder` whose layers it can compute: pre-norm RMS layers with rotary embedding and a gated MLP. A decode
step of few rows is one launch where that is quickest (kernels/whole_step.py). Else a single token goes through
matrix-vector kernels that take the norm before and the residual after along; more rows have norm and residual in one
launch between the products, or none (models/clustered.py). Sums are those of the plain layers up to their order.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from runtime.attention.base import AttentionImpl
from runtime.kernels import cluster_linear, head_linear, nvrtc, wgmma_linear
from runtime.kernels.activation import ACTIVATIONS
from runtime.kernels.cluster_linear import ClusterForm
from runtime.kernels.norm import add_rms_norm, rms_norm
from runtime.kernels.rope_store import Turning, rope_store
from runtime.kernels.skinny import RowNorm, linear_scratch, skinny_linear
from runtime.kernels.step_layers import StepLayer, StepSpec
from runtime.kernels.sum_ranks import Mailboxes, sum_ranks
from runtime.kernels.tuning import cluster_tiles, early_starts, processors, step_rows
from runtime.kernels.whole_step import WholeStep
from runtime.kernels.whole_step import why_not as why_not_whole
from runtime.kv.store import KVStore
from runtime.models.clustered import ClusteredSteps, clustered_steps, linears
from runtime.models.decoder import Decoder, Layer
from runtime.models.spec import MoeSpec, NormSpec

if TYPE_CHECKING:
    from runtime.parallel.peers import Peers

log = logging.getLogger("runtime.engine")
# Names in config.json of what the gate kernels compute.
_GATES = {"silu": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}


def why_not(model: Decoder) -> str | None:
    """What the fused decoder does not compute of this model; None if it can run it."""
    spec = model.spec
    for layer in spec.layers:
        a, m = layer.attention, layer.mlp
        if isinstance(m, MoeSpec):
            return "its layers have experts"
        checks = (
            (layer.form == "pre" and layer.residual_scale == 1.0, f"its layers have the form {layer.form!r}"),
            (_rms(layer.norm) and _rms(spec.norm), "its norms are not RMS norms with a weight"),
            (m.gated and not m.bias, "its MLP is not gated, or has biases"),
            (_GATES.get(m.activation) in ACTIVATIONS, f"its MLP's activation is {m.activation!r}"),
            (a.mla is None, "its attention is over latents"),
            (a.rope is not None, "it has no rotary embedding"),
            (a.qk_norm in (None, "head"), "its norm of q and k is over all heads"),
        )
        reason = next((reason for good, reason in checks if not good), None)
        if reason is not None:
            return reason
    return None


def cluster_forms(layer: Layer, device: torch.device) -> Iterator[ClusterForm]:
    """Of its products, as far as the tables want them so."""
    for linear, gate in linears(layer, _GATES[layer.spec.mlp.activation]):
        n, k = linear.weight.shape
        n = n // 2 if gate else n
        for tiles in cluster_tiles(device, n, k, gate is not None):
            yield ClusterForm(n, k, gate, tiles.block_n, tiles.splits)


def _rms(norm: NormSpec) -> bool:
    return norm.kind == "rms" and norm.affine and not norm.bias


class FusedDecoder:
    """ids [tokens] at `positions` [tokens] -> hidden [tokens, hidden], over a store whose slots `attention` was planned for."""

    prunes = True

    def __init__(
        self, model: Decoder, store: KVStore, step: WholeStep | Literal["measured"] | None = "measured"
    ) -> None:
        """`step`: what runs steps of few rows in one launch; "measured": as the tables say; None: nothing does."""
        self.model = model
        self.spec = model.spec
        self.dtype = model.dtype
        self.store = store
        self._layers: list[Layer] = list(model.layers)  # type: ignore[arg-type]
        self._norms = [(_row_norm(x.attn_norm), _row_norm(x.mlp_norm)) for x in self._layers]
        self._last = _row_norm(model.norm)
        self._scratch = linear_scratch(store.k.device)
        if model.dtype == torch.bfloat16:
            for gate in {_GATES[x.spec.mlp.activation] for x in self._layers}:
                wgmma_linear.prepare(store.k.device, gate)
        self._clustered = self._clustered_steps(store.k.device)
        self._head = None if model.group is not None else head_linear.head_of(model.head_weight)
        peers = None if model.group is None else model.group.connect(self.spec.hidden, model.dtype)
        self._mail: Mailboxes | None = None if peers is None else peers.mail
        self._step = _measured(model, store, peers) if step == "measured" else step
        rows = f", one launch for all of them up to {self._step.rows} rows" if self._step else ""
        if self._clustered is not None:
            few = self._clustered.rows
            rows += f", none for norms of {few.start} to {few.stop - 1} rows"
        self.form = f"fused kernels{rows}"

    def _clustered_steps(self, device: torch.device) -> ClusteredSteps | None:
        """Those of few rows and small matrices, whose kernels are compiled from now on."""
        if self.dtype != torch.bfloat16:
            return None
        steps = None
        if self.model.group is None:
            gates = [_GATES[x.spec.mlp.activation] for x in self._layers]
            steps = clustered_steps(self._layers, gates, self._norms, self._last, device)
        if steps is None:  # what of a layer is by clusters has plain norms around it
            cluster_linear.prepare(device, {form for x in self._layers for form in cluster_forms(x, device)})
        return steps

    def in_one_launch(self, rows: int) -> bool:
        """Whether a step of so many requests is one launch. Each row must be another request's then."""
        return self._step is not None and rows <= self._step.rows

    def _linear(self, x: Tensor, layer: Any, **more: Any) -> Tensor:
        return skinny_linear(x, layer.weight, bias=layer.bias, scratch=self._scratch, **more)

    def _added(self, y: Tensor, layer: Any, x: Tensor, norm: RowNorm) -> Tensor:
        """Add layer(y) to the residual `x` in place and return the norm of the sum; each rank may have some of y's columns."""
        if layer.group is None:
            return add_rms_norm(self._linear(y, layer), x, norm.weight, norm.eps, norm.offset)
        part = skinny_linear(y, layer.weight, scratch=self._scratch)
        if self._mail is not None and self._mail.fits(part):
            return sum_ranks(part, x, norm.weight, norm.eps, norm.offset, mail=self._mail, bias=layer.bias)
        part = layer.group.all_reduce(part)
        if layer.bias is not None:
            part = part + layer.bias
        return add_rms_norm(part, x, norm.weight, norm.eps, norm.offset)

    def __call__(
        self, ids: Tensor, positions: Tensor, impl: AttentionImpl, rows: Tensor | None = None
    ) -> Tensor:
        """Hidden states of all tokens, or of `rows` int64 alone: the last layer then computes no others."""
        x = self.model.embedding(ids)
        if self.spec.embed_scale != 1.0:
            x = x * torch.tensor(self.spec.embed_scale, dtype=x.dtype)
        if self._step is not None and len(ids) <= self._step.rows:
            at: Any = impl.inputs  # type: ignore[attr-defined]
            if at.decodes == len(ids) and at.apart and at.sharing is None:
                h = self._step(x, at.table, at.seats, at.lengths, at.slots)
                return h if rows is None else h[rows]
        if len(ids) == 1 and self.model.group is None:
            for layer, (first, second) in zip(self._layers, self._norms, strict=True):
                qkv = self._linear(x, layer.attention.qkv, norm=first)
                y = self._attend(qkv, positions, layer, impl)
                self._linear(y, layer.attention.out, residual=x, out=x)
                h = self._linear(x, layer.mlp.up, norm=second, gated=_GATES[layer.spec.mlp.activation])
                self._linear(h, layer.mlp.down, residual=x, out=x)
            h = rms_norm(x, self._last.weight, self._last.eps, self._last.offset)
            return h if rows is None else h[rows]
        impl.ready(len(ids), self.dtype)  # type: ignore[attr-defined]
        if self._clustered is not None and self._clustered.runs(len(ids)):
            return self._clustered(
                x, lambda qkv, layer: self._attend(qkv, positions, layer, impl), chosen=rows
            )
        first = self._norms[0][0]
        h = rms_norm(x, first.weight, first.eps, first.offset)
        for i, layer in enumerate(self._layers):
            second = self._norms[i][1]
            after = self._norms[i + 1][0] if i + 1 < len(self._layers) else self._last
            y = self._attend(self._linear(h, layer.attention.qkv), positions, layer, impl)
            if rows is not None and layer is self._layers[-1]:
                y, x = y[rows], x[rows]
            h = self._added(y, layer.attention.out, x, second)
            h = self._linear(h, layer.mlp.up, gated=_GATES[layer.spec.mlp.activation])
            h = self._added(h, layer.mlp.down, x, after)
        return h

    def _attend(self, qkv: Tensor, positions: Tensor, layer: Layer, impl: Any) -> Tensor:
        own: Any = layer.attention
        a = layer.spec.attention
        index, rope = own.index, own.rope
        assert rope is not None
        normed = a.qk_norm == "head"
        turning = Turning(
            rope.cos,
            rope.sin,
            rope.spec.interleaved,
            own.q_norm.weight if normed else None,
            own.k_norm.weight if normed else None,
            a.norm.eps if normed and a.norm is not None else 0.0,
            a.norm.offset if normed and a.norm is not None else 0.0,
        )
        inputs = impl.inputs
        attended: Tensor | None = impl.run_packed(qkv, turning, index, a)
        if attended is not None:
            return attended.flatten(1)
        pool_k, pool_v = self.store.k[index], self.store.v[index]
        q, k, v = qkv.unflatten(1, (-1, a.head_dim)).split((a.heads, a.kv_heads, a.kv_heads), dim=1)
        q = rope_store(
            q, k, v, turning.cos, turning.sin, positions, inputs.slots, pool_k, pool_v,
            interleaved=turning.interleaved, q_weight=turning.q_weight, k_weight=turning.k_weight,
            eps=turning.eps, offset=turning.offset,
        )  # fmt: skip
        rows: tuple[Tensor, ...] = ()
        if (
            inputs.fresh and pool_k.dtype == k.dtype
        ):  # prompts may be attended without looking for their pages
            rows = tuple(pool.index_select(0, inputs.slots) for pool in (pool_k, pool_v))
        out: Tensor = impl.run_stored(q, index, a, *rows)
        return out.flatten(1)

    def raw_logits(self, hidden: Tensor) -> Tensor:
        """[rows, vocabulary] in the model's dtype, before scale and cap."""
        return self.model.gathered(self.own_logits(hidden))

    def own_logits(self, hidden: Tensor) -> Tensor:
        """Of this rank's part of the vocabulary."""
        return skinny_linear(hidden, self.model.head_weight, scratch=self._scratch)

    def gathered(self, own: Tensor) -> Tensor:
        """Logits of the whole vocabulary from this rank's."""
        return self.model.gathered(own)

    def likeliest_of(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`own_logits` and what is `likeliest` of them, in one launch where there is a kernel for this head."""
        if self._head is not None and len(hidden) in head_linear.QUICKER:
            return self._head(hidden, self.model.head_weight, early=early_starts(hidden.device, len(hidden)))
        own = self.own_logits(hidden)
        return own, *self.likeliest(own)

    def likeliest(self, own: Tensor) -> tuple[Tensor, Tensor]:
        """The maximum of each row of all ranks' `own_logits`, and its first token."""
        return self.model.likeliest(own)

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [rows, vocabulary]."""
        return self.model.finished(self.raw_logits(hidden))

    def finished(self, raw: Tensor) -> Tensor:
        """Scale and cap of raw logits, in float32."""
        return self.model.finished(raw)


def _measured(model: Decoder, store: KVStore, peers: Peers | None) -> WholeStep | None:
    """What runs steps in one launch where that is quicker; None if nothing can. Ranks all have one, or none has."""
    device, group = store.k.device, model.group
    rows = step_rows(device)
    if not rows or (group is not None and peers is None):
        return None
    parts = step_parts(model, store)
    reason = nvrtc.why_not(device)
    if reason is None:
        reason = parts if isinstance(parts, str) else why_not_whole(*parts, model.dtype, processors(device))
    if isinstance(parts, str) or reason is not None:
        log.info("steps of few rows are a launch for each part: %s", reason)
        return None
    spec, layers = parts
    ranks = None
    if group is not None and peers is not None:
        ranks = peers.step(spec.hidden, rows, processors(device))
        group.smallest(1)  # nobody writes before all boxes are empty
    return WholeStep(layers, model.norm.weight.data, spec, rows=rows, ranks=ranks)  # type: ignore[union-attr]


def whole_step(model: Decoder, store: KVStore, rows: int, **options: Any) -> WholeStep:
    """The model's steps of up to `rows` rows in one launch. Raises ValueError if none can compute them."""
    parts = step_parts(model, store)
    if isinstance(parts, str):
        raise ValueError(f"one launch cannot run this model's steps: {parts}")
    spec, layers = parts
    return WholeStep(layers, model.norm.weight.data, spec, rows=rows, **options)  # type: ignore[union-attr]


def step_parts(model: Decoder, store: KVStore) -> tuple[StepSpec, list[StepLayer]] | str:
    """The model's layers for `WholeStep`, or why it is not for them."""
    modules: list[Any] = list(model.layers)
    first = modules[0].spec
    alike = [replace(m.spec, attention=replace(m.spec.attention, window=None, rope=None)) for m in modules]
    ropes = [m.attention.rope for m in modules]
    if any(spec != alike[0] for spec in alike) or len({r.spec.interleaved for r in ropes}) > 1:
        return "its layers differ in more than windows and rotations"
    if (model.spec.norm.eps, model.spec.norm.offset) != (first.norm.eps, first.norm.offset):
        return "its last norm differs from those of its layers"
    a = first.attention
    normed = a.qk_norm == "head"
    spec = StepSpec(
        heads=a.heads,
        kv_heads=a.kv_heads,
        dim=a.head_dim,
        hidden=model.spec.hidden,
        inner=modules[0].mlp.down.weight.shape[1],
        gate=_GATES[first.mlp.activation],
        scale=a.scale,
        softcap=a.softcap,
        interleaved=ropes[0].spec.interleaved,
        eps=first.norm.eps,
        offset=first.norm.offset,
        qk_eps=a.norm.eps if normed and a.norm is not None else 0.0,
        qk_offset=a.norm.offset if normed and a.norm is not None else 0.0,
        page_size=store.page_size,
    )
    layers = [
        StepLayer(
            attn_norm=m.attn_norm.weight,
            qkv=m.attention.qkv.weight,
            qkv_bias=m.attention.qkv.bias,
            q_norm=m.attention.q_norm.weight if normed else None,
            k_norm=m.attention.k_norm.weight if normed else None,
            cos=m.attention.rope.cos,
            sin=m.attention.rope.sin,
            pool_k=store.k[m.attention.index],
            pool_v=store.v[m.attention.index],
            out=m.attention.out.weight,
            out_bias=m.attention.out.bias,
            mlp_norm=m.mlp_norm.weight,
            up=m.mlp.up.weight,
            down=m.mlp.down.weight,
            window=m.spec.attention.window,
        )
        for m in modules
    ]
    return spec, layers


def _row_norm(norm: Any) -> RowNorm:
    return RowNorm(norm.weight, norm.spec.eps, norm.spec.offset)
