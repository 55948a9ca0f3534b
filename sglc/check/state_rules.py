"""Rules about states: variables, forks, roles and what is appended."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator, Mapping

from sglc.check.diagnostic import Diagnostic
from sglc.check.rule import Rule
from sglc.check.subject import Subject
from sglc.errors import GraphBreak
from sglc.ir.analysis import open_messages, users
from sglc.ir.core import Graph, Node, Value
from sglc.ir.ops import Begin, Break, Fork, Gen, If, Join, Loop, Read, Return, RoleBegin, Select
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


class DeadGen(Rule, code="SGL102", name="dead-gen"):
    """A branch of a fork generates what nobody can read: it is neither joined, nor is its variable used.

    Bad:

        s += "Tips:"
        forks = s.fork(2)
        for f in forks:
            f += sgl.gen("tip")
        s += "done"

    Good:

        s += "Tips:"
        forks = s.fork(2)
        for f in forks:
            f += sgl.gen("tip")
        forks.join()
        s += s["tip"][0]
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        for fork, chains in _unjoined(subject):
            gens = [n for chain in chains for n in chain if isinstance(n, (Gen, Select))]
            used = _read_elsewhere(subject, chains)
            dead = [g for g in gens if g.text not in used]
            if gens and len(dead) == len(gens):
                seen: set[int] = set()
                for gen in dead:
                    line = gen.at.line if gen.at else 0
                    if line in seen:
                        continue
                    seen.add(line)
                    yield subject.found(
                        self,
                        gen.at or fork.at,
                        f"nobody can read what this {gen.op} writes: its branch is not joined and the variable not used",
                        "join the fork, read the variable of the branch, or drop the gen",
                        "gen",
                        "select",
                        "gen_int",
                        "gen_string",
                    )


class DeadFork(Rule, code="SGL103", name="dead-fork"):
    """Branches that nothing is appended to, or whose text is never used.

    Bad:

        s += "Tips:"
        forks = s.fork(2)
        s += sgl.gen("tip")

    Good:

        s += "Tips:" + sgl.gen("tip")
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        for fork, chains in _unjoined(subject):
            if any(isinstance(n, (Gen, Select)) for chain in chains for n in chain):
                continue
            if len(chains) == len(fork.outs):
                yield subject.found(
                    self, fork.at, "the branches of this fork are never used", "drop the fork, or append to its branches",
                    "fork", "copy",
                )  # fmt: skip


def _unjoined(subject: Subject) -> Iterator[tuple[Fork, list[list[Node]]]]:
    """Forks with the chains of their branches that end unused; forks one of whose branches is joined are left out."""
    graph = subject.graph
    if graph is None or any(isinstance(n, Break) for n in graph.nodes):  # what comes after it may read them
        return
    using = users(graph)
    for fork in graph.nodes_of(Fork):
        chains: list[list[Node]] = []
        for out in fork.outs:
            chain = _loose_end(out, using)
            if chain is None:
                chains = []
                break
            chains.append(chain)
        if chains:
            yield fork, chains


def _loose_end(state: Value, using: Mapping[Value, list[Node]]) -> list[Node] | None:
    """What is appended to a branch that leads nowhere; None if it is joined, returned, or goes where that is not known."""
    found: list[Node] = []
    current = state
    while True:
        following = using.get(current, [])
        if not following:
            return found
        if any(isinstance(n, (Fork, Join, Return, If, Loop)) or not n.defs for n in following):
            return None
        node = following[0]
        found.append(node)
        current = node.defs[0]


def _read_elsewhere(subject: Subject, chains: list[list[Node]]) -> set[Value]:
    inside = {id(n) for chain in chains for n in chain}
    found: set[Value] = set()
    for node in subject.nodes():
        if id(node) not in inside and not isinstance(node, Read):
            found.update(node.uses)
            found.update(v for r in node.regions for v in r.results if isinstance(v, Value))
    return found | {v for n in subject.nodes() if isinstance(n, Read) for v in n.uses}


class EmptyFork(Rule, code="SGL104", name="empty-fork"):
    """A fork into no branches, or of a state to which nothing was appended yet: there is nothing to share.

    Bad:

        forks = s.fork(2)
        for f in forks:
            f += "Tip:" + sgl.gen("tip")
        forks.join()

    Good:

        s += "Give a tip. "
        forks = s.fork(2)
        for f in forks:
            f += "Tip:" + sgl.gen("tip")
        forks.join()
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        for call in subject.calls("fork"):
            size = (
                call.args[0] if call.args else next((k.value for k in call.keywords if k.arg == "size"), None)
            )
            if isinstance(size, ast.Constant) and size.value == 0:
                yield subject.found(self, call, "this fork has no branches", "fork into at least one branch")
        starts = {n.out for n in subject.nodes() if isinstance(n, Begin)}
        for node in subject.nodes():
            if isinstance(node, Fork) and node.state in starts:
                yield subject.found(
                    self,
                    node.at,
                    "the state that is forked is empty, so its branches share nothing",
                    "append what the branches have in common before the fork, or call a program for each",
                    "fork",
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


class EndedState(Rule, code="SGL108", name="ended-state", severity="error"):
    """A branch is used after it was joined, or joined twice.

    Bad:

        s += "Tips:"
        forks = s.fork(2)
        forks += sgl.gen("tip")
        forks.join()
        forks[0] += "more"

    Good:

        s += "Tips:"
        forks = s.fork(2)
        forks += sgl.gen("tip")
        forks[0] += "more"
        forks.join()
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        error = subject.broken
        if isinstance(error, GraphBreak) and error.mark == "ended-state":
            yield subject.found(self, error.at, error.message, "append to branches before they are joined")


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
