"""Attention of single tokens by cuda/paged_decode.cu, against float64; on a CPU its threads are emulated (emulator/device.h)."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from runtime.attention.base import PagedInputs
from runtime.attention.triton import TritonAttention
from runtime.engine import bundles, graphs
from runtime.engine.inputs import PageRows
from runtime.kernels import nvrtc, tuning
from runtime.kernels.decode import decode_reference
from runtime.kernels.paged_decode import DecodeShape, Launch, Launches, PagedDecode, why_not
from runtime.kernels.rope_store import Turning, rope_store_reference
from runtime.kernels.sharing import Sharing
from runtime.kv.store import KVStore
from runtime.models.decoder import Decoder
from runtime.models.fused import FusedDecoder
from runtime.models.spec import ArchSpec, AttnSpec, LayerSpec, MlpSpec, NormSpec, RopeSpec
from tests.kernels import emulated
from tests.kernels.paged_case import TOLERANCE, Cache, cache, error, share

BF16 = torch.bfloat16
PLAIN = DecodeShape(4, 2, 32, 16, 32)
Make = Callable[..., PagedDecode]


def builder(libraries: Path, seed: int) -> Callable[[Mapping[str, int]], Launches]:
    """Kernels whose threads take turns as `seed` has it."""

    def build(macros: Mapping[str, int]) -> Launches:
        def launch(source: str, kernel: str) -> Launch:
            made: list[Any] = []  # compiled when it is launched first

            def launched(arguments: ctypes.Structure, early: bool) -> None:
                if not made:
                    made.append(emulated.library(libraries, macros, source))
                emulated.run(made[0], [arguments], seed, kernel)

            return launched

        return launch("paged_decode", "cut"), launch("paged_decode", "run"), launch("bundle_decode", "run")

    return build


@pytest.fixture
def make(libraries: Path, device: torch.device) -> Make:
    """A `PagedDecode` on this device."""
    emulated.skip_without_compiler(device)

    def made(
        shape: DecodeShape,
        window: int | None = None,
        programs: int = 3,
        seed: int = 1,
        copiers: int | None = None,
    ) -> PagedDecode:
        if device.type == "cuda":
            return PagedDecode(shape, device, window=window, copiers=copiers)
        build = builder(libraries, seed)
        return PagedDecode(shape, device, window=window, copiers=copiers, build=build, programs=programs)

    return made


def turned(shape: DecodeShape, device: torch.device) -> Turning:
    angles = torch.outer(torch.arange(2048.0), 0.5 ** torch.arange(shape.turned // 2))
    weights = [
        (1 + 0.2 * torch.randn(shape.dim)).to(BF16).to(device) if shape.normed else None for _ in range(2)
    ]
    offset = 1.0 if shape.offset else 0.0
    return Turning(
        angles.cos().to(device), angles.sin().to(device), shape.interleaved, *weights, 1e-6, offset
    )


def attended(
    kernel: PagedDecode, c: Cache, window: int | None, softcap: float | None, sharing: Sharing | None
) -> tuple[Tensor, Tensor]:
    """What the kernel gives and what float64 does; what they store is compared."""
    shape, rows, device = kernel.shape, len(c.seats), c.k.device
    scale = shape.dim**-0.5
    qkv = torch.randn(rows, (shape.heads + 2 * shape.kv_heads) * shape.dim).to(BF16).to(device)
    at = (c.lengths.long() - 1).clamp(min=0)
    slots = c.table[c.seats.long(), at // shape.page_size].long() * shape.page_size + at % shape.page_size
    slots = torch.where(c.lengths > 0, slots, -1)
    new = slots[slots >= 0]
    pools, theirs = (c.k.clone(), c.v.clone()), (c.k.clone(), c.v.clone())
    for pool in (*pools, *theirs):  # the new tokens' places hold nothing yet
        pool[new] = float("nan")
    turning = turned(shape, device)
    q, k, v = (
        qkv.double().unflatten(1, (-1, shape.dim)).split((shape.heads, shape.kv_heads, shape.kv_heads), 1)
    )
    q = rope_store_reference(
        q, k, v, turning.cos, turning.sin, at, slots, *theirs, interleaved=turning.interleaved, q_weight=turning.q_weight,
        k_weight=turning.k_weight, eps=turning.eps, offset=turning.offset,
    )  # fmt: skip
    kernel.cut(c.lengths, sharing)
    found = kernel(
        qkv, turning, slots, *pools, c.table, c.seats, c.lengths, scale=scale, window=window, softcap=softcap, sharing=sharing,
    )  # fmt: skip
    wanted = decode_reference(
        q.to(BF16), *theirs, c.table, c.seats, c.lengths, page_size=shape.page_size, scale=scale, window=window, softcap=softcap,
    )  # fmt: skip
    for mine, other in zip(pools, theirs, strict=True):
        assert not len(new) or error(mine[new], other[new]) < TOLERANCE[BF16]
        same = mine.eq(other) | (mine.isnan() & other.isnan())
        same[new] = True
        assert same.all(), "it wrote where nobody asked it to"
    return found, wanted


def check(
    kernel: PagedDecode,
    c: Cache,
    window: int | None = None,
    softcap: float | None = None,
    sharing: Sharing | None = None,
) -> None:
    found, wanted = attended(kernel, c, window, softcap, sharing)
    empty = c.lengths == 0
    assert found[empty].eq(0).all()
    for mine, other in zip(found[~empty], wanted[~empty], strict=True):
        assert error(mine, other) < TOLERANCE[BF16]


def by_copiers(names: Iterable[str]) -> list[tuple[str, int]]:
    """Some cases by one warp that copies and by four, the others by one or the other: each is compiled for itself."""
    return [(name, n) for i, name in enumerate(names) for n in (1, 4) if i < 4 or i % 2 == n // 4]


CASES: dict[str, tuple[DecodeShape, list[int], int | None, float | None]] = {
    "one row": (PLAIN, [300], None, None),
    "first tokens": (PLAIN, [1, 2, 1], None, None),
    "several rows": (PLAIN, [700, 129, 3, 128, 0, 257], None, None),
    "fewer steps than programs": (PLAIN, [5], None, None),
    "more rows than threads": (PLAIN, [1 + i % 3 for i in range(300)], None, None),
    "page 1, window": (replace(PLAIN, page_size=1), [77, 300, 20, 5, 150, 151], 150, None),
    "page 64, window": (replace(PLAIN, page_size=64), [77, 500, 20, 5], 150, None),
    "softcap, interleaved in part": (replace(PLAIN, softcap=True, turned=16, interleaved=True), [50, 9, 400], None, 2.0),
    "normed heads of 64": (DecodeShape(4, 2, 64, 16, 64, normed=True), [33, 190], None, None),
    "normed heads, offsets": (replace(PLAIN, normed=True, offset=True), [33, 190], None, None),
    "group of 7, heads of 96": (DecodeShape(7, 1, 96, 16, 96), [90, 1000], None, None),
    "group of 12, heads of 128": (DecodeShape(12, 1, 128, 16, 128), [90, 260, 4], None, None),
    "a warp for each head": (DecodeShape(16, 8, 32, 16, 32), [90, 260, 0, 1, 17], None, None),
    "two warps for each head": (DecodeShape(4, 4, 64, 16, 64), [90, 260, 0, 1], None, None),
    "two blocks of heads, group of 9": (DecodeShape(144, 16, 32, 16, 32), [30, 60], None, None),
    "heads that share nothing": (DecodeShape(3, 3, 32, 4, 32), [90, 260, 4], None, None),
}  # fmt: skip


@pytest.mark.parametrize(("name", "copiers"), by_copiers(CASES))
def test_against_float64(name: str, copiers: int, device: torch.device, make: Make) -> None:
    shape, lengths, window, softcap = CASES[name]
    torch.manual_seed(3)
    c = cache(lengths, shape.page_size, shape.kv_heads, shape.dim, BF16, device)
    kernel = make(shape, window, seed=len(name), copiers=copiers)
    check(kernel, c, window, softcap)
    if window is not None:  # layers without one share the kernel
        check(kernel, c)
    check(kernel, c, window, softcap)  # it left its counters as it had found them


def shared(c: Cache, shape: DecodeShape, least: int, monkeypatch: pytest.MonkeyPatch) -> Sharing | None:
    """What the engine finds in this cache."""
    monkeypatch.setattr(bundles, "LEAST", least)
    pages = PageRows(shape.page_size)
    table, lengths = c.table.cpu().long(), (c.lengths.cpu().long() - 1).clamp(min=0).numpy()
    for seat, length in zip(c.seats.tolist(), c.lengths.tolist(), strict=True):
        pages.seat(seat, table[seat, : -(-length // shape.page_size)].tolist())
    found = bundles.bundles(pages, c.seats.cpu().long().numpy(), lengths, shape.span, shape.bundle)
    return None if found is None else Sharing(*torch.from_numpy(found).to(c.k.device))


SHARED: dict[str, tuple[DecodeShape, list[int], list[tuple[list[int], int]], float | None]] = {
    "two bundles, others": (PLAIN, [400, 20, 350, 0, 300, 129, 700, 200], [([0, 2, 4], 256), ([5, 7], 128)], None),
    "more than a bundle": (PLAIN, [200 + i for i in range(19)], [([*range(19)], 192)], None),
    "nothing of their own": (PLAIN, [129, 129, 130], [([0, 1, 2], 128)], None),
    "branches of branches": (PLAIN, [500] * 6, [([*range(6)], 64), ([1, 3], 448), ([2, 5], 320)], None),
    "a warp for each head": (DecodeShape(32, 8, 32, 16, 32), [90, 260, 200, 230, 0, 1, 222, 240], [([1, 2, 3, 6, 7], 192)], None),
    "heads of 128": (DecodeShape(8, 2, 128, 16, 128), [300, 310, 290, 280, 270], [([0, 1, 2, 3, 4], 256)], None),
    "group of 7": (DecodeShape(14, 2, 64, 4, 64), [300, 310, 290, 280, 270], [([0, 1, 2, 3, 4], 256)], None),
    "group of 9, two blocks": (DecodeShape(144, 16, 32, 16, 32), [100, 90, 80], [([0, 2], 64)], None),
    "heads that share nothing, page 64": (DecodeShape(3, 3, 32, 64, 32), [300, 400, 280], [([0, 2], 256)], None),
    "softcap, normed heads": (replace(PLAIN, softcap=True, normed=True), [400, 390, 70], [([0, 1], 320)], 2.0),
}  # fmt: skip


@pytest.mark.parametrize(("name", "copiers"), by_copiers(SHARED))
def test_rows_that_begin_alike(
    name: str, copiers: int, device: torch.device, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, lengths, alike, softcap = SHARED[name]
    torch.manual_seed(3)
    c = cache(lengths, shape.page_size, shape.kv_heads, shape.dim, BF16, device)
    for rows, positions in alike:
        share(c, shape.page_size, rows, positions)
    sharing = shared(c, shape, 16, monkeypatch)
    assert sharing is not None and set(sharing.shares.nonzero().flatten().tolist()) <= {
        r for rows, _ in alike for r in rows
    }
    kernel = make(shape, 100, seed=len(name), copiers=copiers)
    check(kernel, c, None, softcap, sharing)
    check(kernel, c, 100, softcap, sharing)  # layers with a window read each row's own
    check(kernel, c, None, softcap)
    check(kernel, c, None, softcap, sharing)  # it left its counters as it had found them


def test_launches_give_the_same_bits(device: torch.device, make: Make) -> None:
    torch.manual_seed(4)
    c = cache([700, 40, 999], 16, 2, 32, BF16, device)
    kernel, turning = make(PLAIN), turned(PLAIN, device)
    qkv, slots = torch.randn(3, 256).to(BF16).to(device), torch.tensor([-1, -1, -1], device=device)
    kernel.cut(c.lengths)
    at = (slots, c.k, c.v, c.table, c.seats, c.lengths)
    first, again = (kernel(qkv, turning, *at, scale=0.2) for _ in range(2))
    assert torch.equal(first, again)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.one_of(st.integers(0, 20), st.integers(0, 700)), min_size=1, max_size=12),
    seed=st.integers(0, 2**31),
    copiers=st.sampled_from([1, 4]),
)
@example(lengths=[0], seed=0, copiers=1)
@example(lengths=[300, 290], seed=1, copiers=4)  # as many parts of each
def test_any_batch_in_any_order_of_threads(
    lengths: list[int], seed: int, copiers: int, libraries: Path
) -> None:
    """Padding rows among the others; contexts whole, cut once, cut into many."""
    emulated.skip_without_compiler()
    torch.manual_seed(seed)
    shape = replace(PLAIN, page_size=4)
    c = cache(lengths, 4, 2, 32, BF16, torch.device("cpu"))
    kernel = PagedDecode(
        shape, torch.device("cpu"), window=150, copiers=copiers, build=builder(libraries, seed), programs=5
    )
    check(kernel, c)
    check(kernel, c, 150)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tails=st.lists(st.integers(1, 200), min_size=2, max_size=24),
    groups=st.lists(
        st.tuples(st.integers(0, 23), st.integers(1, 23), st.integers(1, 6)), min_size=1, max_size=5
    ),
    seed=st.integers(0, 2**31),
    programs=st.sampled_from([1, 5, 12]),
    copiers=st.sampled_from([1, 4]),
)
def test_any_rows_that_begin_alike(
    tails: list[int],
    groups: list[tuple[int, int, int]],
    seed: int,
    programs: int,
    copiers: int,
    libraries: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Groups may overlap: a row that begins like one for a while may begin like another for longer."""
    emulated.skip_without_compiler()
    torch.manual_seed(seed)
    shape = replace(PLAIN, page_size=4)
    c = cache([6 * 64 + n for n in tails], 4, 2, 32, BF16, torch.device("cpu"))
    held = c.table.clone()
    for begin, count, steps in sorted(groups, key=lambda g: g[2]):
        rows = [(begin + i) % len(tails) for i in range(min(count + 1, len(tails)))]
        pages, seats = steps * 16, c.seats[rows].long()
        held[seats, :pages] = held[seats[0], :pages].clone()
    c.table.copy_(held)
    sharing = shared(c, shape, 64, monkeypatch)
    kernel = PagedDecode(
        shape,
        torch.device("cpu"),
        window=150,
        copiers=copiers,
        build=builder(libraries, seed),
        programs=programs,
    )
    check(kernel, c, sharing=sharing)
    check(kernel, c, 150, sharing=sharing)


Pieces = list[tuple[int, int, int]]  # of a program: which of the line, its steps from, to
COST = 8  # steps of PLAIN that a piece's beginning and end cost, of a bundle twice as many


def pieces_of(places: list[list[int]], rows: list[int], steps: list[int], cost: int) -> list[Pieces]:
    """Of each program, as it walks them; every step of the line is some program's, and shares are equal.

    rows, steps  what places call each piece, and its steps
    """
    ends = list(accumulate(n + cost for n in steps))
    assert places[-1][3] == (ends[-1] if ends else 0) + cost
    every = []
    for (row, block, step, at), (*_, end) in pairwise(places):
        assert block == 0
        pieces: Pieces = []
        while at < end:
            item = next(i for i, e in enumerate(ends) if at < e)
            assert pieces or rows[item] == row
            begin = ends[item] - steps[item]
            assert at == begin + step
            until = min(steps[item], end - begin)
            pieces.append((item, step, until))
            at, step = begin + until, until
            if until == steps[item]:
                at, step = at + cost, 0
        every.append(pieces)
    for item, count in enumerate(steps):
        reached = 0
        for which, begin, end in (piece for pieces in every for piece in pieces):
            if which == item:
                assert begin == reached < end
                reached = end
        assert reached == count
    spent = [sum(end - begin + cost for _, begin, end in pieces) for pieces in every]
    if ends:
        used = places[-1][1]
        assert used <= min(len(spent), ends[-1])
        most = -(-ends[-1] // used) + cost
        assert max(spent) <= most, "beyond an equal share, of one part that began before"
    return every


def cut(
    lengths: list[int],
    window: int,
    programs: int,
    libraries: Path,
    sharing: Sharing | None = None,
    bundles: tuple[tuple[int, int], ...] = (),
) -> list[Pieces]:
    """What each program has of layers without a window; `bundles` (place in `order`, steps) are what `sharing` has."""
    emulated.skip_without_compiler()
    kernel = PagedDecode(
        PLAIN, torch.device("cpu"), window=window, build=builder(libraries, 1), programs=programs
    )
    kernel.cut(torch.tensor(lengths, dtype=torch.int32), sharing)
    shared = [0] * len(lengths) if sharing is None else [w >> 32 for w in sharing.shares.tolist()]
    whole, windowed, together = kernel._places.tolist()
    rows = list(range(len(lengths)))
    assert all(row < len(rows) for row, *_ in (*whole[:-1], *windowed[:-1]))

    def steps(positions: int) -> int:  # four warps for each of two heads
        return max(1, -(-positions // 64))

    found = pieces_of(whole, rows, [steps(n - 1 - s) for n, s in zip(lengths, shared, strict=True)], COST)
    pieces_of(windowed, rows, [steps(min(n, window) - 1) for n in lengths], COST)
    pieces_of(together, [at for at, _ in bundles], [n for _, n in bundles], 2 * COST)
    assert together[-1][1] <= sum(math.ceil((2 * n) ** 0.5) for _, n in bundles)
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(0, 3000), min_size=1, max_size=700)
    | st.lists(st.integers(900, 1025), min_size=1, max_size=40),
    programs=st.sampled_from([1, 5, 12]),
)
@example(lengths=[1025] * 4, programs=12)
@example(lengths=[1025] * 7, programs=5)
@example(lengths=[1025] * 2, programs=5)
@example(lengths=[3000, 70, 70, 70], programs=12)
@example(lengths=[3000] * 3 + [2] * 90, programs=12)
def test_programs_have_equal_shares(lengths: list[int], programs: int, libraries: Path) -> None:
    """In the order of rows, one behind the other; what pieces begin and end with counts as well."""
    cut(lengths, 200, programs, libraries)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    groups=st.lists(st.tuples(st.integers(1, 40), st.lists(st.integers(1, 300), min_size=1, max_size=16)), max_size=9),
    programs=st.sampled_from([1, 5, 12]),
)  # fmt: skip
@example(groups=[(32, [1] * 16)] * 4, programs=12)
def test_bundles_have_a_line_of_their_own(
    groups: list[tuple[int, list[int]]], programs: int, libraries: Path
) -> None:
    """Groups of one row are no bundles."""
    lengths = [64 * steps + n for steps, tails in groups for n in tails]
    if not lengths:
        return
    words, row = torch.zeros(len(lengths)).long(), 0
    order: list[int] = []
    found: list[tuple[int, int]] = []
    for steps, tails in groups:
        if len(tails) > 1:
            found.append((len(order), steps))
        for member in range(len(tails)):
            if len(tails) > 1:
                words[row] = 64 * steps << 32 | len(order) << 16 | member << 8 | len(tails)
                order.append(row)
            row += 1
    sharing = Sharing(torch.tensor(order + [-1] * (len(lengths) - len(order))), words)
    cut(lengths, 200, programs, libraries, sharing, tuple(found))


def counts(lengths: list[int], programs: int, libraries: Path) -> list[list[int]]:
    """Steps of each program's pieces."""
    every = cut(lengths, max(lengths), programs, libraries)
    return [[end - begin for _, begin, end in pieces] for pieces in every]


def test_contexts_of_one_length_are_cut_alike(libraries: Path) -> None:
    """A part more costs a program as long as eight of its steps here."""
    assert counts([1025] * 4, 9, libraries) == [*[[8]] * 8, []], "two parts of each, and one has none"
    assert counts([1025] * 20, 11, libraries) == [*[[16, 16]] * 10, []], "two whole ones, and one has none"
    found = counts([1025] * 10, 7, libraries)
    assert max(map(sum, found)) == 27, "two whole ones would take longer"
    found = counts([3000, 70, 70, 70], 9, libraries)
    assert max(map(sum, found)) == 10 and found[-1] == [2], "these differ: equal shares"


def test_what_it_is_not_for_is_named(device: torch.device, make: Make) -> None:
    real = DecodeShape(32, 8, 128, 1, 128)
    assert why_not(real, BF16) is None
    assert "float8" in str(why_not(real, torch.float8_e5m2))
    assert "256 numbers" in str(why_not(replace(real, dim=256), BF16))
    assert "32 of its heads" in str(why_not(DecodeShape(256, 8, 64, 1, 64), BF16))
    assert why_not(DecodeShape(14, 2, 64, 1, 64), BF16) is None
    c = cache([4], 16, 2, 32, BF16, device)
    kernel, turning = make(PLAIN), turned(PLAIN, device)
    qkv, slots = torch.randn(1, 256).to(BF16).to(device), torch.tensor([-1], device=device)
    at = (c.table, c.seats, c.lengths)
    with pytest.raises(ValueError, match=r"qkv must be contiguous \(1, 256\)"):
        kernel(qkv[:, :2], turning, slots, c.k, c.v, *at, scale=1.0)
    with pytest.raises(ValueError, match="window 7"):
        kernel(qkv, turning, slots, c.k, c.v, *at, scale=1.0, window=7)
    with pytest.raises(ValueError, match="pools must be"):
        kernel(qkv, turning, slots, c.k[:, :1], c.v, *at, scale=1.0)
    with pytest.raises(ValueError, match="not turned"):
        kernel(qkv, turned(replace(PLAIN, turned=16), device), slots, c.k, c.v, *at, scale=1.0)


def test_a_compiler_that_fails_is_told_with_what_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(source: str, macros: Mapping[str, int]) -> bytes:
        raise nvrtc.CudaError(f"compiling {source}: no room")

    monkeypatch.setattr(nvrtc, "compiled", fails)
    kernel = PagedDecode(PLAIN, torch.device("cpu"), programs=3)
    told = r"compiling paged_decode\.cu: no room; --attention-backend torch"
    with pytest.raises(nvrtc.CudaError, match=told):
        kernel.cut(torch.ones(1, dtype=torch.int32))


def model(windows: list[int | None]) -> Decoder:
    """A small one whose layers have these windows."""
    rope = RopeSpec(128, tuple(0.5**i for i in range(64)))
    layers = tuple(
        LayerSpec(AttnSpec(8, 4, 128, 0.1, rope, window=w), MlpSpec(96), NormSpec(1e-5)) for w in windows
    )
    spec = ArchSpec("small", 80, 64, 512, layers, NormSpec(1e-5))
    torch.manual_seed(1)
    found = Decoder(spec, BF16)
    for p in found.parameters():
        p.requires_grad_(False)
        if p.dim() > 1:
            p.normal_(std=p.shape[-1] ** -0.5)
        else:
            p.fill_(1.0)
    return found


def test_positions_that_nobody_timed_stay_with_triton() -> None:
    """Nor is a kernel made for them; runs of one request have a graph wherever a kernel stores and attends."""
    made: list[DecodeShape] = []

    def counted(shape: DecodeShape, window: int | None) -> PagedDecode:
        made.append(shape)
        return PagedDecode(
            shape, torch.device("cpu"), window=window, programs=3, build=lambda _: pytest.fail()
        )

    forms = []
    for kv_heads in (2, 4, 8):  # 256, 512, 1,024 bytes
        attention = AttnSpec(8, kv_heads, 64, 0.125, RopeSpec(64, (1.0,) * 32))
        layer = LayerSpec(attention, MlpSpec(64), NormSpec(1e-6))
        spec = ArchSpec("a", 16, 64, 64, (layer,), NormSpec(1e-6))
        store = KVStore(spec, 4, 16, BF16, "cpu")
        forms.append(TritonAttention(store, [attention], counted).form)
    assert [shape.kv_heads for shape in made] == [2, 8]
    assert forms[1] == "triton" and "triton" not in (forms[0], forms[2])
    largest = max(part.stop - 1 for size in (256, 1024) for part in tuning.packed_rows(size))
    assert largest <= graphs._LARGEST_RUNS


def test_layers_take_it_and_others_do_not(device: torch.device, make: Make) -> None:
    """A model's steps are those of Triton's kernels; a second window is left to these."""
    m = model([None, 100, None, 50]).to(device)
    lengths = [300, 0, 17, 120]
    torch.manual_seed(2)
    c = cache(lengths, 16, 4, 128, BF16, device)
    at = (c.lengths.long() - 1).clamp(min=0)
    slots = c.table[c.seats.long(), at // 16].long() * 16 + at % 16
    slots = torch.where(c.lengths > 0, slots, -1)
    starts = torch.arange(len(lengths) + 1, dtype=torch.int32, device=device)
    made: list[PagedDecode] = []

    def counted(shape: DecodeShape, window: int | None) -> PagedDecode:
        made.append(make(shape, window))
        return made[-1]

    found = []
    for layers in ([], [x.attention for x in m.spec.layers]):
        store = KVStore(m.spec, len(c.k) // 16, 16, BF16, str(device))
        for i in range(4):
            store.k[i], store.v[i] = c.k.nan_to_num(0), c.v.nan_to_num(0)
        attention = TritonAttention(store, layers, counted)
        fused = FusedDecoder(m, store, None)
        for apart in (True, False):
            inputs = PagedInputs(
                c.table, c.seats, c.lengths, starts, slots, 1, 400, len(lengths), apart=apart
            )
            attention.plan(inputs)
            found.append(fused(torch.tensor([1, 2, 3, 4], device=device), at, attention))
        used = [d is not None for d in attention._decoders]
    assert used == [True, True, True, False] and len(made) == 1
    most = attention.bundles()[1]
    assert attention.form == (
        f"triton, 1 to 32 or 65 to 256 single tokens in CUDA C++, what up to {most} of them begin with read once,"
    )
    assert TritonAttention(store).form == "triton"
    live = c.lengths > 0
    for other in found[1:]:
        assert error(other[live], found[0][live]) < TOLERANCE[BF16]
    assert not torch.equal(found[2][live], found[3][live]), "rows of one request go another way"
