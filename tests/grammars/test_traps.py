"""Traps that engines of constrained decoding were found in, and inputs that took them down: each answered, or refused with why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grammar.automaton import TokenAutomaton
from grammar.compile import CompiledConstraint, compile_constraint
from grammar.constraint_errors import ConstraintError, RegexError, SchemaError, TooLarge, Unsatisfiable
from grammar.store import ConstraintStore
from grammar.vocabulary import Vocabulary
from runtime.api import Constraint
from runtime.constrain.cache import ConstraintCache
from runtime.constrain.jump import Cuts, JumpForward
from runtime.constrain.matcher import Matcher
from runtime.errors import InvalidRequest

BYTES = [bytes([b]) for b in range(256)]
EOS = 256
VOCABULARY = Vocabulary.of([*BYTES, b"</s>"], eos=[EOS])


def automaton(kind: str, source: Any, vocabulary: Vocabulary = VOCABULARY) -> TokenAutomaton:
    found = compile_constraint(kind, source, vocabulary).automaton  # type: ignore[arg-type]
    assert found is not None
    return found


def allowed(machine: TokenAutomaton, text: bytes) -> set[int]:
    row = machine.allowed(machine.advance_bytes(0, text))
    return set(np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist())


def schema_of(depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        found = {"type": "array", "items": found}
    return found


# right and wrong answers


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("a(bc)?", "abc"),
        (r"3(\.5)?", "3.5"),
        ("(a|ab)", "ab"),
        ("[0-9]+(e[0-9]+)?", "3e1"),
        ("[0-9]{1,3}", "123"),
    ],
)
def test_an_accepting_state_does_not_cut_off_what_goes_on_from_it(pattern: str, text: str) -> None:
    machine, state = automaton("regex", pattern), 0
    for k, byte in enumerate(text.encode()):
        assert byte in allowed(machine, text.encode()[:k])
        state = machine.step(state, byte)
    assert machine.can_end(state)


def test_the_end_stands_beside_what_may_follow_and_only_where_a_text_is_complete() -> None:
    machine = automaton("regex", "[0-9]{1,3}")
    assert EOS not in allowed(machine, b"")
    assert allowed(machine, b"1") == {EOS, *b"0123456789"}
    assert allowed(machine, b"123") == {EOS}


def test_a_forced_run_stops_where_the_text_may_end() -> None:
    assert automaton("regex", "abc(def)?").forced(0) == b"abc"
    assert automaton("regex", "ab(c)*").forced(0) == b"ab"


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("regex", r"[^\s\S]"),
        ("json_schema", {"type": "integer", "minimum": 2, "maximum": 1}),
        ("json_schema", {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}),
    ],
)
def test_what_no_text_fulfils_is_refused_when_it_is_compiled(kind: str, source: Any) -> None:
    with pytest.raises(Unsatisfiable):
        automaton(kind, source)


@pytest.mark.parametrize(
    "source",
    [
        {"$ref": "#"},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    ],
)
def test_a_reference_that_only_leads_to_itself_is_refused(source: Any) -> None:
    with pytest.raises(SchemaError, match="a reference leads back here"):
        automaton("json_schema", source)


def test_special_tokens_handed_over_with_their_text_stay_out_of_strings() -> None:
    vocabulary = Vocabulary.of([*BYTES, b"<tool>", b"</s>"], eos=[257], special=[256])
    assert 256 not in allowed(automaton("json_schema", {"type": "string"}, vocabulary), b'"a')
    assert 256 not in allowed(automaton("regex", ".*", vocabulary), b"a")


def test_tokens_that_are_parts_of_characters_can_be_written_and_forced() -> None:
    machine = automaton("regex", "[日本語🙂é]{2}")
    for text in ("日🙂", "éé"):
        assert machine.can_end(machine.advance_bytes(0, text.encode()))
    assert machine.forced(machine.advance_bytes(0, "🙂".encode()[:2])) == "🙂".encode()[2:]
    jump = JumpForward(machine, Cuts(lambda text: list(text.encode())))
    for cut in range(1, 8):
        state = machine.advance_bytes(0, "日🙂".encode()[:cut])
        assert bytes(jump.tokens(state, list("日🙂".encode()[:cut]))) in "日🙂".encode()


def test_every_token_of_a_forced_run_is_allowed_not_only_the_longest() -> None:
    vocabulary = Vocabulary.of([*BYTES, b'{"', b'{"a', b"</s>"], eos=[258])
    schema = {
        "type": "object",
        "properties": {"a": {"type": "null"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    assert allowed(automaton("json_schema", schema, vocabulary), b"") == {ord("{"), 256, 257}


def test_two_ids_with_the_same_bytes_are_both_allowed() -> None:
    vocabulary = Vocabulary.of([*BYTES, b"a", b"</s>"], eos=[257])
    assert allowed(automaton("regex", "a+", vocabulary), b"") == {ord("a"), 256}


def test_tokens_may_span_the_end_of_a_field() -> None:
    vocabulary = Vocabulary.of([*BYTES, b'":', b'","b":', b"</s>"], eos=[258])
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "null"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    machine = automaton("json_schema", schema, vocabulary)
    assert 257 in allowed(machine, b'{"a":"x') and 256 not in allowed(machine, b'{"a":"x')


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        (r"\d", "7", "٧"), (r"\w", "a", "é"), (r"(?u)\w", "é", "-"), (r"\s", " ", "\u00a0"),
        (".", "é", "\n"), ("(?s).", "\n", ""), ("^abc$", "abc", "abcd"), ("(?i)abc", "aBC", "abd"),
        ("", "", "a"), ("a+?b", "aab", "b"),
    ],
)  # fmt: skip
def test_the_dialect_of_regexes(pattern: str, yes: str, no: str) -> None:
    found = compile_constraint("regex", pattern, VOCABULARY)
    assert found.accepts(yes) and not found.accepts(no)


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("(?=a)b", "lookahead"), ("(?!admin)[a-z]{3,8}", "lookahead"), ("(?<=a)b", "lookbehind"), ("(?<!a)b", "lookbehind"), (r"(a)\1", "back-references"), (r"\bword", "word boundaries"),
        ("a$b", "never matches"), ("foo**", "multiple repeat"), ("[", "position"), ("(", "position"), ("a{3,2}", "position"),
    ],
)  # fmt: skip
def test_what_is_no_regular_expression_is_refused_with_its_place(pattern: str, why: str) -> None:
    with pytest.raises(RegexError, match=why):
        automaton("regex", pattern)


@pytest.mark.parametrize(
    "source",
    [
        {"uniqueItems": True}, {"type": "objekt"}, {"format": "no such format"}, {"$ref": "http://elsewhere/schema"},
        {"enum": "red"}, {"properties": []}, {"pattern": "(?=a)b"},
    ],
)  # fmt: skip
def test_a_keyword_that_is_not_enforced_is_refused_with_its_pointer(source: Any) -> None:
    with pytest.raises(ConstraintError, match="#"):
        automaton("json_schema", source)


@pytest.mark.parametrize(
    ("schema", "yes", "no"),
    [
        ({"not": {"type": "integer"}}, ["a"], 3),
        ({"oneOf": [{"type": "integer"}, {"minimum": 3}]}, 2, 5),
        ({"allOf": [{"minimum": 3}, {"maximum": 5}], "type": "integer"}, 4, 6),
        (
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"a": 1, "b": 2},
            {"b": 2},
        ),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, {"a": 1, "b": 2}, {"a": 1}),
    ],
)
def test_keywords_that_others_drop_are_enforced_or_refused(schema: Any, yes: Any, no: Any) -> None:
    try:
        found = compile_constraint("json_schema", schema, VOCABULARY)
    except SchemaError as error:
        assert "#" in str(error)
        return
    assert found.accepts(json.dumps(yes, separators=(",", ":"))) and not found.accepts(
        json.dumps(no, separators=(",", ":"))
    )


# what took servers down


@pytest.mark.parametrize(
    "pattern",
    [
        "(a|b)*a(a|b){12}", "(a|b)*a(a|b){20}", "a{0,5000}b", "((a{0,100}){0,100}){0,100}b", ".{0,200}", r"[\w\d\s]{1,16}",
        r"\w{1,1000}", "(a+)+b", "(a|a)*b", "(.*a){25}",
    ],
)  # fmt: skip
def test_regexes_that_explode_elsewhere(pattern: str) -> None:
    machine = automaton("regex", pattern)
    assert ord("a") in allowed(machine, b"") and machine.min_tokens >= 0
    assert machine.nbytes < 64 << 20


def test_wide_repeats_in_a_string() -> None:
    machine = automaton("json_schema", {"type": "string", "pattern": r"^[^\n\r]{1,129}$"})
    assert EOS not in allowed(machine, b'"x') and allowed(machine, b'"' + b"x" * 129) == {ord('"')}


@pytest.mark.parametrize("depth", [320, 3_000, 50_000])
def test_deep_schemas_are_refused(depth: int) -> None:
    with pytest.raises(TooLarge, match="nested deeper than 200"):
        automaton("json_schema", schema_of(depth))


def test_deep_texts_and_patterns() -> None:
    assert compile_constraint("json_schema", schema_of(160), VOCABULARY).accepts("[" * 160 + "7" + "]" * 160)
    assert compile_constraint("json_schema", {}, VOCABULARY).accepts("[" * 3_000 + "]" * 3_000)
    with pytest.raises(TooLarge, match="nested deeper than 200"):
        automaton("json_schema", '{"a":' * 50_000)
    with pytest.raises(RegexError, match="nested deeper than 100"):
        automaton("regex", "(" * 5_000 + ")" * 5_000)


def test_an_enum_of_twenty_thousand_texts_is_a_tree() -> None:
    found = compile_constraint("json_schema", {"enum": [f"value {i}" for i in range(20_000)]}, VOCABULARY)
    assert (
        found.accepts('"value 19999"') and not found.accepts('"value 20000"') and found.accepts('"value 7"')
    )
    assert found.automaton is not None and found.automaton.nbytes < 4 << 20


@pytest.mark.parametrize("bounds", [{}, {"additionalProperties": False}, {"maxProperties": 20}])
def test_two_thousand_optional_properties(bounds: dict[str, Any]) -> None:
    names = [f"property {i}" for i in range(2_000)]
    schema = {"type": "object", "properties": {n: {"type": "boolean"} for n in names}, **bounds}
    found = compile_constraint("json_schema", schema, VOCABULARY)
    some = names[::100]
    for chosen, good in ((some, True), ([*some, "property 1999"], "maxProperties" not in bounds)):
        value = json.dumps(dict.fromkeys(chosen, True), separators=(",", ":"))
        assert found.accepts(value) == good, chosen
    assert not found.accepts('{"property 7":1}')
    assert found.accepts('{"property 2000":1}') != ("additionalProperties" in bounds)


def test_an_enum_of_texts_that_begin_each_other() -> None:
    words = ["a" * i for i in range(1, 300)]
    found = compile_constraint("json_schema", {"enum": words}, VOCABULARY)
    assert all(found.accepts(json.dumps(w)) for w in words) and not found.accepts(json.dumps("a" * 300))


@pytest.mark.parametrize(
    "schema", [{"type": "string", "maxLength": 100_000}, {"type": "string", "minLength": 100_000}]
)
def test_long_lengths_are_counted_not_spelled_out(schema: Any) -> None:
    found = compile_constraint("json_schema", schema, VOCABULARY)
    assert found.accepts(json.dumps("x" * 100_000)) and found.report().states < 10


def test_many_items_are_bounded() -> None:
    machine = automaton("json_schema", {"type": "array", "items": {"type": "integer"}, "maxItems": 100_000})
    assert machine.nbytes < 16 << 20


def test_nul_bytes_and_control_characters() -> None:
    assert compile_constraint("regex", "a\x00b", VOCABULARY).accepts("a\x00b")
    schema = {
        "type": "object",
        "properties": {"a\n\x00": {"type": "null"}},
        "required": ["a\n\x00"],
        "additionalProperties": False,
    }
    found = compile_constraint("json_schema", schema, VOCABULARY)
    assert found.accepts(json.dumps({"a\n\x00": None}, separators=(",", ":")))
    assert not {0, 10} & allowed(automaton("json_schema", {"type": "string"}), b'"')
    for names in ({}, {"properties": {"ab": {}}}, {"patternProperties": {"^[^a]*$": {}}}):
        assert not {0, 10, 0x7F + 1} & allowed(automaton("json_schema", {"type": "object", **names}), b'{"a')


def test_what_is_kept_is_bounded_and_refusals_cost_nothing_twice(tmp_path: Path) -> None:
    cache = ConstraintCache(VOCABULARY, capacity=4)
    for k in range(20):
        cache.get(Constraint("regex", f"a{{{k + 1}}}"))
        with pytest.raises(InvalidRequest):
            cache.get(Constraint("regex", f"({k}"))
    assert len(cache) == 4
    store = ConstraintStore(tmp_path, max_bytes=40_000)
    for k in range(20):
        compile_constraint("regex", f"[a-z]{{{k + 1}}}", VOCABULARY, store=store)
    assert sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file()) <= 40_000


def test_a_budget_below_the_shortest_text_is_refused_and_one_above_always_ends() -> None:
    found: CompiledConstraint = compile_constraint(
        "json_schema", {"type": "string", "minLength": 3}, VOCABULARY
    )
    assert found.automaton is not None
    with pytest.raises(InvalidRequest, match="takes 5 tokens"):
        Matcher(found.automaton, 4)
    place = Matcher(found.automaton, 6)
    while not place.can_end:
        place.advance(int(np.flatnonzero(place.mask_bool())[-1]))
    assert place.used <= 6


def test_a_text_longer_than_any_answer_is_refused_before_it_is_spelled_out() -> None:
    """As `(a{1000}){1000}`: a million states, and 40 s until they were found to be too many."""
    with pytest.raises(TooLarge, match=r"the shortest text that matches has more than 131,072 bytes"):
        automaton("regex", "(a{1000}){1000}")
