"""The inner loops of attention, written in vectors for LLVM.

numba's loops leave their sums in memory between steps; here they stay in registers, so that scores and mixtures run at
the speed of the multipliers. A tile of keys meets QUERIES queries at once: scores, running softmax, mixture.
Arrays are contiguous float32 unless said otherwise.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

TILE = 64  # keys that attention looks at together
QUERIES = 4  # queries that meet a tile together
# Vectors that a tile's columns are taken in: QUERIES times as many sums are in registers.
COLUMNS = [16] * 4 if llvmlite.binding.get_host_cpu_features().get("avx512f") else [8] * 2
WIDTH = COLUMNS[0]
# 2 ** r for |r| <= 1/2 within 7.5e-8, fitted to the least largest relative error
POWERS = (1.000000072, 0.6931469671, 0.2402211972, 0.05550713275, 0.009675541503, 0.001327647196)
LOWEST = np.float32(-1e30)


@intrinsic
def wide(typing: Any, bits: Any) -> Any:
    """float32 of a weight: itself, or its upper half as uint16 (bfloat16)."""
    if bits == types.float32:
        return types.float32(types.float32), lambda context, builder, signature, args: args[0]

    def widen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(32)
        shifted = builder.shl(builder.zext(args[0], word), ir.Constant(word, 16))
        return builder.bitcast(shifted, ir.FloatType())

    return types.float32(types.uint16), widen


@intrinsic
def float_of_bits(typing: Any, bits: Any) -> Any:
    """The float32 with these int32 bits."""

    def cast(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), cast


def _pointer(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
    """Where element `at` of a contiguous float32 array lies."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [at])


def _vectors(builder: Any, first: Any, widths: list[int]) -> list[Any]:
    """Pointers to neighbouring vectors of these widths."""
    found, at = [], 0
    for width in widths:
        place = builder.gep(first, [ir.Constant(ir.IntType(64), at)])
        found.append(builder.bitcast(place, ir.VectorType(ir.FloatType(), width).as_pointer()))
        at += width
    return found


def _spread(builder: Any, number: Any, width: int) -> Any:
    """A vector that holds one number in all its lanes."""
    kind = ir.VectorType(number.type, width)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width)
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), lanes)


def _outer_products(
    builder: Any, rounds: Any, left: list[Any], right: Any, widths: list[int],
    into: list[Any], keeps: list[Any] | None,
) -> None:  # fmt: skip
    """into[q][:] = (keeps[q] * into +) sum over r of left[q][r] * right(r)[:], sums kept in registers.

    LLVM's own vectoriser keeps such sums in memory; with vectors written out they stay where the next product is.
    """
    sums = []
    for q, place in enumerate(into):
        row = []
        for vector in _vectors(builder, place, widths):
            kind = vector.type.pointee
            kept = cgutils.alloca_once(builder, kind)
            before = _number(kind, 0.0)
            if keeps is not None:
                factor = _spread(builder, keeps[q], kind.count)
                before = builder.fmul(builder.load(vector, align=4), factor)
            builder.store(before, kept)
            row.append(kept)
        sums.append(row)
    with cgutils.for_range(builder, rounds) as loop:
        found = [builder.load(v, align=4) for v in _vectors(builder, right(loop.index), widths)]
        for row, place in zip(sums, left, strict=True):
            number = builder.load(builder.gep(place, [loop.index]))
            for kept, vector, width in zip(row, found, widths, strict=True):
                product = builder.fmul(_spread(builder, number, width), vector, flags=("contract",))
                builder.store(builder.fadd(builder.load(kept), product, flags=("contract",)), kept)
    for row, place in zip(sums, into, strict=True):
        for kept, vector in zip(row, _vectors(builder, place, widths), strict=True):
            builder.store(builder.load(kept), vector, align=4)


def _turned(builder: Any, rows: list[Any]) -> list[Any]:
    """The transpose of as many vectors as they have lanes, halves changing places at every scale."""
    width = len(rows)
    kind = ir.VectorType(ir.IntType(32), width)
    step = 1
    while step < width:
        turned = list(rows)
        for i in range(width):
            if i & step:
                continue
            one = [lane if not lane & step else width + lane - step for lane in range(width)]
            two = [lane + step if not lane & step else width + lane for lane in range(width)]
            turned[i] = builder.shuffle_vector(rows[i], rows[i + step], ir.Constant(kind, one))
            turned[i + step] = builder.shuffle_vector(rows[i], rows[i + step], ir.Constant(kind, two))
        rows = turned
        step *= 2
    return rows


class _Rows:
    """Addresses of array[places[r], head] for a float32 array [slots, heads, dim]."""

    def __init__(
        self, context: Any, builder: Any, kinds: tuple[Any, Any], array: Any, places: Any, head: Any
    ):
        self.builder = builder
        size = ir.IntType(64)
        store = context.make_array(kinds[0])(context, builder, array)
        rows = context.make_array(kinds[1])(context, builder, places)
        strides = cgutils.unpack_tuple(builder, store.strides, 3)
        (self.count,) = cgutils.unpack_tuple(builder, rows.shape, 1)
        self.places = rows.data
        self.stride = strides[0]
        self.base = builder.add(builder.ptrtoint(store.data, size), builder.mul(head, strides[1]))

    def at(self, row: Any, column: int) -> Any:
        slot = self.builder.load(self.builder.gep(self.places, [row]))
        start = self.builder.add(self.base, self.builder.mul(slot, self.stride))
        start = self.builder.inttoptr(start, ir.FloatType().as_pointer())
        return self.builder.gep(start, [ir.Constant(ir.IntType(64), column)])


@intrinsic
def turn_keys(typing: Any, k: Any, places: Any, head: Any, column: Any, keys: Any, lanes: Any) -> Any:
    """Columns from `column` on, WIDTH of them, of keys [dim, TILE], flat: k[places[column : ...], head].

    Columns beyond the last place repeat it.
    """
    dim = len(lanes)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        size = ir.IntType(64)
        source = _Rows(context, builder, (k, places), args[0], args[1], args[2])
        last = builder.sub(source.count, ir.Constant(size, 1))
        starts = []
        for lane in range(WIDTH):
            at = builder.add(args[3], ir.Constant(size, lane))
            starts.append(source.at(builder.select(builder.icmp_signed("<", at, last), at, last), 0))
        first = 0
        while first < dim:
            width = WIDTH if dim - first >= WIDTH else 8
            for group in range(0, WIDTH, width):
                found = []
                for start in starts[group : group + width]:
                    (place,) = _vectors(builder, builder.gep(start, [ir.Constant(size, first)]), [width])
                    found.append(builder.load(place, align=4))
                for i, row in enumerate(_turned(builder, found)):
                    at = builder.add(args[3], ir.Constant(size, (first + i) * TILE + group))
                    (place,) = _vectors(builder, _pointer(context, builder, keys, args[4], at), [width])
                    builder.store(row, place, align=4)
            first += width
        return context.get_dummy_value()

    return types.void(k, places, types.intp, types.intp, keys, lanes), emit


@intrinsic
def score(typing: Any, queries: Any, row: Any, keys: Any, scores: Any, lanes: Any) -> Any:
    """scores [QUERIES, TILE] = queries [row : row + QUERIES] of [rows, dim] times keys [dim, TILE]; all flat."""
    dim = len(lanes)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        size = ir.IntType(64)
        first = builder.mul(args[1], ir.Constant(size, dim))
        left = [
            _pointer(context, builder, queries, args[0], builder.add(first, ir.Constant(size, q * dim)))
            for q in range(QUERIES)
        ]
        for column in range(0, TILE, sum(COLUMNS)):

            def right(r: Any, column: int = column) -> Any:
                at = builder.add(builder.mul(r, ir.Constant(size, TILE)), ir.Constant(size, column))
                return _pointer(context, builder, keys, args[2], at)

            into = [
                _pointer(context, builder, scores, args[3], ir.Constant(size, q * TILE + column))
                for q in range(QUERIES)
            ]
            _outer_products(builder, ir.Constant(size, dim), left, right, COLUMNS, into, None)
        return context.get_dummy_value()

    return types.void(queries, types.intp, keys, scores, lanes), emit


@intrinsic
def mix(
    typing: Any,
    weights: Any,
    keeps: Any,
    v: Any,
    places: Any,
    head: Any,
    n: Any,
    out: Any,
    row: Any,
    lanes: Any,
) -> Any:
    """out [row : row + QUERIES] of [rows, dim] = keeps times that + weights [QUERIES, :n] times v[places[:n], head];
    all but v flat."""
    dim = len(lanes)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        size = ir.IntType(64)
        left = [
            _pointer(context, builder, weights, args[0], ir.Constant(size, q * TILE)) for q in range(QUERIES)
        ]
        factors = [
            builder.load(_pointer(context, builder, keeps, args[1], ir.Constant(size, q)))
            for q in range(QUERIES)
        ]
        values = _Rows(context, builder, (v, places), args[2], args[3], args[4])
        first = builder.mul(args[7], ir.Constant(size, dim))
        column = 0
        while column < dim:
            widths = COLUMNS
            while sum(widths) > dim - column:
                widths = widths[1:] or [8]
            into = [
                _pointer(
                    context, builder, out, args[6], builder.add(first, ir.Constant(size, q * dim + column))
                )
                for q in range(QUERIES)
            ]
            _outer_products(
                builder, args[5], left, lambda r, c=column: values.at(r, c), widths, into, factors
            )
            column += sum(widths)
        return context.get_dummy_value()

    return types.void(weights, keeps, v, places, types.intp, types.intp, out, types.intp, lanes), emit


def _by_name(builder: Any, name: str, kind: Any, result: Any) -> Any:
    """An intrinsic of LLVM that takes one vector."""
    full = f"llvm.{name}.v{kind.count}f32"
    found = builder.module.globals.get(full)
    return found or ir.Function(builder.module, ir.FunctionType(result, [kind]), full)


def _number(kind: Any, value: float) -> Any:
    """A constant in all lanes."""
    return ir.Constant(kind, [ir.Constant(kind.element, value)] * kind.count)


def _exp2(builder: Any, x: Any) -> Any:
    """2 ** x of a vector, for x <= 0: what is below 2 ** -126 counts as that, NaN stays NaN."""
    kind = x.type
    whole = ir.VectorType(ir.IntType(32), kind.count)
    low = _number(kind, -126.0)
    x = builder.select(builder.fcmp_ordered("<", x, low), low, x)
    n = builder.call(_by_name(builder, "rint", kind, kind), [x])
    r = builder.fsub(x, n)
    p = _number(kind, POWERS[-1])
    for c in POWERS[-2::-1]:
        p = builder.fadd(builder.fmul(p, r, flags=("contract",)), _number(kind, c), flags=("contract",))
    raised = builder.add(builder.fptosi(n, whole), _number(whole, 127))
    return builder.fmul(p, builder.bitcast(builder.shl(raised, _number(whole, 23)), kind))


def _tree(items: list[Any], join: Any) -> Any:
    while len(items) > 1:
        items = [join(*pair) for pair in zip(items[::2], items[1::2], strict=True)]
    return items[0]


@intrinsic
def soften(typing: Any, scores: Any, seen: Any, row: Any, tops: Any, totals: Any, keeps: Any) -> Any:
    """Scores [QUERIES, TILE] of the queries from `row` on to weights under their running softmax, in powers of two.

    Of query q the first seen[q] scores count; the others become zero. Its maximum tops[row + q] and its sums
    totals [row + q, WIDTH] move on; keeps[q] is what the outputs so far are worth now.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        size, word = ir.IntType(64), ir.IntType(32)
        whole, kind = ir.VectorType(word, WIDTH), ir.VectorType(ir.FloatType(), WIDTH)
        limits = context.make_array(seen)(context, builder, args[1]).data
        low, zero = _number(kind, float(LOWEST)), _number(kind, 0.0)
        changes = zero

        def larger(a: Any, b: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        for q in range(QUERIES):
            first = _pointer(context, builder, scores, args[0], ir.Constant(size, q * TILE))
            places = _vectors(builder, first, [WIDTH] * (TILE // WIDTH))
            limit = builder.trunc(builder.load(builder.gep(limits, [ir.Constant(size, q)])), word)
            limit = _spread(builder, limit, WIDTH)
            numbers = [
                ir.Constant(whole, [ir.Constant(word, v * WIDTH + i) for i in range(WIDTH)])
                for v in range(len(places))
            ]
            masks = [builder.icmp_signed("<", n, limit) for n in numbers]
            found = [
                builder.select(m, builder.load(p, align=4), low) for m, p in zip(masks, places, strict=True)
            ]
            most = builder.call(
                _by_name(builder, "vector.reduce.fmax", kind, ir.FloatType()),
                [_tree(found, larger)],
                fastmath=("nnan", "nsz"),
            )
            at = builder.add(args[2], ir.Constant(size, q))
            top = _pointer(context, builder, tops, args[3], at)
            old = builder.load(top)
            new = larger(most, old)
            builder.store(new, top)
            change = builder.fsub(old, new)
            changes = builder.insert_element(changes, change, ir.Constant(word, q))
            lanes = _spread(builder, new, WIDTH)
            raised = [
                builder.select(m, _exp2(builder, builder.fsub(x, lanes)), zero)
                for m, x in zip(masks, found, strict=True)
            ]
            for place, x in zip(places, raised, strict=True):
                builder.store(x, place, align=4)
            total = _pointer(context, builder, totals, args[4], builder.mul(at, ir.Constant(size, WIDTH)))
            (total,) = _vectors(builder, total, [WIDTH])
            keep = _exp2(builder, _spread(builder, change, WIDTH))
            before = builder.fmul(builder.load(total, align=4), keep, flags=("contract",))
            more = _tree(raised, builder.fadd)
            builder.store(builder.fadd(before, more, flags=("contract",)), total, align=4)
        keep = _exp2(builder, changes)
        for q in range(QUERIES):
            one = builder.extract_element(keep, ir.Constant(word, q))
            builder.store(one, _pointer(context, builder, keeps, args[5], ir.Constant(size, q)))
        return context.get_dummy_value()

    return types.void(scores, seen, types.intp, tops, totals, keeps), emit
