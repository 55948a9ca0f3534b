"""`merge-forks`: branches of one state, however Python made them, are branches of one fork."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sglc.ir.analysis import users
from sglc.ir.core import Graph, Licence, Node, Operand, Value
from sglc.ir.ops import Fork, Gen, Join, SetVar
from sglc.ir.pure import pure
from sglc.passes.base import Pass, Report

Changes = dict[Node, list[Node]]


@dataclass(frozen=True)
class MergeForks(Pass, name="merge-forks"):
    """Make a fork of a fork's branch, and a second fork of the same state, part of the first fork.

    A branch is a copy of the state, so a copy of it is a copy of the state too. One fork then holds all branches
    that share a prefix, and `hoist-prefix` and lowering see them together. A branch that was only forked
    on stays as long as somebody appends to it. In an arm or a loop, forks of its own are merged.

    `samples`: branches that draw the same gen on the same state become one gen with as many samples, where only what
    was drawn is used afterwards. Licence: the same distribution, and one call in the place of many; since the samples
    of one call are not those of many calls with the same random numbers, it is not done unless asked for. It pays
    where each call is billed for its prompt.
    """

    samples: bool = False

    def run(self, graph: Graph, report: Report) -> Graph:
        changes: Changes = {}
        for nodes, results in _blocks(graph.nodes, ()):
            changes.update(_merged(nodes, results, report))
        graph = graph.replace_nodes(changes) if changes else graph
        return _sampled(graph, report) if self.samples else graph


def _blocks(
    nodes: Sequence[Node], results: Sequence[Operand]
) -> Iterator[tuple[Sequence[Node], Sequence[Operand]]]:
    """The nodes of the graph and of every region, with what the region yields; inner ones first."""
    for node in nodes:
        for region in node.regions:
            yield from _blocks(region.nodes, region.results)
    yield nodes, results


def _merged(nodes: Sequence[Node], results: Sequence[Operand], report: Report) -> Changes:
    root: dict[
        Value, Fork
    ] = {}  # a state that is a copy, or was forked -> the fork that has all copies of it
    outs: dict[Fork, list[Value]] = {}
    gone: set[Fork] = set()
    needed: set[object] = set(results)
    for node in nodes:
        if not isinstance(node, Fork):
            needed.update(node.uses)
            needed.update(node.captures)
            continue
        first = root.get(node.state)
        if first is None:
            first = node
            root[node.state] = node
            outs[node] = list(node.outs)
        else:
            outs[first].extend(node.outs)
            gone.add(node)
            report.add("forks merged")
        root.update((out, first) for out in node.outs)
    if not gone:
        return {}
    spent = {fork.state for fork in gone} - needed  # copies that were only there to be copied
    merged: Changes = {
        fork: [dataclasses.replace(fork, outs=tuple(out for out in found if out not in spent))]
        for fork, found in outs.items()
    }
    return {**merged, **{fork: [] for fork in gone}}


def _sampled(graph: Graph, report: Report) -> Graph:
    """Equal draws of the branches of a fork as samples of one gen."""
    using = users(graph)
    yielded = {v for _, results in _blocks(graph.nodes, ()) for v in results}
    names = graph.names()
    changes: Changes = {}
    for fork in graph.nodes_of(Fork):
        alike: dict[object, list[Gen]] = {}
        for out in fork.outs:
            gen = _only_draws(out, using)
            if gen is not None and gen.out not in yielded:
                key = (gen.name, gen.sampling, gen.constraint, gen.dtype, gen.isolated)
                alike.setdefault(key, []).append(gen)
        aside: list[Value] = []
        for gens in alike.values():
            if len(gens) < 2:
                continue
            where, texts = names.fresh("state"), names.fresh("list<str>")
            aside.append(where)
            first = gens[0]
            drawn = dataclasses.replace(
                first, out=names.fresh("state"), text=texts, state=where, name=None, n=len(gens)
            )
            for number, gen in enumerate(gens):
                assert gen.name is not None
                changes[gen] = [drawn] if gen is first else []
                changes[gen] += [
                    pure("item", gen.text, (texts, number), gen.at),
                    SetVar(gen.out, gen.state, gen.text, gen.name, at=gen.at),
                ]
            report.add("gens that are samples of one", len(gens))
        if aside:
            changes[fork] = [dataclasses.replace(fork, outs=(*fork.outs, *aside))]
    return graph.replace_nodes(changes) if changes else graph


def _only_draws(branch: Value, using: object) -> Gen | None:
    """The gen that is all a branch does before it ends or its variables are gathered, if it draws."""
    assert isinstance(using, dict)
    found = using.get(branch, [])
    gen = found[0] if len(found) == 1 else None
    if not isinstance(gen, Gen) or gen.state != branch or gen.n is not None or gen.name is None:
        return None
    ends = using.get(gen.out, [])
    gathered = all(isinstance(n, Join) and n.mode == "gather_variable" and n.state != gen.out for n in ends)
    return gen if gathered and gen.licence is Licence.SAMPLED else None
