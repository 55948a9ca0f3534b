"""Grammars: what they accept against all texts that their rules spell, both ways of writing, refusals with their place."""

from __future__ import annotations

import itertools
import json
import re

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from grammar.automaton import TokenAutomaton
from grammar.compile import CompiledConstraint, compile_constraint
from grammar.constraint_errors import ConstraintError, TooLarge, Unsatisfiable
from grammar.ebnf.syntax import COMMON, EbnfError
from grammar.token_pushdown import TokenPushdown
from grammar.vocabulary import Vocabulary

LETTERS = "ab("
LONGEST = 5
VOCABULARY = Vocabulary.of(
    [bytes([b]) for b in range(256)] + [b"ab", b"ba", b"aab", b"((", b"b(", b"1+", b"+(", b"))", b""],
    eos=[264],
)


def ebnf(source: str, vocabulary: Vocabulary | None = None) -> CompiledConstraint:
    return compile_constraint("ebnf", source, vocabulary)


# -- random grammars against all texts that they spell ------------------------------------------------------------

Tree = tuple  # ("text", s) | ("rule", k) | ("cat", ...) | ("alt", ...) | ("rep", tree, low, high)


def trees(rules: int) -> st.SearchStrategy[Tree]:
    leaves = st.one_of(
        st.tuples(st.just("text"), st.text(LETTERS, min_size=1, max_size=2)),
        st.tuples(st.just("rule"), st.integers(0, rules - 1)),
    )

    def larger(inner: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
        several = st.lists(inner, min_size=2, max_size=3).map(tuple)
        return st.one_of(
            several.map(lambda t: ("cat", *t)),
            several.map(lambda t: ("alt", *t)),
            st.tuples(st.just("rep"), inner, st.integers(0, 1), st.sampled_from([1, 2, None])),
        )

    return st.recursive(leaves, larger, max_leaves=6)


grammars = st.integers(1, 3).flatmap(lambda n: st.lists(trees(n), min_size=n, max_size=n))


def written(tree: Tree) -> str:
    kind, *rest = tree
    if kind == "text":
        return json.dumps(rest[0])
    if kind == "rule":
        return "root" if rest[0] == 0 else f"r{rest[0]}"
    if kind == "cat":
        return "(" + " ".join(map(written, rest)) + ")"
    if kind == "alt":
        return "(" + " | ".join(map(written, rest)) + ")"
    low, high = rest[1:]
    return f"{written(rest[0])}{{{low},{'' if high is None else high}}}"


def texts_of(tree: Tree, known: list[set[str]]) -> set[str]:
    """Its texts up to LONGEST, given those of the rules."""
    kind, *rest = tree
    if kind == "text":
        return {rest[0]} if len(rest[0]) <= LONGEST else set()
    if kind == "rule":
        return known[rest[0]]
    if kind == "alt":
        return set().union(*(texts_of(t, known) for t in rest))
    if kind == "cat":
        return joined([texts_of(t, known) for t in rest])
    item, low, high = texts_of(rest[0], known), rest[1], rest[2]
    found = {""} if low == 0 else set()
    for count in range(1, (LONGEST if high is None else high) + 1):
        found |= joined([item] * count) if count >= low else set()
    return found


def joined(parts: list[set[str]]) -> set[str]:
    found = {""}
    for part in parts:
        found = {a + b for a in found for b in part if len(a) + len(b) <= LONGEST}
    return found


def language(rules: list[Tree]) -> set[str]:
    known: list[set[str]] = [set() for _ in rules]
    while True:
        more = [k | texts_of(rule, known) for k, rule in zip(known, rules, strict=True)]
        if more == known:
            return known[0]
        known = more


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(grammars)
def test_accepts_what_the_rules_spell(rules: list[Tree]) -> None:
    source = "\n".join(f"{written(('rule', k))} ::= {written(rule)}" for k, rule in enumerate(rules))
    wanted = language(rules)
    try:
        found = ebnf(source)
    except Unsatisfiable:
        assert not wanted
        return
    except (EbnfError, TooLarge) as error:
        assume("begin with itself" in str(error))
        return
    for length in range(LONGEST + 1):
        for letters in itertools.product(LETTERS, repeat=length):
            text = "".join(letters)
            assert found.accepts(text) == (text in wanted), (source, text)
            if text in wanted:
                assert all(found.begins(text[:k]) for k in range(length + 1))


# -- grammars that people write -------------------------------------------------------------------------------------

ARITHMETIC = """
root ::= expr           # left recursion becomes a repeat
expr ::= expr [+*-] term | term
term ::= [0-9]+ | "(" expr ")"
"""
LARK = r"""
// a Lark grammar with everything that is read
start: _assignment+
_assignment: NAME "=" value ";"      -> pair
?value: NUMBER -> number
      | ESCAPED_STRING
      | "[" [value ("," value)*] "]"
      | "TRUE"i | HEX~2..3
NAME: ("a".."z" | "_")+
HEX: /[0-9A-F]/i
%import common.NUMBER
%import common.ESCAPED_STRING
%import common (WS_INLINE, NEWLINE)
%ignore WS_INLINE
%ignore NEWLINE
"""
CASES = [
    ('root ::= "a" root "b" | ""', ["", "ab", "aaabbb"], ["aab", "ba"]),
    (ARITHMETIC, ["1", "(1+2)*3", "((1))-4"], ["", "1+", "(1", "1)"]),
    ('root ::= ("(" root ")")*', ["", "()(())"], ["(()", ")("]),
    (
        'root ::= a "x" | b "y"\na ::= "(" a ")" | "1"\nb ::= "(" b ")" | "1"',
        ["((1))x", "(1)y"],
        ["((1)x", "1"],
    ),
    ("root ::= [^a-c\\n]{2,3} . [\\x41\\]]?", ["xy\n", "xyzqA", "xx]]"], ["ax1", "x\n1", "xy"]),
    ("root ::= 'it''s' \"\\u00e9\\n\\\\\"", ["its\u00e9\n\\"], ["its"]),
    (LARK, ['a = 1;b=[ 2.5, "x\\"y" ] ;', "a=tRuE;", "a=fF;\n b = [];"], ["a=1", "A=1;", "a=f;", 'a="x;']),
    ('start: "a" | rest\nrest: "b" start? "c"', ["a", "bbacc", "bc"], ["ab", "bac c"]),
]


@pytest.mark.parametrize(("source", "yes", "no"), CASES, ids=range(len(CASES)))
def test_grammars_that_people_write(source: str, yes: list[str], no: list[str]) -> None:
    found = ebnf(source)
    assert [t for t in yes if not found.accepts(t)] == []
    assert [t for t in no if found.accepts(t)] == []
    assert found.accepts(found.witness)


@pytest.mark.parametrize(("source", "yes", "no"), CASES, ids=range(len(CASES)))
def test_masks_are_what_single_tokens_may_do(source: str, yes: list[str], no: list[str]) -> None:
    """At every place of a text: a token is allowed exactly if the text so far and it begin a text; the end, if it is one."""
    plain, found = ebnf(source), ebnf(source, VOCABULARY)
    automaton = found.automaton
    assert automaton is not None
    for text in yes:
        state = 0
        for k, byte in enumerate(text.encode()):
            before = text.encode()[:k]
            mask = allowed(automaton, state)
            for token, data in enumerate(VOCABULARY.tokens):
                wanted = begins(plain, before + data) if data else begins(plain, before, whole=True)
                assert mask[token] == wanted, (text, k, data)
            state = automaton.step(state, byte)
        assert automaton.can_end(state)


def begins(found: CompiledConstraint, data: bytes, whole: bool = False) -> bool:
    if found.fsm is not None:
        state = found.fsm.run(data)
        return state >= 0 and (not whole or bool(found.fsm.accepting[state]))
    assert found.automaton is not None
    state = found.automaton.advance_bytes(0, data)
    return state >= 0 and (not whole or found.automaton.can_end(state))


def allowed(automaton: TokenAutomaton, state: int) -> list[bool]:
    words = automaton.allowed(state)
    return [bool(int(words[t >> 5]) >> (t & 31) & 1) for t in range(len(automaton.vocabulary))]


def test_only_nesting_needs_a_stack() -> None:
    assert not isinstance(
        ebnf('root ::= "a" root | b\nb ::= [0-9] b | ""', VOCABULARY).automaton, TokenPushdown
    )
    assert isinstance(ebnf('root ::= "(" root ")" | "1"', VOCABULARY).automaton, TokenPushdown)


def test_common_terminals_are_those_of_their_names() -> None:
    samples = {
        "SIGNED_NUMBER": (["-1.5e3", "+.5", "7"], ["1.2.3", "-"]),
        "ESCAPED_STRING": (['"a\\"b"', '""'], ['"a', '"a"b"']),
        "CNAME": (["_a1"], ["1a"]),
        "C_COMMENT": (["/* a*b */", "/***/"], ["/* */ */", "/*"]),
        "WS": ([" \n\t"], [""]),
    }
    assert set(samples) < set(re.findall(r"^(\w+):", COMMON, re.MULTILINE))
    for name, (yes, no) in samples.items():
        found = ebnf(f"start: {name}\n%import common.{name}")
        assert all(map(found.accepts, yes)) and not any(map(found.accepts, no)), name


@pytest.mark.parametrize(
    ("source", "message", "line", "column"),
    [
        ('root ::= "a" b', "there is no rule 'b'", 1, 14),
        ('root ::= cty\ncity ::= "x"', "did you mean 'city'", 1, 10),
        ('x ::= "a"', "no rule 'root'", 1, 1),
        ('root ::= "a', "not closed", 1, 10),
        ('root ::= ("a"', "not closed with '\\)'", 1, 10),
        ("root ::= [a", "not closed with '\\]'", 1, 10),
        ('root ::= a\na ::= b "x" | "y"\nb ::= a | "z"', "begin with itself", 2, 1),
        ('root ::= "x"? root "y" | "z"', "begin with itself", 1, 1),
        ('root ::= "a"\nroot ::= "b"', "defined twice", 2, 1),
        ('root ::= "\\q"', "not an escape", 1, 11),
        ('root ::= "a"{3,2}', "counts rise", 1, 13),
        ("root ::= [z-a]", "range", 1, 10),
        ('root ::= "a" )', "expected an item", 1, 14),
        ("root ::= " + "(" * 200, "nested deeper than 100", 1, 110),
        ('start: a{2}\na: "x"', "template", 1, 8),
        ('start: A\nA.2: "x"', "priority", 2, 1),
        ("start: /(?=a)b/", "lookahead", 1, 8),
        ("start: /^a/", "anchor", 1, 8),
        ('start: "a"\n%declare X', "%declare is not read", 2, 1),
        ('start: "a"\n%import common.WORDS', "did you mean 'WORD'", 2, 9),
        ('start: "a"\n%import python.NAME', "only terminals of common", 2, 9),
        ('start: A\nA: "x" A "y" | "z"', "leads back to itself; write it as a rule", 2, 1),
        ('start: "b".."a"', "from one character up", 1, 8),
    ],
)
def test_refusals_name_the_place(source: str, message: str, line: int, column: int) -> None:
    with pytest.raises(EbnfError, match=message) as caught:
        ebnf(source)
    assert (caught.value.line, caught.value.column) == (line, column), str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "root ::= a",
        'root ::= "x" root',
        "root ::= [^\\x00-\\U0010ffff]",
        'root ::= "a"' + ' "b"' * 40_000,
        "root ::= " + "((((" * 20 + '"a"' + "{1,9999}){1,9999}){1,9999}){1,9999}" * 20,
    ],
    ids=["undefined", "endless", "no character", "long", "counts"],
)
def test_what_is_hostile_is_refused(source: str) -> None:
    with pytest.raises(ConstraintError):
        ebnf(source, VOCABULARY)


def test_a_grammar_of_lark_may_speak_of_ebnf() -> None:
    grammar = ebnf('// name ::= text\nstart: NAME /::=/ NAME  # a ::= b\nNAME: "a".."c"')
    assert grammar.accepts("a::=b") and not grammar.accepts("a")
    assert ebnf('root ::= "x" rest\n  rest ::= "y"').accepts("xy")


SYMBOLS = ["r0", "r1", "r2", "r3", '"ab"', '"("']
ALTERNATIVES = st.lists(st.lists(st.sampled_from(SYMBOLS), max_size=3), min_size=1, max_size=3)


@settings(max_examples=150, deadline=None)
@given(st.lists(ALTERNATIVES, min_size=4, max_size=4))
def test_shortest_texts_of_rules_that_call_each_other(rules: list[list[list[str]]]) -> None:
    """Against rounds over all rules until nothing changes."""
    shortest = dict.fromkeys(SYMBOLS[:4], 1 << 30) | {'"ab"': 2, '"("': 1}
    before: dict[str, int] = {}
    while before != shortest:
        before = dict(shortest)
        for i, alternatives in enumerate(rules):  # every alternative begins with a byte of its own
            lengths = (1 + sum(shortest[s] for s in symbols) for symbols in alternatives)
            shortest[f"r{i}"] = min(1 << 30, *lengths)
    lines = ["root ::= r0"]
    for i, alternatives in enumerate(rules):
        written = [f'"{chr(0x61 + k)}" ' + " ".join(symbols) for k, symbols in enumerate(alternatives)]
        lines.append(f"r{i} ::= " + " | ".join(written))
    if shortest["r0"] >= 1 << 30:
        with pytest.raises(Unsatisfiable):
            compile_constraint("ebnf", "\n".join(lines))
    else:
        assert compile_constraint("ebnf", "\n".join(lines)).report().min_bytes == shortest["r0"]
