"""Rules about forks and samples: branches that lead nowhere, and answers that are alike."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

from sglc.check.diagnostic import Diagnostic
from sglc.check.rule import Rule
from sglc.check.subject import Subject
from sglc.errors import GraphBreak
from sglc.ir.analysis import users
from sglc.ir.core import Licence, Node, Value
from sglc.ir.ops import (
    Begin,
    Break,
    Fork,
    Gen,
    If,
    Join,
    Loop,
    Read,
    Return,
    RoleBegin,
    RoleEnd,
    Select,
    Text,
)


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


class EqualSamples(Rule, code="SGL311", name="equal-samples"):
    """Several samples with temperature 0: all are the same text.

    Bad:

        s += "Give a tip:" + sgl.gen("tips", n=4, temperature=0)

    Good:

        s += "Give a tip:" + sgl.gen("tips", n=4, temperature=0.7)
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        for node in subject.nodes():
            if isinstance(node, Gen) and (node.n or 1) > 1 and is_greedy(node):
                yield subject.found(
                    self, node.at, f"the temperature is 0, so all {node.n} samples are the same text",
                    "raise the temperature, or take one sample", "gen",
                )  # fmt: skip


def is_greedy(node: Gen) -> bool:
    return node.sampling.temperature is not None and node.sampling.temperature < 1e-6


class EqualBranches(Rule, code="SGL111", name="equal-branches"):
    """Branches of a fork that ask the same with temperature 0, or the same seed: their answers are equal.

    Bad:

        s += "Give a tip:"
        forks = s.fork(3)
        for f in forks:
            f += sgl.gen("tip", temperature=0)
        forks.join()

    Good:

        s += "Give a tip:"
        forks = s.fork(3)
        for f in forks:
            f += sgl.gen("tip", temperature=0.7)
        forks.join()
    """

    def check(self, subject: Subject) -> Iterator[Diagnostic]:
        if subject.graph is None:
            return
        using = users(subject.graph)
        told: set[object] = set()
        for node in subject.nodes():
            asked: dict[object, int] = {}
            for out in node.outs if isinstance(node, Fork) else ():
                gen, before = _first_gen(out, using)
                if gen is None or gen.licence != Licence.PURE:
                    continue
                key = (before, gen.sampling, gen.constraint, gen.n)
                asked[key] = asked.get(key, 0) + 1
                if asked[key] == 2 and gen.at not in told:
                    told.add(gen.at)
                    why = "the temperature is 0" if is_greedy(gen) else "the seed is the same"
                    yield subject.found(
                        self, gen.at, f"several branches of the fork ask the same, and {why}, so they get the same answer",
                        "raise the temperature, give each branch another seed or text, or fork less", "gen",
                    )  # fmt: skip


def _first_gen(state: Value, using: Mapping[Value, list[Node]]) -> tuple[Gen | None, tuple[object, ...]]:
    """The first gen of a branch, and what is appended before it."""
    before: list[object] = []
    while True:
        following = using.get(state, [])
        node = following[0] if len(following) == 1 else None
        if isinstance(node, Gen):
            return node, tuple(before)
        if isinstance(node, Text):
            before += node.parts
        elif isinstance(node, (RoleBegin, RoleEnd)):
            before.append((node.op, node.role))
        else:
            return None, ()
        state = node.out
