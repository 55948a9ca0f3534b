"""Backends that users write as plain blocking methods."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

import sglc as sgl
from sglc.errors import RunError
from sglc.lang.backend.base_backend import BaseBackend
from sglc.lang.chat_template import ChatTemplate
from sglc.lang.choices import ChoicesDecision

PLAIN = ChatTemplate("of-own-backend", None, {"user": ("<u>", "</u>"), "assistant": ("<a>", "</a>")})


class Echo(BaseBackend):
    """Answers with the last word; keeps what it was asked."""

    constraints = frozenset({"regex"})

    def __init__(self) -> None:
        super().__init__()
        self.chat_template = PLAIN
        self.asked: list[Any] = []
        self.kept: list[str] = []

    def generate(self, s: Any, sampling_params: Any) -> tuple[str, dict[str, Any]]:
        self.asked.append((s, sampling_params))
        if "BOOM" in s.text_:
            raise ValueError("no answer to that")
        word = s.text_.split()[-1]
        return f" {word}!", {"completion_tokens": 2, "finish_reason": {"type": "stop"}}

    def generate_stream(self, s: Any, sampling_params: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        text, meta = self.generate(s, sampling_params)
        for letter in text[:-1]:
            yield letter, {}
        yield text[-1], meta

    def select(self, s: Any, choices: Any, temperature: float, choices_method: Any) -> ChoicesDecision:
        return ChoicesDecision(max(choices, key=len))

    def cache_prefix(self, prefix_str: str) -> None:
        self.kept.append(prefix_str)


class Bare(BaseBackend):
    def generate(self, s: Any, sampling_params: Any) -> tuple[str, dict[str, Any]]:
        return "x", {}


@sgl.function
def ask(s, q):  # type: ignore[no-untyped-def]
    s += sgl.user("Say " + q)
    s += sgl.assistant(sgl.gen("a", max_tokens=7, stop="END"))
    s += " pick:" + sgl.select("c", ["no", "yes"], choices_method=sgl.greedy_token_selection)


@pytest.mark.parametrize("program", [ask, ask.compile()], ids=["interpreted", "compiled"])
def test_a_program_runs_on_plain_methods(program: Any) -> None:
    backend = Echo()
    state = program.run("hi", backend=backend)
    assert state.text() == "<u>Say hi</u><a> hi</u><a>!</a> pick:yes"
    assert state.get_meta_info("a")["completion_tokens"] == 2
    (asked, sampling), = backend.asked  # fmt: skip
    assert asked.text_ == "<u>Say hi</u><a>" and (sampling.max_new_tokens, sampling.stop) == (7, ("END",))


@pytest.mark.parametrize("program", [ask, ask.compile()], ids=["interpreted", "compiled"])
def test_streams_come_in_its_chunks(program: Any) -> None:
    state = program.run("hi", backend=Echo(), stream=True)
    assert list(state.text_iter("a")) == list(" hi</u><a>!")


def test_rows_are_asked_at_once() -> None:
    meeting = threading.Barrier(8, timeout=60)

    class Meets(Bare):
        def generate(self, s: Any, sampling_params: Any) -> tuple[str, dict[str, Any]]:
            meeting.wait()
            return s.text_, {}

    @sgl.function
    def echo(s, q):  # type: ignore[no-untyped-def]
        s += q + sgl.gen("a")

    states = echo.run_batch([{"q": str(k)} for k in range(8)], backend=Meets())
    assert [s["a"] for s in states] == [str(k) for k in range(8)]


def test_what_it_raises_is_the_error_of_the_run() -> None:
    for program in (ask, ask.compile()):
        state = program.run("BOOM", backend=Echo())
        assert isinstance(state.error(), RunError) and "ValueError: no answer to that" in str(state.error())


def test_what_is_not_written_is_refused_and_prefixes_reach_it() -> None:
    error = ask.run("hi", backend=Bare()).error()
    assert "gives no log-probabilities to choose by" in str(error)
    assert "cannot enforce a regex" in str(sgl.function(constrained).run(backend=Bare()).error())
    assert sgl.function(constrained).run(backend=Echo())["d"] == " Q!"
    backend = Echo()
    sgl.function(long_text).cache(backend)
    assert (
        backend.kept == ["word " * 20] and sgl.flush_cache(backend) and sgl.get_server_args(backend) is None
    )
    with pytest.raises(TypeError, match="abstract"):
        BaseBackend()  # type: ignore[abstract]


def constrained(s: Any) -> None:
    s += "Q" + sgl.gen("d", regex="[0-9]")


def long_text(s: Any, q: str) -> None:
    s += "word " * 20 + q + sgl.gen("a")
