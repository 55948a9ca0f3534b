"""Rewrites that look right and are not: the random graphs and the oracle must catch every one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sglc.ir.core import Graph, Module, Node, Operand, Value
from sglc.ir.ops import Fork, Gen, If, Join, Loop, Reuse, ScopeBegin, ScopeEnd, SetVar, Text
from sglc.ir.pure import Pure, pure
from sglc.passes import cse, hoist_prefix, merge_forks
from sglc.passes.base import Report
from sglc.passes.canonicalize import Canonicalize
from sglc.passes.drop_dead import DropDead
from sglc.passes.hoist_prefix import HoistPrefix
from sglc.passes.inline import Inline
from tests.modules import module_of

graphs: Any = module_of(Path(__file__).with_name("test_pass_properties.py"), "planted_test_pass_properties")
Rewrite = Callable[[Graph], Graph]


def each(kind: type[Node], change: Callable[[Any], Node]) -> Rewrite:
    return lambda graph: graph.with_nodes([change(n) if isinstance(n, kind) else n for n in graph.nodes])


def share_sampled_gens(graph: Graph) -> Graph:
    """Equal gens on one state become one, whatever their temperature."""
    seen: dict[Any, Gen] = {}
    parents = {out: n.state for n in graph.nodes if isinstance(n, Fork) for out in n.outs}
    same: dict[Value, Operand] = {}
    nodes: list[Node] = []
    for old in graph.nodes:
        node = old.remap(same)
        if isinstance(node, Gen):
            key = (parents.get(node.state, node.state), node.sampling, node.n, node.constraint, node.name)
            if key in seen and node.state in parents:
                fork = Fork((node.out,), seen[key].out)
                same[node.text] = seen[key].text
                nodes.append(fork)
                continue
            seen[key] = node
        nodes.append(node)
    return graph.with_nodes(nodes)


def drop_unread_gens(graph: Graph) -> Graph:
    """A gen without a name whose text nobody reads is dropped."""
    used = {v for n in graph.nodes for v in n.uses}
    same: dict[Value, Operand] = {}
    nodes: list[Node] = []
    for old in graph.nodes:
        node = old.remap(same)
        if isinstance(node, Gen) and node.name is None and node.text not in used:
            same[node.out] = node.state
        else:
            nodes.append(node)
    return graph.with_nodes(nodes)


def hoist_without_copy(graph: Graph) -> Graph:
    """The state that goes on beside its branches sees what moved."""

    class Work(hoist_prefix._Work):
        def __post_init__(self) -> None:
            super().__post_init__()
            self.uses = dict.fromkeys(self.uses, 1)

    original = hoist_prefix._Work
    hoist_prefix._Work = Work  # type: ignore[misc]
    try:
        changed = HoistPrefix().run(graph, Report())
    finally:
        hoist_prefix._Work = original  # type: ignore[misc]
    # What went on from the forked state now goes on from the hoisted text.
    moved = {n.state: n.out for n in changed.nodes if isinstance(n, Text) and n not in graph.nodes}
    nodes: list[Node] = []
    for node in changed.nodes:
        known = isinstance(node, Text) and node not in graph.nodes
        nodes.append(
            node if known else node.remap({k: v for k, v in moved.items() if not isinstance(node, Fork)})
        )
    return changed.with_nodes(nodes)


def hoist_concatenated(graph: Graph) -> Graph:
    """Text that a join concatenates is moved before the fork."""

    class Work(hoist_prefix._Work):
        def _concatenated(self) -> set[Value]:
            return set()

    original = hoist_prefix._Work
    hoist_prefix._Work = Work  # type: ignore[misc]
    try:
        return HoistPrefix().run(graph, Report())
    finally:
        hoist_prefix._Work = original  # type: ignore[misc]


def fuse_over_scopes(graph: Graph) -> Graph:
    """A scope begins one text too late."""
    nodes = list(graph.nodes)
    for k in range(len(nodes) - 1):
        a, b = nodes[k], nodes[k + 1]
        if isinstance(a, ScopeBegin) and isinstance(b, Text) and b.state == a.out:
            nodes[k : k + 2] = [
                dataclasses.replace(b, state=a.state),
                dataclasses.replace(a, state=b.out, out=a.out),
            ]
            same = {b.out: a.out}
            rest = nodes[k + 2 :]
            nodes[k + 2 :] = [n.remap(same) for n in rest]
    return graph.with_nodes(nodes)


def everywhere(kind: type[Node], change: Callable[[Any], Node]) -> Rewrite:
    """`each`, in arms and loops too; outer nodes last, so that they keep what changed inside of them."""

    def rewrite(graph: Graph) -> Graph:
        for node in reversed(graph.nodes_of(kind)):
            graph = graph.replace_nodes({node: [change(node)]})
        return graph

    return rewrite


def share_between_arms(graph: Graph) -> Graph:
    """What one arm asked is taken for granted in the other, and after both."""

    class Numbering(cse._Numbering):
        def block(self, nodes: Any, seen: dict[Any, Node]) -> list[Node]:
            self.everything = getattr(self, "everything", {})
            return super().block(nodes, self.everything)

    return graph.with_nodes(Numbering(Report()).block(graph.nodes, {}))


def share_what_is_sampled(graph: Graph) -> Graph:
    """Gens that draw are shared like greedy ones."""

    class Numbering(cse._Numbering):
        def call(self, node: Any, seen: dict[Any, Node]) -> Node:
            if isinstance(node, Gen):
                key = (self.state(node.state), node.sampling, node.constraint, node.n)
                first = seen.setdefault(key, node)
                if first is not node:
                    assert isinstance(first, Gen)
                    self.of[node.text] = self.of[first.text]
                    self.of[node.out] = self.number(("answer", self.of[node.text]))
                    return Reuse(node.out, node.text, node.state, first.text, node.name)
                self.of[node.text] = self.number(("sampled", node.text))
                self.of[node.out] = self.number(("answer", self.of[node.text]))
                return node
            return super().call(node, seen)

    return graph.with_nodes(Numbering(Report()).block(graph.nodes, {}))


def drop_what_is_only_joined(graph: Graph) -> Graph:
    """Branches whose variables are gathered and not used again go."""
    joined = {b for n in graph.nodes_of(Join) for b in n.branches[1:]}
    changed = everywhere(
        Join, lambda n: dataclasses.replace(n, branches=tuple(b for b in n.branches if b not in joined))
    )(graph)
    return DropDead().run(changed, Report())


def inline_with_the_callers_defaults(module: Module) -> Module:
    made = Inline().run_module(module, Report())
    return made.map(everywhere(Gen, lambda n: dataclasses.replace(n, isolated=False)))


def yield_the_first_round(node: Loop) -> Loop:
    again, *_ = node.body.results
    return dataclasses.replace(node, body=dataclasses.replace(node.body, results=(again, *node.body.params)))


def set_after(graph: Graph) -> Graph:
    return each(SetVar, lambda n: dataclasses.replace(n, value=""))(graph)


def patched(module: Any, name: str, value: Any, rewrite: Rewrite) -> Rewrite:
    """`rewrite` while `name` in `module` is something else."""

    def run(graph: Graph) -> Graph:
        original = getattr(module, name)
        setattr(module, name, value)
        try:
            return rewrite(graph)
        finally:
            setattr(module, name, original)

    return run


def merge_samples(graph: Graph) -> Graph:
    return merge_forks.MergeForks(samples=True).run(graph, Report())


def hoist(graph: Graph) -> Graph:
    return HoistPrefix().run(graph, Report())


def draws_whatever_follows(branch: Value, using: Any) -> Gen | None:
    found = using.get(branch, [])
    gen = found[0] if len(found) == 1 and isinstance(found[0], Gen) else None
    return gen if gen is not None and gen.n is None and gen.name is not None else None


def hoist_out_of_one_arm(graph: Graph) -> Graph:
    """What the first arm appends moves before the condition, whatever the other one appends."""
    names = graph.names()
    nodes: list[Node] = []
    for node in graph.nodes:
        if isinstance(node, If):
            firsts = hoist_prefix._first_texts(node.then)
            for state, text in firsts.items():
                out = names.fresh("state")
                nodes.append(dataclasses.replace(text, out=out, state=state))
                then = dataclasses.replace(
                    node.then,
                    nodes=tuple(
                        dataclasses.replace(n, state=out, parts=()) if n is text else n
                        for n in node.then.nodes
                    ),
                )
                node = dataclasses.replace(node, then=then, orelse=node.orelse.remap({state: out}))
        nodes.append(node)
    return graph.with_nodes(nodes)


MISTAKES: dict[str, Rewrite] = {
    "text of one arm before both": hoist_out_of_one_arm,
    "the first branch's text for all": patched(hoist_prefix, "_shared_text", lambda texts: texts[0], hoist),
    "arms share more than they do": patched(hoist_prefix, "_shared_text", lambda texts: max(texts), hoist),
    "a branch loses its rest": patched(
        hoist_prefix, "_rest", lambda items, taken: items[len(taken) :], hoist
    ),
    "share sampled gens": share_sampled_gens,
    "drop unread gens": drop_unread_gens,
    "hoist without a copy": hoist_without_copy,
    "hoist what is concatenated": hoist_concatenated,
    "scope begins late": fuse_over_scopes,
    "parts in the wrong order": each(Text, lambda n: dataclasses.replace(n, parts=n.parts[::-1])),
    "one branch less": each(Join, lambda n: dataclasses.replace(n, branches=n.branches[:1])),
    "joined in the wrong order": each(Join, lambda n: dataclasses.replace(n, branches=n.branches[::-1])),
    "stripped on one side": each(Pure, lambda n: pure("lstrip", n.out, n.args) if n.op == "strip" else n),
    "sampling lost": each(
        Gen, lambda n: dataclasses.replace(n, sampling=dataclasses.replace(n.sampling, stop=None))
    ),
    "constraint lost": each(Gen, lambda n: dataclasses.replace(n, constraint=None)),
    "scope lost": each(ScopeEnd, lambda n: dataclasses.replace(n, name=n.name + "_")),
    "assignment lost": set_after,
    "arms exchanged": everywhere(If, lambda n: dataclasses.replace(n, then=n.orelse, orelse=n.then)),
    "always the first arm": everywhere(If, lambda n: dataclasses.replace(n, cond=True)),
    "one round too few": everywhere(Loop, lambda n: dataclasses.replace(n, maximum=max(n.maximum - 1, 1))),
    "a loop forgets its rounds": everywhere(Loop, yield_the_first_round),
    "shared between arms": share_between_arms,
    "sampled gens shared by cse": share_what_is_sampled,
    "joined branches dropped": drop_what_is_only_joined,
    "greedy where it was drawn": everywhere(
        Gen, lambda n: dataclasses.replace(n, sampling=dataclasses.replace(n.sampling, temperature=0.0))
    ),
}
MODULE_MISTAKES: dict[str, Callable[[Module], Module]] = {
    "inlined with the caller's defaults": inline_with_the_callers_defaults,
}


SAMPLE_MISTAKES: dict[str, Rewrite] = {  # where equal draws become samples of one gen
    "the first sample for every branch": lambda graph: everywhere(
        Pure, lambda n: pure("item", n.out, (n.args[0], 0), n.at) if n.op == "item" else n
    )(merge_samples(graph)),
    "a sample that nobody gets": lambda graph: everywhere(
        Gen, lambda n: dataclasses.replace(n, n=n.n + 1) if n.n and n.name is None else n
    )(merge_samples(graph)),
    "a sample is no variable": lambda graph: everywhere(
        SetVar, lambda n: dataclasses.replace(n, name="") if n.name == "x" else n
    )(merge_samples(graph)),
    "the branch goes on without its answer": patched(
        merge_forks, "_only_draws", draws_whatever_follows, merge_samples
    ),
}


def test_there_are_twenty() -> None:
    assert len(MISTAKES) + len(MODULE_MISTAKES) + len(SAMPLE_MISTAKES) >= 20


@pytest.mark.parametrize("name", SAMPLE_MISTAKES)
def test_mistakes_with_samples_are_caught(name: str) -> None:
    tried = 0
    for seed in range(1500):
        start: Module = graphs.with_equal_draws(seed).map(lambda g: Canonicalize().run(g, Report()))
        wrong, right = start.map(SAMPLE_MISTAKES[name]), start.map(merge_samples)
        if str(wrong) == str(right):
            continue
        tried += 1
        expected, drawn, _ = graphs.draws(start)
        found, also_drawn, _ = graphs.draws(right)
        if (found, also_drawn) == (expected, drawn) and graphs.draws(wrong)[:2] != (expected, drawn):
            return
    pytest.fail(f"{tried} graphs were rewritten by the mistake {name!r}, and none of them showed it")


@pytest.mark.parametrize("name", [*MISTAKES, *MODULE_MISTAKES])
def test_mistakes_are_caught(name: str) -> None:
    tried = 0
    for seed in range(1500):
        module: Module = graphs.random_module(seed)
        plain = module.map(lambda g: Canonicalize().run(g, Report()))
        for start in (module, plain):
            try:
                wrong = start.map(MISTAKES[name]) if name in MISTAKES else MODULE_MISTAKES[name](start)
            except ValueError:
                continue
            if str(wrong) == str(start):
                continue
            tried += 1
            try:
                if graphs.outcome(wrong) != graphs.outcome(start):
                    return
            except (KeyError, AttributeError):  # it no longer even defines what it uses
                return
    pytest.fail(f"{tried} graphs were rewritten by the mistake {name!r}, and none of them showed it")
