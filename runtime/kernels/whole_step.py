"""All decoder layers of a decode step of a few rows, in one launch (cuda/whole_step.cu).

Sums are those of the layers' other kernels up to their order. Keys and values of the step's rows are stored by the programs
that attend with them, so each row must be another request's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

import torch
from torch import Tensor
from torch.nn import functional as F

from runtime.kernels import nvrtc
from runtime.kernels.activation import ACTIVATIONS, gated_reference
from runtime.kernels.decode import decode_reference
from runtime.kernels.norm import rms_norm_reference
from runtime.kernels.rope_store import rope_store_reference
from runtime.kernels.step_layers import FIELDS, StepLayer, StepRanks, StepSpec, address_table, finite_window
from runtime.kernels.step_layers import why_not as why_not_layers
from runtime.kernels.tuning import processors

SIZES = (8, 16, 32)  # rows that there is a kernel for
PRODUCERS = 4  # warps
CONSUMERS = 8
_ROUND = 4  # tiles of 16 matrix rows whose sums are added up together
_STAGE = 16 * (2048 + 64)  # bytes
_MOST_STAGES = 6
PACE = 2  # stages on their way at a time
MARKS = 14  # of a layer, in `stamps`
_MOST_UNITS = 8  # parts of contexts of a program
Launch = Callable[["Arguments"], None]


class Arguments(ctypes.Structure):
    """`Args` of cuda/step_shapes.h."""

    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in (
                "table", "x", "hidden", "last_norm", "h", "qkv", "attended", "gated", "squares", "partial", "weights",
                "arrived", "counter", "pages", "seats", "lengths", "slots", "stamps", "boxes", "state",
            )
        ),
        *((name, ctypes.c_int64) for name in ("rows", "layers", "width", "window", "rank", "looks")),
        *((name, ctypes.c_double) for name in ("scale", "softcap", "eps", "offset", "qk_eps", "qk_offset")),
    )  # fmt: skip


def whole_step_reference(
    x: Tensor,
    layers: Sequence[StepLayer],
    last_norm: Tensor,
    spec: StepSpec,
    table: Tensor,
    seats: Tensor,
    lengths: Tensor,
    slots: Tensor,
) -> Tensor:
    """The same in float64, the residual stream too; keys and values are stored rounded. Lengths are not 0."""
    wide = x.double()
    heads, kv_heads, dim = spec.heads, spec.kv_heads, spec.dim
    positions = (lengths - 1).long()
    for layer in layers:
        h = rms_norm_reference(wide, layer.attn_norm.double(), spec.eps, spec.offset)
        qkv = F.linear(h, layer.qkv.double(), None if layer.qkv_bias is None else layer.qkv_bias.double())
        q, k, v = qkv.unflatten(1, (-1, dim)).split((heads, kv_heads, kv_heads), 1)
        q = rope_store_reference(
            q, k, v, layer.cos, layer.sin, positions, slots, layer.pool_k, layer.pool_v,
            interleaved=spec.interleaved, q_weight=layer.q_norm, k_weight=layer.k_norm, eps=spec.qk_eps,
            offset=spec.qk_offset,
        )  # fmt: skip
        y = decode_reference(
            q, layer.pool_k, layer.pool_v, table, seats, lengths, page_size=spec.page_size, scale=spec.scale,
            window=layer.window, softcap=spec.softcap,
        )  # fmt: skip
        wide = wide + F.linear(
            y.flatten(1), layer.out.double(), None if layer.out_bias is None else layer.out_bias.double()
        )
        h = rms_norm_reference(wide, layer.mlp_norm.double(), spec.eps, spec.offset)
        wide = wide + F.linear(
            gated_reference(F.linear(h, layer.up.double()), spec.gate), layer.down.double()
        )
    return rms_norm_reference(wide, last_norm.double(), spec.eps, spec.offset).to(x.dtype)


def shared_bytes(spec: StepSpec, rows: int, programs: int, stages: int) -> int:
    """What cuda/step_shapes.h lays out in shared memory; it refuses to compile if this is too little."""
    queries = -(-spec.group // 8) * 8
    own, wide = (-(-n // programs) for n in (spec.hidden, spec.wide))
    widest = max(own, wide)
    sums = max(_ROUND * rows * 20, spec.group * (spec.dim + 8))
    parts = (
        CONSUMERS * sums * 4, rows * own * 4, own * 4, widest * 4, rows * 4, queries * (spec.dim + 8) * 2,
        spec.dim * 4, spec.dim * 8, (CONSUMERS + 1) * queries * 4, CONSUMERS * queries * 4, 2 * (rows + 1) * 4, rows * 4,
        16, 16, 2 * FIELDS * 8, PRODUCERS * 128, 2 * stages * 8, stages * 8,
    )  # fmt: skip
    return stages * _STAGE + nvrtc.shared_size(parts)


def stages_of(spec: StepSpec, rows: int, programs: int) -> int:
    """As many as fit; less than 2: none do."""
    most = range(_MOST_STAGES, 1, -1)
    return next((n for n in most if shared_bytes(spec, rows, programs, n) <= nvrtc.MOST_SHARED), 0)


def why_not(spec: StepSpec, layers: Sequence[StepLayer], dtype: torch.dtype, programs: int) -> str | None:
    """What one launch of so many programs does not compute of these layers; None if it can."""
    reason = why_not_layers(spec, layers, dtype)
    if reason is None and max(spec.hidden, spec.wide) > programs * 32 * CONSUMERS:
        reason = f"its widths {(spec.hidden, spec.wide)} are more than {programs} programs hold"
    return reason


def defines(spec: StepSpec, first: StepLayer, rows: int, programs: int, ranks: int) -> dict[str, int]:
    """Macros of cuda/whole_step.cu."""
    stages = stages_of(spec, rows, programs)
    return {
        "ROWS": rows,
        "FIELDS": FIELDS,
        "MARKS": MARKS,
        "MOST_UNITS": _MOST_UNITS,
        "ROUND": _ROUND,
        "PRODUCERS": PRODUCERS,
        "PACE": PACE,
        "STAGES": stages,
        "SHARED_BYTES": shared_bytes(spec, rows, programs, stages),
        "PROGRAMS": programs,
        "RANKS": ranks,
        "HEADS": spec.heads,
        "KV_HEADS": spec.kv_heads,
        "DIM": spec.dim,
        "HIDDEN": spec.hidden,
        "INNER": spec.inner,
        "TURNED": 2 * first.cos.shape[-1],
        "PAGE": spec.page_size,
        "GATE": ACTIVATIONS.index(spec.gate),
        "SOFTCAP": int(spec.softcap is not None),
        "QKV_BIAS": int(first.qkv_bias is not None),
        "OUT_BIAS": int(first.out_bias is not None),
        "NORM": int(first.q_norm is not None),
        "OFFSET": int(spec.offset != 0.0),
        "QK_OFFSET": int(spec.qk_offset != 0.0),
        "INTERLEAVED": int(spec.interleaved),
    }


class WholeStep:
    """The layers of a model and the scratch of their steps, on one stream. Captured graphs hold on to both."""

    def __init__(
        self,
        layers: Sequence[StepLayer],
        last_norm: Tensor,
        spec: StepSpec,
        *,
        rows: int = SIZES[-1],
        ranks: StepRanks | None = None,
        build: Callable[[Mapping[str, int]], Launch] | None = None,
        programs: int | None = None,
    ) -> None:
        """Kernels are compiled by threads from now on; a step waits for its own.

        last_norm  [hidden]: weight of the norm after all layers
        rows       most rows of a step, rounded up to one of SIZES that fits a multiprocessor's memory
        ranks      of a model whose matrices are cut over several devices
        build, programs  how kernels are made and how many programs they have, where there is no GPU

        Raises ValueError for layers that `why_not` tells of.
        """
        device = last_norm.device
        self.programs = programs or processors(device)
        reason = why_not(spec, layers, last_norm.dtype, self.programs)
        if reason is None and build is None:
            reason = nvrtc.why_not(device)
        if reason is not None:
            raise ValueError(f"WholeStep: one launch cannot compute this model: {reason}")
        self.layers, self.spec, self.last_norm, self.ranks = list(layers), spec, last_norm, ranks
        self._window = finite_window(layers)
        sizes = [n for n in SIZES if stages_of(spec, n, self.programs) > 1]
        self._sizes = [n for i, n in enumerate(sizes) if i == 0 or sizes[i - 1] < rows]
        self.rows = self._sizes[-1]
        self._table = address_table(layers, device)
        most = self.rows

        def scratch(*shape: int, dtype: torch.dtype = last_norm.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self._h, self._qkv = scratch(most, spec.hidden), scratch(most, spec.wide)
        self._attended = scratch(most, spec.heads * spec.dim)
        self._gated = scratch(most, spec.inner)
        self._squares = scratch(most, self.programs, dtype=torch.float32)
        units = _MOST_UNITS * self.programs
        self._partial = scratch(units, spec.group * spec.dim, dtype=torch.float32)
        self._weights = scratch(units, spec.group, dtype=torch.float32)
        self._arrived = scratch(most, spec.kv_heads, dtype=torch.int32)
        self._counter = scratch(1, dtype=torch.int32)
        self._state = ranks.state if ranks is not None else scratch(2, dtype=torch.int32)
        size = 1 if ranks is None else len(ranks.boxes)
        self._macros = {n: defines(spec, layers[0], n, self.programs, size) for n in self._sizes}
        self._build = build
        self._loaded: dict[int, Launch] = {}
        self._images: dict[int, Future[bytes]] = {}
        if build is None:
            for n, macros in self._macros.items():
                self._images[n] = nvrtc.compiling("whole_step.cu", macros)

    def __call__(
        self,
        x: Tensor,
        table: Tensor,
        seats: Tensor,
        lengths: Tensor,
        slots: Tensor,
        *,
        stamps: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [rows, hidden] after the last norm, of x [rows, hidden].

        table, seats, lengths  as for `decode_attention`; the new tokens are counted, at positions length - 1
        slots                  int64 [rows]: where their keys and values go; -1 stores nothing
        stamps                 int64 [layers, MARKS, programs]: nanoseconds at which each program was done with each phase, and
                               more marks (cuda/step_meet.h)

        Raises ValueError if x is of another shape or type, or has more rows than were asked for.
        """
        spec, rows = self.spec, len(x)
        if (
            x.shape != (rows, spec.hidden)
            or x.dtype != self.last_norm.dtype
            or not x.is_contiguous()
            or not 0 < rows <= self.rows
        ):
            raise ValueError(
                f"WholeStep: x must be contiguous [up to {self.rows}, {spec.hidden}] of {self.last_norm.dtype}, "
                f"got {tuple(x.shape)} of {x.dtype}"
            )
        if any(t.shape != (rows,) for t in (seats, lengths, slots)):
            raise ValueError(
                f"WholeStep: {rows} rows need as many seats, lengths and slots, got {tuple(seats.shape)}, "
                f"{tuple(lengths.shape)} and {tuple(slots.shape)}"
            )
        hidden = torch.empty_like(x)
        tensors = (
            self._table, x, hidden, self.last_norm, self._h, self._qkv, self._attended, self._gated, self._squares,
            self._partial, self._weights, self._arrived, self._counter, table, seats, lengths, slots, stamps,
            None if self.ranks is None else self.ranks.boxes, self._state,
        )  # fmt: skip
        rank, looks = (0, 0) if self.ranks is None else (self.ranks.rank, self.ranks.looks)
        numbers = (rows, len(self.layers), table.stride(0), self._window, rank, looks)
        shared = (spec.scale, spec.softcap or 1.0, spec.eps, spec.offset, spec.qk_eps, spec.qk_offset)
        self.launch(rows)(
            Arguments(*(None if t is None else t.data_ptr() for t in tensors), *numbers, *shared)
        )
        return hidden

    def launch(self, rows: int) -> Launch:
        """The kernel for so many rows. The first time it waits until it is compiled, and loads it: not while a graph is
        captured."""
        size = next(n for n in self._sizes if n >= rows)
        if size not in self._loaded:
            self._loaded[size] = self._load(size) if self._build is None else self._build(self._macros[size])
        return self._loaded[size]

    def _load(self, size: int) -> Launch:
        shared = self._macros[size]["SHARED_BYTES"]
        threads = 32 * (CONSUMERS + PRODUCERS)
        with nvrtc.named_remedy():
            image = self._images[size].result()
            return nvrtc.CudaKernel(
                image, "whole_step", self.last_norm.device, self.programs, threads, shared
            ).at_once
