"""The door: reports, stored tables, what is too large for a table, every trap and flood that is known."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grammar import compile as door
from grammar.compile import compile_constraint
from grammar.constraint_errors import ConstraintError, TooLarge
from grammar.store import MAGIC, ConstraintStore, store_key
from grammar.term_arena import Limits
from grammar.token_fsm import TokenFsm
from grammar.token_pushdown import TokenPushdown
from grammar.vocabulary import Vocabulary

WORDS = [b"ab", b"abc", b"bc", b"10", b"aa", b"aaaa", "é".encode(), b"\xa9x"]
VOCABULARY = Vocabulary.of([*(bytes([b]) for b in range(256)), *WORDS, b"</s>"], eos=[256 + len(WORDS)])


@pytest.mark.parametrize(
    ("kind", "source"), [("regex", "\ud800"), ("ebnf", 'root ::= "\ud800"'), ("choices", ["a", "\udc00"])]
)
def test_half_of_a_surrogate_pair_is_refused(kind: Any, source: Any) -> None:
    with pytest.raises(ConstraintError):
        compile_constraint(kind, source)


def test_report_of_a_table() -> None:
    report = compile_constraint("regex", "(ab){2}c?", VOCABULARY).report()
    assert (report.engine, report.states, report.min_tokens, report.max_tokens) == ("table", 6, 2, 5)
    assert (report.min_bytes, report.max_bytes, report.witness, report.forced) == (4, 5, "abab", "abab")
    assert report.exact and report.classes is not None and report.bytes > 0


def test_report_without_a_vocabulary() -> None:
    for kind, source in [("regex", "[0-9]+"), ("json_schema", {"type": "integer", "minimum": 0})]:
        report = compile_constraint(kind, source).report()  # type: ignore[arg-type]
        assert report.min_tokens is None and report.min_bytes == 1 and report.witness == "0"


def test_choices_and_types() -> None:
    choice = compile_constraint("choices", ["yes", "no", "yesterday"], VOCABULARY)
    assert choice.texts() == ["no", "yes", "yesterday"]
    assert (
        choice.accepts("yes") and not choice.accepts("ye") and choice.begins("ye") and not choice.begins("x")
    )
    assert compile_constraint("choices", '["a", "b"]').texts() == ["a", "b"]
    for dtype, good, bad in [
        (int, "-12 \n", "1.5"),
        (float, "+.5", "."),
        ("bool", "True", "true"),
        (str, '"a 1"', "a"),
    ]:
        constraint = compile_constraint("dtype", dtype)
        assert constraint.accepts(good) and not constraint.accepts(bad)
    with pytest.raises(ConstraintError, match="dtype is one of int, float, str, bool, not 'complex'"):
        compile_constraint("dtype", complex)
    with pytest.raises(ConstraintError, match="choices is a list of texts"):
        compile_constraint("choices", [])
    with pytest.raises(ConstraintError, match="not 'xml'"):
        compile_constraint("xml", "start: a")  # type: ignore[arg-type]


def test_digest_depends_on_what_is_enforced() -> None:
    one = compile_constraint("json_schema", {"properties": {"a": {}, "b": {}}}).digest
    assert one == compile_constraint("json_schema", '{"properties": {"a": {}, "b": {}}}').digest
    assert one != compile_constraint("json_schema", {"properties": {"b": {}, "a": {}}}).digest
    assert (
        one
        != compile_constraint(
            "json_schema", {"properties": {"a": {}, "b": {}}}, options=door.Options("spaced")
        ).digest
    )


# too large for a table

SMALL = Limits(states=50, seconds=5.0)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["(a|b)*a(a|b){3}", "a{0,30}b", "(ab|c){2,9}", "[a-z]{1,4}0|é{2,3}", "(a|10)*(bc)?"]),
    st.lists(st.sampled_from([*WORDS, b"a", b"b", b"c", b"0", b"1"]), max_size=8),
)
def test_a_machine_answers_as_the_table_does(pattern: str, tokens: list[bytes]) -> None:
    table = compile_constraint("regex", pattern, VOCABULARY).automaton
    machine = door._compile_large(
        "regex", pattern, "", door.regex_syntax.parse(pattern), VOCABULARY
    ).automaton
    assert isinstance(table, TokenFsm) and isinstance(machine, TokenPushdown)
    here, there = 0, 0
    for data in [b"", *tokens]:
        if data:
            token = VOCABULARY.ids_of[data][0]
            here, there = table.step(here, token), machine.step(there, token)
            assert (here < 0) == (there < 0)
            if here < 0:
                return
        assert (table.allowed(here) == machine.allowed(there)).all()
        assert table.can_end(here) == machine.can_end(there)
        assert table.must_end(here) == machine.must_end(there)
        assert machine.tokens_to_end(there) >= table.tokens_to_end(here)
        assert table.forced(here).startswith(machine.forced(there))


def test_explosive_patterns_become_machines() -> None:
    constraint = compile_constraint("regex", "(a|b)*a(a|b){20}", VOCABULARY)
    assert isinstance(constraint.automaton, TokenPushdown)
    assert (
        not constraint.accepts("b" * 24)
        and constraint.accepts("ab" * 12 + "a")
        and constraint.accepts("a" * 21)
    )
    assert constraint.report().engine == "machine"


@pytest.mark.parametrize(
    "pattern", ["((a{0,100}){0,100}){0,100}b", r"\w{1,1000}", "a{0,5000}b", ".{0,200}", "(a+)+b"]
)
def test_counted_floods_are_answered(pattern: str) -> None:
    constraint = compile_constraint("regex", pattern, VOCABULARY)
    assert constraint.automaton is not None
    row = constraint.automaton.allowed(0)
    assert row[ord("a") >> 5] >> (ord("a") & 31) & 1


def test_forced_bytes_may_begin_and_end_inside_a_character() -> None:
    machine = compile_constraint("regex", "日(本|札)", VOCABULARY).automaton
    assert machine is not None
    forced = machine.forced(0)
    assert forced.startswith("日".encode()) and "日本".encode().startswith(forced[:4])
    assert machine.forced(machine.advance_bytes(0, "日".encode()[:1])) == forced[1:]


# the store


def table_of(tmp_path: Path) -> tuple[ConstraintStore, Path]:
    store = ConstraintStore(tmp_path)
    compile_constraint("regex", "[ab]{2,5}c", VOCABULARY, store=store)
    (path,) = tmp_path.glob("*.constraint")
    return store, path


def test_a_stored_table_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = table_of(tmp_path)
    fresh = compile_constraint("regex", "[ab]{2,5}c", VOCABULARY).automaton

    def never(*_: Any) -> None:
        raise AssertionError("compiled although it was stored")

    monkeypatch.setattr(door.TokenFsm, "of", never)
    stored = compile_constraint("regex", "[ab]{2,5}c", VOCABULARY, store=store).automaton
    assert isinstance(stored, TokenFsm) and isinstance(fresh, TokenFsm)
    for name in ("next", "class_of", "distance"):
        assert (getattr(stored, name) == getattr(fresh, name)).all()
        assert getattr(stored, name).dtype == getattr(fresh, name).dtype
    assert (stored.allowed(0) == fresh.allowed(0)).all()
    assert stored.longest == fresh.longest


def test_another_vocabulary_is_another_file(tmp_path: Path) -> None:
    store, _ = table_of(tmp_path)
    other = Vocabulary.of([bytes([b]) for b in range(256)] + [b"</s>"], eos=[256])
    constraint = compile_constraint("regex", "[ab]{2,5}c", other, store=store)
    assert constraint.automaton is not None and constraint.automaton.vocabulary is other
    assert len(list(tmp_path.glob("*.constraint"))) == 2


@pytest.mark.parametrize("damage", ["cut", "flip", "header", "empty", "text", "longer"])
def test_a_damaged_file_is_compiled_again(tmp_path: Path, damage: str) -> None:
    store, path = table_of(tmp_path)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "flip":
        data[-3] ^= 1
    elif damage == "header":
        data[len(MAGIC) + 6] ^= 0xFF
    elif damage == "empty":
        data = bytearray()
    elif damage == "text":
        data = bytearray(b"not a table")
    else:
        data += b"more"
    path.write_bytes(bytes(data))
    assert store.load(path.stem) is None and not path.exists()
    again = compile_constraint("regex", "[ab]{2,5}c", VOCABULARY, store=store)
    assert again.accepts("abc") and path.exists()


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.text("abc", min_size=1, max_size=3), st.lists(st.integers(-5, 5), max_size=6), max_size=4
    )
)
def test_arrays_come_back(tmp_path_factory: pytest.TempPathFactory, values: dict[str, list[int]]) -> None:
    store = ConstraintStore(tmp_path_factory.mktemp("store"))
    arrays = {name: np.array(v, np.int16) for name, v in values.items()}
    key = store_key("x", repr(values))
    assert store.save(key, arrays)
    found = store.load(key)
    assert found is not None and found.keys() == arrays.keys()
    assert all((found[n] == arrays[n]).all() and found[n].dtype == arrays[n].dtype for n in arrays)
    assert store.load(store_key("y")) is None


def test_the_store_is_bounded_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    store = ConstraintStore(tmp_path, max_bytes=5000)
    for i in range(8):
        assert store.save(store_key(str(i)), {"a": np.zeros(150, np.int64)})
        os.utime(store.path(store_key(str(i))), (i, i))
    left = sorted(p.stem for p in tmp_path.iterdir())
    assert left == sorted(store_key(str(i)) for i in (5, 6, 7))


def test_a_folder_that_cannot_be_written_costs_nothing_else(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    constraint = compile_constraint("regex", "ab", VOCABULARY, store=ConstraintStore(blocked / "below"))
    assert constraint.accepts("ab")


def test_no_byte_of_a_file_may_change(tmp_path: Path) -> None:
    """Names, kinds and shapes of the arrays are held by the checksum too."""
    store, path = table_of(tmp_path)
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        assert store.load(path.stem) is None, at


def test_a_damaged_file_that_cannot_be_removed_is_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ConstraintStore(tmp_path)
    compile_constraint("regex", "a+b", VOCABULARY, store=store)
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"damaged")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(Path, "unlink", refuse)
    assert compile_constraint("regex", "a+b", VOCABULARY, store=store).accepts("aab")
    monkeypatch.setattr(Path, "exists", refuse)  # as of a folder that may not be looked into
    assert not store.save("key", {})


def test_a_user_without_a_home_compiles_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", fail)
    store = ConstraintStore.default()
    assert compile_constraint("regex", "a+b", VOCABULARY, store=store).accepts("aab")
    assert not store.save("key", {})


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    old, new = tmp_path / "old.partial", tmp_path / "new.partial"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    compile_constraint("regex", "a+b", VOCABULARY, store=ConstraintStore(tmp_path))
    assert not old.exists() and new.exists()


def test_a_key_tells_its_parts_apart() -> None:
    assert store_key("ab", "c") != store_key("a", "bc") != store_key("abc")


def test_too_large_without_a_vocabulary_says_where() -> None:
    with pytest.raises(TooLarge, match="the part that grows is"):
        compile_constraint("regex", "x(a|b)*a(a|b){20}")
