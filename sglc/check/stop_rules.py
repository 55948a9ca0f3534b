"""Rules about stop strings, and what the constraint beside them lets the model write."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sglc.check.constraint_rules import GENS, constrained, refusal
from sglc.check.diagnostic import Diagnostic
from sglc.check.rule import Rule
from sglc.check.subject import Subject
from sglc.ir.ops import Gen

if TYPE_CHECKING:
    from grammar import CompiledConstraint


def stops(node: Gen) -> tuple[str, ...]:
    stop = node.sampling.stop
    return () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)


def stopped(subject: Subject) -> Iterator[tuple[Gen, CompiledConstraint, str]]:
    """Gens with a constraint that can be enforced, once for each of their stop strings."""
    for node, constraint in constrained(subject):
        wanted = [s for s in stops(node) if s]
        if wanted and refusal(subject, constraint) is None:
            compiled = subject.options.tokens.compiled(constraint.kind, constraint.source)
            yield from ((node, compiled, stop) for stop in wanted)


class ImpossibleStop(Rule, code="SGL306", name="impossible-stop"):
    """A stop string that the constraint never lets the model write.

    Bad:

        s += "Number: " + sgl.gen("n", regex="[0-9]+", stop="END")

    Good:

        s += "Number: " + sgl.gen("n", regex="[0-9]+[;,]", stop=";")
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        from grammar import compile_regex

        for node, compiled, stop in stopped(subject):
            holding = compile_regex(f"(?s:.*){re.escape(stop)}(?s:.*)")
            if compiled.fsm is not None and compiled.fsm.intersection(holding).is_empty:
                yield subject.found(
                    self, node.at, f"the constraint never lets the model write the stop string {stop!r}",
                    "drop the stop string, or let the constraint end with it", *GENS,
                )  # fmt: skip


class EarlyStop(Rule, code="SGL307", name="early-stop"):
    """A stop string with which every text of the constraint begins: nothing is ever generated.

    Bad:

        s += "Value" + sgl.gen("v", regex=": [0-9]+", stop=":")

    Good:

        s += "Value:" + sgl.gen("v", regex=" [0-9]+")
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        for node, compiled, stop in stopped(subject):
            if compiled.report().forced.startswith(stop):
                yield subject.found(
                    self, node.at, f"every text of the constraint begins with the stop string {stop!r}",
                    "drop the stop string", *GENS,
                )  # fmt: skip


class EmptyStop(Rule, code="SGL308", name="empty-stop", severity="error"):
    """An empty stop string.

    Bad:

        s += "Q: " + sgl.gen("a", stop="")

    Good:

        s += "Q: " + sgl.gen("a", stop="\\n")
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        for node in subject.nodes():
            if isinstance(node, Gen) and "" in stops(node):
                yield subject.found(
                    self, node.at, "a stop string is empty", "give the text to stop at, or no stop", *GENS
                )


class RedundantStop(Rule, code="SGL310", name="redundant-stop", severity="note"):
    """A stop string with which every text of the constraint ends: it only cuts the end off.

    Bad:

        s += "Number: " + sgl.gen("n", regex="[0-9]+;", stop=";")

    Good:

        s += "Number: " + sgl.gen("n", regex="[0-9]+") + ";"
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        from grammar import compile_regex

        for node, compiled, stop in stopped(subject):
            if compiled.fsm is not None and compile_regex(f"(?s:.*){re.escape(stop)}").contains(compiled.fsm):
                yield subject.found(
                    self, node.at, f"every text of the constraint ends with the stop string {stop!r}",
                    "leave the end out of the constraint, and append it after the gen", *GENS,
                )  # fmt: skip
