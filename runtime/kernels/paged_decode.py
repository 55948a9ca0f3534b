"""Attention of single tokens from their packed projection, on Hopper (cuda/paged_decode.cu).

What `packed_decode_attention` computes, for bfloat16: the contexts of a batch are shared out evenly among one program a multiprocessor,
each of which finds room beside the launch before, and has contexts on their way before that has ended. Positions that several rows
begin with are read once for a bundle of rows, not for each (as in Hydragen, Juravsky et al. 2024, and ChunkAttention, Ye et al. 2024).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor

from runtime.kernels import nvrtc
from runtime.kernels.rope_store import Turning
from runtime.kernels.sharing import MOST_ROWS, Sharing
from runtime.kernels.step_layers import FOREVER, MOST_GROUP
from runtime.kernels.tuning import processors

CONSUMERS = 8  # warps
_MOST_STAGES = 12
_LEAST = 1024  # bytes of a copy by the copy engine: 256 at a time took five times as long as other loads
_BESIDE = 120 << 10  # bytes of shared memory that leave room for programs of the launch before
_BESIDE_LITTLE = 168 << 10  # the same where positions are less than _LEAST, whose launches before are small
_WARPGROUP = 128  # threads that bring contexts to bundles, though one warp of them may do it
_CUT_SHARED = 2 * 4 * 32 * CONSUMERS
# Takes arguments, and whether it may begin before the launch before has ended.
Launch = Callable[[ctypes.Structure, bool], None]
Launches = tuple[
    Launch, Launch, Launch
]  # of what cuts, of what attends, of what attends to what bundles share


@dataclass(frozen=True)
class DecodeShape:
    """What a kernel is compiled for. `turned`: rotated coordinates of a head; `normed`: heads are normed first, `offset`: with weights
    counted from another number than 0."""

    heads: int
    kv_heads: int
    dim: int
    page_size: int
    turned: int
    interleaved: bool = False
    normed: bool = False
    offset: bool = False
    softcap: bool = False

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def together(self) -> int:
        """Heads of keys that a program attends with at a time: neighbours in memory."""
        return gcd(self.kv_heads, CONSUMERS)

    @property
    def position_bytes(self) -> int:
        """That are copied at a time."""
        return self.together * self.dim * 2

    @property
    def span(self) -> int:
        """Positions of a step; rows share whole steps."""
        return 16 * CONSUMERS // self.together

    @property
    def bundle(self) -> int:
        """Rows at most that are attended together where they begin alike: as many as registers hold; 1: none are."""
        tiles = min(8, 240 // (self.dim * 3 // 8 + 12))  # of eight queries, by the registers that one takes
        rows = tiles * (8 // self.group) if self.group <= 8 else max(1, tiles // -(-self.group // 8))
        return min(rows, 32)  # a lane each

    def turns(self, turning: Turning) -> bool:
        """Whether it turns heads in this way."""
        return (self.turned, self.interleaved, self.normed, self.offset) == (
            turning.width(self.dim), turning.interleaved, turning.q_weight is not None, turning.offset != 0.0,
        )  # fmt: skip


class _Arguments(ctypes.Structure):
    """`Args` of cuda/decode_shapes.h."""

    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in (
                "qkv", "attended", "partial", "weights", "bundle_partial", "bundle_weights", "arrived", "places",
                "bundle_places", "begins", "order", "shares", "pages", "seats", "lengths", "slots", "q_norm", "k_norm", "cos", "sin", "pool_k", "pool_v",
            )
        ),
        *((name, ctypes.c_int64) for name in ("width", "window")),
        *((name, ctypes.c_double) for name in ("scale", "softcap", "qk_eps", "qk_offset")),
    )  # fmt: skip


class _CutArguments(ctypes.Structure):
    """`CutArgs` of cuda/decode_shapes.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("lengths", "places", "begins", "order", "shares")),
        *((name, ctypes.c_int64) for name in ("rows", "window")),
    )


class _Scratch(NamedTuple):
    """For so many rows at most: parts of results and their weights, of what rows have alone and of what they share; counts of those
    that are there; where rows' bundles begin on their line."""

    partial: Tensor
    weights: Tensor
    bundle_partial: Tensor
    bundle_weights: Tensor
    arrived: Tensor
    begins: Tensor


def why_not(shape: DecodeShape, dtype: torch.dtype) -> str | None:
    """What the kernel does not compute, or not quickly, of keys kept in `dtype`; None if it can."""
    checks = (
        (dtype == torch.bfloat16, f"its keys and values are kept in {dtype}, not torch.bfloat16"),
        (
            shape.dim % 32 == 0 and shape.dim <= 128,
            f"its heads have {shape.dim} numbers, not 32, 64, 96 or 128",
        ),
        (shape.group <= MOST_GROUP, f"{shape.group} of its heads share a key"),
        (_stages(shape) > 0, "two stages of its contexts do not fit a multiprocessor"),
    )
    return next((reason for good, reason in checks if not good), None)


def _shared_bytes(shape: DecodeShape, stages: int) -> int:
    """What cuda/decode_shapes.h lays out in shared memory; it refuses to compile if this is too little."""
    queries, heads, group, dim = -(-shape.group // 8) * 8, shape.together, shape.group, shape.dim
    stage = 16 * CONSUMERS // heads * (heads * dim * 2 + 16)
    parts = (
        CONSUMERS * group * (dim + 8) * 4 if heads < CONSUMERS else 0, heads * group * (dim + 8) * 2, heads * dim * 2, heads * dim * 4,
        CONSUMERS * queries * 4, CONSUMERS * queries * 4, heads * group * 4, heads * 4, stages * 8, stages * 8,
    )  # fmt: skip
    return stages * stage + nvrtc.shared_size(parts)


def _stages(shape: DecodeShape) -> int:
    """So many that a program finds room beside one of the launch before, but two at least; 0: two do not fit."""
    room = _BESIDE if shape.position_bytes >= _LEAST else _BESIDE_LITTLE
    most = (n for n in range(_MOST_STAGES, 1, -1) if _shared_bytes(shape, n) <= room)
    return next(most, 2 if _shared_bytes(shape, 2) <= nvrtc.MOST_SHARED else 0)


def defines(shape: DecodeShape, programs: int, copiers: int | None = None) -> dict[str, int]:
    """Macros of cuda/paged_decode.cu. `copiers`: warps that bring contexts; 1: by the copy engine; None: as suits the shape."""
    stages = _stages(shape)
    return {
        "COPIERS": copiers or (1 if shape.position_bytes >= _LEAST else 4),
        "STAGES": stages,
        "SHARED_BYTES": _shared_bytes(shape, stages),
        "PROGRAMS": programs,
        "BUNDLE": shape.bundle,
        "HEADS": shape.heads,
        "KV_HEADS": shape.kv_heads,
        "DIM": shape.dim,
        "PAGE": shape.page_size,
        "SOFTCAP": int(shape.softcap),
        "TURNED": shape.turned,
        "INTERLEAVED": int(shape.interleaved),
        "NORM": int(shape.normed),
        "QK_OFFSET": int(shape.offset),
    }


class PagedDecode:
    """Attention of one shape for all layers of a stream. Captured graphs hold on to its scratch.

    `cut` comes once a batch, before the layers.
    """

    def __init__(
        self,
        shape: DecodeShape,
        device: torch.device,
        *,
        window: int | None = None,
        copiers: int | None = None,
        build: Callable[[Mapping[str, int]], Launches] | None = None,
        programs: int | None = None,
    ) -> None:
        """The kernels are compiled by a thread from now on; the first batch waits for them.

        window           of those layers that have one
        copiers          as for `defines`
        build, programs  how the kernels are made, and how many programs those that attend have, where there is no GPU
        """
        self.shape, self.device, self.window = shape, device, window
        self.programs = programs or processors(device)
        self._macros = defines(shape, self.programs, copiers)
        self._places = torch.zeros(3, self.programs + 1, 4, dtype=torch.int32, device=device)
        self._held: list[_Scratch] = []  # the last is in use, graphs hold the others
        self._build = build
        self._launches: Launches | None = None
        self._images: list[Future[bytes]] = []
        if build is None:
            sources = ["paged_decode.cu", *(["bundle_decode.cu"] if shape.bundle > 1 else [])]
            self._images = [nvrtc.compiling(source, self._macros) for source in sources]

    def cut(self, lengths: Tensor, sharing: Sharing | None = None) -> None:
        """Share out the contexts of a batch. lengths int32 [rows], the new tokens counted; 0 marks a padding row.

        sharing  which rows begin alike, for layers without a window: whole steps of `shape.span` positions, all of them cached, of
                 `shape.bundle` rows of a bundle at most
        """
        rows = len(lengths)
        scratch = self._scratch_of(rows)
        shared = self._shared(sharing, rows)
        tensors = lengths, self._places, scratch.begins, *shared
        pointers = (None if t is None else t.data_ptr() for t in tensors)
        self._launch()[0](_CutArguments(*pointers, rows, self.window or FOREVER), False)

    def _shared(self, sharing: Sharing | None, rows: int) -> tuple[Tensor | None, Tensor | None]:
        if sharing is None or self.shape.bundle < 2:
            return None, None
        for t in sharing:
            if t.shape != (rows,) or t.dtype != torch.int64 or not t.is_contiguous() or rows > MOST_ROWS:
                raise ValueError(
                    f"PagedDecode: sharing must be contiguous int64 [{rows}] of at most {MOST_ROWS} rows, got {t.dtype} {tuple(t.shape)}"
                )
        return sharing.order, sharing.shares

    def __call__(
        self,
        qkv: Tensor,
        turning: Turning,
        slots: Tensor,
        pool_k: Tensor,
        pool_v: Tensor,
        table: Tensor,
        seats: Tensor,
        lengths: Tensor,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        early: bool = True,
        sharing: Sharing | None = None,
    ) -> Tensor:
        """What each row attends to, [rows, heads, dim]; its key and value are stored. Each row is another request's.

        qkv, turning, slots    as for `packed_decode_attention`
        table, seats, lengths  as for `decode_attention`; lengths as they were cut
        window                 None, or the one that was named
        early                  what is cached was complete before the launch before this one, and so was `cut`
        sharing                as it was cut

        Raises ValueError if shapes do not fit.
        """
        shape, rows = self.shape, len(seats)
        wide = (shape.heads + 2 * shape.kv_heads) * shape.dim
        if qkv.shape != (rows, wide) or not qkv.is_contiguous() or qkv.dtype != torch.bfloat16:
            raise ValueError(
                f"PagedDecode: qkv must be contiguous {(rows, wide)} in bfloat16, got {tuple(qkv.shape)} in {qkv.dtype}"
            )
        for pool in (pool_k, pool_v):
            if pool.shape[1:] != (shape.kv_heads, shape.dim) or not pool.is_contiguous():
                raise ValueError(
                    f"PagedDecode: pools must be contiguous [slots, {shape.kv_heads}, {shape.dim}], got {tuple(pool.shape)}"
                )
        if window not in (None, self.window) or (softcap is not None) != shape.softcap:
            raise ValueError(
                f"PagedDecode: window {window} and softcap {softcap} are not what it was made for"
            )
        if not shape.turns(turning):
            raise ValueError(f"PagedDecode: heads are not turned as it was made for: {shape}")
        out = torch.empty(rows, shape.heads, shape.dim, dtype=qkv.dtype, device=qkv.device)
        if not rows:
            return out
        scratch = self._scratch_of(rows)
        places = self._places[0 if window is None else 1]
        shared = self._shared(sharing if window is None else None, rows)
        tensors = (
            qkv, out, *scratch[:5], places, self._places[2], scratch.begins, *shared, table, seats, lengths, slots,
            turning.q_weight, turning.k_weight, turning.cos, turning.sin, pool_k, pool_v,
        )  # fmt: skip
        arguments = _Arguments(
            *(None if t is None else t.data_ptr() for t in tensors),
            table.stride(0),
            window or FOREVER,
            scale,
            softcap or 1.0,
            turning.eps,
            turning.offset,
        )
        _, attend, bundles = self._launch()
        if shared[0] is not None:
            bundles(arguments, early)
            early = True
        attend(arguments, early)
        return out

    def _scratch_of(self, rows: int) -> _Scratch:
        if not self._held or len(self._held[-1].begins) < rows:
            if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                raise RuntimeError(
                    f"attention of {rows} requests is captured before it has run once; "
                    "run the batch before the capture, so that its scratch lies outside the graph"
                )
            shape, most = self.shape, 1 << (rows - 1).bit_length()
            heads, begun = shape.together * shape.group, most * shape.kv_heads // shape.together
            made = partial(torch.zeros, device=self.device)
            own, shared = self.programs + begun, self.programs * shape.bundle + begun
            self._held.append(
                _Scratch(
                    made(own, heads * shape.dim, dtype=torch.float32),
                    made(own, heads, dtype=torch.float32),
                    made(shared, heads * shape.dim, dtype=torch.float32),
                    made(shared, heads, dtype=torch.float32),
                    made(most, shape.kv_heads, dtype=torch.int32),
                    made(most, dtype=torch.int32),
                )
            )
        return self._held[-1]

    def _launch(self) -> Launches:
        if self._launches is None:
            self._launches = self._load() if self._build is None else self._build(self._macros)
        return self._launches

    def _load(self) -> Launches:
        with nvrtc.named_remedy():
            made = partial(nvrtc.CudaKernel, device=self.device)
            attending, *bundling = (image.result() for image in self._images)
            threads, shared = 32 * (CONSUMERS + self._macros["COPIERS"]), self._macros["SHARED_BYTES"]
            cut = made(attending, "cut_contexts", programs=3, threads=32 * CONSUMERS, shared=_CUT_SHARED)
            attend = made(attending, "paged_decode", programs=self.programs, threads=threads, shared=shared)
            if not bundling:  # nothing is shared then, and the last is not asked for
                return cut.after, attend.after, attend.after
            threads = 32 * CONSUMERS + _WARPGROUP
            bundles = made(
                bundling[0], "bundle_decode", programs=self.programs, threads=threads, shared=shared
            )
        return cut.after, attend.after, bundles.after
