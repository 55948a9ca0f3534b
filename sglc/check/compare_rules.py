"""Rules about comparing with what the model writes."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grammar.constraint_errors import ConstraintError
from runtime.compute import ComputeError, compute
from sglc.check.diagnostic import Diagnostic
from sglc.check.rule import Rule
from sglc.check.stop_rules import stops
from sglc.check.subject import Subject, constant_texts
from sglc.ir.core import Value
from sglc.ir.ops import Gen, Select
from sglc.ir.pure import Pure
from sglc.ir.types import type_of

if TYPE_CHECKING:
    from grammar import CompiledConstraint

MANY = 256  # texts that a constraint may have to be compared one by one


@dataclass(frozen=True)
class _Source:
    """Where a value came from, and all that it may be; `of` says so."""

    node: Gen | Select
    texts: tuple[str, ...]
    of: str


@dataclass(frozen=True)
class _Open:
    """A gen that may write any of many texts."""

    gen: Gen
    compiled: CompiledConstraint


class ImpossibleCompare(Rule, code="SGL201", name="impossible-compare", severity="error"):
    """A condition on a select, or on a constrained gen, that comes out the same whatever the model writes.

    Bad:

        s += "Tool: " + sgl.select("tool", ["calc", "search"])
        if s["tool"] == "calculator":
            s += sgl.gen("expression")

    Good:

        s += "Tool: " + sgl.select("tool", ["calc", "search"])
        if s["tool"] == "calc":
            s += sgl.gen("expression")
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        tables: dict[Value, tuple[_Source, Mapping[str, Any]]] = {}
        open_ended: dict[Value, _Open] = {}
        seen: set[Any] = set()
        for node in subject.nodes():
            if isinstance(node, Select):
                choices = constant_texts(node.choices)
                if choices:
                    source = _Source(node, tuple(choices), f"is one of {_listed(choices)}")
                    tables[node.text] = (source, {c: c for c in choices})
            elif isinstance(node, Gen) and node.constraint is not None:
                compiled = _compiled(subject, node)
                texts = _all_texts(node, compiled)
                if texts is not None:
                    source = _Source(node, texts, f"is one of {_listed(texts)}")
                    tables[node.text] = (source, {c: c for c in texts})
                elif compiled is not None and node.n is None:
                    open_ended[node.text] = _Open(node, compiled)
            elif isinstance(node, Pure):
                yield from self._pure(subject, node, tables, open_ended, seen)

    def _pure(
        self,
        subject: Subject,
        node: Pure,
        tables: dict[Value, tuple[_Source, Mapping[str, Any]]],
        open_ended: Mapping[Value, _Open],
        seen: set[Any],
    ) -> Iterator[Diagnostic]:
        place = (node.at, node.args[-1]) if node.args else (node.at, None)
        if node.op == "eq" and place not in seen:
            known = [open_ended[a] for a in node.args if isinstance(a, Value) and a in open_ended]
            text = next((a for a in node.args if isinstance(a, str)), None)
            if known and text is not None and not known[0].compiled.begins(text):
                seen.add(place)
                gen, compiled = known[0].gen, known[0].compiled
                rule = f"has to match the {compiled.kind} {_short(compiled.source)}"
                fix = f"compare with a text that it allows, such as {compiled.witness!r}"
                yield self._tell(subject, node, gen, rule, False, text, fix)
        found = _derived(node, tables)
        if found is None:
            return
        tables[node.out] = found
        source, table = found
        if node.op in _TESTS and len(set(table.values())) == 1 and place not in seen:
            seen.add(place)
            other = next((a for a in node.args if isinstance(a, str)), "")
            near = difflib.get_close_matches(other, source.texts, n=1, cutoff=0.4)
            fix = f"did you mean {near[0]!r}?" if near else f"compare with one of {_listed(source.texts)}"
            outcome = next(iter(table.values()))
            yield self._tell(subject, node, source.node, source.of, outcome, other, fix)

    def _tell(
        self, subject: Subject, node: Pure, of: Gen | Select, rule: str, outcome: bool, text: str, fix: str
    ) -> Diagnostic:
        shown = f"s[{of.name!r}]" if of.name else f"this {of.op}"
        told = f"{shown} {rule}, so this is always {outcome}"
        return subject.found(self, _compare_at(subject, node, text) or node.at, told, fix)


_TESTS = frozenset({"eq", "contains", "startswith", "endswith", "matches", "lt", "le"})


def _compiled(subject: Subject, node: Gen) -> CompiledConstraint | None:
    """The constraint of a gen; None if it cannot be enforced, which other rules tell."""
    if node.constraint is None or subject.module is None:
        return None
    constraint = subject.module.constraint_of(node.constraint)
    try:
        return subject.options.tokens.compiled(constraint.kind, constraint.source)
    except ConstraintError:
        return None


def _all_texts(node: Gen, compiled: CompiledConstraint | None) -> tuple[str, ...] | None:
    """All that a gen can write; None if they are many, or a stop string may cut them."""
    if compiled is None or node.n is not None or stops(node):
        return None
    texts = compiled.texts(MANY)
    return tuple(texts) if texts else None


def _listed(texts: Sequence[str]) -> str:
    shown = ", ".join(map(repr, texts[:6]))
    return shown if len(texts) <= 6 else f"{shown}, ... ({len(texts)} in all)"


def _short(source: str) -> str:
    return repr(source if len(source) <= 40 else source[:37] + "...")


def _derived(
    node: Pure, tables: Mapping[Value, tuple[_Source, Mapping[str, Any]]]
) -> tuple[_Source, Mapping[str, Any]] | None:
    owners = [tables[a] for a in node.args if isinstance(a, Value) and a in tables]
    if not owners or any(isinstance(a, Value) and a not in tables for a in node.args):
        return None
    source = owners[0][0]
    if any(o is not source for o, _ in owners):
        return None
    table: dict[str, Any] = {}
    for case in owners[0][1]:
        try:
            table[case] = compute(
                node.op, tuple(tables[a][1][case] if isinstance(a, Value) else a for a in node.args)
            )
        except ComputeError:
            return None
    return source, table


def _compare_at(subject: Subject, node: Pure, text: str) -> ast.AST | None:
    """The constant that was compared with."""
    line = node.at.line if node.at is not None else 0
    for part in ast.walk(subject.tree) if subject.tree is not None else ():
        if isinstance(part, ast.Constant) and part.value == text and part.lineno == line:
            return part
    return None


class AnswerType(Rule, code="SGL208", name="compare-types"):
    """A text is compared with something that is not a text, which is never equal.

    Bad:

        s += "How many? " + sgl.gen("n", dtype=int)
        if s["n"] == 3:
            s += "three"

    Good:

        s += "How many? " + sgl.gen("n", dtype=int)
        if int(s["n"]) == 3:
            s += "three"
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        for node in subject.nodes():
            if not isinstance(node, Pure) or node.op != "eq":
                continue
            kinds = {type_of(a) for a in node.args}
            if "str" in kinds and kinds & {"int", "float", "bool"}:
                yield subject.found(
                    self,
                    node.at,
                    "a text is compared with a number, which is never equal",
                    "compare int(...) of it, or compare with a text",
                )
