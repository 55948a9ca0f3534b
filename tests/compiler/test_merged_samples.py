"""Branches that draw the same become samples of one call, where that is asked for."""

from __future__ import annotations

from typing import Any

import sglc as sgl

PASSES = "canonicalize,hoist-prefix,merge-forks{samples=true},canonicalize"


@sgl.function
def votes(s: Any, q: str) -> None:
    s += q
    forks = s.fork(4)
    forks += "\nAnswer:" + sgl.gen("answer", temperature=0.7, max_tokens=8)
    forks.join()
    s += "\nAnswers: " + s["answer"][0] + s["answer"][3] + sgl.gen("best", temperature=0)


def test_four_draws_are_one_call_with_four_samples() -> None:
    backend, plain = sgl.Scripted(), sgl.Scripted()
    state = votes.compile(passes=PASSES, verify=True).run("Why?", backend=backend)
    assert len(state["answer"]) == 4 and state["best"]
    assert [c.sampling.n for c in backend.calls] == [4, 1]
    assert votes.run("Why?", backend=plain)["answer"][0] == state["answer"][0]
    assert backend.calls[0].prompt == plain.calls[0].prompt
    assert state.text().startswith(f"Why?\nAnswers: {state['answer'][0]}{state['answer'][3]}")


def test_by_default_and_where_nothing_is_drawn_the_calls_stay() -> None:
    @sgl.function
    def greedy(s: Any, q: str) -> None:
        s += q
        forks = s.fork(3)
        forks += sgl.gen("answer", temperature=0)
        forks.join()

    for program, passes, calls in ((votes, None, 5), (greedy, PASSES, 3)):
        backend = sgl.Scripted()
        program.compile(passes=passes).run("Why?", backend=backend).sync()
        assert len(backend.calls) == calls and all(c.sampling.n == 1 for c in backend.calls)


def test_an_engine_draws_samples_that_differ() -> None:
    with sgl.Engine(random_seed=1) as engine:
        state = votes.compile(passes=PASSES).run("Once upon a time", backend=engine)
        assert len(state["answer"]) == 4 and len(set(state["answer"])) > 1
