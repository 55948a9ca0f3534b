"""Rules of a grammar to one term.

A rule that does not lead back to itself is put in where it is used. The others are references, whose rests are worked out
where a text visits them: what may follow is the derivative of the grammar by what is there (Brzozowski 1964, for regular
languages; Might, Darais and Spiewak 2011, for context-free ones), so no rule has to be told from another one ahead. Left
recursion would never get to a character: where a rule begins with itself it becomes a repeat, through other rules it is
refused. Rules that no finite text matches are left out, so that no text is begun that could not be ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from grammar import regex_tree
from grammar.constraint_errors import Unsatisfiable
from grammar.ebnf.syntax import (
    EbnfError,
    Either,
    Grammar,
    Leaf,
    Node,
    Ref,
    Repeat,
    Sequence,
    children,
    references,
)
from grammar.regex import node_term
from grammar.term_arena import EMPTY
from grammar.terms import Terms


@dataclass(frozen=True)
class CompiledGrammar:
    """`nested`: rules lead back to themselves from inside, so that no finite automaton is enough."""

    terms: Terms
    start: int
    nested: bool


def compile_grammar(grammar: Grammar, terms: Terms) -> CompiledGrammar:
    """Raises EbnfError, TooLarge or Unsatisfiable."""
    return _Compiler(grammar, terms).compile()


class _Compiler:
    def __init__(self, grammar: Grammar, terms: Terms) -> None:
        self.grammar = grammar
        self.terms = terms
        self.rules = _reachable(grammar)
        self.nullable = _fixpoint(self.rules, _is_nullable)
        self.finite = _fixpoint(self.rules, _is_finite)
        self._numbers: dict[str, int] = {}
        self._built: dict[str, int] = {}
        self._skip = EMPTY

    def compile(self) -> CompiledGrammar:
        grammar = self.grammar
        if grammar.start not in self.finite:
            raise Unsatisfiable(f"no finite text matches the rule {grammar.start!r}")
        for name in [n for n in self.rules if n in self.finite]:
            self.rules[name] = self._without_left_recursion(name)
        self._refuse_left_recursion()
        loops = _in_loops(self.rules)
        for name in sorted(loops):
            if grammar.is_terminal(name):
                raise self._error(f"terminal {name!r} leads back to itself; write it as a rule", name)
            if name in self.finite:
                self._numbers[name] = self.terms.rule()
        ignored = [self._term(node, False) for node in grammar.ignored]
        self._skip = self.terms.repeat(self.terms.alt(ignored), 0, -1)
        for name, number in self._numbers.items():
            body = self._term(self.rules[name], not grammar.is_terminal(name))
            self.terms.define_reference(number, body)
        start = self.terms.cat(self._term(Ref(grammar.start, 0), True), self._skip)
        nested = any(_nests(self.rules[name], loops[name], tail=True) for name in loops)
        return CompiledGrammar(self.terms, start, nested)

    def _error(self, problem: str, rule: str) -> EbnfError:
        return EbnfError(problem, self.grammar.source, self.grammar.places.get(rule, 0))

    def _term(self, node: Node, spaced: bool) -> int:
        """`spaced`: what is ignored may stand before each terminal."""
        terms = self.terms
        if isinstance(node, Leaf):
            found = node_term(terms, node.node)
            return terms.cat(self._skip, found) if spaced and self.grammar.ignored else found
        if isinstance(node, Ref):
            return self._reference(node.name, spaced)
        if isinstance(node, Sequence):
            return terms.sequence(*(self._term(item, spaced) for item in node.items))
        if isinstance(node, Either):
            return terms.alt(self._term(option, spaced) for option in node.options)
        return terms.repeat(self._term(node.item, spaced), node.low, -1 if node.high is None else node.high)

    def _reference(self, name: str, spaced: bool) -> int:
        if name not in self.finite:
            return EMPTY
        if name in self._numbers:
            return self.terms.reference(self._numbers[name], name in self.nullable)
        terminal = self.grammar.is_terminal(name)
        found = self._built.get(name)
        if found is None:
            found = self._built[name] = self._term(self.rules[name], not terminal and spaced)
        if terminal and spaced and self.grammar.ignored:
            return self.terms.cat(self._skip, found)
        return found

    # -- left recursion ---------------------------------------------------------------------------------------

    def _without_left_recursion(self, name: str) -> Node:
        """`a ::= a x | y` as `a ::= y x*`."""
        rule = self.rules[name]
        if name not in {r.name for r in _heads(rule, self.nullable)}:
            return rule
        options = list(_options(rule))
        again = [o[1:] for o in options if o and isinstance(o[0], Ref) and o[0].name == name]
        others = [o for o in options if not (o and isinstance(o[0], Ref) and o[0].name == name)]
        at = self.grammar.places.get(name, 0)
        tails = Either(tuple(Sequence(o, at) for o in again), at)
        firsts = Either(tuple(Sequence(o, at) for o in others), at)
        return Sequence((firsts, Repeat(tails, 0, None, at)), at) if again and others else rule

    def _refuse_left_recursion(self) -> None:
        heads = {name: {r.name for r in _heads(rule, self.nullable)} for name, rule in self.rules.items()}
        loops = _in_loops_of(heads)
        for name in sorted(loops, key=lambda n: self.grammar.places.get(n, 0))[:1]:
            group = loops[name]
            way = " -> ".join((*sorted(group - {name}), name)) if len(group) > 1 else name
            raise self._error(
                f"rule {name!r} can begin with itself ({name} -> {way}) before it has written anything; "
                "let something come before it, or write a repeat",
                name,
            )


def _reachable(grammar: Grammar) -> dict[str, Node]:
    """The rules that a text can use, in order of discovery."""
    found: dict[str, Node] = {}
    queue = [grammar.start, *(r.name for node in grammar.ignored for r in references(node))]
    while queue:
        name = queue.pop()
        if name not in found:
            found[name] = grammar.rules[name]
            queue += [r.name for r in references(found[name])]
    return found


def _fixpoint(rules: dict[str, Node], holds: object) -> set[str]:
    """The rules of which something holds, given those of which it holds."""
    found: set[str] = set()
    while True:
        more = {n for n, rule in rules.items() if n not in found and holds(rule, found)}  # type: ignore[operator]
        if not more:
            return found
        found |= more


def _is_nullable(node: Node, known: set[str]) -> bool:
    if isinstance(node, Leaf):
        return _matches_nothing(node.node)
    if isinstance(node, Ref):
        return node.name in known
    if isinstance(node, Sequence):
        return all(_is_nullable(item, known) for item in node.items)
    if isinstance(node, Either):
        return any(_is_nullable(option, known) for option in node.options)
    return node.low == 0 or _is_nullable(node.item, known)


def _matches_nothing(node: regex_tree.Node) -> bool:
    """Whether a regular expression matches the empty text."""
    if isinstance(node, regex_tree.Sequence):
        return all(map(_matches_nothing, node.items))
    if isinstance(node, regex_tree.Either):
        return any(map(_matches_nothing, node.options))
    return isinstance(node, regex_tree.Repeat) and (node.low == 0 or _matches_nothing(node.item))


def _is_finite(node: Node, known: set[str]) -> bool:
    """Whether some finite text matches."""
    if isinstance(node, Leaf):
        return not (isinstance(node.node, regex_tree.Chars) and not node.node.ranges)
    if isinstance(node, Ref):
        return node.name in known
    if isinstance(node, Sequence):
        return all(_is_finite(item, known) for item in node.items)
    if isinstance(node, Either):
        return any(_is_finite(option, known) for option in node.options)
    return node.low == 0 or _is_finite(node.item, known)


def _heads(node: Node, nullable: set[str]) -> Iterator[Ref]:
    """The rules that a text of `node` can begin with before any character."""
    if isinstance(node, Ref):
        yield node
    elif isinstance(node, Sequence):
        for item in node.items:
            yield from _heads(item, nullable)
            if not _is_nullable(item, nullable):
                break
    else:
        for child in children(node):
            yield from _heads(child, nullable)


def _options(node: Node) -> Iterator[tuple[Node, ...]]:
    """A node as sequences of items, of which one matches; alternatives at the beginning are told apart."""
    if isinstance(node, Either):
        for option in node.options:
            yield from _options(option)
    elif isinstance(node, Sequence):
        if node.items and isinstance(node.items[0], (Either, Sequence)):
            for first in _options(node.items[0]):
                yield (*first, *node.items[1:])
        else:
            yield node.items
    else:
        yield (node,)


def _in_loops(rules: dict[str, Node]) -> dict[str, frozenset[str]]:
    return _in_loops_of({name: {r.name for r in references(rule)} for name, rule in rules.items()})


def _in_loops_of(edges: dict[str, set[str]]) -> dict[str, frozenset[str]]:
    """The names that lead back to themselves, each with all names of its loops (Tarjan's components)."""
    import networkx

    graph = networkx.DiGraph((a, b) for a, found in edges.items() for b in found)
    return {
        name: frozenset(group)
        for group in networkx.strongly_connected_components(graph)
        for name in group
        if len(group) > 1 or name in edges.get(name, ())
    }


def _nests(node: Node, group: frozenset[str], tail: bool) -> bool:
    """Whether a rule of `group` is used where something follows it."""
    if isinstance(node, Ref):
        return not tail and node.name in group
    if isinstance(node, Sequence):
        last = len(node.items) - 1
        return any(_nests(item, group, tail and i == last) for i, item in enumerate(node.items))
    if isinstance(node, Repeat):
        return _nests(node.item, group, False)
    return any(_nests(child, group, tail) for child in children(node))
