"""Reasoning cut off answers, whole and piece by piece, in agreement with `split_reasoning`."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.reasoning import reasoning_tags, split_reasoning
from runtime.server.parts import (
    ArgumentsPart,
    CallPart,
    NamedParser,
    PlainParser,
    ReasoningPart,
    ReasoningStream,
    Splitter,
    TextPart,
    Whole,
)
from runtime.server.tools import tool_format
from runtime.server.tools.parser import ToolParser


def read(family: str, text: str, size: int) -> tuple[str, str]:
    stream = ReasoningStream(reasoning_tags(family))
    pairs = [stream.feed(text[i : i + size]) for i in range(0, len(text), size)] + [stream.close()]
    return "".join(p[0] for p in pairs), "".join(p[1] for p in pairs)


@pytest.mark.parametrize(
    ("family", "text", "expected"),
    [
        ("deepseek-r1", "Let me see\n think</think>\n\nThe answer ", ("Let me see\n think", "The answer ")),
        ("deepseek-r1", "<think>\nabc</think>x", ("abc", "x")),
        ("deepseek-r1", "it never ends  ", ("it never ends", "")),
        ("qwen3", "<think>\n a \n\n</think>\n\n b ", ("a", "b ")),
        ("qwen3", "no thinking", ("", "no thinking")),
        ("qwen3", "<thi", ("", "<thi")),
        ("qwen3", "<think></think>b", ("", "b")),
        ("kimi", "◁think▷hm◁/think▷Yes", ("hm", "Yes")),
    ],
)
def test_reasoning_and_answer(family: str, text: str, expected: tuple[str, str]) -> None:
    for size in (len(text), 1, 2, 3, 7):
        assert read(family, text, size) == expected
    assert split_reasoning(text, family) == [expected[0], expected[1].strip()]


WORDS = st.lists(st.sampled_from(["<think>", "</think>", "<", "a", " ", "\n", "</th"]), max_size=12)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["deepseek-r1", "qwen3"]), WORDS, st.integers(1, 9))
def test_pieces_say_what_the_whole_says(family: str, words: list[str], size: int) -> None:
    text = "".join(words)
    assert read(family, text, size) == read(family, text, max(len(text), 1))


@pytest.mark.parametrize("text", ["  \n hi", " <thi", " \n", " \n<b"])
def test_blanks_before_an_answer_without_reasoning_are_its_own(text: str) -> None:
    for size in (len(text), 1, 2):
        assert read("qwen3", text, size) == ("", text)


def test_reasoning_then_text_then_calls() -> None:
    splitter = Splitter(
        ToolParser(tool_format("hermes"), {"f": {}}), reasoning_tags("qwen3"), iter(["call_1"]).__next__
    )
    text = '<think>I call f.</think>\n\nWait.\n<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
    whole = Whole()
    for i in range(0, len(text), 4):
        whole.add(splitter.feed(text[i : i + 4]))
    whole.add(splitter.close())
    assert (whole.reasoning, whole.text) == ("I call f.", "Wait.")
    assert whole.calls == [CallPart(0, "call_1", "f", '{"a":1}')] and splitter.calls == 1


def test_a_named_tool_gets_the_answer_as_arguments() -> None:
    splitter = Splitter(NamedParser("f"), None, lambda: "call_1")
    parts = splitter.feed('{"a"') + splitter.feed(": 1}") + splitter.close()
    assert parts == [CallPart(0, "call_1", "f", '{"a"'), ArgumentsPart(0, ": 1}")]
    plain = Splitter(PlainParser(), reasoning_tags("deepseek-r1"), str)
    assert plain.feed("a</think>b") == [ReasoningPart("a"), TextPart("b")]
