"""Attention by own kernels, over pages of any size: Triton's, and for single tokens on Hopper one in CUDA C++.

Single-token rows and prompts of a batch are two launches. Prompts that nothing precedes may be read from the rows
of the batch instead of the pages, by this package's kernel or by torch's, where the tables say that it is quicker.
Over latents single tokens have a kernel, prompts are torch's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from math import lcm
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from runtime.attention.base import AttentionInputs, PagedInputs
from runtime.attention.latent import absorbed, attend_prompts, heads_of, prompt_slots
from runtime.kernels import nvrtc
from runtime.kernels.decode import decode_attention, packed_decode_attention
from runtime.kernels.kv_store import store_kv
from runtime.kernels.merge import SplitScratch, split_scratch
from runtime.kernels.mla_decode import mla_decode_attention
from runtime.kernels.paged_decode import DecodeShape, PagedDecode
from runtime.kernels.paged_decode import why_not as why_not_paged
from runtime.kernels.prefill import fresh_attention, prefill_attention
from runtime.kernels.rope_store import Turning
from runtime.kernels.tuning import decode_tiles, fresh_path, latent_tiles, packed_rows
from runtime.kv.store import KVStore
from runtime.models.spec import AttnSpec

log = logging.getLogger("runtime.attention")


def paged_inputs(inputs: AttentionInputs, page_size: int) -> PagedInputs:
    """The same batch with a page table, made from the slots of each span."""
    spans = inputs.spans
    device = inputs.slots.device
    ends = [s.start + s.count for s in spans]
    width = max(-(-end // page_size) for end in ends)
    table = torch.zeros(len(spans), width, dtype=torch.int32, device=device)
    for i, span in enumerate(spans):
        pages = span.slots[::page_size] // page_size
        table[i, : len(pages)] = pages
    decodes = next((i for i, s in enumerate(spans) if s.count > 1), len(spans))
    return PagedInputs(
        table=table,
        seats=torch.arange(len(spans), dtype=torch.int32, device=device),
        lengths=torch.tensor(ends, dtype=torch.int32, device=device),
        starts=torch.tensor([*(s.first for s in spans), len(inputs.slots)], dtype=torch.int32, device=device),
        slots=inputs.slots,
        max_new=max(s.count for s in spans),
        max_length=max(ends),
        decodes=decodes,
        prompts=tuple((s.first, s.count, s.start) for s in spans[decodes:]),
    )


def _decoders(
    store: KVStore, layers: Sequence[AttnSpec], make: Callable[[DecodeShape, int | None], PagedDecode]
) -> list[PagedDecode | None]:
    """Of each layer; layers of a shape share theirs. Those with a window other than the first one have none."""
    window = next((a.window for a in layers if a.window), None)
    made: dict[DecodeShape, PagedDecode] = {}
    found: list[PagedDecode | None] = []
    reasons: set[str] = set()
    for a in layers:
        shape = _shape(a, store.page_size)
        reason = (
            "its heads are turned in another way" if shape is None else why_not_paged(shape, store.k.dtype)
        )
        if a.window not in (None, window):
            reason = f"it has windows of {window} and {a.window}"
        if shape is not None and reason is None and not packed_rows(shape.position_bytes):
            reason = f"nobody has timed it with {shape.position_bytes} bytes of a position"
        if shape is None or reason is not None:
            reasons.add(str(reason))
            found.append(None)
            continue
        if shape not in made:
            made[shape] = make(shape, window)
        found.append(made[shape])
    if reasons:
        log.info("few single tokens are attended by Triton's kernel: %s", "; ".join(sorted(reasons)))
    return found


def _shape(a: AttnSpec, page_size: int) -> DecodeShape | None:
    if a.mla is not None or a.rope is None or a.qk_norm == "all":
        return None
    norm = a.norm if a.qk_norm == "head" else None
    return DecodeShape(
        a.heads, a.kv_heads, a.head_dim, page_size, a.rope.dim, a.rope.interleaved, norm is not None,
        norm is not None and norm.offset != 0.0, a.softcap is not None,
    )  # fmt: skip


def _takes(decoder: PagedDecode, rows: int) -> bool:
    return any(rows in part for part in packed_rows(decoder.shape.position_bytes))


class TritonAttention:
    """`AttentionImpl` over a KVStore on a device, or in Triton's interpreter.

    Before a graph is captured, the same batch size must have run once: scratch is made then, and kept.
    """

    def __init__(
        self,
        store: KVStore,
        layers: Sequence[AttnSpec] = (),
        make: Callable[[DecodeShape, int | None], PagedDecode] | None = None,
    ) -> None:
        """`layers`: those of the model, whose kernels in CUDA C++ are compiled from now on; without them all are Triton's.

        make  how the former are made, of a shape and a window, where there is no Hopper
        """
        self.store = store
        self.inputs: PagedInputs | None = None
        if make is None and nvrtc.why_not(store.k.device) is None:
            make = self._compiled
        self._specs = list(layers)
        self._decoders = [None] * len(layers) if make is None else _decoders(store, layers, make)
        self._cut: set[PagedDecode] = set()  # those for which this batch is cut
        parts = {
            part for x in self._decoders if x is not None for part in packed_rows(x.shape.position_bytes)
        }
        counts = " or ".join(f"{x.start} to {x.stop - 1}" for x in sorted(parts, key=lambda x: x.start))
        self.form = "triton"
        if parts:
            self.form += f", {counts} single tokens in CUDA C++, what up to {self.bundles()[1]} of them begin with read once,"
        self._scratch: dict[tuple[int, int, int, int], SplitScratch] = {}
        self._kept: list[SplitScratch] = []  # graphs hold on to what they were captured with
        self._prompt_slots: list[Tensor] | None = None  # found when the batch's first layer asks

    def plan(self, inputs: PagedInputs | AttentionInputs) -> None:
        if isinstance(inputs, AttentionInputs):
            inputs = paged_inputs(inputs, self.store.page_size)
        self.inputs = inputs
        self._prompt_slots = None
        self._cut.clear()

    def _compiled(self, shape: DecodeShape, window: int | None) -> PagedDecode:
        return PagedDecode(shape, self.store.k.device, window=window)

    def run(self, q: Tensor, k: Tensor, v: Tensor, layer: int, spec: AttnSpec) -> Tensor:
        """Store k and v, then attend."""
        assert self.inputs is not None
        store_kv(k, v, self.store.k[layer], self.store.v[layer], self.inputs.slots)
        return self.run_stored(q, layer, spec, k, v)

    def run_latent(self, q: Tensor, rows: Tensor, up: Tensor, layer: int, spec: AttnSpec) -> Tensor:
        at, pool = self.inputs, self.store.k[layer]
        assert at is not None
        store_kv(rows, None, pool, pool, at.slots)
        out = q.new_empty(*q.shape[:2], spec.value_dim)
        if at.decodes:
            latents = self._decode_latents(*absorbed(q[: at.decodes], up, spec), layer, spec)
            out[: at.decodes] = heads_of(latents, up, spec)
        if len(at.seats) > at.decodes:
            if self._prompt_slots is None:
                self._prompt_slots = prompt_slots(at, self.store.page_size)
            attend_prompts(q, pool, at, self._prompt_slots, up, spec, out)
        return out

    def _decode_latents(self, q: Tensor, q_rope: Tensor, layer: int, spec: AttnSpec) -> Tensor:
        at = self.inputs
        assert at is not None
        requests, heads, latent = q.shape
        tiles = latent_tiles(q.device, requests, heads, q.dtype)
        scratch = None
        if tiles.splits > 1:
            groups = -(-heads // tiles.block_h)
            scratch = self._scratch_for(requests, (groups, tiles.splits, tiles.block_h, latent))
        return mla_decode_attention(
            q.contiguous(),
            q_rope.contiguous(),
            self.store.k[layer].squeeze(1),
            at.table,
            at.seats[: at.decodes],
            at.lengths[: at.decodes],
            page_size=self.store.page_size,
            scale=spec.scale,
            scratch=scratch,
            tiles=tiles,
        )

    def run_stored(
        self, q: Tensor, layer: int, spec: AttnSpec, k: Tensor | None = None, v: Tensor | None = None
    ) -> Tensor:
        """Attend; k and v are stored already, and are given as well if rows of fresh prompts may be read from them."""
        at = self.inputs
        assert at is not None
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        if at.decodes:
            self._decode(q[: at.decodes], layer, spec, out[: at.decodes])
        if len(at.seats) > at.decodes:
            if k is None or v is None or not self._fresh(q, k, v, spec, out):
                prefill_attention(
                    q,
                    self.store.k[layer],
                    self.store.v[layer],
                    at.table,
                    at.seats[at.decodes :],
                    at.starts[at.decodes :],
                    at.lengths[at.decodes :],
                    page_size=self.store.page_size,
                    max_new=at.max_new,
                    scale=spec.scale,
                    window=spec.window,
                    softcap=spec.softcap,
                    out=out,
                )
        return out

    def run_packed(self, qkv: Tensor, turning: Turning, layer: int, spec: AttnSpec) -> Tensor | None:
        """Make q, k and v of the packed projection, store, attend, in one launch; None if that is not the quickest.

        It is for batches of nothing but single tokens.
        """
        at = self.inputs
        assert at is not None
        rows = len(qkv)
        if at.decodes != rows or not at.apart:
            return None
        decoder = self._decoders[layer] if self._decoders else None
        if decoder is not None and self._by(decoder, rows, qkv.dtype):
            early = decoder in self._cut
            self._cut_for(decoder)
            return decoder(
                qkv, turning, at.slots, self.store.k[layer], self.store.v[layer], at.table, at.seats, at.lengths,
                scale=spec.scale, window=spec.window, softcap=spec.softcap, early=early, sharing=at.sharing,
            )  # fmt: skip
        how = self._how(rows, spec)
        if not how["tiles"].packed:
            return None
        return packed_decode_attention(
            qkv,
            spec.heads,
            turning,
            at.slots,
            self.store.k[layer],
            self.store.v[layer],
            at.table,
            at.seats,
            at.lengths,
            **how,
        )

    def ready(self, rows: int, dtype: torch.dtype) -> None:
        """What comes before the layers, each of which hands so many rows of q, k and v to `run_packed`; without it the first one would
        not begin early."""
        at = self.inputs
        if at is not None and at.apart and at.decodes == rows:
            for decoder in self._decoders:
                if decoder is not None and self._by(decoder, rows, dtype):
                    self._cut_for(decoder)

    def _by(self, decoder: PagedDecode, rows: int, dtype: torch.dtype) -> bool:
        """Whether it attends so many single tokens of different requests."""
        assert self.inputs is not None
        return dtype == torch.bfloat16 and (self.inputs.sharing is not None or _takes(decoder, rows))

    def _cut_for(self, decoder: PagedDecode) -> None:
        assert self.inputs is not None
        if decoder not in self._cut:
            decoder.cut(self.inputs.lengths, self.inputs.sharing)
            self._cut.add(decoder)

    def bundles(self) -> tuple[int, int]:
        """What `PagedInputs.sharing` has to keep to: rows share a multiple of so many positions, and are so many of a bundle at most;
        fewer than two: no layer reads it."""
        shapes = {x.shape for x in self._decoders if x is not None}
        return lcm(*(x.span for x in shapes)), min((x.bundle for x in shapes), default=1)

    def in_one_launch(self, rows: int, spec: AttnSpec) -> bool:
        """Whether `run_packed` takes so many single tokens of requests that are apart: what one row stores, no other row of the
        launch is sure to see."""
        store = self.store
        decoders = zip(self._specs, self._decoders, strict=True)
        if any(own == spec and decoder is not None and _takes(decoder, rows) for own, decoder in decoders):
            return True
        return decode_tiles(store.k.device, rows, spec.kv_heads, spec.head_dim, store.k.dtype).packed

    def _decode(self, q: Tensor, layer: int, spec: AttnSpec, out: Tensor) -> None:
        at = self.inputs
        assert at is not None
        decode_attention(
            q,
            self.store.k[layer],
            self.store.v[layer],
            at.table,
            at.seats[: at.decodes],
            at.lengths[: at.decodes],
            out=out,
            **self._how(len(q), spec),
        )

    def _how(self, requests: int, spec: AttnSpec) -> dict[str, Any]:
        store = self.store
        kv_heads, dim = spec.kv_heads, spec.head_dim
        tiles = decode_tiles(store.k.device, requests, kv_heads, dim, store.k.dtype)
        scratch = None
        if tiles.splits > 1:
            group = spec.heads // kv_heads
            scratch = self._scratch_for(requests, (kv_heads, tiles.splits, group, dim))
        return {
            "page_size": store.page_size,
            "scale": spec.scale,
            "window": spec.window,
            "softcap": spec.softcap,
            "scratch": scratch,
            "tiles": tiles,
        }

    def _scratch_for(self, requests: int, shape: tuple[int, int, int, int]) -> SplitScratch:
        """`shape` as `split_scratch` has it: groups of heads, splits, heads of a group, numbers of a result."""
        found = self._scratch.get(shape)
        if found is None or len(found.arrived) < requests:
            device = self.store.k.device
            if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                raise RuntimeError(
                    f"attention of {requests} requests is captured before it has run once; "
                    "run the batch before the capture, so that its scratch lies outside the graph"
                )
            if found is not None:
                self._kept.append(found)
            found = self._scratch[shape] = split_scratch(requests, *shape, device)
        return found

    def _fresh(self, q: Tensor, k: Tensor, v: Tensor, spec: AttnSpec, out: Tensor) -> bool:
        """Attend prompts without anything before them from their rows; False if the pages are the better way."""
        at = self.inputs
        assert at is not None
        if (
            not at.fresh or self.store.k.dtype != k.dtype
        ):  # float8 keys are read as later tokens will read them
            return False
        plain = spec.window is None and spec.softcap is None
        path = fresh_path(q.device, spec.head_dim, q.dtype, [n for _, n in at.fresh], plain)
        if path == "pages":
            return False
        if path == "rows":
            fresh_attention(
                q, k, v, at.starts[at.decodes :], max_new=at.max_new, scale=spec.scale,
                window=spec.window, softcap=spec.softcap, out=out,
            )  # fmt: skip
            return True
        from torch.nn.attention import SDPBackend, sdpa_kernel

        backend = SDPBackend.CUDNN_ATTENTION if path == "cudnn" else SDPBackend.FLASH_ATTENTION
        with sdpa_kernel(backend):
            for first, count in at.fresh:
                rows = slice(first, first + count)
                result = F.scaled_dot_product_attention(
                    q[rows].transpose(0, 1)[None],
                    k[rows].transpose(0, 1)[None],
                    v[rows].transpose(0, 1)[None],
                    is_causal=True,
                    scale=spec.scale,
                    enable_gqa=spec.heads != spec.kv_heads,
                )
                out[rows] = result[0].transpose(0, 1)
        return True
