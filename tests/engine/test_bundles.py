"""Rows of a batch that begin with the same pages (runtime/engine/bundles.py)."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from runtime.engine import bundles
from runtime.engine.inputs import PageRows

Found = dict[tuple[int, ...], int]


def tree(branches: list[tuple[int, int]], page_size: int) -> PageRows:
    """A seat for each branch: it begins with so many pages of an earlier one, and has so many of its own."""
    pages, fresh = PageRows(page_size), iter(range(1, 1 << 30))
    rows: list[list[int]] = []
    for i, (shared, own) in enumerate(branches):
        begin = rows[i * 7919 % len(rows)][:shared] if rows else []
        rows.append([*begin, *(next(fresh) for _ in range(own))])
        pages.seat(i, rows[-1])
    return pages


def found(pages: PageRows, seats: list[int], starts: list[int], span: int, most: int) -> Found:
    """Rows of each bundle, and the positions that they share; the words are consistent."""
    result = bundles.bundles(pages, np.array(seats), np.array(starts), span, most)
    if result is None:
        return {}
    order, words = result
    assert order.shape == words.shape == (len(seats),)
    fields = [(w >> 32, w >> 16 & 0xFFFF, w >> 8 & 0xFF, w & 0xFF) for w in words.tolist()]
    sharing = [i for i, (positions, *_) in enumerate(fields) if positions]
    assert sorted(order[: len(sharing)].tolist()) == sharing
    bundled: Found = {}
    for row in sharing:
        positions, index, member, count = fields[row]
        members = tuple(order[index - member : index - member + count].tolist())
        assert order[index] == row and 2 <= count <= most
        assert bundled.setdefault(tuple(sorted(members)), positions) == positions
    assert bundles.saved_positions(result) == saved(bundled)
    assert bundles.most_parts(result, span) == max((2 * p / span) ** 0.5 for p in bundled.values()).__ceil__()
    for members, positions in bundled.items():
        assert positions % span == 0 and positions <= min(starts[i] for i in members)
        kept = positions // pages.page_size
        assert len({tuple(pages.table[seats[i], :kept].tolist()) for i in members}) == 1
    return bundled


def test_groups_are_cut_into_bundles() -> None:
    pages = tree([(0, 300), (290, 40), (0, 400), *[(290, 20)] * 3], 1)
    for row in (1, 3, 4, 5):  # all begin as the first one does
        pages.table[row, :290] = pages.table[0, :290]
    starts = [300, 330, 400, 310, 310, 310]
    assert sorted(found(pages, [0, 1, 2, 3, 4, 5], starts, 16, 8)) == sorted(
        found(pages, [0, 1, 2, 3, 4, 5], starts, 16, 5)
    )
    ((members, positions),) = found(pages, [0, 1, 2, 3, 4, 5], starts, 16, 5).items()
    assert set(members) == {0, 1, 3, 4, 5} and positions == 288
    assert sorted(map(len, found(pages, [0, 1, 2, 3, 4, 5], starts, 16, 3))) == [2, 3]
    assert found(pages, [0, 1, 2, 3, 4, 5], starts, 16, 1) == {}
    assert found(pages, [0, 2], [300, 400], 16, 4) == {}
    assert found(pages, [2], [400], 16, 4) == {}
    assert found(pages, [0, 1], [300, 200], 16, 4) == {}, "fewer are cached than are worth it"


def test_what_is_in_common_is_too_little() -> None:
    pages = tree([(0, 400), (250, 200)], 1)
    assert found(pages, [0, 1], [400, 450], 1, 4) == {}
    assert found(tree([(0, 400), (260, 200)], 1), [0, 1], [400, 450], 1, 4) == {(0, 1): 260}


def test_longer_ones_are_preferred() -> None:
    """All begin with a page; two of them with much more."""
    pages = PageRows(256)
    for seat, row in enumerate(([1, 2, 3, 4], [1, 12, 13], [1, 2, 3, 5], [1, 22])):
        pages.seat(seat, row)
    starts = [1024, 768, 1024, 512]
    assert found(pages, [0, 1, 2, 3], starts, 64, 2) == {(0, 2): 768, (1, 3): 256}
    assert found(pages, [0, 1, 2, 3], [1024, 768, 1000, 512], 64, 2) == {(0, 2): 768, (1, 3): 256}


def branches(rows: int, shared: int, more: int = 40) -> tuple[PageRows, np.ndarray, np.ndarray]:
    """Of one prompt, with 1 position a page: pages, seats, cached positions."""
    pages = PageRows(1)
    for seat in range(rows):
        own = 10**6 * (seat + 1)
        pages.seat(seat, [*range(1, shared + 1), *range(own, own + more)])
    return pages, np.arange(rows), np.full(rows, shared + more)


@pytest.mark.parametrize(
    ("rows", "shared", "worth"),
    [
        (2, 8192, False),
        (8, 4096, False),
        (8, 8192, True),
        (16, 1024, False),
        (16, 4096, True),
        (64, 1024, True),
    ],
)
def test_what_was_quicker_on_a_card_is_chosen(rows: int, shared: int, worth: bool) -> None:
    pages, seats, starts = branches(rows, shared)
    assert (bundles.SharedBeginnings(pages, 4096).of(seats, starts, 16, 8) is not None) == worth


def test_bundles_stay_while_the_batch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    pages, seats, starts = branches(4, 512)
    sought: list[int] = []

    def watched(*args: object) -> np.ndarray | None:
        sought.append(1)
        return found(*args)  # type: ignore[arg-type]

    found = bundles.bundles
    monkeypatch.setattr(bundles, "bundles", watched)
    monkeypatch.setattr(bundles, "WORTH", 0)
    beginnings = bundles.SharedBeginnings(pages, 1 << 20)
    first = beginnings.of(seats, starts, 16, 8)
    assert first is not None and beginnings.of(seats, starts + 1, 16, 8) is first
    assert len(sought) == 1
    assert beginnings.of(seats[:3], starts[:3], 16, 8) is not None and len(sought) == 2
    beginnings.forget()
    assert beginnings.of(seats[:3], starts[:3], 16, 8) is not None and len(sought) == 3
    again = beginnings.of(seats[:3], starts[:3] - 100, 16, 8)  # a request that was set back has fewer cached
    assert again is not None and int((again[1] >> 32).max()) <= 452 and len(sought) == 4
    assert bundles.SharedBeginnings(pages, 1).of(seats, starts, 16, 8) is None


def saved(bundled: Found) -> int:
    return sum((len(members) - 1) * positions for members, positions in bundled.items())


def best(common: list[int], most: int) -> int:
    """The most that bundles of neighbours save, by trying all of them."""

    def after(begin: int) -> int:
        if begin > len(common):
            return 0
        ends = range(begin + 1, min(begin + most, len(common) + 1) + 1)
        return max((end - begin - 1) * min(common[begin : end - 1], default=0) + after(end) for end in ends)

    return after(0)


@settings(max_examples=200, deadline=None)
@given(
    common=st.lists(st.sampled_from([0, 256, 320, 1024]) | st.integers(0, 2000), max_size=9),
    most=st.integers(2, 5),
)
@example(common=[], most=2)
def test_no_cut_of_neighbours_saves_more(common: list[int], most: int) -> None:
    cut = bundles._cut(common, most)
    assert all(a + n <= b for (a, n, _), (b, _, _) in pairwise(cut))
    assert all(2 <= n <= most and 0 < p == min(common[a : a + n - 1]) for a, n, p in cut)
    assert sum((n - 1) * p for _, n, p in cut) == best(common, most)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    branches=st.lists(st.tuples(st.integers(0, 90), st.integers(1, 60)), min_size=1, max_size=24),
    page_size=st.sampled_from([1, 16, 64]),
    least=st.sampled_from([1, 16, 100, 256]),
    span=st.sampled_from([16, 64]),
    most=st.integers(1, 6),
    seed=st.randoms(use_true_random=False),
)
def test_bundles_begin_alike(
    branches: list[tuple[int, int]],
    page_size: int,
    least: int,
    span: int,
    most: int,
    seed: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of any tree, in any order; behind the cached positions the table holds what others left there."""
    monkeypatch.setattr(bundles, "LEAST", least)
    pages = tree(branches, page_size)
    pages.table[pages.table == 0] = 1
    seats = list(range(len(branches)))
    seed.shuffle(seats)  # type: ignore[attr-defined]
    starts = [int(pages.lengths[s]) * page_size - s % page_size for s in seats]
    bundled = found(pages, seats, starts, span, most)
    assert all(positions >= least for positions in bundled.values())
    if len(seats) == 2 and most > 1:  # nothing is missed
        a, b = (pages.table[s] for s in seats)
        full = min(starts) // page_size
        same = next((i for i in range(full) if a[i] != b[i]), full) * page_size // span * span
        first = max(0, least // page_size - 1)
        wanted = same if same >= least and same > first * page_size else 0
        assert saved(bundled) == wanted
