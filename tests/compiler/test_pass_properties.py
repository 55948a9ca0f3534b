"""Passes on random graphs: they verify, mean the same, make the same calls, and print and parse back, in any order."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglc.ir.core import Graph, Licence, Module, Names, Node, Region, Symbol, Value
from sglc.ir.evaluate import ModelCall, evaluate
from sglc.ir.json import from_json, to_json
from sglc.ir.ops import (
    Begin,
    Call,
    Fork,
    Gen,
    If,
    Join,
    Loop,
    Pack,
    Return,
    RoleBegin,
    RoleEnd,
    ScopeBegin,
    ScopeEnd,
    Select,
    SetVar,
    Text,
)
from sglc.ir.parser import parse_module
from sglc.ir.pure import pure
from sglc.ir.specs import SamplingFields
from sglc.ir.verify import verify_module
from sglc.passes.base import passes
from sglc.passes.canonicalize import renumbered
from sglc.passes.pipeline import Pipeline

TEXTS = [
    "",
    "a",
    "Score for ",
    "Score for clarity: ",
    "Score for evidence: ",
    "\n\n",
    "Ünï😀 ",
    "Tip ",
    "Tip 1",
    '"q"\\',
]
NAMES = ["x", "y", "z", None]


class Plain:
    """A chat template for tests."""

    name = "plain"
    default_system_prompt = "Be brief."
    image_token = "<image>"
    stop_str = ()

    def get_prefix_and_suffix(self, role: str, hist_messages: Any) -> tuple[str, str]:
        return f"<{role}:{len(hist_messages)}>", f"</{role}>\n"


@dataclass
class Branch:
    state: Value
    role: str | None = None
    scopes: list[str] = field(default_factory=list)
    variables: set[str | None] = field(default_factory=set)


@dataclass
class Maker:
    """Makes one random graph."""

    rng: random.Random
    callees: list[Graph]
    names: Names = field(default_factory=lambda: Names(()))
    nodes: list[Node] = field(default_factory=list)
    strings: list[Any] = field(default_factory=list)
    budget: int = 40
    inside: int = 0

    def graph(self, name: str) -> Graph:
        params = tuple(Value(p, "str") for p in ("topic", "tone")[: self.rng.randint(0, 2)])
        self.strings = list(params)
        start = self.names.fresh("state")
        self.nodes.append(Begin(start))
        main = Branch(start)
        self.run(main, depth=0)
        result: Any = self.string()
        if self.rng.random() < 0.2:
            packed = self.names.fresh("any")
            self.nodes.append(Pack(packed, (self.string(), 7), "tuple"))
            result = packed
        self.nodes.append(Return(main.state, result))
        return Graph(name, params, tuple(self.nodes))

    def string(self) -> Any:
        return self.rng.choice([*self.strings, *TEXTS])

    def run(self, branch: Branch, depth: int) -> None:
        for _ in range(self.rng.randint(0, 6)):
            if self.budget <= 0:
                break
            self.budget -= 1
            self.step(branch, depth)
        while branch.scopes:
            self.scope_end(branch)

    def step(self, branch: Branch, depth: int) -> None:
        kinds = ["text"] * 4 + ["gen"] * 2 + ["select", "role", "scope", "set", "pure", "pure", "call"]
        if depth < 3 and not branch.scopes:
            kinds += ["fork"] * 3
        if depth < 3:
            kinds += ["branch", "branch", "loop"]
        if self.inside:  # arms end with the messages and scopes that they began with
            kinds = [k for k in kinds if k not in ("role", "scope")]
        choice = self.rng.choice(kinds)
        if choice in ("fork", "branch", "loop"):
            getattr(self, choice)(branch, depth)
        else:
            getattr(self, choice)(branch)

    def append(self, branch: Branch, op: Any, *operands: Any, **attrs: Any) -> None:
        out = self.names.fresh("state")
        self.nodes.append(op(out, branch.state, *operands, **attrs))
        branch.state = out

    def text(self, branch: Branch) -> None:
        self.append(branch, Text, tuple(self.string() for _ in range(self.rng.randint(0, 3))))

    def gen(self, branch: Branch) -> None:
        n = self.rng.choice([None, None, 2])
        out, text = self.names.fresh("state"), self.names.fresh("str" if n is None else "list<str>")
        name = self.rng.choice(NAMES)
        sampling = SamplingFields(
            max_tokens=self.rng.choice([None, 8]),
            temperature=self.rng.choice([None, 0.0, 0.7]),
            stop=self.rng.choice([None, ("\n",)]),
        )
        constraint = Symbol("c0") if self.rng.random() < 0.2 else None
        self.nodes.append(Gen(out, text, branch.state, name, sampling, constraint, n=n))
        branch.state = out
        if n is None:
            self.strings.append(text)

    def select(self, branch: Branch) -> None:
        out, text = self.names.fresh("state"), self.names.fresh("str")
        self.nodes.append(
            Select(out, text, branch.state, ("yes", "no", self.string()), self.rng.choice(NAMES))
        )
        branch.state = out
        self.strings.append(text)

    def role(self, branch: Branch) -> None:
        if branch.role is None:
            branch.role = self.rng.choice(["system", "user", "assistant"])
            self.append(branch, RoleBegin, branch.role)
        else:
            self.append(branch, RoleEnd, branch.role)
            branch.role = None

    def scope(self, branch: Branch) -> None:
        if len(branch.scopes) < 2 and self.rng.random() < 0.6:
            name = f"scope{len(branch.scopes)}"
            branch.scopes.append(name)
            self.append(branch, ScopeBegin, name)
        elif branch.scopes:
            self.scope_end(branch)

    def scope_end(self, branch: Branch) -> None:
        out, text = self.names.fresh("state"), self.names.fresh("str")
        self.nodes.append(ScopeEnd(out, text, branch.state, branch.scopes.pop()))
        branch.state = out
        self.strings.append(text)

    def set(self, branch: Branch) -> None:
        self.append(branch, SetVar, self.string(), "assigned")

    def pure(self, branch: Branch) -> None:
        op, operands = self.rng.choice(
            [
                ("concat", (self.string(), self.string(), self.string())),
                ("lower", (self.string(),)),
                ("strip", (self.string(), None)),
                ("replace", (self.string(), "o", "0", -1)),
                ("repeat", (self.string(), 2)),
            ]
        )
        out = self.names.fresh("str")
        self.nodes.append(pure(op, out, operands))
        self.strings.append(out)

    def call(self, branch: Branch) -> None:
        if not self.callees:
            return
        callee = self.rng.choice(self.callees)
        text, result = self.names.fresh("str"), self.names.fresh("any")
        args = tuple(self.string() for _ in callee.params)
        self.nodes.append(Call(text, (result,), Symbol(callee.name), args))
        self.strings.append(text)

    def region(self, state: Value, depth: int, role: str | None) -> tuple[list[Node], Branch, Any]:
        """Nodes of an arm that goes on from `state`, its end, and a string that it yields."""
        outer, self.nodes = self.nodes, []
        before, self.inside = list(self.strings), self.inside + 1
        arm = Branch(state, role)
        for _ in range(self.rng.randint(0, 3)):
            self.budget -= 1
            self.step(arm, depth + 1)
        given = self.string()
        inner, self.nodes = self.nodes, outer
        self.strings, self.inside = before, self.inside - 1
        return inner, arm, given

    def condition(self) -> Value:
        out = self.names.fresh("bool")
        whole, part = self.string(), self.rng.choice(["a", "e", "1", "yes", "<topic>"])
        self.nodes.append(pure("contains", out, (whole, part)))
        return out

    def branch(self, branch: Branch, depth: int) -> None:
        cond = self.condition() if self.rng.random() < 0.9 else self.rng.choice([True, False])
        one, first, a = self.region(branch.state, depth, branch.role)
        two, second, b = self.region(branch.state, depth, branch.role)
        state, text = self.names.fresh("state"), self.names.fresh("str")
        arms = Region(tuple(one), (first.state, a)), Region(tuple(two), (second.state, b))
        self.nodes.append(If((state, text), cond, *arms))
        branch.state = state
        self.strings.append(text)

    def loop(self, branch: Branch, depth: int) -> None:
        params = self.names.fresh("state"), self.names.fresh("str")
        self.strings.append(params[1])
        nodes, end, given = self.region(params[0], depth, branch.role)
        again = self.names.fresh("bool")
        nodes.append(pure("contains", again, (given, "a")))
        self.strings.remove(params[1])
        outs = self.names.fresh("state"), self.names.fresh("str")
        body = Region(tuple(nodes), (again, end.state, given), params)
        self.nodes.append(
            Loop(outs, (branch.state, self.string()), body, self.rng.randint(1, 3), bounded=True)
        )
        branch.state = outs[0]
        self.strings.append(outs[1])

    def fork(self, branch: Branch, depth: int) -> None:
        outs = tuple(self.names.fresh("state") for _ in range(self.rng.randint(0, 4)))
        self.nodes.append(Fork(outs, branch.state))
        children = [Branch(out, branch.role) for out in outs]
        shared = self.rng.choice(TEXTS)
        before = list(self.strings)
        if self.rng.random() < 0.25:  # branches that ask the same
            for child in children:
                out, text = self.names.fresh("state"), self.names.fresh("str")
                self.nodes.append(Gen(out, text, child.state, "x", SamplingFields(temperature=0.7)))
                child.state = out
        for child in children:
            if self.rng.random() < 0.7:
                self.append(child, Text, (shared,))
            if self.rng.random() < 0.3 and child.role is None:
                child.role = "user"
                self.append(child, RoleBegin, "user")
            self.run(child, depth + 1)
        if self.rng.random() < 0.5:
            self.strings = before
        joined = [c for c in children if self.rng.random() < 0.8]
        if joined and self.rng.random() < 0.7:
            if self.rng.random() < 0.3:
                self.join_in_arms(branch, joined)
            else:
                self.append(branch, Join, tuple(c.state for c in joined), self.mode())

    def mode(self) -> str:
        return self.rng.choice(["gather_variable", "gather_variable", "concate_and_append"])

    def join_in_arms(self, branch: Branch, children: list[Branch]) -> None:
        """Each arm joins some of the branches, or writes on."""
        cond = self.condition()
        arms: list[Region] = []
        for _ in range(2):
            outer, self.nodes = self.nodes, []
            arm = Branch(branch.state, branch.role)
            if self.rng.random() < 0.3:
                self.append(arm, Text, (self.rng.choice(TEXTS),))
            some = [c.state for c in children if self.rng.random() < 0.7]
            if some:
                self.append(arm, Join, tuple(some), self.mode())
            inner, self.nodes = self.nodes, outer
            arms.append(Region(tuple(inner), (arm.state,)))
        state = self.names.fresh("state")
        self.nodes.append(If((state,), cond, *arms))
        branch.state = state


def random_module(seed: int) -> Module:
    from runtime.api import Constraint

    rng = random.Random(seed)
    graphs: list[Graph] = []
    for name in ["inner", "main"] if rng.random() < 0.4 else ["main"]:
        graphs.append(Maker(rng, list(graphs)).graph(name))
    return Module({g.name: g for g in graphs}, "main", {"c0": Constraint("regex", "[0-9]+")})


def with_equal_draws(seed: int) -> Module:
    """A random graph with one more fork after a text, in an arm perhaps, whose branches draw the same; some are read."""
    module = random_module(seed)
    rng = random.Random(~seed)
    graph = module.graph
    texts = graph.nodes_of(Text)
    if not texts:
        return module
    place = rng.choice(texts)
    names = graph.names()
    count = rng.randint(2, 4)
    outs = tuple(names.fresh("state") for _ in range(count))
    gens = [
        Gen(names.fresh("state"), names.fresh("str"), out, "drawn", SamplingFields(temperature=0.9))
        for out in outs
    ]
    before, joined = names.fresh("state"), names.fresh("state")
    read = tuple(g.text for g in gens if rng.random() < 0.6)
    added: list[Node] = [replace(place, out=before), Fork(outs, before), *gens]
    if rng.random() < 0.7:
        chosen = tuple(g.out for g in gens if rng.random() < 0.8)
        added += [Join(joined, before, chosen), Text(place.out, joined, read)]
    else:
        added += [Text(place.out, before, read)]
    graph = graph.replace_nodes({place: added})
    return replace(module, graphs={**module.graphs, module.main: graph})


def outcome(module: Module, alike: bool = False) -> tuple[Any, Counter[Any]]:
    """What the graph gives with a model that is a hash of its prompt, and the calls that it made.

    `alike`: all samples of a call are equal, so that two calls are what two samples are.
    """
    calls: Counter[Any] = Counter()

    def model(call: ModelCall) -> Any:
        key = (call.prompt, call.sampling, call.choices, str(getattr(call.node, "constraint", None)))
        n = call.node.n if isinstance(call.node, Gen) else None
        calls[(*key, n, call.node.licence is Licence.PURE)] += 1
        digest = hashlib.sha256(repr(key).encode()).hexdigest()
        if call.choices:
            return call.choices[int(digest, 16) % len(call.choices)]
        return digest[:5] if n is None else [digest[0 if alike else k :][:5] for k in range(n)]

    arguments = {p.name: f"<{p.name}>" for p in module.graph.params}
    return evaluate(module, model, arguments, Plain(), SamplingFields(max_tokens=16)), calls


def draws(module: Module) -> tuple[Any, Counter[Any], Counter[Any]]:
    """What the graph gives if each draw of the same is another answer, how often each thing was drawn, and in how many calls."""
    drawn: Counter[Any] = Counter()
    calls: Counter[Any] = Counter()

    def model(call: ModelCall) -> Any:
        key = (call.prompt, call.sampling, call.choices, str(getattr(call.node, "constraint", None)))
        n = call.node.n if isinstance(call.node, Gen) else None
        first = drawn[key] if call.node.licence is Licence.SAMPLED else 0
        drawn[key] += n or 1
        calls[key] += 1
        digests = [hashlib.sha256(repr((key, first + k)).encode()).hexdigest() for k in range(n or 1)]
        if call.choices:
            return call.choices[int(digests[0], 16) % len(call.choices)]
        return digests[0][:5] if n is None else [d[:5] for d in digests]

    arguments = {p.name: f"<{p.name}>" for p in module.graph.params}
    return evaluate(module, model, arguments, Plain(), SamplingFields(max_tokens=16)), drawn, calls


def assert_licensed(before: Any, after: Any, order: list[str]) -> None:
    """The same outcome, and no other calls than the passes have a licence for."""
    assert after[0] == before[0]
    names = {item.partition("{")[0] for item in order}
    assert not after[1] - before[1]  # nothing is asked more often, and nothing else
    lost = before[1] - after[1]
    if "drop-dead" in names:
        return
    assert all(key[-1] for key in lost), "only what is pure may be shared"
    assert not lost or "cse" in names
    assert all(after[1][key] for key in lost), "what is shared is still asked once"


PIPELINES = [
    "canonicalize",
    "inline",
    "drop-dead",
    "cse",
    "merge-forks",
    "hoist-prefix",
    "hoist-prefix{min-group-chars=1}",
    "hoist-prefix{min-chars=4}",
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32))
def test_random_graphs_verify_and_print_back(seed: int) -> None:
    module = random_module(seed)
    verify_module(module)
    text = str(module)
    assert str(parse_module(text)) == text
    data = to_json(module)
    assert str(from_json(data)) == text
    assert to_json(from_json(data)) == data


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32), st.lists(st.sampled_from(PIPELINES), min_size=1, max_size=4))
def test_passes_keep_the_meaning_in_any_order(seed: int, order: list[str]) -> None:
    module = random_module(seed)
    changed = Pipeline.parse(",".join(order)).run(module, verify=True)
    assert_licensed(outcome(module), outcome(changed), order)
    assert str(parse_module(str(changed))) == str(changed)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32), st.sampled_from(["canonicalize", "hoist-prefix", "inline", "cse"]))
def test_equal_draws_are_drawn_as_often_when_they_are_samples_of_one(seed: int, before: str) -> None:
    module = with_equal_draws(seed)
    changed = Pipeline.parse(f"{before},merge-forks{{samples=true}}").run(module, verify=True)
    (expected, asked), (found, drawn) = outcome(module, alike=True), outcome(changed, alike=True)
    assert found == expected
    for key, count in samples(drawn).items():
        assert count <= samples(asked)[key] and (before == "cse" or count == samples(asked)[key])
    assert sum(drawn.values()) <= sum(asked.values())


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32))
def test_each_branch_goes_on_with_a_sample_of_its_own(seed: int) -> None:
    module = Pipeline.parse("canonicalize").run(with_equal_draws(seed), verify=True)
    changed = Pipeline.parse("merge-forks{samples=true}").run(module, verify=True)
    (expected, asked, _), (found, drawn, calls) = draws(module), draws(changed)
    # Elsewhere in the graph the same may be drawn before or after, and then it is another draw that each one gets.
    if all(calls[key] == 1 for key in drawn if drawn[key] > 1):
        assert (found, drawn) == (expected, asked)


def samples(calls: Counter[Any]) -> Counter[Any]:
    """How often each thing was drawn, in however many calls."""
    found: Counter[Any] = Counter()
    for (*key, n, _), count in calls.items():
        found[tuple(key)] += count * (n or 1)
    return found


@pytest.mark.parametrize("pipeline", PIPELINES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32))
def test_passes_are_idempotent(pipeline: str, seed: int) -> None:
    again = Pipeline.parse(pipeline)
    once = again.run(Pipeline.parse("canonicalize").run(random_module(seed)))
    assert renumber(again.run(once)) == renumber(once)


def renumber(module: Module) -> str:
    return str(module.map(renumbered))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32))
def test_a_pass_never_changes_its_input(seed: int) -> None:
    module = random_module(seed)
    text = str(module)
    for name in passes():
        Pipeline.parse(name).run(module)
    assert str(module) == text


@given(st.text(st.characters(exclude_categories=[])))
def test_any_string_prints_and_parses(text: str) -> None:
    nodes = (Begin(a := Value("0", "state")), Text(b := Value("1", "state"), a, (text,)), Return(b))
    module = Module({"f": Graph("f", (), nodes)}, "f")
    found = parse_module(str(module)).graph.nodes[1]
    assert isinstance(found, Text) and found.parts == (text,)
    assert str(module).isprintable() or "\n" in str(module)
