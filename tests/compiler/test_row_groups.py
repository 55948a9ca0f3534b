"""The order of a batch's rows, and the prefixes that are computed once for many of them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sglc as sgl
from runtime.api import render
from sglc.exec.row_groups import RowGroups, group_rows, groups_of

SYSTEM = "You answer questions about one subject, shortly, and never about another one. "
SUBJECTS = {
    k: f"The subject is {k}. " + f"What is known of {k} is written here at some length. " * 3 for k in "abc"
}


def shared(texts: list[str]) -> str:
    """What all begin with."""
    first, last = min(texts), max(texts)
    return next((first[:k] for k in range(len(first), 0, -1) if last.startswith(first[:k])), "")


texts = st.lists(st.text("ab", max_size=12), min_size=1, max_size=24)


@given(texts, st.integers(1, 4))
def test_groups_are_shared_nested_and_worth_it(rows: list[str], least: int) -> None:
    found = group_rows(rows, least)
    assert sorted(found.order) == list(range(len(rows)))
    for group in found.groups:
        members = [rows[k] for k in found.order[group.first : group.first + group.count]]
        assert len(members) == group.count >= 2 and group.length >= least
        assert shared(members) == found.prefix(group) == members[0][: group.length]
        outside = [
            rows[k] for k in range(len(rows)) if k not in found.order[group.first : group.first + group.count]
        ]
        assert not any(text.startswith(found.prefix(group)) for text in outside)
    for one in found.groups:
        around = [g for g in found.groups if g is not one and _inside(one, g)]
        assert all(one.length - g.length >= least for g in around)
        assert all(
            _inside(g, one) or _inside(one, g) or not _overlap(one, g) for g in found.groups if g is not one
        )


@given(texts, st.integers(1, 4))
def test_every_shared_text_that_is_worth_it_is_in_a_group(rows: list[str], least: int) -> None:
    found = group_rows(rows, least)
    sizes = [0] * len(rows)
    for group in found.groups:
        for position in range(group.first, group.first + group.count):
            sizes[position] = max(sizes[position], group.length)
    order = [rows[k] for k in found.order]
    for at, (one, two) in enumerate(pairwise(order)):
        assert len(shared([one, two])) - min(sizes[at], sizes[at + 1]) < least


def _inside(inner: Any, outer: Any) -> bool:
    return outer.first <= inner.first and inner.first + inner.count <= outer.first + outer.count


def _overlap(a: Any, b: Any) -> bool:
    return a.first < b.first + b.count and b.first < a.first + a.count


@sgl.function
def answers(s: Any, subject: str, question: str) -> None:
    s += SYSTEM + subject
    s += "Q: " + question + " A:" + sgl.gen("a")


ROWS = [{"subject": SUBJECTS[k], "question": f"{n}?"} for n in range(3) for k in "cab"]


def test_the_levels_of_a_batch() -> None:
    groups = groups_of(answers, ROWS, sgl.Scripted())
    assert [(g.first, g.count) for g in groups.groups] == [(0, 9), (0, 3), (3, 3), (6, 3)]
    assert groups.prefix(groups.groups[0]) == SYSTEM + "The subject is "
    assert [ROWS[k]["subject"] for k in groups.order] == [SUBJECTS[k] for k in "aaabbbccc"]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("threads", [1, 3, "auto"])
def test_rows_run_in_that_order_and_come_back_in_theirs(compiled: bool, threads: Any) -> None:
    backend = sgl.Scripted()
    program = answers.compile() if compiled else answers
    states = program.run_batch(ROWS, backend=backend, num_threads=threads)
    plain = [answers.run(**row, backend=sgl.Scripted())["a"] for row in ROWS]
    assert [s["a"] for s in states] == plain
    assert [p[len(SYSTEM) :][15:16] for p in backend.prefills] == ["", "a", "b", "c"]
    if threads == 1:
        subjects = [render(c.prompt)[len(SYSTEM) :][15] for c in backend.calls]
        assert subjects == list("aaabbbccc")


def test_a_prefix_is_there_before_its_rows_begin() -> None:
    class Slow(sgl.Scripted):
        async def prefill(self, prompt: Any) -> None:
            import asyncio

            before = len(self.calls)
            await asyncio.sleep(0.02)
            under = render(prompt)
            assert not any(render(c.prompt).startswith(under) for c in self.calls[before:])
            await super().prefill(prompt)

    for program in (answers, answers.compile()):
        backend = Slow()
        assert len(program.run_batch(ROWS, backend=backend)) == 9 and len(backend.prefills) == 4


def test_a_prefill_that_fails_is_no_error_of_the_batch(caplog: Any) -> None:
    class Failing(sgl.Scripted):
        async def prefill(self, prompt: Any) -> None:
            raise RuntimeError("no memory")

    for program in (answers, answers.compile()):
        assert all(s["a"] for s in program.run_batch(ROWS, backend=Failing()))
    assert "no memory" in caplog.text


def test_where_nothing_is_known_the_order_stays() -> None:
    @sgl.function
    def noisy(s: Any, subject: str, question: str) -> None:
        print(end="")
        s += SYSTEM + subject + question + sgl.gen("a")

    for found in (groups_of(noisy, ROWS, sgl.Scripted()), group_rows(["x", "a", "b"])):
        assert found.groups == () and found.order == tuple(range(len(found.order)))
    import msgspec

    able = msgspec.structs.replace(sgl.Scripted().capabilities, prefill=False)
    assert groups_of(answers, ROWS, sgl.Scripted(capabilities=able)).groups == ()
    assert isinstance(groups_of(answers, ROWS[:1], sgl.Scripted()), RowGroups)


def test_arguments_that_are_not_text_make_beginnings_of_their_own() -> None:
    @sgl.function
    def counted(s: Any, times: int, question: str) -> None:
        for k in range(times):
            s += f"This is a line that is long enough to be worth a prefix, number {k}. "
        s += question + sgl.gen("a")

    rows = [{"times": 1 + n % 2, "question": str(n)} for n in range(4)]
    groups = groups_of(counted, rows, sgl.Scripted())
    assert len(groups.groups) == 2 and groups.groups[0].count == 4 and groups.groups[1].count == 2
    assert len(counted.run_batch(rows, backend=sgl.Scripted())) == 4
