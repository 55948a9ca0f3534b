"""Rules about messages and what is appended to them."""

from __future__ import annotations

from collections.abc import Iterator

from sglc.check.diagnostic import Diagnostic
from sglc.check.rule import Rule
from sglc.check.subject import Subject
from sglc.errors import GraphBreak
from sglc.ir.analysis import open_messages
from sglc.ir.core import Graph, Value
from sglc.ir.ops import (
    Begin,
    Fork,
    Gen,
    If,
    Join,
    Return,
    RoleBegin,
    ScopeBegin,
    ScopeEnd,
    Select,
    SetVar,
    Text,
)


class NestedRole(Rule, code="SGL105", name="nested-role", severity="error"):
    """A message begins inside of another one.

    Bad:

        with s.user():
            s += "Hello"
            s += sgl.assistant(sgl.gen("reply"))

    Good:

        with s.user():
            s += "Hello"
        s += sgl.assistant(sgl.gen("reply"))
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        error = subject.broken
        if isinstance(error, GraphBreak) and error.mark == "nested-role":
            yield subject.found(self, error.at, error.message, "end the open message first")


class RoleNotClosed(Rule, code="SGL106", name="role-not-closed"):
    """A message that begins and never ends, or ends without having begun.

    Bad:

        s += sgl.user_begin() + "Hello"
        s += sgl.gen("reply")

    Good:

        s += sgl.user_begin() + "Hello" + sgl.user_end()
        s += sgl.assistant(sgl.gen("reply"))
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        error = subject.broken
        if isinstance(error, GraphBreak) and error.mark == "role-not-open":
            yield subject.found(self, error.at, error.message, "begin the message, or drop its end")
        if subject.graph is None:
            return
        for begin in _open_at_end(subject.graph):
            yield subject.found(
                self,
                begin.at,
                f"the {begin.role} message that begins here never ends",
                f"append sgl.{begin.role}_end(), or write sgl.{begin.role}(...)",
            )


def _open_at_end(graph: Graph) -> list[RoleBegin]:
    """Messages that may be open in a final state."""
    opened = open_messages(graph)
    ends = [n.state for n in graph.nodes if isinstance(n, Return)]
    return [begin for state in ends for begin in opened.get(state, ()) if begin is not None]


class NotText(Rule, code="SGL107", name="not-text", severity="error"):
    """Something that is not text is appended, or None.

    Bad:

        s += "Count: "
        s += 3

    Good:

        s += "Count: "
        s += str(3)
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        error = subject.broken
        if isinstance(error, GraphBreak) and error.mark == "not-text":
            yield subject.found(self, error.at, error.message, "append str(...) of it")
        elif error is not None and "Tried to append None" in str(error.__cause__ or ""):
            yield subject.found(self, error.at, "None is appended", "append text, a gen or a role")


class EmptyPrompt(Rule, code="SGL112", name="empty-prompt"):
    """A gen or select with nothing before it: engines refuse an empty prompt.

    Bad:

        s += sgl.gen("story", max_tokens=50)

    Good:

        s += "Tell me a story." + sgl.gen("story", max_tokens=50)
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        empty: set[Value] = set()
        for node in subject.nodes():
            if isinstance(node, (Gen, Select)):
                if node.state in empty:
                    yield subject.found(
                        self, node.at, f"nothing comes before this {node.op}, so its prompt is empty",
                        "append text first, or write it as a message: sgl.user(...), sgl.assistant(...)",
                        "gen", "select", "gen_int", "gen_string",
                    )  # fmt: skip
            elif isinstance(node, Begin):
                empty.add(node.out)
            elif isinstance(node, If):
                for k, out in enumerate(node.outs):
                    if all(r.results[k] in empty for r in node.regions):
                        empty.add(out)
            elif isinstance(node, Fork) and node.state in empty:
                empty.update(node.outs)
            elif isinstance(node, (Text, ScopeBegin, ScopeEnd, SetVar, Join)) and node.state in empty:
                keeps = not isinstance(node, Join) or node.mode == "gather_variable"
                if all(p == "" for p in node.parts) if isinstance(node, Text) else keeps:
                    empty.add(node.out)
