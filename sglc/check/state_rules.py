"""Rules about variables, and about programs and loops that are for nothing or without end."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator

from sglc.check.diagnostic import Diagnostic
from sglc.check.rule import Rule
from sglc.check.subject import Subject
from sglc.errors import GraphBreak
from sglc.ir.core import Value
from sglc.ir.ops import Break, Call, Host, Loop
from sglc.lang.trace_sink import UndefinedVariable


class ReadBeforeGen(Rule, code="SGL101", name="read-before-gen", severity="error"):
    """A variable is read that nothing on this path has defined.

    Bad:

        s += "Name: " + sgl.gen("name")
        s += "Hello " + s["nmae"]

    Good:

        s += "Name: " + sgl.gen("name")
        s += "Hello " + s["name"]
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        cause = subject.broken.__cause__ if subject.broken is not None else None
        if not isinstance(cause, UndefinedVariable) or subject.broken is None:
            return
        known = [n for n in cause.known if isinstance(n, str)]
        near = difflib.get_close_matches(str(cause.name), known, n=1)
        later = any(
            isinstance(c.args[0], ast.Constant) and c.args[0].value == cause.name
            for c in subject.calls("gen", "select", "var_scope")
            if c.args
        )
        if near:
            fix = f"did you mean s[{near[0]!r}]?"
        elif later:
            fix = f"read s[{cause.name!r}] after the gen that writes it, on every path that comes here"
        else:
            fix = f"write it first: s += sgl.gen({cause.name!r})"
        place = _subscript(subject, cause.name, subject.broken.at)
        yield subject.found(
            self,
            place or subject.broken.at,
            f"the variable {cause.name!r} is read before anything defines it",
            fix,
        )


def _subscript(subject: Subject, name: object, at: object) -> ast.AST | None:
    line = getattr(at, "line", 0)
    for part in ast.walk(subject.tree) if subject.tree is not None else ():
        if (
            isinstance(part, ast.Subscript)
            and isinstance(part.slice, ast.Constant)
            and part.slice.value == name
            and part.lineno <= line <= (part.end_lineno or part.lineno)
        ):
            return part
    return None


class OpenScope(Rule, code="SGL109", name="open-scope", severity="error"):
    """A `var_scope` is read while it is open, or opened twice.

    Bad:

        with s.var_scope("all"):
            s += "Hello" + sgl.gen("x")
            s += s["all"]

    Good:

        with s.var_scope("all"):
            s += "Hello" + sgl.gen("x")
        s += s["all"]
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        error = subject.broken
        if isinstance(error, GraphBreak) and error.mark == "nested-scope":
            yield subject.found(self, error.at, error.message, "read it after the `with` block")


class DeadCall(Rule, code="SGL113", name="dead-call"):
    """A program is called, and nothing of what it writes is used: a call appends nothing to its caller.

    Bad:

        s += "Name a town. " + sgl.gen("town")
        ask(s["town"])

    Good:

        s += "Name a town. " + sgl.gen("town")
        s += ask(s["town"])["answer"]
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        if subject.graph is None or any(isinstance(n, Break) for n in subject.graph.nodes):
            return  # what comes after a break may use it
        used: set[Value] = set()
        for node in subject.nodes():
            used.update(v for v in (*node.uses, *node.captures) if isinstance(v, Value))
            used.update(v for r in node.regions for v in r.results if isinstance(v, Value))
        for node in subject.nodes():
            if not isinstance(node, Call) or used.intersection(node.defs) or subject.module is None:
                continue
            name = node.symbol.name
            if any(isinstance(n, (Break, Host)) for n in subject.module.graph_of(node.symbol).walk()):
                continue  # it may be called for what else it does
            yield subject.found(
                self, node.at, f"nothing that {name} writes is used, and it appends nothing to this state",
                f"read a variable of it, such as s += {name}(...)[...], or drop the call", name,
            )  # fmt: skip


class EndlessLoop(Rule, code="SGL110", name="endless-loop"):
    """A loop of gens that only the model can end: nothing bounds how often it runs.

    Bad:

        s += "Guess: " + sgl.gen("guess")
        while s["guess"] != "42":
            s += "Again: " + sgl.gen("guess")

    Good:

        s += "Guess: " + sgl.gen("guess")
        for _ in range(5):
            if s["guess"] == "42":
                break
            s += "Again: " + sgl.gen("guess")
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        for node in subject.nodes():
            if isinstance(node, Loop) and not node.bounded:
                yield subject.found(
                    self,
                    _loop_at(subject, node) or node.at,
                    "only what the model writes ends this loop",
                    "bound it: for _ in range(n): ... break",
                )
        broken = subject.broken
        if broken is not None and "has no end that the model decides" in broken.message:
            yield subject.found(self, broken.at, "this loop never ends", "leave it with break")


def _loop_at(subject: Subject, node: Loop) -> ast.AST | None:
    """The innermost `while` around the condition that the loop came from."""
    line = node.at.line if node.at is not None else 0
    around = [
        part
        for part in (ast.walk(subject.tree) if subject.tree is not None else ())
        if isinstance(part, ast.While) and part.lineno <= line <= (part.end_lineno or part.lineno)
    ]
    return max(around, key=lambda p: p.lineno).test if around else None
