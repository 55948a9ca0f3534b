"""separate_reasoning: the answer goes on, the reasoning is a variable of its own; the same however the program is run."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sglc as sgl
from runtime.api import render
from runtime.reasoning import REASONING, split_reasoning


@sgl.function
def asks(s: Any, q: str) -> None:
    s += sgl.user(q)
    s += sgl.assistant("Well: " + sgl.separate_reasoning(sgl.gen("a", max_tokens=20), model_type="qwen3"))
    s += sgl.user("So?")
    s += sgl.assistant(sgl.gen("b"))


def backend() -> sgl.Scripted:
    return sgl.Scripted(
        {"Why": "<think> it seems </think> Because.", "So?": "Indeed"}, chat_template="chatml"
    )


def seen(state: Any) -> tuple[Any, ...]:
    names = ("a", "a_reasoning_content", "b")
    return (
        *(state[n] for n in names),
        state.text(),
        state.messages(),
        *(state.get_meta_info(n) for n in names),
    )


def test_the_state_goes_on_with_the_answer_alone() -> None:
    model = backend()
    state = asks.run("Why?", backend=model)
    assert (state["a"], state["a_reasoning_content"], state["b"]) == ("Because.", "it seems", "Indeed")
    assert state.messages()[1] == {"role": "assistant", "content": "Well: Because."}
    assert "think" not in state.text() and "Well: Because." in render(model.calls[-1].prompt)
    meta = state.get_meta_info("a")
    assert meta is not None and meta["completion_tokens"] == 5
    assert state.get_meta_info("a_reasoning_content") is None


def test_compiled_is_interpreted() -> None:
    one, two = backend(), backend()
    assert seen(asks.run("Why?", backend=one)) == seen(asks.compile().run("Why?", backend=two))
    assert [c.prompt for c in one.calls] == [c.prompt for c in two.calls]
    both = asks.run_batch([{"q": "Why?"}, {"q": "Who?"}], backend=backend())
    assert [s["a_reasoning_content"] for s in both] == ["it seems", ""]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_stream_shows_the_answer_only(compiled: bool) -> None:
    program = asks.compile() if compiled else asks
    state = program.run("Why?", backend=backend(), stream=True)
    assert "".join(state.text_iter("a")) == "Because."
    assert "think" not in "".join(state.text_iter()) and state["a_reasoning_content"] == "it seems"


@pytest.mark.parametrize(
    ("text", "family", "expected"),
    [
        ("<think>a</think>b", "qwen3", ["a", "b"]),
        ("a</think>b", "deepseek-r1", ["a", "b"]),
        ("a</think>b", "qwen3", ["a", "b"]),
        ("only answer", "qwen3", ["", "only answer"]),
        ("never ends", "deepseek-r1", ["never ends", ""]),
        ("<think>never ends", "qwen3", ["never ends", ""]),
        ("◁think▷a◁/think▷b", "kimi", ["a", "b"]),
    ],
)
def test_tags(text: str, family: str, expected: list[str]) -> None:
    assert split_reasoning(text, family) == expected


@given(st.sampled_from(sorted(REASONING)), st.text("ab <>/", max_size=9), st.text("ab <>/", max_size=9))
def test_what_was_written_between_tags_comes_back(family: str, thoughts: str, answer: str) -> None:
    tags = REASONING[family]
    assert split_reasoning(f"{tags.begin}{thoughts}{tags.end}{answer}", family) == [
        thoughts.strip(),
        answer.strip(),
    ]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: sgl.separate_reasoning(sgl.gen("a"), "qwen33"), "did you mean 'qwen3'"),
        (lambda: sgl.separate_reasoning(sgl.gen(), "qwen3"), "needs a name"),
        (lambda: sgl.separate_reasoning(sgl.gen("a", n=2), "qwen3"), "cannot have n samples"),
        (lambda: sgl.separate_reasoning(sgl.user("a"), "qwen3"), "there is no gen in it"),
    ],
)
def test_bad_arguments_are_named(make: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make()
