"""A regular expression to an automaton, with limits, and with the part that explodes named in the error."""

from __future__ import annotations

from dataclasses import replace

from grammar import codepoints as cp
from grammar import regex_tree as tree
from grammar.constraint_errors import TooLarge
from grammar.fsm import Fsm
from grammar.regex_syntax import Dialect, parse
from grammar.term_arena import DEFAULT_LIMITS, Limits
from grammar.terms import Terms, explore

_PROBE_STATES = 3_000
_PROBE_SECONDS = 0.5


def compile_regex(source: str, *, limits: Limits = DEFAULT_LIMITS, dialect: Dialect = "python") -> Fsm:
    """The texts that `source` matches whole.

    Raises RegexError for what is not regular, TooLarge when a limit is reached; its message shows the
    part of the pattern that needs the most states.
    """
    pattern = parse(source, dialect)
    terms = Terms(limits)
    try:
        return Fsm.of_terms(terms, matching(terms, pattern))
    except TooLarge as error:
        raise blame(pattern, error) from None


def matching(terms: Terms, pattern: tree.Pattern) -> int:
    """The term of the texts that match whole."""
    return terms.alt(node_term(terms, a.node) for a in pattern.alternatives)


def searching(terms: Terms, pattern: tree.Pattern) -> int:
    """The term of the texts in which the pattern matches somewhere."""
    anything = terms.repeat(terms.chars(cp.ALL), 0, -1)
    return terms.alt(
        terms.sequence(
            _unless(terms, anything, a.at_start), node_term(terms, a.node), _unless(terms, anything, a.at_end)
        )
        for a in pattern.alternatives
    )


def _unless(terms: Terms, anything: int, anchored: bool) -> int:
    return terms.sequence() if anchored else anything


def node_term(terms: Terms, node: tree.Node) -> int:
    if isinstance(node, tree.Chars):
        return terms.chars(node.ranges)
    if isinstance(node, tree.Sequence):
        return terms.sequence(*(node_term(terms, item) for item in node.items))
    if isinstance(node, tree.Either):
        return terms.alt(node_term(terms, option) for option in node.options)
    assert isinstance(node, tree.Repeat)
    return terms.repeat(node_term(terms, node.item), node.low, -1 if node.high is None else node.high)


def blame(pattern: tree.Pattern, error: TooLarge) -> TooLarge:
    """Add to `error` the smallest part of the pattern that is too large by itself."""
    places = [a.node for a in pattern.alternatives]
    found: tree.Node | None = None
    while places:
        big = next((n for n in places if _explodes(n)), None)
        if big is None:
            break
        found = big
        places = list(tree.children(big))
    if found is None:
        return error
    part = pattern.source[found.start : found.end]
    shown = part if len(part) <= 60 else part[:57] + "..."
    return TooLarge(
        f"{error.message}; the part that grows is {shown!r} at position {found.start}: "
        "make its repeat counts smaller, or tell its alternatives apart by their first characters",
        where=f"position {found.start}",
    )


def _explodes(node: tree.Node) -> bool:
    terms = Terms(replace(DEFAULT_LIMITS, states=_PROBE_STATES, seconds=_PROBE_SECONDS))
    try:
        explore(terms, node_term(terms, node))
    except TooLarge:
        return True
    return False
