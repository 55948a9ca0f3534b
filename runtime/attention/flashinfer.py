"""Attention by FlashInfer's wrappers: decode and prefill over pages, planned once a batch for each kind of layer.
Over latents single tokens have a wrapper, prompts are torch's.

Planning runs on the host and needs the lengths there: one copy a batch, the only wait. Graphs hold on to the buffers
of their wrapper, so a batch size that is captured has wrappers of its own (`for_graph`), planned anew before each
replay. The engine captures none yet: a plan is copied from pinned memory that the next plan overwrites, so the host would
have to wait for each copy, also between the steps of a turn, which are queued without it. Kernels are compiled by FlashInfer
at first use; FLASHINFER_WORKSPACE_BASE names the folder that keeps them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from runtime.attention.base import AttentionInputs, PagedInputs
from runtime.attention.latent import absorbed, attend_prompts, heads_of, prompt_slots
from runtime.attention.triton import paged_inputs
from runtime.kernels.kv_store import store_kv
from runtime.kv.store import KVStore
from runtime.models.spec import ArchSpec, AttnSpec, MlaSpec

_WORKSPACE = 128 << 20  # bytes, as FlashInfer's documentation advises
_TENSOR_CORES_FROM = 4  # query heads per KV head; with fewer the plain decode kernel is the better one


@dataclass(frozen=True)
class _Kind:
    """What a plan depends on; layers that agree in it share their wrappers."""

    heads: int
    kv_heads: int
    dim: int
    scale: float
    window: int | None
    softcap: float | None
    mla: MlaSpec | None

    @classmethod
    def of(cls, spec: AttnSpec) -> _Kind:
        return cls(spec.heads, spec.kv_heads, spec.head_dim, spec.scale, spec.window, spec.softcap, spec.mla)

    def options(self, q: torch.dtype, kv: torch.dtype) -> dict[str, Any]:
        return {
            "sm_scale": self.scale,
            "window_left": -1 if self.window is None else self.window - 1,
            "logits_soft_cap": self.softcap,
            "q_data_type": q,
            "kv_data_type": kv,
        }


@dataclass(frozen=True)
class _Pages:
    """Pages of some requests in FlashInfer's form: int32, `bounds` and `last` on the host, where plans are made."""

    bounds: Tensor
    indices: Tensor
    last: Tensor


class FlashInferAttention:
    """`AttentionImpl` over a KVStore on a CUDA device."""

    def __init__(self, store: KVStore, spec: ArchSpec, dtype: torch.dtype) -> None:
        import flashinfer

        self.store = store
        self._module = flashinfer
        self._dtype = dtype
        self._kinds = list(dict.fromkeys(_Kind.of(layer.attention) for layer in spec.layers))
        self._workspace = torch.zeros(_WORKSPACE, dtype=torch.uint8, device=store.k.device)
        self._decodes = {kind: self._decode_wrapper(kind) for kind in self._kinds}
        self._prompts = {
            kind: flashinfer.BatchPrefillWithPagedKVCacheWrapper(self._workspace, "NHD", backend="auto")
            for kind in self._kinds
            if kind.mla is None
        }
        self._captured: dict[int, dict[_Kind, Any]] = {}
        self._running = self._decodes
        self.inputs: PagedInputs | None = None
        self._prompt_slots: list[Tensor] | None = None  # found when the batch's first layer asks

    def _decode_wrapper(self, kind: _Kind, requests: int = 0, pages: int = 0) -> Any:
        """With `requests` it is for a graph of so many, which hold at most `pages` pages in all."""

        def integers(count: int) -> Tensor:
            return torch.zeros(count, dtype=torch.int32, device=self.store.k.device)

        buffers: dict[str, Any] = {}
        if kind.mla is not None:
            if requests:
                buffers = {
                    "use_cuda_graph": True,
                    "qo_indptr": integers(requests + 1),
                    "kv_indptr": integers(requests + 1),
                    "kv_indices": integers(pages),
                    "kv_len_arr": integers(requests),
                }
            return self._module.mla.BatchMLAPagedAttentionWrapper(self._workspace, backend="auto", **buffers)
        if requests:
            buffers = {
                "use_cuda_graph": True,
                "paged_kv_indptr_buffer": integers(requests + 1),
                "paged_kv_indices_buffer": integers(pages),
                "paged_kv_last_page_len_buffer": integers(requests),
            }
        return self._module.BatchDecodeWithPagedKVCacheWrapper(
            self._workspace,
            "NHD",
            use_tensor_cores=kind.heads // kind.kv_heads >= _TENSOR_CORES_FROM,
            **buffers,
        )

    def for_graph(self, requests: int, pages: int) -> None:
        """Make the wrappers of a captured batch of `requests` decode rows that hold at most `pages` pages in all."""
        self._captured[requests] = {kind: self._decode_wrapper(kind, requests, pages) for kind in self._kinds}

    def plan(self, inputs: PagedInputs | AttentionInputs) -> None:
        if isinstance(inputs, AttentionInputs):
            inputs = paged_inputs(inputs, self.store.page_size)
        self.inputs = inputs
        self._prompt_slots = None
        requests, decodes = len(inputs.seats), inputs.decodes
        integers = torch.cat((inputs.lengths, inputs.starts)).cpu()
        # A padding row attends to one token of page 0: its result is not read.
        lengths, starts = integers[:requests].clamp(min=1), integers[requests:]
        if decodes:
            self._running = (
                self._captured.get(decodes, self._decodes) if decodes == requests else self._decodes
            )
            pages = self._pages(inputs, lengths, 0, decodes)
            for kind, wrapper in self._running.items():
                if kind.mla is not None:
                    wrapper.plan(
                        starts[: decodes + 1], pages.bounds, pages.indices, lengths[:decodes], kind.heads,
                        kind.mla.kv_rank, kind.mla.rope, self.store.page_size, False, kind.scale, self._dtype,
                        self.store.k.dtype,
                    )  # fmt: skip
                    continue
                wrapper.plan(
                    pages.bounds, pages.indices, pages.last, kind.heads, kind.kv_heads, kind.dim,
                    self.store.page_size, **kind.options(self._dtype, self.store.k.dtype),
                )  # fmt: skip
        if requests > decodes and self._prompts:
            pages = self._pages(inputs, lengths, decodes, requests)
            rows = starts[decodes:] - starts[decodes]
            for kind, wrapper in self._prompts.items():
                wrapper.plan(
                    rows, pages.bounds, pages.indices, pages.last, kind.heads, kind.kv_heads, kind.dim,
                    self.store.page_size, causal=True, **kind.options(self._dtype, self.store.k.dtype),
                )  # fmt: skip

    def _pages(self, inputs: PagedInputs, lengths: Tensor, first: int, end: int) -> _Pages:
        """Pages of requests [first, end); `lengths` are on the host."""
        size = self.store.page_size
        device = inputs.table.device
        counts = (lengths[first:end] + size - 1) // size
        bounds = torch.zeros(end - first + 1, dtype=torch.int32)
        torch.cumsum(counts, 0, out=bounds[1:])
        total = int(bounds[-1])
        on_device = bounds.to(device, non_blocking=True)
        rows = torch.repeat_interleave(
            torch.arange(end - first, device=device), on_device.diff(), output_size=total
        )
        columns = torch.arange(total, device=device) - on_device[rows]
        indices = inputs.table[inputs.seats[first:end].long()[rows], columns]
        last = lengths[first:end] - (counts - 1) * size
        return _Pages(bounds, indices, last.int())

    def run(self, q: Tensor, k: Tensor, v: Tensor, layer: int, spec: AttnSpec) -> Tensor:
        """Store k and v, then attend."""
        assert self.inputs is not None
        store_kv(k, v, self.store.k[layer], self.store.v[layer], self.inputs.slots)
        return self.run_stored(q, layer, spec)

    def run_latent(self, q: Tensor, rows: Tensor, up: Tensor, layer: int, spec: AttnSpec) -> Tensor:
        at, pool, m = self.inputs, self.store.k[layer], spec.mla
        assert at is not None and m is not None
        store_kv(rows, None, pool, pool, at.slots)
        out = q.new_empty(*q.shape[:2], spec.value_dim)
        if at.decodes:
            folded, turned = absorbed(q[: at.decodes], up, spec)
            latents, keys = pool.view(-1, self.store.page_size, spec.head_dim).split((m.kv_rank, m.rope), -1)
            means = self._running[_Kind.of(spec)].run(folded.contiguous(), turned.contiguous(), latents, keys)
            out[: at.decodes] = heads_of(means, up, spec)
        if len(at.seats) > at.decodes:
            if self._prompt_slots is None:
                self._prompt_slots = prompt_slots(at, self.store.page_size)
            attend_prompts(q, pool, at, self._prompt_slots, up, spec, out)
        return out

    def ready(self, rows: int, dtype: torch.dtype) -> None:
        """`plan` has done all there is to do."""

    def run_packed(self, *given: Any) -> None:
        """There is no launch that also rotates and stores."""

    def run_stored(
        self, q: Tensor, layer: int, spec: AttnSpec, k: Tensor | None = None, v: Tensor | None = None
    ) -> Tensor:
        """Attend; k and v are stored already and not looked at."""
        assert self.inputs is not None
        decodes = self.inputs.decodes
        kind = _Kind.of(spec)
        size = self.store.page_size
        pools = (
            self.store.k[layer].unflatten(0, (-1, size)),
            self.store.v[layer].unflatten(0, (-1, size)),
        )
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        if decodes:
            self._running[kind].run(q[:decodes].contiguous(), pools, out=out[:decodes])
        if len(self.inputs.seats) > decodes:
            self._prompts[kind].run(q[decodes:].contiguous(), pools, out=out[decodes:])
        return out
