"""precompile-constraints and legalize: what cannot be honoured is refused before anything is sent, with file and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import sglc as sgl
from sglc.errors import PassError
from sglc.ir.core import Module
from sglc.ir.parser import parse_module
from sglc.lang.trace import trace
from sglc.passes.base import Report
from sglc.passes.pipeline import Pipeline


@sgl.function
def number(s: Any, q: str) -> None:
    s += q + sgl.gen("n", regex=r"[0-9]+")


@sgl.function
def impossible(s: Any, q: str) -> None:
    s += q
    s += sgl.gen("n", regex=r"([0-9])\1")


@sgl.function
def sampled(s: Any, q: str) -> None:
    s += sgl.user(q)
    s += sgl.assistant(sgl.gen("a", n=3))


@sgl.function
def chosen(s: Any, q: str) -> None:
    s += q + sgl.select("c", ["yes", "no"])


@sgl.function
def plain(s: Any, q: str) -> None:
    s += q + sgl.gen("a")


@sgl.function
def chat(s: Any, q: str) -> None:
    s += sgl.user(q)
    s += sgl.assistant(sgl.gen("a", temperature=0.5, max_tokens=8))


@sgl.function
def peculiar(s: Any, q: str) -> None:
    s += sgl.user(q)
    s += sgl.assistant(sgl.gen("a", top_k=3))


def module_of(program: Any) -> Module:
    return trace(program, {}, frozenset({"q"}))


def refused(program: Any, pipeline: str) -> PassError:
    with pytest.raises(PassError) as caught:
        Pipeline.parse(pipeline).run(module_of(program), verify=True)
    return caught.value


def line_of(program: Any, text: str) -> int:
    source = Path(__file__).read_text(encoding="utf-8").splitlines()
    start = program.func.__code__.co_firstlineno
    return next(k for k, line in enumerate(source, 1) if k > start and text in line)


def test_a_regex_that_is_no_automaton_is_an_error_with_its_place() -> None:
    error = str(refused(impossible, "precompile-constraints"))
    assert f"{Path(__file__).name}:{line_of(impossible, 'sgl.gen')}" in error
    assert "the regex of @" in error and "cannot be enforced" in error


@pytest.mark.parametrize(
    ("program", "backend", "reason", "line"),
    [
        (number, "openai", "openai cannot enforce a regex", "sgl.gen"),
        (number, "anthropic", "anthropic cannot enforce a regex", "sgl.gen"),
        (sampled, "anthropic", "anthropic gives one sample at a time, but n is 3", "sgl.gen"),
        (chosen, "openai", "openai gives no log-probabilities to choose by", "sgl.select"),
        (plain, "openai", "openai only answers as the assistant", "sgl.gen"),
        (peculiar, "openai", "openai has no top_k", "sgl.gen"),
    ],
)
def test_what_a_backend_cannot_do_is_refused(program: Any, backend: str, reason: str, line: str) -> None:
    error = str(refused(program, f'legalize{{backend="{backend}"}}'))
    assert reason in error
    assert f"{Path(__file__).name}:{line_of(program, line)}" in error


@pytest.mark.parametrize(
    ("program", "backend"),
    [
        (number, "engine"),
        (chosen, "engine"),
        (sampled, "openai"),
        (chat, "anthropic"),
        (peculiar, "anthropic"),
    ],
)
def test_what_a_backend_can_do_is_left_as_it_is(program: Any, backend: str) -> None:
    module = module_of(program)
    reports: list[Report] = []
    after = Pipeline.parse(f'legalize{{backend="{backend}"}}').run(
        module, after=lambda _, __, report: reports.append(report)
    )
    assert str(after) == str(module)
    assert [r.counts for r in reports] == [{"calls checked": 1}]


def test_a_backend_that_does_not_exist_is_named() -> None:
    assert "opnai" in str(refused(chat, 'legalize{backend="opnai"}'))


def test_the_tokens_of_the_tiny_model_say_how_many_are_needed() -> None:
    text = 'constraint @c0 = regex "[a-z]{3}[0-9]"\ngraph @f(%q: str) {\n  %0 = begin\n  %1 = text %0, %q\n'
    text += '  %2, %3 = gen %1 {name="a", constraint=@c0}\n  return %2\n}\n'
    module = Pipeline.parse('precompile-constraints{tokenizer="tiny"}').run(parse_module(text), verify=True)
    facts = module.facts["c0"]
    assert facts["states"] >= 5 and 2 <= facts["min_tokens"] <= 4
    assert f"states={facts['states']}" in str(module)
    assert str(parse_module(str(module))) == str(module)
