"""What a run will cost, before it runs: intervals of calls, prompt tokens, computed tokens and new tokens, by source line too.

An abstract run of the graph in which every text is an interval of tokens (sizes.py). Constants and given arguments are
counted; what is not known is bounded by the limits of the gens that write it. Of an `if` both arms are hulled, of a
`loop` the rounds go from one to its maximum; after a `break` no limit is known.

Computed tokens are what prefix caching leaves to do: at most, each piece of a prompt once; at least, the last token of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from sglc.ir.core import Graph, Module, Node, Operand, Value
from sglc.ir.ops import (
    Begin,
    Break,
    Call,
    Fork,
    Gen,
    If,
    Image,
    Join,
    Loop,
    Return,
    Reuse,
    RoleBegin,
    RoleEnd,
    ScopeBegin,
    ScopeEnd,
    Select,
    Text,
)
from sglc.ir.pure import Pure
from sglc.ir.specs import MAX_TOKENS, Location
from sglc.plan.interval import NOTHING, Cost, Interval
from sglc.plan.sizes import Piece, Sizes


@dataclass
class Costs:
    """A program's cost, in all and for each place that calls the model.

    `room`: tokens of the prompt and the answer of one call at each place, which is what a context must hold.
    """

    total: Cost
    lines: dict[Location | None, Cost] = field(default_factory=dict)
    room: dict[Location | None, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class _State:
    """`size`: tokens up to the last answer; `run`: text since then.

    `marks`: the places where it was forked or a call began or ended, with the tokens between; `tail`: text since the last one.
    """

    size: Interval = NOTHING
    run: tuple[Piece, ...] = ()
    marks: tuple[tuple[int, Interval], ...] = ()
    tail: tuple[Piece, ...] = ()
    since: Interval = NOTHING  # appended since the fork, at least roughly
    roles: tuple[str, ...] = ()
    scopes: tuple[tuple[str, Interval], ...] = ()  # open ones, and `since` where they began


def costs(
    module: Module,
    sizes: Sizes,
    template: Any,
    arguments: Mapping[str, Any] | None = None,
    *,
    argument: Interval | None = None,
    answers: Mapping[str, Interval] = MappingProxyType({}),
) -> Costs:
    """What a run costs with these arguments.

    template  the chat template of the model
    argument  tokens of an argument that is not given; None: it is unknown
    answers   tokens of what constraints let the model write, by their symbols (answers.py)
    """
    work = _Work(module, sizes, template, answers)
    known: dict[Value, Any] = {}
    for param in module.graph.params:
        given = (arguments or {}).get(param.name)
        known[param] = given if isinstance(given, str) else (argument or sizes.unknown)
    total = work.graph(module.graph, known)
    return Costs(total, work.lines, work.room)


class _Work:
    def __init__(self, module: Module, sizes: Sizes, template: Any, answers: Mapping[str, Interval]) -> None:
        self.module = module
        self.sizes = sizes
        self.template = template
        self.answers = answers
        self.lines: dict[Location | None, Cost] = {}
        self.room: dict[Location | None, Interval] = {}
        self.limit = MAX_TOKENS
        self.seen: set[int] = set()  # marks up to which some call has computed
        self.made = 0

    def graph(self, graph: Graph, known: dict[Value, Any]) -> Cost:
        return self.block(graph.nodes, dict(known), {})

    def block(
        self,
        nodes: Sequence[Node],
        known: dict[Value, Any],
        states: dict[Value, _State],
    ) -> Cost:
        total = Cost()

        def size(value: Operand) -> Any:
            if isinstance(value, Value):
                return known.get(value, self.sizes.unknown)
            return value if isinstance(value, str) else Interval(0, self.sizes.slack)

        for node in nodes:
            if isinstance(node, Begin):
                states[node.out] = _State()
            elif isinstance(node, Text):
                pieces = tuple(p for part in node.parts for p in self.sizes.pieces(size(part)))
                states[node.out] = self.appended(states[node.state], pieces)
            elif isinstance(node, Image):
                states[node.out] = self.appended(states[node.state], (self.sizes.unknown,))
            elif isinstance(node, (RoleBegin, RoleEnd)):
                states[node.out] = self.role(states[node.state], node)
            elif isinstance(node, (Gen, Select)):
                total = total.plus(self.call(node, states, known, size))
            elif isinstance(node, Reuse):
                here = states[node.state]
                answer = self.sizes.interval(size(node.source))
                known[node.text] = answer
                states[node.out] = self.appended(here, (answer,))
            elif isinstance(node, Fork):
                here = states[node.state] = self.marked(states[node.state])
                states.update((o, replace(here, since=NOTHING, scopes=())) for o in node.outs)
            elif isinstance(node, Join):
                here = states[node.state]
                if node.mode == "concate_and_append":
                    here = self.appended(here, tuple(self.sizes.edge(states[b].since) for b in node.branches))
                states[node.out] = here
            elif isinstance(node, Pure):
                known[node.out] = self.sizes.computed(node, [size(a) for a in node.args])
            elif isinstance(node, Call):
                total = total.plus(self.called(node, known, size))
            elif isinstance(node, If):
                total = total.plus(self.arms(node, known, states))
            elif isinstance(node, Loop):
                total = total.plus(self.rounds(node, known, states))
            elif isinstance(node, Return):
                break
            elif isinstance(node, Break):
                return total.plus(Cost(*[self.sizes.unknown] * 4))
            elif isinstance(node, ScopeBegin):
                here = states[node.state]
                states[node.out] = replace(here, scopes=(*here.scopes, (node.name, here.since)))
            elif isinstance(node, ScopeEnd):
                here = states[node.state]
                begun = dict(here.scopes).get(node.name)
                known[node.text] = self.sizes.unknown if begun is None else self.between(begun, here.since)
                states[node.out] = replace(here, scopes=tuple(s for s in here.scopes if s[0] != node.name))
            elif node.uses and node.defs and node.defs[0].type == "state":
                states[node.defs[0]] = states[node.uses[0]]
        return total

    def appended(self, state: _State, pieces: tuple[Piece, ...]) -> _State:
        more = self.sizes.edge(self.sizes.tokens(pieces)) if pieces else NOTHING
        return replace(
            state, run=(*state.run, *pieces), tail=(*state.tail, *pieces), since=state.since + more
        )

    def marked(self, state: _State) -> _State:
        """The same state, with a mark here."""
        if not state.tail:
            return state
        self.made += 1
        return replace(
            state, marks=(*state.marks, (self.made, self.sizes.edge(self.sizes.tokens(state.tail)))), tail=()
        )

    def role(self, state: _State, node: RoleBegin | RoleEnd) -> _State:
        history = [{"role": r, "content": ""} for r in state.roles]
        if isinstance(node, RoleEnd):
            suffix = self.template.get_prefix_and_suffix(node.role, history)[1]
            return replace(self.appended(state, (suffix,)), roles=(*state.roles, node.role))
        default = self.template.default_system_prompt
        text = ""
        if not history and node.role != "system" and default:
            text = default.join(self.template.get_prefix_and_suffix("system", history))
            history.append({"role": "system", "content": default})
            state = replace(state, roles=("system",))
        return self.appended(state, (text + self.template.get_prefix_and_suffix(node.role, history)[0],))

    def call(
        self,
        node: Gen | Select,
        states: dict[Value, _State],
        known: dict[Value, Any],
        size: Callable[[Operand], Any],
    ) -> Cost:
        here = states[node.state]
        prompt = self.whole(here)
        if isinstance(node, Gen):
            given = node.sampling.max_tokens
            limit = given if given is not None else MAX_TOKENS if node.isolated else self.limit
            written, ended = self.answer(node, limit)
            output = ended.times(node.n or 1, node.n or 1)
            known[node.text] = self.sizes.anew(written)
        else:
            choices = [self.sizes.edge(self.sizes.tokens(self.sizes.pieces(size(c)))) for c in node.choices]
            written = choices[0]
            for other in choices[1:]:
                written = written.hull(other)
            output = NOTHING
            known[node.text] = written
        scored = prompt
        computed = self.sizes.edge(self.sizes.tokens(here.tail))
        for mark, between in here.marks:
            computed = computed if mark in self.seen else computed + between
            self.seen.add(mark)
        if isinstance(node, Select):
            for choice in choices:  # each is scored after the prompt
                computed = computed + choice
                scored = scored + Interval(0, choice.high)
        high = computed.high
        if scored.high is not None:
            high = scored.high if high is None else min(high, scored.high)
        self.made += 1
        self.seen.add(self.made)  # an answer is computed as it is written, all but its last token
        states[node.out] = replace(
            here, size=prompt + written, run=(), tail=(Interval(0, 1),), since=here.since + written,
            marks=(*here.marks, (self.made, NOTHING)),
        )  # fmt: skip
        found = Cost(Interval(1, 1), scored, Interval(1, None if high is None else max(high, 1)), output)
        self.lines[node.at] = self.lines.get(node.at, Cost()).plus(found)
        needed = prompt + written
        self.room[node.at] = self.room.get(node.at, needed).hull(needed)
        return found

    def answer(self, node: Gen, limit: int) -> tuple[Interval, Interval]:
        """The tokens of an answer, and those that are generated for it: with the one that ends it."""
        bound = self.answers.get(node.constraint.name) if node.constraint is not None else None
        if bound is None:
            return Interval(0, limit), Interval(0, limit)
        low = 0 if node.sampling.stop else min(bound.low, limit)
        high = limit if bound.high is None else min(bound.high, limit)
        return Interval(low, high), Interval(low, min(high + 1, limit))

    def called(self, node: Call, known: dict[Value, Any], size: Callable[[Operand], Any]) -> Cost:
        callee = self.module.graph_of(node.symbol)
        given = {p: size(a) for p, a in zip(callee.params, node.args, strict=True)}
        known.update(dict.fromkeys((node.text, *node.values), self.sizes.unknown))
        outer, own = self.limit, node.sampling.max_tokens
        self.limit = MAX_TOKENS if own is None else own
        total = self.graph(callee, given)
        self.limit = outer
        return total

    def arms(self, node: If, known: dict[Value, Any], states: dict[Value, _State]) -> Cost:
        found: list[Cost] = []
        ends: list[list[Any]] = []
        before, after = self.seen, []
        outer, inside = self.lines, []
        for region in node.regions:
            self.seen, self.lines = set(before), {}
            inner_known, inner_states = dict(known), dict(states)
            found.append(self.block(region.nodes, inner_known, inner_states))
            ends.append([self.end(v, inner_known, inner_states) for v in region.results])
            after.append(self.seen)
            inside.append(self.lines)
        self.seen, self.lines = set.intersection(*after), outer
        for at in {**inside[0], **inside[1]}:
            either = inside[0].get(at, Cost()).hull(inside[1].get(at, Cost()))
            self.lines[at] = outer.get(at, Cost()).plus(either)
        for out, one, two in zip(node.outs, *ends, strict=True):
            if isinstance(one, _State) and isinstance(two, _State):
                states[out] = self.either(one, two)
            else:
                known[out] = one if one == two else self.sizes.interval(one).hull(self.sizes.interval(two))
        return found[0].hull(found[1])

    def either(self, one: _State, two: _State) -> _State:
        if one == two:
            return one
        size = self.sizes.edge(self.whole(one).hull(self.whole(two)))
        roles = one.roles if len(one.roles) >= len(two.roles) else two.roles
        shared = 0
        while shared < min(len(one.marks), len(two.marks)) and one.marks[shared] == two.marks[shared]:
            shared += 1
        rest = self.uncached(one, shared).hull(self.uncached(two, shared))
        scopes = one.scopes if one.scopes == two.scopes else ()
        return _State(size, (), one.marks[:shared], (rest,), one.since.hull(two.since), roles, scopes)

    def uncached(self, state: _State, start: int) -> Interval:
        """Tokens after the first `start` marks, less those that some call has computed on every way here."""
        total = self.sizes.edge(self.sizes.tokens(state.tail))
        for mark, between in state.marks[start:]:
            total = total if mark in self.seen else total + between
        return total

    def rounds(self, node: Loop, known: dict[Value, Any], states: dict[Value, _State]) -> Cost:
        inner_known, inner_states = dict(known), dict(states)
        for param, init in zip(node.body.params, node.inits, strict=True):
            if isinstance(init, Value) and init in states:
                inner_states[param] = states[init]
            else:
                inner_known[param] = self.sizes.unknown
        before = {p: inner_states[p] for p in node.body.params if p in inner_states}
        outer_lines, outer_room, self.lines, self.room = self.lines, self.room, {}, {}
        once = self.block(node.body.nodes, inner_known, inner_states)
        lines, room, self.lines, self.room = self.lines, self.room, outer_lines, outer_room
        most = node.maximum if node.bounded or self.sizes.endless else 1
        grown, later = NOTHING, NOTHING
        for out, param, end in zip(node.outs, node.body.params, node.body.results[1:], strict=True):
            found = self.end(end, inner_known, inner_states)
            if not isinstance(found, _State):
                known[out] = self.sizes.unknown
                continue
            first = before[param]
            start, after = self.whole(first), self.whole(found)
            growth = Interval(0, None if after.high is None or start.high is None else after.high - start.low)
            more = growth.times(0, most)
            grown, later = grown.hull(more), later.hull(growth.times(0, most - 1))
            size = self.sizes.edge(start + more)
            states[out] = _State(size, (), (), (size,), found.since + more, found.roles, first.scopes)
        # Later rounds have longer prompts: by all that was appended before.
        calls = once.calls.times(1, most)
        longer = Interval(0, None if calls.high is None or grown.high is None else calls.high * grown.high)

        def times(cost: Cost) -> Cost:
            prompt, computed, output = (
                part.times(1, most) for part in (cost.prompt, cost.computed, cost.output)
            )
            return Cost(cost.calls.times(1, most), prompt + longer, computed + longer, output)

        for at, cost in lines.items():
            self.lines[at] = self.lines.get(at, Cost()).plus(times(cost))
        for at, needed in room.items():
            self.room[at] = self.room.get(at, needed).hull(needed + later)
        return times(once)

    def between(self, begun: Interval, now: Interval) -> Interval:
        """The text of a scope: what was appended while it was open."""
        return self.sizes.anew(Interval(0, None if now.high is None else max(now.high - begun.low, 0)))

    def whole(self, state: _State) -> Interval:
        """All tokens of a state."""
        return state.size + self.sizes.tokens(state.run)

    def end(self, value: Operand, known: Mapping[Value, Any], states: Mapping[Value, _State]) -> Any:
        """What a region yields."""
        if isinstance(value, Value):
            return states[value] if value in states else known.get(value, self.sizes.unknown)
        return value
