"""precompile-constraints and legalize: what cannot be honoured is refused before anything is sent, with file and line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sglc as sgl
from grammar import compile_constraint
from runtime.api import Constraint
from runtime.backends.base import Capabilities
from sglc.errors import PassError
from sglc.ir.core import Module
from sglc.ir.parser import parse_module
from sglc.ir.restate import restated
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


@sgl.function
def verdict(s: Any, q: str) -> None:
    s += sgl.user(q)
    s += sgl.assistant(sgl.gen("v", regex="(yes|no|[1-3])\\.?"))


@sgl.function
def several(s: Any, q: str) -> None:
    s += sgl.user(q)
    s += sgl.assistant(sgl.gen("v", dtype=bool) + sgl.gen("w", regex="[0-9]{3}"))


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


def legalized(program: Any, backend: str) -> tuple[Module, dict[str, int]]:
    reports: list[Report] = []
    after = Pipeline.parse(f'legalize{{backend="{backend}"}}').run(
        module_of(program), verify=True, after=lambda _, __, report: reports.append(report)
    )
    return after, reports[0].counts


def test_a_regex_with_few_texts_becomes_choices() -> None:
    module, counts = legalized(verdict, "openai")
    texts = sorted(w + d for w in ("yes", "no", "1", "2", "3") for d in ("", "."))
    (constraint,) = module.constraints.values()
    assert constraint == Constraint("choices", json.dumps(texts))
    assert counts == {"calls checked": 1, "constraints restated": 1}
    assert str(parse_module(str(module))) == str(module)
    assert str(legalized(verdict, "engine")[0]) == str(module_of(verdict))


def test_a_regex_with_too_many_texts_is_refused_and_told_why() -> None:
    error = str(refused(several, 'legalize{backend="openai"}'))
    assert "cannot enforce a regex" in error and "a regex with at most 250 texts is enforced too" in error
    assert f"{Path(__file__).name}:{line_of(several, 'sgl.gen')}" in error


def test_samples_are_calls_of_their_own_where_a_backend_gives_one() -> None:
    module, counts = legalized(sampled, "anthropic")
    assert str(module) == str(module_of(sampled))
    assert counts == {"calls checked": 1, "samples drawn by calls of their own": 3}


CHOOSES = Capabilities(name="chooses", constraints=frozenset({"choices"}))
SCHEMAS = Capabilities(name="schemas", constraints=frozenset({"json_schema"}))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text('ab1.é"{ \n', max_size=4), min_size=1, max_size=12))
def test_choices_are_the_texts_of_the_regex(texts: list[str]) -> None:
    pattern = "|".join(re.escape(t) for t in texts)
    found = restated(CHOOSES, Constraint("regex", f"({pattern})"))
    assert found is not None and found.kind == "choices"
    assert sorted(json.loads(found.source)) == sorted(set(texts))


@pytest.mark.parametrize(
    ("pattern", "values"),
    [
        ("[1-5]", [1, 2, 3, 4, 5]),
        ("-?1", [-1, 1]),
        ("true|false", [False, True]),
        ('"(yes|no)"', ["no", "yes"]),
        ("yes|no", None),  # not JSON as they stand
        ("0?[12]", None),  # nor is 01
        ("1\\.0|2", None),  # 1.0 may be written in other ways
        ("[0-9]+", None),
        ("[", None),
    ],
)
def test_a_schema_says_exactly_the_same_or_nothing_does(pattern: str, values: list[Any] | None) -> None:
    found = restated(SCHEMAS, Constraint("regex", pattern))
    if values is None:
        assert found is None
        return
    assert found is not None and sorted(json.loads(found.source)["enum"], key=str) == sorted(values, key=str)
    schema = compile_constraint("json_schema", found.source)
    regex = compile_constraint("regex", pattern)
    for text in regex.texts() or []:
        assert schema.accepts(text)


def test_what_a_backend_enforces_is_not_touched() -> None:
    constraint = Constraint("regex", "a|b")
    assert (
        restated(Capabilities(name="x", constraints=frozenset({"regex", "choices"})), constraint)
        is constraint
    )
    assert restated(CHOOSES, Constraint("json_schema", '{"enum": ["a"]}')) is None
    assert restated(Capabilities(name="none"), constraint) is None


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
