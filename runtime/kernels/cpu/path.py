"""Which models have the compiled path, and the decoder and attention that take it.

Both stand in for what they wrap, so the runner does not know: until the kernels are built (by another process, the
first time on a machine), and for ever if the model does not qualify, the plain ones do the work.
"""

from __future__ import annotations

import logging
import subprocess
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from runtime.attention.base import AttentionImpl, AttentionInputs
from runtime.attention.plain import PlainAttention
from runtime.kv.store import KVStore
from runtime.models.decoder import Decoder
from runtime.models.spec import ArchSpec, AttnSpec, MoeSpec, NormSpec

if TYPE_CHECKING:
    from runtime.kernels.cpu.build import Variant

log = logging.getLogger("runtime.kernels")
LARGEST = 1 << 30  # bytes of float32 weights; above it reading them takes the time, and a copy is too dear
LONG = 1024  # a lone token that sees fewer is the work of one thread: the other has its text to do


def choose(model: Decoder, store: KVStore) -> tuple[Decoder | FastDecoder, AttentionImpl]:
    """The fastest decoder and attention that compute this model; says which, and why if it is the plain one."""
    plain = PlainAttention(store)
    if store.k.device.type != "cpu":
        return model, plain
    reason = why_not(model, store)
    if reason is None:
        try:
            from runtime.kernels.cpu.build import Variant
        except (ImportError, RuntimeError) as error:  # no numba, or no folder that it may write to
            reason = f"its kernels cannot be compiled here: {error}"
        else:
            return _fast(model, store, plain, Variant)
    log.info("decoding in plain torch: %s", reason)
    return model, plain


def _fast(
    model: Decoder, store: KVStore, plain: PlainAttention, variants: type[Variant]
) -> tuple[FastDecoder, FastAttention]:
    weights = Weights(model)
    variant = variants(weights.kind, model.spec.layers[0].attention.head_dim)
    attention = FastAttention(store, plain, variant)
    if variant.built:
        attention.load()
    else:
        log.info("kernels for this model are being compiled; plain torch decodes until then")
        attention.building = variant.build_elsewhere()
    return FastDecoder(model, weights, attention), attention


def why_not(model: Decoder, store: KVStore) -> str | None:
    """What the kernels do not compute of this model; None if they can run it."""
    spec, layer = model.spec, model.spec.layers[0]
    a, m = layer.attention, layer.mlp
    if isinstance(m, MoeSpec):
        return "its layers have experts"
    size = 4 * sum(p.numel() for p in model.parameters())
    checks = (
        (model.group is None, "it is cut over several processes"),
        (model.dtype == torch.float32 and store.k.dtype == torch.float32, f"it is computed in {model.dtype}"),
        (size <= LARGEST, f"its weights take {size / 1e9:.1f} GB"),
        (all(other == layer for other in spec.layers), "its layers differ"),
        (layer.form == "pre" and layer.residual_scale == 1.0, f"its layers have the form {layer.form!r}"),
        (_plain_norm(layer.norm) and spec.norm == layer.norm, "its norms are not plain RMS norms"),
        (m.gated and m.activation == "silu" and not m.bias, "its MLP is not silu-gated without bias"),
        (not (a.qkv_bias or a.out_bias or a.qk_norm), "its attention has biases or norms"),
        (a.mla is None, "its attention is over latents"),
        (a.window is None and a.softcap is None, "its attention has a window or a softcap"),
        (a.head_dim % 8 == 0, f"its heads have {a.head_dim} dimensions, not a multiple of 8"),
        (
            a.rope is not None and a.rope.dim == a.head_dim and not a.rope.interleaved,
            "its rotary embedding is not over halves of whole heads",
        ),
        (_plain_ends(spec), "its embedding or logits are scaled"),
    )
    return next((reason for good, reason in checks if not good), None)


def _plain_norm(norm: NormSpec) -> bool:
    return norm.kind == "rms" and norm.affine and not norm.bias and norm.offset == 0.0


def _plain_ends(spec: ArchSpec) -> bool:
    return spec.embed_scale == 1.0 and spec.logit_scale == 1.0 and spec.logit_softcap is None


class Weights:
    """A model's weights as the kernels read them: layers stacked, as bfloat16 bits if that loses nothing."""

    def __init__(self, model: Decoder) -> None:
        layers: list[Any] = list(model.layers)
        stacks = {
            "embedding": model.embedding.weight,
            "qkv": torch.stack([x.attention.qkv.weight for x in layers]),
            "out": torch.stack([x.attention.out.weight for x in layers]),
            "up": torch.stack([x.mlp.up.weight for x in layers]),
            "down": torch.stack([x.mlp.down.weight for x in layers]),
        }
        if model.head is not None:
            stacks["head"] = model.head.weight
        arrays = {name: w.detach().contiguous().numpy() for name, w in stacks.items()}
        self.kind = "float32" if any(_low_bits(w) for w in arrays.values()) else "uint16"
        if self.kind == "uint16":
            arrays = {name: (w.view(np.uint32) >> 16).astype(np.uint16) for name, w in arrays.items()}
        rope = layers[0].attention.rope
        final: Any = model.norm.weight
        self.head = arrays.get("head", arrays["embedding"])
        self.layers = (
            *(arrays[name] for name in ("embedding", "qkv", "out", "up", "down")),
            torch.stack([x.attn_norm.weight for x in layers]).detach().numpy(),
            torch.stack([x.mlp_norm.weight for x in layers]).detach().numpy(),
            final.detach().numpy(),
            np.float32(model.spec.norm.eps),
            rope.cos.numpy(),
            rope.sin.numpy(),
            np.float32(model.spec.layers[0].attention.scale),
        )


def _low_bits(weights: np.ndarray) -> bool:
    """Whether float32 numbers are more precise than bfloat16."""
    return bool((weights.view(np.uint32) & 0xFFFF).any())


class FastAttention:
    """What the kernels must know of a batch; the plain attention until they are built."""

    def __init__(self, store: KVStore, plain: PlainAttention, variant: Variant) -> None:
        self.store = store
        self.plain = plain
        self.variant = variant
        self.building: subprocess.Popen[bytes] | None = None
        self.ready = False
        self.k, self.v = store.k.numpy(), store.v.numpy()
        self.lanes = (0,) * store.k.shape[-1]
        self.slots = self.context = self.first = self.positions = np.empty(0, np.int64)
        self.threads = 1
        self._most = torch.get_num_threads()  # as it was set; see `plan`

    def load(self) -> None:
        """Take the built kernels from disk."""
        self.variant.load()
        self.ready = True
        log.info("decoding with compiled kernels (%s weights)", self.variant.weights)

    def wait(self) -> None:
        """Return when the kernels are in use. Raises RuntimeError if they could not be built."""
        if self.building is not None:
            self.building.wait()
            self._poll()
        if not self.ready:
            raise RuntimeError("the kernels for this model could not be compiled")

    def _poll(self) -> None:
        if self.building is None or (code := self.building.poll()) is None:
            return
        self.building = None
        if code == 0:
            self.load()
        else:
            log.warning(
                "compiling kernels failed; plain torch goes on decoding (see python -m runtime.kernels.cpu.build %s %d)",
                self.variant.weights,
                self.variant.head_dim,
            )

    def plan(self, inputs: AttentionInputs) -> None:
        from numba import config, set_num_threads

        self._poll()
        if not self.ready:
            self.plain.plan(inputs)
            return
        spans = inputs.spans
        many = len(inputs.slots) > 1 or spans[0].start >= LONG
        self.threads = min(self._most, config.NUMBA_NUM_THREADS) if many else 1  # type: ignore[attr-defined]
        set_num_threads(self.threads)  # for calls from this thread
        if (
            torch.get_num_threads() != self._most
        ):  # the first such call starts numba's threads, and torch takes as many
            torch.set_num_threads(self._most)
        self.slots = inputs.slots.numpy()
        if len(spans) == 1 and spans[0].count == 1:
            self.context, self.first = spans[0].slots.numpy(), np.zeros(1, np.int64)
            self.positions = np.array([spans[0].start])
            return
        counts = [s.count for s in spans]
        lengths = [s.start + s.count for s in spans]
        self.context = np.concatenate([s.slots.numpy() for s in spans])
        self.first = np.repeat(np.cumsum([0, *lengths[:-1]]), counts)
        self.positions = np.concatenate([np.arange(s.start, s.start + s.count) for s in spans])

    def run(self, q: Tensor, k: Tensor, v: Tensor, layer: int, spec: AttnSpec) -> Tensor:
        return self.plain.run(q, k, v, layer, spec)

    def run_latent(self, q: Tensor, rows: Tensor, up: Tensor, layer: int, spec: AttnSpec) -> Tensor:
        return self.plain.run_latent(q, rows, up, layer, spec)


class FastDecoder:
    """Stands in for a `Decoder`: a batch goes through all layers in one compiled call."""

    def __init__(self, model: Decoder, weights: Weights, attention: FastAttention) -> None:
        self.model = model
        self.spec = model.spec
        self.dtype = model.dtype
        self.weights = weights
        self.attention = attention

    def __call__(self, ids: Tensor, positions: Tensor, impl: AttentionImpl) -> Tensor:
        a = self.attention
        if not a.ready or impl is not a:
            return self.model(ids, positions, impl)
        from runtime.kernels.cpu.decode import run_layers

        hidden = run_layers(  # type: ignore[call-arg]
            ids.numpy(),
            a.positions,
            a.slots,
            a.context,
            a.first,
            *self.weights.layers,
            a.k,
            a.v,
            a.lanes,
            a.threads,
        )
        return torch.from_numpy(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [rows, vocabulary]."""
        if not self.attention.ready:
            return self.model.logits(hidden)
        from runtime.kernels.cpu.decode import run_head

        return torch.from_numpy(
            run_head(hidden.contiguous().numpy(), self.weights.head, self.attention.threads)
        )
