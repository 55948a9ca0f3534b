"""Behaviours that frontends of this kind have got wrong, beside the programs of tests/compiler/test_known_miscompiles.py.

Constraints that get lost on the way, selects that cost several calls, forks that wait, joins that hang, batches of which
only the last row is awaited, fields that a provider drops: each is right here, or refused with its place before anything
is sent.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

import sglc as sgl
from runtime.api import Generate, Score, render
from runtime.backends.targets import TARGETS
from sglc.errors import RunError

HERE = Path(__file__).name
PROVIDERS = ["anthropic", "vertex", "litellm"]


def runs(program: Any) -> list[Any]:
    return [program.run, program.compile().run]


# -- constraints stay with their gens -------------------------------------------------------------------------


@sgl.function
def typed(s, word):  # type: ignore[no-untyped-def]
    s += word + sgl.gen("n", regex="[0-9]") + sgl.gen("i", dtype=int)


@sgl.function
def in_all_places(s, word):  # type: ignore[no-untyped-def]
    digit = sgl.gen("d", regex="[0-9]")
    s += word + digit + typed(word)["i"]
    forks = s.fork(2)
    forks += digit
    forks += lambda i: f"{i}" + sgl.gen("t", dtype=bool, max_tokens=4)
    forks.join()
    if s["d"] == "7":
        s += "seven" + digit
    for _ in range(2):
        s += sgl.user("more") + sgl.assistant(sgl.gen("j", json_schema='{"type": "integer"}'))


def test_no_constraint_is_lost_on_the_way() -> None:
    wanted = ["[0-9]"] * 5 + ["(True|False)"] * 2 + [r"[-+]?[0-9]+[ \n]*"] + ['{"type": "integer"}'] * 2
    for run in runs(in_all_places):
        backend = sgl.Scripted({"w": "7"})
        assert run("w", backend=backend).error() is None
        found = [c.sampling.constraint.source for c in backend.calls]
        assert sorted(found) == sorted(wanted)
        stops = [c.sampling.stop for c in backend.calls if c.sampling.constraint.source.startswith("[-+]")]
        assert stops == [(" ", "\n")]


def test_a_piece_that_is_appended_often_keeps_what_it_was_given() -> None:
    piece = sgl.gen("a", max_tokens=3, stop="END", dtype=float, temperature=0.5)

    @sgl.function
    def often(s):  # type: ignore[no-untyped-def]
        for mark in ("x", "y"):
            s += mark + piece

    for run in runs(often):
        backend = sgl.Scripted({"x": "1.5"})
        run(backend=backend, stop=["OTHER"], temperature=0.9).sync()
        one, two = (c.sampling for c in backend.calls)
        assert one == two and one.stop == ("END", " ", "\n") and one.temperature == 0.5


# -- what operations cost -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [sgl.token_length_normalized, sgl.unconditional_likelihood_normalized])
def test_a_select_is_one_call_with_the_prompt_once(method: Any) -> None:
    @sgl.function
    def pick(s):  # type: ignore[no-untyped-def]
        s += "prompt" + sgl.select("c", ["a", "b", "z"], choices_method=method)

    for run in runs(pick):
        backend = sgl.Scripted()
        run(backend=backend).sync()
        (call,) = backend.calls
        assert isinstance(call, Score) and render(call.prompt) == "prompt" and call.choices == ("a", "b", "z")


def test_a_fork_does_not_wait_for_what_comes_before_it() -> None:
    released = threading.Event()

    def hold(prompt: str) -> str:
        assert released.wait(60), "the body waits for the model"
        return " one"

    @sgl.function
    def ask(s):  # type: ignore[no-untyped-def]
        s += "Q" + sgl.gen("a")
        forks = s.fork(2)
        forks += lambda i: f"\n{i}:" + sgl.gen("b")
        return len(forks)

    released.clear()
    state = ask.run(backend=sgl.Scripted({"Q": hold}))
    assert state.ret_value == 2 and "a" not in state
    released.set()
    assert state["a"] == " one"


def test_a_fork_of_nothing_sends_nothing_empty() -> None:
    @sgl.function
    def ask(s):  # type: ignore[no-untyped-def]
        forks = s.fork(2)
        forks += lambda i: f"{i}:" + sgl.gen("a")
        forks.join()

    for run in runs(ask):
        backend = sgl.Scripted()
        run(backend=backend).sync()
        assert sorted(render(c.prompt) for c in backend.calls) == ["0:", "1:"] and backend.prefills == []


def test_a_join_that_appends_works_on_an_engine() -> None:
    @sgl.function
    def ask(s):  # type: ignore[no-untyped-def]
        s += "Once upon a time"
        forks = s.fork(2)
        forks += lambda i: f"\n{i}:" + sgl.gen("part", max_tokens=4)
        forks.join("concate_and_append")
        s += "\nThen" + sgl.gen("end", max_tokens=4)

    with sgl.Engine(random_seed=0) as engine:
        one, two = (run(backend=engine, temperature=0) for run in runs(ask))
        assert one.error() is None and one.text() == two.text() and one["end"] in one.text()
        assert one.text().startswith("Once upon a time\n0:") and "\n1:" in one.text()


def test_a_batch_ends_when_all_rows_have() -> None:
    @sgl.function
    def ask(s, q):  # type: ignore[no-untyped-def]
        s += q + sgl.gen("a") + sgl.gen("b")

    rows = [{"q": f"q{k}"} for k in range(20)]
    for batch in (ask.run_batch, ask.compile().run_batch):
        states = batch(rows, backend=sgl.Scripted(delay=0.01))
        assert all("a" in s and "b" in s for s in states)  # `in` does not wait


# -- what a provider cannot do --------------------------------------------------------------------------------


@sgl.function
def chooses(s):  # type: ignore[no-untyped-def]
    s += sgl.user("Which?") + sgl.assistant(sgl.select("c", ["a", "b"]))


@sgl.function
def constrained(s):  # type: ignore[no-untyped-def]
    s += sgl.user("How many?") + sgl.assistant(sgl.gen("n", regex="[0-9]+"))


@pytest.mark.parametrize("target", PROVIDERS)
@pytest.mark.parametrize("program", [chooses, constrained], ids=lambda p: p.__name__)
def test_a_provider_that_cannot_is_not_asked(target: str, program: Any) -> None:
    for run in runs(program):
        backend = sgl.Scripted(capabilities=TARGETS[target])
        state = run(backend=backend)
        error = state.error()
        assert isinstance(error, RunError) and f"{HERE}:{error.at.line}: " in str(error)
        name = "c" if program is chooses else "n"
        with pytest.raises(RunError):
            state[name]
        assert not [c for c in backend.calls if isinstance(c, Generate | Score)]


def test_a_failed_gen_can_fail_the_run() -> None:
    @sgl.function
    def ask(s):  # type: ignore[no-untyped-def]
        s += "BOOM" + sgl.gen("a")

    for run in runs(ask):
        with pytest.raises(RunError, match=f"{HERE}:.*the script fails"):
            run(backend=sgl.Scripted(fail_on="BOOM"), raise_on_error=True)
