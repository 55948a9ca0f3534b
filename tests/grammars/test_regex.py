"""Regular expressions against Python's `re`, and what is refused, with its full text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grammar.constraint_errors import RegexError, TooLarge
from grammar.fsm import Fsm
from grammar.regex import compile_regex
from grammar.term_arena import Limits

ALPHABET = "ab01_ -\né日🙂"


def _atoms() -> st.SearchStrategy[str]:
    escaped = st.sampled_from(ALPHABET).map(re.escape)
    sets = st.sampled_from(
        [r"[ab]", r"[^a]", r"[a-c0]", r"[^\d]", r"[\w-]", r"[é-日]", r"[^\s\S]", r"[]a]", r"\d", r"\w", r"\s"]
    )
    return st.one_of(
        escaped, sets, st.sampled_from([".", r"\D", r"\W", r"\S", "(?:)", r"\x61", r"é", r"\061"])
    )


def _wider(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    quantifier = st.sampled_from(
        ["*", "+", "?", "{2}", "{0,2}", "{1,3}", "{2,}", "{,2}", "*?", "+?", "{1,2}?"]
    )
    return st.one_of(
        st.lists(inner, max_size=4).map("".join),
        st.lists(inner, min_size=2, max_size=4).map(lambda x: f"({'|'.join(x)})"),
        st.tuples(inner, quantifier).map(lambda x: f"(?:{x[0]}){x[1]}"),
        st.tuples(st.sampled_from(["(?i:", "(?s:", "(?P<n>", "("]), inner).map(
            lambda x: f"{x[0]}{x[1]})" if "P<n>" not in x[1] or x[0] != "(?P<n>" else x[1]
        ),
    )


PATTERNS = st.recursive(_atoms(), _wider, max_leaves=8)


def _valid(pattern: str) -> bool:
    try:
        re.compile(pattern, re.ASCII)
    except re.error:
        return False
    return True


@settings(max_examples=300, deadline=None)
@given(PATTERNS.filter(_valid), st.lists(st.text(ALPHABET + "cZ", max_size=6), max_size=12))
def test_accepts_what_fullmatch_accepts(pattern: str, texts: list[str]) -> None:
    fsm = compile_regex(pattern)
    for text in texts:
        assert fsm.accepts(text) == bool(re.fullmatch(pattern, text, re.ASCII)), (pattern, text)
    witness = fsm.witness()
    assert fsm.is_empty == (witness is None)
    if witness is not None:
        assert re.fullmatch(pattern, witness.decode(), re.ASCII)


@settings(max_examples=100, deadline=None)
@given(PATTERNS.filter(_valid), PATTERNS.filter(_valid), st.lists(st.text(ALPHABET, max_size=5), max_size=8))
def test_products_are_boolean(one: str, two: str, texts: list[str]) -> None:
    a, b = compile_regex(one), compile_regex(two)
    both, either, only, other = a.intersection(b), a.union(b), a.difference(b), a.complement()
    for text in texts:
        in_a, in_b = a.accepts(text), b.accepts(text)
        assert both.accepts(text) == (in_a and in_b)
        assert either.accepts(text) == (in_a or in_b)
        assert only.accepts(text) == (in_a and not in_b)
        assert other.accepts(text) != in_a
    assert a.contains(both) and either.contains(b)
    assert other.complement().equivalent(a)


@settings(max_examples=100, deadline=None)
@given(PATTERNS.filter(_valid))
def test_tables_are_minimal_and_live(pattern: str) -> None:
    fsm = compile_regex(pattern)
    if fsm.is_empty:
        assert fsm.states == 1 and (fsm.table < 0).all()
        return
    rows = {(fsm.accepting[s], fsm.table[s].tobytes()) for s in range(fsm.states)}
    assert len(rows) == fsm.states
    assert all(fsm.witness(s) is not None for s in range(fsm.states))
    assert len(np_unique_columns(fsm)) == fsm.classes


def np_unique_columns(fsm: Fsm) -> set[bytes]:
    return {fsm.table[:, c].tobytes() for c in range(fsm.classes)}


@settings(max_examples=60, deadline=None)
@given(PATTERNS.filter(_valid))
def test_finite_languages_are_listed(pattern: str) -> None:
    fsm = compile_regex(pattern)
    texts = fsm.texts(2000)
    if texts is None:
        return
    assert len(set(texts)) == len(texts)
    assert all(fsm.accepts(t) for t in texts)
    assert fsm.longest == max(map(len, texts), default=0)
    if texts:
        assert len(fsm.witness() or b"") == min(map(len, texts))


@pytest.mark.parametrize("flags", ["", "(?u)", "(?i)", "(?iu)"])
@pytest.mark.parametrize("body", [r"\d", r"\w", r"\s", r"\W", ".", "k", "[^ſ]", "i", "[À-Þ]", "ß"])
def test_one_character_of_all_unicode(flags: str, body: str) -> None:
    python = re.compile(flags + body) if "u" in flags else re.compile(flags + body, re.ASCII)
    fsm = compile_regex(flags + body)
    for point in [*range(0x3000), *range(0x1F80, 0x2200), 0xFB05, 0xFB06, 0xFF21, 0x1D7CE, 0x10FFFF, 0x212A]:
        if not 0xD800 <= point <= 0xDFFF:
            assert fsm.accepts(chr(point)) == bool(python.fullmatch(chr(point))), hex(point)


def test_lazy_is_greedy_and_anchors_at_the_ends_are_free() -> None:
    for one, two in [
        ("a+?b", "a+b"),
        ("^abc$", "abc"),
        (r"\Aa|b\Z", "a|b"),
        ("(^a|b)c$", "(a|b)c"),
        ("x*?", "x*"),
    ]:
        assert compile_regex(one).equivalent(compile_regex(two))


REFUSED = {
    r"(?=.*\d)[a-z]{4}": "lookahead (?=...) are not supported: the constraint must be a plain language at position 0",
    r"(?!admin)[a-z]+": "negative lookahead (?!...) are not supported: the constraint must be a plain language at position 0",
    r"(?<=a)b": "lookbehind (?<=...) are not supported: the constraint must be a plain language at position 0",
    r"(a|b)\1": "back-references are not supported: the language is not regular at position 5",
    r"(?P<q>a)(?P=q)": "back-references (?P=...) are not supported: the constraint must be a plain language at position 8",
    r"a\b": "word boundaries (\\b) are not supported at position 1",
    r"a$b": "'$' before something that takes text never matches at position 1",
    r"a^b": "'^' after something that takes text never matches at position 1",
    r"x(?>ab)": "atomic groups (?>...) are not supported: the constraint must be a plain language at position 1",
    r"a*+": "possessive quantifiers are not supported; they change what matches at position 2",
    r"foo**": "multiple repeat; put the repeated part in a group (?:...) at position 4",
    r"*a": "nothing to repeat at position 0",
    r"(ab": "this '(' is not closed at position 0",
    r"ab)": "')' without '(' at position 2",
    r"[ab": "this '[' is not closed at position 0",
    r"[b-a]": "this range ends before it begins at position 1",
    r"a{3,2}": "the least number of repeats, 3, is above the greatest, 2 at position 1",
    r"a{99999999}": "a repeat of 99999999, the limit is 1048576 at position 1",
    r"\q": "unknown escape \\q at position 0",
    r"(?z)a": "unknown extension ?z at position 2",
    "a\\": "the pattern ends in a backslash at position 1",
}


@pytest.mark.parametrize("pattern", REFUSED)
def test_refusals_name_the_place(pattern: str) -> None:
    with pytest.raises(RegexError) as caught:
        compile_regex(pattern)
    head, line, caret = str(caught.value).split("\n")
    assert head == REFUSED[pattern]
    assert line == f"  {pattern}" and caret == "  " + " " * caught.value.position + "^"


def test_deep_nesting_is_refused_at_once() -> None:
    with pytest.raises(RegexError, match="nested deeper than 100"):
        compile_regex("(" * 30_000 + "a" + ")" * 30_000)
    with pytest.raises(RegexError, match="the limit is 65536"):
        compile_regex("a" * 70_000)


def test_explosion_is_bounded_and_blamed() -> None:
    with pytest.raises(TooLarge) as caught:
        compile_regex("x(a|b)*a(a|b){20}y", limits=Limits(states=20_000))
    assert "more than 20,000 states" in str(caught.value) and "the part that grows is" in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "states"),
    [
        ("a{0,5000}b", 5002),
        ("(a|b)*a(a|b){12}", 8192),
        ("(a+)+b", 3),
        ("((a{0,10}){0,10}){0,10}b", 1002),
        (r"\w{1,1000}", 1001),
    ],
)
def test_hard_shapes_have_their_minimal_size(pattern: str, states: int) -> None:
    assert compile_regex(pattern).states == states


def test_forced_text_stops_where_the_text_may_end() -> None:
    fsm = compile_regex('a(bc)?|xyz"[0-9]"')
    assert fsm.forced_text(fsm.run(b"a")) == b""
    assert fsm.forced_text(fsm.run(b"ab")) == b"c"
    assert fsm.forced_text(fsm.run(b"x")) == b'yz"'


def test_dot_output() -> None:
    assert compile_regex("[ab]").to_dot() == (
        'digraph fsm {\n  rankdir=LR;\n  start [shape=point]; start -> "0";\n'
        '  "0" [shape=circle];\n  "0" -> "1" [label="a-b"];\n  "1" [shape=doublecircle];\n}'
    )


def test_flags_may_stand_apart_at_the_start() -> None:
    fsm = compile_regex("(?#both)(?i)(?s)a.")
    assert fsm.accepts("A\n") and not fsm.accepts("b\n")
