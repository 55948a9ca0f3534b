"""num_api_spec_tokens: fewer calls, the same result; a form that a chat model does not follow is asked for again."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sglc as sgl
from runtime.api import SamplingParams
from runtime.backends.scripted import words
from runtime.backends.targets import target
from sglc.exec.speculation import Surplus, follows

PAGE = "The page: "
FORM = "Name: Ann\nAge: 7\nTown: Rome\nthe rest"


def fields(s: Any) -> None:
    s += PAGE
    for name in ("Name", "Age", "Town"):
        s += f"{name}:" + sgl.gen(name, stop="\n", temperature=0) + "\n"


plain = sgl.function(fields)
ahead = sgl.function(fields, num_api_spec_tokens=64)


class Completing(sgl.Scripted):
    """A completion model that goes on writing `form` from wherever the prompt has got to."""

    def __init__(self, form: str = FORM, **able: Any) -> None:
        import msgspec

        base = msgspec.structs.replace(target("scripted"), prefill=False, score=False, **able)
        super().__init__({PAGE: self.go_on}, length=64, capabilities=base)
        self.form = form

    def go_on(self, prompt: str) -> str:
        done = prompt[prompt.index(PAGE) + len(PAGE) :]
        return self.form[len(done) :] if self.form.startswith(done) else " other\n and more\n"


def values(state: Any) -> tuple[Any, ...]:
    return state["Name"], state["Age"], state["Town"], state.text()


def test_one_call_fills_the_form() -> None:
    one, three = Completing(), Completing()
    assert values(ahead.run(backend=one)) == values(plain.run(backend=three))
    assert (len(one.calls), len(three.calls)) == (1, 3)
    meta = ahead.run(backend=one).get_meta_info("Age")
    assert meta is not None and meta["finish_reason"] == {"type": "stop", "matched": "\n"}


@pytest.mark.parametrize(
    "form", ["Name: Ann\nAges: 7\nTown: Rome\n", "Name: Ann", "Name: Ann\nAge: 7", "", "Name: Ann\n"]
)
def test_an_answer_that_does_not_fit_changes_nothing(form: str) -> None:
    assert values(ahead.run(backend=Completing(form))) == values(plain.run(backend=Completing(form)))


@settings(max_examples=60, deadline=None)
@given(
    form=st.lists(st.sampled_from(["Name:", "Age:", "Town:", " a", " bb", "\n", "x"]), max_size=12).map(
        "".join
    ),
    limit=st.sampled_from([1, 2, 3, 8, 128]),
    tokens=st.sampled_from([1, 4, 64]),
)
def test_speculation_never_changes_a_result(form: str, limit: int, tokens: int) -> None:
    here = [
        p.run(backend=Completing(form), max_new_tokens=limit)
        for p in (plain, sgl.function(fields, num_api_spec_tokens=tokens))
    ]
    assert values(here[0]) == values(here[1])
    calls = [s.sink._session.backend.calls for s in here]
    assert len(calls[1]) <= len(calls[0]) + 3  # a call that could not be used is made again


def test_an_engine_that_keeps_prefixes_is_not_asked_for_more() -> None:
    model = sgl.Scripted({PAGE: "a\nb"})
    ahead.run(backend=model).sync()
    assert len(model.calls) == 3 and all(c.sampling.max_new_tokens == 128 for c in model.calls)


def test_a_batch_shares_nothing() -> None:
    states = ahead.run_batch([{}, {}, {}], backend=Completing())
    assert [values(s) for s in states] == [values(plain.run(backend=Completing()))] * 3


def test_compiled_is_the_same_and_says_so() -> None:
    compiled = ahead.compile()
    assert values(compiled.run(backend=Completing())) == values(ahead.run(backend=Completing()))
    assert "num_api_spec_tokens" in str(compiled.breaks[0])


def test_a_stream_is_refused() -> None:
    with pytest.raises(AssertionError, match="cannot be streamed"):
        ahead.run(backend=Completing(), stream=True)


class Chatting(Completing):
    """A chat model: answers with whole messages, one of `answers` after the other."""

    def __init__(self, *answers: str) -> None:
        super().__init__(chat_only=True, continues=False)
        self.answers = list(answers)
        self.replies = {"": lambda prompt: self.answers.pop(0)}


@sgl.function(num_api_spec_tokens=64)
def form(s: Any) -> None:
    s += sgl.user("Fill in.")
    s += sgl.assistant_begin()
    s += sgl.gen("Name", stop="\n")
    s += "\nAge:" + sgl.gen("Age", stop="\n")
    s += sgl.assistant_end()
    s += sgl.user("Sure?")
    s += sgl.assistant(sgl.gen("sure"))


def test_a_chat_model_fills_in_a_message() -> None:
    model = Chatting("Ann\nAge: 7\n", "Yes")
    state = form.run(backend=model)
    assert (state["Name"], state["Age"], state["sure"]) == ("Ann", " 7", "Yes") and len(model.calls) == 2
    assert [m["content"] for m in state.messages()] == ["Fill in.", "Ann\nAge: 7", "Sure?", "Yes"]


def test_a_message_that_does_not_follow_the_form_is_asked_for_again() -> None:
    model = Chatting("Ann, 7 years\n", "Ann\nold: 7\n", "Ann\nAge: 8\n", "Yes")
    state = form.run(backend=model)
    assert (state["Age"], state["sure"]) == (" 8", "Yes") and len(model.calls) == 4


def test_after_three_tries_it_is_an_error() -> None:
    state = form.run(backend=Chatting("no\n", "no\n", "no\n", "no\n"))
    assert state.error() is not None and "did not write the form" in str(state.error())
    assert "test_api_speculation.py" in str(state.error())


def test_without_speculation_a_chat_model_answers_whole_messages_only() -> None:
    state = sgl.function(form.func).run(backend=Chatting("Ann\n"))
    assert "num_api_spec_tokens" in str(state.error())


def test_the_earliest_stop_ends_a_gen_and_length_must_be_certain() -> None:
    sampling = SamplingParams(stop=("b", "\n"), max_new_tokens=3)
    store = Surplus("aab\n", False, 0, SamplingParams(max_new_tokens=None))
    assert follows(store, (sampling, "b\n")) and not follows(store, (sampling, "\n"))
    assert (
        store.take_gen(SamplingParams(stop=("\n",), max_new_tokens=2)) is None
    )  # three characters, tokens not known
    found = store.take_gen(sampling)
    assert found is not None and found[0] == "aa" and store.text == "b\n"
    assert words("x y") == ["x", " y"]
