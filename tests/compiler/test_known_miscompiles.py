"""Programs that other compile modes get silently wrong: each is right here, or refused with file and line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import sglc as sgl
from runtime.api import Generate, render
from sglc.errors import GraphBreak, RunError
from sglc.lang.chat_template import get_chat_template
from sglc.lang.known_prefix import constant_prefix

HERE = __file__
noise: list[str] = []


@sgl.function
def straight(s, name):
    s += "Hello " + name + sgl.gen("greeting") + "!"


@sgl.function
def branch(s, question):
    s += question + sgl.select("tool", ["calc", "search"])
    if s["tool"] == "calc":
        s += "CALC:" + sgl.gen("expression")
    else:
        s += "SEARCH:" + sgl.gen("words")


@sgl.function
def forked(s, word):
    s += "PREFIX " + word
    forks = s.fork(2)
    for i, f in enumerate(forks):
        f += f"| branch{i}:" + sgl.gen("x")
    s += forks[0]["x"] + forks[1]["x"]


@sgl.function
def joined(s, word):
    s += word
    forks = s.fork(2)
    forks += lambda i: f"{i}:" + sgl.gen("x")
    forks.join()
    s += s["x"][1]


@sgl.function
def scoped(s, word):
    with s.var_scope("all"):
        s += word + sgl.gen("x")
    s += s["all"]


@sgl.function
def roles(s, question):
    s += sgl.user(question)
    s += sgl.assistant(sgl.gen("answer"))


@sgl.function
def length(s, word):
    s += word + sgl.gen("g")
    if len(s["g"]) > 3:
        s += " long"


@sgl.function
def inner(s, word):
    s += "inner " + word + sgl.gen("a")


@sgl.function
def outer(s, word):
    s += "outer " + inner(word)["a"] + sgl.gen("b")


@sgl.function
def failing(s, word):
    s += "BOOM " + word + sgl.gen("a")


@sgl.function
def reads_failure(s, word):
    s += "BOOM " + word + sgl.gen("a")
    s += "seen " + s["a"]


@sgl.function
def constrained(s, word):
    s += word + sgl.gen("n", regex="[0-9]+") + sgl.gen("i", dtype=int)


@sgl.function
def noisy(s, word):
    noise.append(word)
    s += word + sgl.gen("x")


@sgl.function
def loops(s, word):
    while True:
        s += word + sgl.gen("x")
        if "w" in s["x"]:
            break


@sgl.function
def counts(s, word, times=2):
    for _ in range(times):
        s += word + sgl.gen("x")


TABLE = {"a": "first", "b": "second"}


@sgl.function
def looked_up(s, key):
    s += TABLE[key] + sgl.gen("x")


RIGHT = [straight, branch, length, loops, forked, joined, scoped, roles, outer, counts, looked_up]
INTERPRETED = [noisy]


def backend(**options: Any) -> sgl.Scripted:
    return sgl.Scripted(**options)


def prompts(asked: sgl.Scripted) -> list[str]:
    return sorted(render(call.prompt) for call in asked.calls)


def both(program: Any, *args: Any, **options: Any) -> tuple[Any, Any, Any]:
    one, two = backend(**options), backend(**options)
    first = program.run(*args, backend=one)
    compiled = program.compile()
    second = compiled.run(*args, backend=two)
    assert second.text() == first.text()
    assert second.messages() == first.messages()
    assert second.sink.variables() == first.sink.variables()
    assert prompts(two) == prompts(one)
    return first, second, compiled


@pytest.mark.parametrize("program", RIGHT, ids=lambda p: p.__name__)
def test_compiled_and_right(program: Any) -> None:
    _, _, compiled = both(program, "a")
    assert not compiled.breaks


@pytest.mark.parametrize("program", INTERPRETED, ids=lambda p: p.__name__)
def test_refused_with_a_place_and_run_interpreted(program: Any) -> None:
    _, _, compiled = both(program, "w")
    (found,) = compiled.breaks
    assert found.at is not None and found.at.file == HERE
    source = Path(HERE).read_text(encoding="utf-8").splitlines()
    culprit = {"branch": 'if s["tool"]', "length": "if len(", "noisy": "noise.append", "loops": 'if "w" in'}
    assert culprit[program.__name__] in source[found.at.line - 1]


def test_a_branch_is_taken_as_the_model_chose() -> None:
    for tool, wanted in (("calc", "CALC:"), ("search", "SEARCH:")):
        asked = backend(replies={"what": tool})
        state = branch.compile().run("what", backend=asked)
        assert wanted in state.text()


def test_branches_keep_the_prefix() -> None:
    asked = backend()
    forked.compile().run("hi", backend=asked).sync()
    assert prompts(asked) == ["PREFIX hi| branch0:", "PREFIX hi| branch1:"]


def test_a_side_effect_happens_once_for_each_run() -> None:
    noise.clear()
    compiled = noisy.compile()
    for _ in range(3):
        compiled.run("w", backend=backend())
    assert noise == ["w"] * 3
    with pytest.raises(GraphBreak, match=r"noise\.append"):
        noisy.trace()
    assert noise == ["w"] * 3


def test_an_error_is_told_and_not_raised() -> None:
    for run in (failing.run, failing.compile().run):
        state = run("x", backend=backend(fail_on="BOOM"))
        assert isinstance(state.error(), RunError)
        assert state.text() == "BOOM x"
        assert HERE in str(state.error())
        with pytest.raises(RunError):
            _ = state["a"]


def test_an_error_that_the_body_reads_leaves_the_run() -> None:
    for run in (reads_failure.run, reads_failure.compile().run):
        with pytest.raises(RunError, match="BOOM"):
            run("x", backend=backend(fail_on="BOOM"))


def test_errors_of_rows_stay_in_their_rows() -> None:
    rows = [{"word": w} for w in ("x", "y", "z")]
    for batch in (failing.run_batch, failing.compile().run_batch):
        states = batch(rows, backend=backend(fail_on="BOOM y"))
        assert [state.error() is None for state in states] == [True, False, True]
    for batch in (reads_failure.run_batch, reads_failure.compile().run_batch):
        found = batch(rows, backend=backend(fail_on="BOOM y"), return_exceptions=True)
        assert [isinstance(r, RunError) for r in found] == [False, True, False]
        with pytest.raises(RunError):
            batch(rows, backend=backend(fail_on="BOOM y"))


def test_a_constraint_that_is_not_enforced_is_refused_and_nothing_sent() -> None:
    asked = backend()
    state = constrained.compile().run("x", backend=asked)
    assert "enforces" in str(state.error())
    assert not asked.calls


def test_constraints_reach_the_backend() -> None:
    _, _, compiled = both(constrained, "x", replies={"x": "7"})
    asked = backend(replies={"x": "7"})
    compiled.run("x", backend=asked).sync()
    regexes = [c.sampling.constraint.source for c in asked.calls if isinstance(c, Generate)]  # type: ignore[union-attr]
    assert regexes == ["[0-9]+", r"[-+]?[0-9]+[ \n]*"]
    assert asked.calls[1].sampling.stop == (" ", "\n")  # type: ignore[union-attr]


def test_arguments_may_differ_from_run_to_run() -> None:
    compiled = counts.compile()
    for times in (1, 3, 1):
        for word in ("p ", "q "):
            asked = backend()
            compiled.run(word, times, backend=asked).sync()
            assert len(asked.calls) == times and prompts(asked)[0] == word
    assert len(compiled.modules()) == 2


def test_a_global_that_changes_is_seen() -> None:
    compiled = looked_up.compile()
    old = dict(TABLE)
    try:
        for value in ("first", "other"):
            TABLE["a"] = value
            assert compiled.run("a", backend=backend()).text().startswith(value)
    finally:
        TABLE.update(old)
    assert not compiled.breaks


def test_tracing_leaves_nothing_behind() -> None:
    before = set(sys.modules)
    compiled = joined.compile()
    compiled.run("a", backend=backend())
    state = joined.run("a", backend=backend())
    assert type(state["x"]) is list and all(type(v) is str for v in state["x"])
    again = compiled.run("a", backend=backend())
    assert type(again["x"]) is list and all(type(v) is str for v in again["x"])
    assert not {m for m in set(sys.modules) - before if m.startswith("tests")}


@sgl.function
def few_shot(s, question):
    s += sgl.system("Be brief.")
    s += sgl.user("One example." + question)


def test_the_constant_prefix_of_all_runs() -> None:
    chatml = get_chat_template("chatml")
    wanted = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne example."
    assert constant_prefix(few_shot, chatml) == wanted
    assert constant_prefix(few_shot) == ""
    assert constant_prefix(few_shot, chatml, {"question": "Why?"}) == wanted + "Why?<|im_end|>\n"
    noise.clear()
    assert constant_prefix(noisy) == "" and noise == []
    assert constant_prefix(looked_up) == ""
