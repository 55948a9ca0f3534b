"""All decoder layers of a decode step of one row, in one launch.

One program a multiprocessor stays for the whole step; the phases of a layer (packed projection, attention, output, gate and up,
down) meet at grid barriers, and nothing is launched in between. What a program reads first in a phase is under way before it
waits. Sums are those of kernels/skinny.py and kernels/decode.py up to their order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from runtime.kernels.activation import gated_reference
from runtime.kernels.decode import LOG2E, decode_reference
from runtime.kernels.grid_barrier import meet
from runtime.kernels.merge import split_scratch
from runtime.kernels.norm import normed, rms_norm_reference
from runtime.kernels.rope_store import rope_store_reference
from runtime.kernels.step_attention import attention
from runtime.kernels.step_layers import FIELDS, StepLayer, StepSpec, address_table, why_not
from runtime.kernels.step_product import product
from runtime.kernels.tuning import StepTiles, processors

_FIELDS = tl.constexpr(FIELDS)


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


@triton.jit
def _pointer(row, FIELD: tl.constexpr, dtype: tl.constexpr):
    return tl.load(row + FIELD).to(tl.pointer_type(dtype))


@triton.jit
def _stamp(stamps, at):
    """When this program was done with its part of a phase."""
    if stamps is not None:
        place = stamps + at * tl.num_programs(0) + tl.program_id(0)
        tl.store(place, tl.extra.cuda.globaltimer())


@triton.jit
def _step(
    table,
    x,
    hidden,
    last_norm,
    qkv,
    attended,
    gated,
    partial,
    weights,
    arrived,
    counter,
    pages,
    seats,
    lengths,
    slots,
    stamps,
    scale,
    softcap,
    eps,
    offset,
    qk_eps,
    qk_offset,
    layers,
    width,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    GATE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    QKV_BIAS: tl.constexpr,
    OUT_BIAS: tl.constexpr,
    NORM: tl.constexpr,
    OFFSET: tl.constexpr,
    QK_OFFSET: tl.constexpr,
    TURNED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_I: tl.constexpr,
    ROWS_H: tl.constexpr,
    ROWS_A: tl.constexpr,
    ROWS_I: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr,
    COLS: tl.constexpr,
    AT_ONCE: tl.constexpr,
    MORE_UNITS: tl.constexpr,
    LINES: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    dtype: tl.constexpr = x.dtype.element_ty
    GROUP: tl.constexpr = HEADS // KV_HEADS
    WIDE: tl.constexpr = (HEADS + 2 * KV_HEADS) * DIM
    ATT: tl.constexpr = HEADS * DIM
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    length = tl.load(lengths)
    pages_row = pages + tl.load(seats).to(tl.int64) * width
    own_slot = tl.load(slots)
    cached = tl.maximum(length - 1, 0)
    qkv_first = program * WIDE // programs
    qkv_last = (program + 1) * WIDE // programs
    first = program * HIDDEN // programs  # of the output's rows, and of down's
    last = (program + 1) * HIDDEN // programs
    up_first = program * INNER // programs
    up_last = (program + 1) * INNER // programs
    target = 0
    for layer in range(layers):  # fields of StepLayer, by their place
        row = table + layer * _FIELDS
        attn_norm = tl.load(row + 0)
        w_qkv = tl.load(row + 1)
        qkv_bias = None
        if QKV_BIAS:
            qkv_bias = _pointer(row, 2, dtype)
        q_norm = None
        k_norm = None
        if NORM:
            q_norm = _pointer(row, 3, dtype)
            k_norm = _pointer(row, 4, dtype)
        cos = _pointer(row, 5, tl.float32)
        sin = _pointer(row, 6, tl.float32)
        pool_k = tl.load(row + 7)
        pool_v = tl.load(row + 8)
        w_out = tl.load(row + 9)
        out_bias = None
        if OUT_BIAS:
            out_bias = _pointer(row, 10, dtype)
        mlp_norm = tl.load(row + 11)
        w_up = tl.load(row + 12)
        w_down = tl.load(row + 13)
        window = tl.load(row + 14).to(tl.int32)
        oldest = tl.maximum(length - window, 0)
        share = tl.maximum(tl.cdiv(tl.cdiv(cached - oldest, SPLITS), BLOCK_N), 1) * BLOCK_N
        used = tl.maximum(tl.cdiv(cached - oldest, share), 1)

        # packed projection
        product(
            w_qkv, qkv_bias, attn_norm, x, None, qkv, eps, offset, counter, target,
            w_qkv, qkv_first + 2 * ROWS_H, qkv_last, WIDE, WIDE, qkv_first, qkv_last,
            HIDDEN, BLOCK_H, ROWS_H, None, HIDDEN, LINES, None, INTERPRETED,
        )  # fmt: skip
        _stamp(stamps, layer * 5 + 0)
        target += programs

        attention(
            qkv, attended, partial, weights, arrived, pool_k, pool_v, pages_row, cos, sin, q_norm, k_norm,
            length, oldest, share, used, own_slot, scale, softcap, qk_eps, qk_offset, counter, target,
            w_out, first, last, HIDDEN, GROUP, KV_HEADS, DIM, SOFTCAP, NORM, QK_OFFSET, TURNED, INTERLEAVED, PAGE,
            BLOCK_G, BLOCK_D, BLOCK_N, SPLITS, COLS, AT_ONCE, MORE_UNITS, ATT, 2 * LINES, INTERPRETED,
        )  # fmt: skip
        _stamp(stamps, layer * 5 + 1)
        target += programs

        # output, added to the residual stream; its own weights were asked for during attention
        product(
            w_out, out_bias, None, attended, x, x, eps, offset, counter, target,
            w_up, up_first, up_last, INNER, HIDDEN, first, last,
            ATT, BLOCK_A, ROWS_A, None, HIDDEN, LINES, GATE, INTERPRETED,
        )  # fmt: skip
        _stamp(stamps, layer * 5 + 2)
        target += programs

        # gate and up
        product(
            w_up, None, mlp_norm, x, None, gated, eps, offset, counter, target,
            w_up, up_first + ROWS_H, up_last, INNER, INNER, up_first, up_last,
            HIDDEN, BLOCK_H, ROWS_H, GATE, HIDDEN, LINES, GATE, INTERPRETED,
        )  # fmt: skip
        _stamp(stamps, layer * 5 + 3)
        target += programs

        # down, added to the residual stream
        product(
            w_down, None, None, gated, x, x, eps, offset, counter, target,
            w_down, first + 2 * ROWS_I, last, HIDDEN, HIDDEN, first, last,
            INNER, BLOCK_I, ROWS_I, None, INNER, LINES, None, INTERPRETED,
        )  # fmt: skip
        _stamp(stamps, layer * 5 + 4)
        target += programs

    if program == 0:  # the others are done: nobody looks at the counter any more
        col = tl.arange(0, BLOCK_H)
        norm = tl.load(last_norm + col, mask=col < HIDDEN, other=0.0)
        meet(counter, target, INTERPRETED)
        tl.store(counter, 0)
        value = tl.load(x + col, mask=col < HIDDEN, other=0.0, cache_modifier=".cg").to(tl.float32)
        factor = tl.rsqrt(tl.sum(value * value, 0) / HIDDEN + eps)
        y = normed(value, norm, factor, offset, dtype, OFFSET)
        tl.store(hidden + col, y.to(dtype), mask=col < HIDDEN)


class WholeStep:
    """The layers of a model and the scratch of their steps, on one stream. Captured graphs hold on to both."""

    def __init__(
        self, layers: Sequence[StepLayer], last_norm: Tensor, spec: StepSpec, tiles: StepTiles
    ) -> None:
        """last_norm [hidden]: weight of the norm after all layers. Raises ValueError for layers that `why_not` tells of."""
        device, dtype = last_norm.device, last_norm.dtype
        reason = why_not(spec, layers, dtype)
        if reason is not None:
            raise ValueError(f"WholeStep: one launch cannot compute this model: {reason}")
        self.layers, self.spec, self.tiles = list(layers), spec, tiles
        self.last_norm = last_norm
        self._table = address_table(layers, device)
        heads, kv_heads, dim = spec.heads, spec.kv_heads, spec.dim
        widths = ((heads + 2 * kv_heads) * dim, heads * dim, spec.inner)
        self._qkv, self._attended, self._gated = (torch.empty(n, dtype=dtype, device=device) for n in widths)
        self._parts = split_scratch(1, kv_heads, tiles.splits, heads // kv_heads, dim, device)
        self._counter = torch.zeros(1, dtype=torch.int32, device=device)
        self._interpreted = not isinstance(_step, triton.JITFunction)

    @property
    def programs(self) -> int:
        """One a multiprocessor; a single one in the interpreter, where they run one after another."""
        return 1 if self._interpreted else processors(self.last_norm.device)

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
        """Hidden states [1, hidden] after the last norm, of x [1, hidden], which becomes the residual stream.

        table, seats, lengths  as for `decode_attention`; the new token is counted, at position length - 1
        slots                  int64 [1]: where its keys and values go; -1 stores nothing
        stamps                 int64 [layers, 5, programs]: nanoseconds at which each program was done with each phase

        Raises ValueError if x is of another shape or type, or if there is more than one row.
        """
        spec, t, first = self.spec, self.tiles, self.layers[0]
        if x.shape != (1, spec.hidden) or x.dtype != self.last_norm.dtype or not x.is_contiguous():
            raise ValueError(
                f"WholeStep: x must be contiguous {(1, spec.hidden)} of {self.last_norm.dtype}, got {tuple(x.shape)} of {x.dtype}"
            )
        if seats.shape != (1,) or lengths.shape != (1,) or slots.shape != (1,):
            raise ValueError(
                f"WholeStep: one row needs one seat, length and slot, got {tuple(seats.shape)}, "
                f"{tuple(lengths.shape)} and {tuple(slots.shape)}"
            )
        hidden = torch.empty_like(x)
        group = spec.heads // spec.kv_heads
        blocks = [triton.next_power_of_2(k) for k in (spec.hidden, spec.heads * spec.dim, spec.inner)]
        rows = [max(1, t.block // block) for block in blocks]
        _step[(self.programs,)](
            self._table,
            x,
            hidden,
            self.last_norm,
            self._qkv,
            self._attended,
            self._gated,
            self._parts.partial,
            self._parts.weights,
            self._parts.arrived,
            self._counter,
            table,
            seats,
            lengths,
            slots,
            stamps,
            spec.scale if spec.softcap is not None else spec.scale * LOG2E.value,
            spec.softcap or 1.0,
            spec.eps,
            spec.offset,
            spec.qk_eps,
            spec.qk_offset,
            len(self.layers),
            table.stride(0),
            HEADS=spec.heads,
            KV_HEADS=spec.kv_heads,
            DIM=spec.dim,
            HIDDEN=spec.hidden,
            INNER=spec.inner,
            GATE=spec.gate,
            SOFTCAP=spec.softcap is not None,
            QKV_BIAS=first.qkv_bias is not None,
            OUT_BIAS=first.out_bias is not None,
            NORM=first.q_norm is not None,
            OFFSET=spec.offset != 0.0,
            QK_OFFSET=spec.qk_offset != 0.0,
            TURNED=2 * first.cos.shape[-1],
            INTERLEAVED=spec.interleaved,
            PAGE=spec.page_size,
            BLOCK_H=blocks[0],
            BLOCK_A=blocks[1],
            BLOCK_I=blocks[2],
            ROWS_H=rows[0],
            ROWS_A=rows[1],
            ROWS_I=rows[2],
            BLOCK_G=max(16, triton.next_power_of_2(group)),
            BLOCK_D=max(16, triton.next_power_of_2(spec.dim)),
            BLOCK_N=t.block_n,
            SPLITS=t.splits,
            COLS=min(512, triton.next_power_of_2(group * spec.dim)),
            AT_ONCE=min(t.splits, 8),
            MORE_UNITS=spec.kv_heads * t.splits > self.programs,
            LINES=0 if self._interpreted else t.lines,
            INTERPRETED=self._interpreted,
            num_warps=t.warps,
            **(
                {} if self._interpreted else {"launch_cooperative_grid": True}
            ),  # all programs run at once, or none
        )
        return hidden
