"""The engine's compiled constraints: kept, bounded, refused as the caller's error."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from typing import Any

import pytest

from grammar.compile import Options
from grammar.vocabulary import Vocabulary
from runtime.api import Constraint
from runtime.constrain import cache as cache_module
from runtime.constrain.cache import ConstraintCache
from runtime.constrain.jump import Cuts
from runtime.errors import InvalidRequest

VOCABULARY = Vocabulary.of([*(bytes([b]) for b in range(256)), b"</s>"], eos=[256])


def test_compiled_once_and_the_oldest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    compile_one = cache_module.compile_constraint

    def counted(kind: Any, source: Any, *args: Any, **options: Any) -> Any:
        made.append(source)
        return compile_one(kind, source, *args, **options)

    monkeypatch.setattr(cache_module, "compile_constraint", counted)
    cache = ConstraintCache(VOCABULARY, capacity=2, cuts=Cuts(lambda text: list(text.encode())))
    a, b, c = (Constraint("regex", x) for x in "abc")
    assert cache.get(a) is cache.get(a)
    cache.get(b)
    cache.get(a)
    assert cache.jump(b) is cache.jump(b)
    cache.get(a)
    cache.get(c)  # b was used longest ago
    assert len(cache) == 2 and made == ["a", "b", "c"]
    cache.get(a)
    cache.get(b)
    assert made == ["a", "b", "c", "b"]


def test_machines_are_kept_by_what_they_hold() -> None:
    """Recursion makes a machine with states in Python, many times larger than its tables."""
    cache = ConstraintCache(VOCABULARY, max_bytes=16 << 20)
    gc.collect()
    tracemalloc.start()
    for k in range(30):
        matcher = cache.matcher(
            Constraint("ebnf", f'root ::= "v{k}" item*\nitem ::= " " [a-z]+ | "(" item ")"')
        )
        for byte in f"v{k}((( ab)))".encode():
            matcher.advance(byte)
    gc.collect()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 1 < len(cache) < 20 and cache.held_bytes <= 16 << 20
    assert held < 2 * (16 << 20)


@pytest.mark.parametrize(
    ("constraint", "options"),
    [
        (Constraint("regex", "[a-z]{1,9}"), Options()),
        (Constraint("ebnf", 'root ::= "v" item*\nitem ::= " " [a-z]+ | "(" item ")"'), Options()),
        (Constraint("json_schema", '{"properties": {"a": {"pattern": "^[a-z]{1,3}$"}}}'), Options()),
        (Constraint("json_schema", '{"properties": {"a": {}, "b": {}}}'), Options(any_order=True)),
    ],
    ids=["regex", "ebnf", "schema", "any order"],
)
def test_what_goes_is_free_at_once(constraint: Constraint, options: Options) -> None:
    """And not when cycles are next looked for: that is seldom, and machines have megabytes in few objects."""
    cache = ConstraintCache(
        VOCABULARY, capacity=1, options=options, cuts=Cuts(lambda text: list(text.encode()))
    )
    automaton = cache.get(constraint).automaton
    assert automaton is not None
    automaton.allowed(automaton.start)
    automaton.allowed_within(automaton.start, 20)
    cache.jump(constraint)
    gone = weakref.ref(automaton)
    gc.collect()
    gc.disable()
    try:
        del automaton
        assert gone() is not None
        cache.get(Constraint("regex", "x"))
        assert gone() is None
    finally:
        gc.enable()


def test_refusals_are_the_callers_and_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ConstraintCache(VOCABULARY)
    bad = Constraint("json_schema", '{"properties": {"a": {"format": "phone"}}}')
    for _ in range(2):
        with pytest.raises(
            InvalidRequest, match=r"json_schema is refused: #/properties/a/format: the format 'phone'"
        ) as caught:
            cache.get(bad)
        monkeypatch.setattr(cache_module, "compile_constraint", None)
    assert caught.value.param == "json_schema" and caught.value.status == 400


def test_a_grammar_is_refused_with_its_place() -> None:
    with pytest.raises(InvalidRequest, match=r"ebnf is refused: there is no rule .x. at line 1, column 10"):
        ConstraintCache(VOCABULARY).get(Constraint("ebnf", "root ::= x"))


def test_matchers_share_what_was_compiled() -> None:
    cache = ConstraintCache(VOCABULARY)
    constraint = Constraint("regex", "ab*")
    one, two = cache.matcher(constraint, 5), cache.matcher(constraint)
    assert one.automaton is two.automaton
    one.advance(ord("a"))
    assert (one.used, two.used) == (1, 0) and cache.jump(constraint) is None
    with pytest.raises(InvalidRequest, match="the shortest text of the constraint takes 1 tokens"):
        cache.matcher(constraint, 0)
