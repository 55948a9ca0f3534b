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
    """Where a value came from, and all that this may be."""

    node: Gen | Select
    texts: tuple[str, ...]


_Table = tuple[_Source, Mapping[str, Any]]  # the value for each of the texts


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
        tables: dict[Value, _Table] = {}
        open_ended: dict[Value, _Open] = {}
        told: dict[
            Any, list[Diagnostic | None]
        ] = {}  # by place: a line may compare many values, one after the other
        for node in subject.nodes():
            if isinstance(node, Select):
                choices = constant_texts(node.choices)
                if choices:
                    tables[node.text] = _Source(node, tuple(choices)), {c: c for c in choices}
            elif isinstance(node, Gen) and node.constraint is not None:
                compiled = _compiled(subject, node)
                texts = _all_texts(node, compiled)
                if texts is not None:
                    tables[node.text] = _Source(node, texts), {c: c for c in texts}
                elif compiled is not None and node.n is None:
                    open_ended[node.text] = _Open(node, compiled)
            elif isinstance(node, Pure):
                found = _derived(node, tables)
                if found is not None:
                    tables[node.out] = found
                if node.op in _TESTS:
                    text = next((a for a in node.args if isinstance(a, str)), None)
                    written = _compare_at(subject, node, text) if text is not None else None
                    place = (node.at, node.op, text if written is not None else None)
                    one = self._test(subject, node, found, open_ended, text or "", written)
                    told.setdefault(place, []).append(one)
        for verdicts in told.values():
            first = verdicts[0]
            if first is not None and all(verdicts):
                yield first

    def _test(
        self,
        subject: Subject,
        node: Pure,
        found: _Table | None,
        open_ended: Mapping[Value, _Open],
        text: str,
        written: ast.AST | None,
    ) -> Diagnostic | None:
        """What is wrong with a test; None if it may come out either way."""
        gen: Gen | Select
        if found is not None and len(set(found[1].values())) == 1:
            source, outcome = found[0], next(iter(found[1].values()))
            gen, rule = source.node, f"is one of {_listed(source.texts)}"
            near = difflib.get_close_matches(text, source.texts, n=1, cutoff=0.4)
            fix = f"did you mean {near[0]!r}?" if near else f"compare with one of {_listed(source.texts)}"
        elif node.op == "eq":
            known = [open_ended[a] for a in node.args if isinstance(a, Value) and a in open_ended]
            if not known or not any(isinstance(a, str) for a in node.args) or known[0].compiled.begins(text):
                return None
            gen, compiled, outcome = known[0].gen, known[0].compiled, False
            rule = f"has to match the {compiled.kind} {_short(compiled.source)}"
            fix = f"compare with a text that it allows, such as {compiled.witness!r}"
        else:
            return None
        shown = f"s[{gen.name!r}]" if gen.name else f"this {gen.op}"
        so = (
            f"it is {'always' if outcome else 'never'} {text!r}"
            if node.op == "eq" and text
            else f"this is always {outcome}"
        )
        return subject.found(self, written or node.at, f"{shown} {rule}, so {so}", fix)


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


def _derived(node: Pure, tables: Mapping[Value, _Table]) -> _Table | None:
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
