"""What a run will cost, before it runs: intervals of calls, prompt tokens and new tokens, by source line too.

An abstract run of the graph in which every text is an interval of tokens. Constants and given arguments are counted by the
tokenizer as whole runs of text; what is not known is bounded by the limits of the gens that write it. Where known text
meets unknown text, tokens may fall otherwise than in either alone, so each such place widens the interval by SLACK. Of an
`if` both arms are hulled, of a `loop` the rounds go from one to its maximum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sglc.ir.core import Graph, Module, Node, Operand, Value
from sglc.ir.ops import (
    Begin,
    Call,
    Fork,
    Gen,
    If,
    Image,
    Join,
    Loop,
    Pure,
    Return,
    Reuse,
    RoleBegin,
    RoleEnd,
    ScopeEnd,
    Select,
    Text,
)
from sglc.ir.specs import Location

SLACK = 8
MAX_TOKENS = 128  # of a gen that names no limit, as in every run


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`; None: no limit is known."""

    low: int = 0
    high: int | None = 0

    def __add__(self, other: Interval) -> Interval:
        high = None if self.high is None or other.high is None else self.high + other.high
        return Interval(self.low + other.low, high)

    def hull(self, other: Interval) -> Interval:
        high = None if self.high is None or other.high is None else max(self.high, other.high)
        return Interval(min(self.low, other.low), high)

    def times(self, low: int, high: int) -> Interval:
        return Interval(self.low * low, None if self.high is None else self.high * high)

    def wider(self, by: int) -> Interval:
        return Interval(max(self.low - by, 0), None if self.high is None else self.high + by)

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int) and self.low <= value and (self.high is None or value <= self.high)

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.low:,}"
        return f"{self.low:,} to {'no limit' if self.high is None else f'{self.high:,}'}"


NOTHING = Interval()
UNKNOWN = Interval(0, None)


@dataclass(frozen=True)
class Cost:
    """`prompt`: tokens of all prompts, as if nothing were cached; `output`: new tokens."""

    calls: Interval = NOTHING
    prompt: Interval = NOTHING
    output: Interval = NOTHING

    def plus(self, other: Cost) -> Cost:
        return Cost(
            self.calls + other.calls,
            self.prompt + other.prompt,
            self.output + other.output,
        )

    def hull(self, other: Cost) -> Cost:
        return Cost(
            self.calls.hull(other.calls),
            self.prompt.hull(other.prompt),
            self.output.hull(other.output),
        )

    def money(self, price: Price) -> tuple[float, float | None]:
        """At least and at most; None: no limit is known."""
        low = self.prompt.low * price.cached + self.output.low * price.output
        if self.prompt.high is None or self.output.high is None:
            return low / 1e6, None
        return low / 1e6, (self.prompt.high * price.input + self.output.high * price.output) / 1e6


@dataclass(frozen=True)
class Price:
    """Of a million tokens, in whatever currency."""

    input: float
    output: float
    cached: float = 0.0


@dataclass
class Costs:
    """A program's cost, in all and for each place that calls the model."""

    total: Cost
    lines: dict[Location | None, Cost] = field(default_factory=dict)


@dataclass(frozen=True)
class _State:
    """`size`: tokens up to the last answer; `run`: text since then."""

    size: Interval = NOTHING
    run: tuple[str | Interval, ...] = ()
    since: Interval = NOTHING  # appended since the fork, at least roughly
    roles: tuple[str, ...] = ()


def costs(
    module: Module, count: Callable[[str], int], template: Any, arguments: Mapping[str, Any] | None = None
) -> Costs:
    """`count`: tokens of a text; `template`: the chat template of the model; arguments not given are of unknown length."""
    work = _Work(module, count, template)
    known: dict[Value, Any] = {}
    for param in module.graph.params:
        given = (arguments or {}).get(param.name)
        known[param] = given if isinstance(given, str) else UNKNOWN
    total = work.graph(module.graph, known)
    return Costs(total, work.lines)


class _Work:
    def __init__(self, module: Module, count: Callable[[str], int], template: Any) -> None:
        self.module = module
        self.count = count
        self.template = template
        self.lines: dict[Location | None, Cost] = {}
        self.cache: dict[str, int] = {}

    def tokens(self, run: Sequence[str | Interval]) -> Interval:
        """Of a run of text between answers."""
        texts: list[str] = []
        total, places = NOTHING, 0
        for piece in (*run, NOTHING):
            if isinstance(piece, str):
                texts.append(piece)
                continue
            if texts and (text := "".join(texts)):
                if text not in self.cache:
                    self.cache[text] = self.count(text)
                total = total + Interval(self.cache[text], self.cache[text])
            texts = []
            if piece is not NOTHING:
                total, places = total + piece, places + 1
        return total.wider(2 * SLACK * places) if places else total

    def graph(self, graph: Graph, known: dict[Value, Any]) -> Cost:
        return self.block(graph.nodes, dict(known), {}, {})

    def block(
        self,
        nodes: Sequence[Node],
        known: dict[Value, Any],
        states: dict[Value, _State],
        lines: dict[Location | None, Cost],
    ) -> Cost:
        total = Cost()

        def size(value: Operand) -> Any:
            if isinstance(value, Value):
                return known.get(value, UNKNOWN)
            return value if isinstance(value, str) else Interval(0, SLACK)

        for node in nodes:
            if isinstance(node, Begin):
                states[node.out] = _State()
            elif isinstance(node, Text):
                pieces = tuple(p for part in node.parts for p in _pieces(size(part)))
                states[node.out] = self.appended(states[node.state], pieces)
            elif isinstance(node, Image):
                states[node.out] = self.appended(states[node.state], (UNKNOWN,))
            elif isinstance(node, (RoleBegin, RoleEnd)):
                states[node.out] = self.role(states[node.state], node)
            elif isinstance(node, (Gen, Select)):
                total = total.plus(self.call(node, states, known, size))
            elif isinstance(node, Reuse):
                here = states[node.state]
                answer = _interval(size(node.source))
                known[node.text] = answer
                states[node.out] = self.appended(here, (answer,))
            elif isinstance(node, Fork):
                here = states[node.state]
                states.update((o, replace(here, since=NOTHING)) for o in node.outs)
            elif isinstance(node, Join):
                here = states[node.state]
                if node.mode == "concate_and_append":
                    here = self.appended(here, tuple(states[b].since.wider(SLACK) for b in node.branches))
                states[node.out] = here
            elif isinstance(node, Pure):
                known[node.out] = _computed(node, [size(a) for a in node.args])
            elif isinstance(node, Call):
                total = total.plus(self.called(node, known, size))
            elif isinstance(node, If):
                total = total.plus(self.arms(node, known, states))
            elif isinstance(node, Loop):
                total = total.plus(self.rounds(node, known, states))
            elif isinstance(node, Return):
                break
            elif node.uses and node.defs and node.defs[0].type == "state":
                states[node.defs[0]] = states[node.uses[0]]
                if isinstance(node, ScopeEnd):
                    known[node.text] = UNKNOWN
        return total

    def appended(self, state: _State, pieces: tuple[str | Interval, ...]) -> _State:
        more = self.tokens(pieces).wider(SLACK if pieces else 0)
        return replace(state, run=(*state.run, *pieces), since=state.since + more)

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
        run = self.tokens(here.run)
        prompt = here.size + run
        if isinstance(node, Gen):
            limit = node.sampling.max_tokens if node.sampling.max_tokens is not None else MAX_TOKENS
            written = Interval(0, limit)
            output = written.times(node.n or 1, node.n or 1)
            known[node.text] = Interval(0, 2 * limit + SLACK)  # its text, if it is tokenised again
        else:
            choices = [self.tokens(_pieces(size(c))).wider(SLACK) for c in node.choices]
            written = choices[0]
            for other in choices[1:]:
                written = written.hull(other)
            output = NOTHING
            known[node.text] = written
        states[node.out] = replace(here, size=prompt + written, run=(), since=here.since + written)
        found = Cost(Interval(1, 1), prompt, output)
        self.lines[node.at] = self.lines.get(node.at, Cost()).plus(found)
        return found

    def called(self, node: Call, known: dict[Value, Any], size: Callable[[Operand], Any]) -> Cost:
        callee = self.module.graph_of(node.symbol)
        given = {p: size(a) for p, a in zip(callee.params, node.args, strict=True)}
        known.update(dict.fromkeys((node.text, *node.values), UNKNOWN))
        return self.graph(callee, given)

    def arms(self, node: If, known: dict[Value, Any], states: dict[Value, _State]) -> Cost:
        found: list[Cost] = []
        ends: list[list[Any]] = []
        for region in node.regions:
            inner_known, inner_states = dict(known), dict(states)
            found.append(self.block(region.nodes, inner_known, inner_states, {}))
            ends.append([_end(v, inner_known, inner_states) for v in region.results])
        for out, one, two in zip(node.outs, *ends, strict=True):
            if isinstance(one, _State) and isinstance(two, _State):
                states[out] = self.either(one, two)
            else:
                known[out] = one if one == two else _interval(one).hull(_interval(two))
        return found[0].hull(found[1])

    def either(self, one: _State, two: _State) -> _State:
        if one == two:
            return one
        size = (one.size + self.tokens(one.run)).hull(two.size + self.tokens(two.run))
        roles = one.roles if len(one.roles) >= len(two.roles) else two.roles
        return _State(size.wider(SLACK), (), one.since.hull(two.since), roles)

    def rounds(self, node: Loop, known: dict[Value, Any], states: dict[Value, _State]) -> Cost:
        inner_known, inner_states = dict(known), dict(states)
        for param, init in zip(node.body.params, node.inits, strict=True):
            if isinstance(init, Value) and init in states:
                inner_states[param] = states[init]
            else:
                inner_known[param] = UNKNOWN
        before = {p: inner_states[p] for p in node.body.params if p in inner_states}
        lines, self.lines = self.lines, {}
        once = self.block(node.body.nodes, inner_known, inner_states, {})
        inside, self.lines = self.lines, lines
        grown = NOTHING
        for out, end in zip(node.outs, node.body.results[1:], strict=True):
            found = _end(end, inner_known, inner_states)
            if not isinstance(found, _State):
                known[out] = UNKNOWN
                continue
            first = next(iter(before.values()), _State())
            start, after = first.size + self.tokens(first.run), found.size + self.tokens(found.run)
            growth = Interval(0, None if after.high is None or start.high is None else after.high - start.low)
            more = growth.times(0, node.maximum)
            grown = grown.hull(more)
            states[out] = _State((start + more).wider(SLACK), (), found.since + more, found.roles)
        # Later rounds have longer prompts: by all that was appended before.
        calls = once.calls.times(1, node.maximum)
        longer = None if calls.high is None or grown.high is None else calls.high * grown.high
        prompt = once.prompt.times(1, node.maximum)
        prompt = prompt + Interval(0, longer)
        for at, cost in inside.items():
            rounds = Cost(
                cost.calls.times(1, node.maximum), cost.prompt.times(1, node.maximum) + Interval(0, longer),
                cost.output.times(1, node.maximum),
            )  # fmt: skip
            self.lines[at] = self.lines.get(at, Cost()).plus(rounds)
        return Cost(calls, prompt, once.output.times(1, node.maximum))


def _end(value: Operand, known: Mapping[Value, Any], states: Mapping[Value, _State]) -> Any:
    if isinstance(value, Value):
        return states[value] if value in states else known.get(value, UNKNOWN)
    return value


def _pieces(value: Any) -> tuple[str | Interval, ...]:
    return value if isinstance(value, tuple) else (value if isinstance(value, (str, Interval)) else UNKNOWN,)


def _interval(value: Any) -> Interval:
    if isinstance(value, Interval):
        return value
    if isinstance(value, str):
        return Interval(0, len(value.encode()))
    if isinstance(value, tuple):
        total = NOTHING
        for piece in value:
            total = total + _interval(piece)
        return total
    return UNKNOWN


def _computed(node: Pure, operands: list[Any]) -> Any:
    """What a pure op gives: concatenations keep their pieces, what shortens a text is bounded by it."""
    if node.op == "concat":
        return tuple(p for value in operands for p in _pieces(value))
    if node.op in (
        "strip",
        "lstrip",
        "rstrip",
        "lower",
        "upper",
        "title",
        "capitalize",
        "removeprefix",
        "removesuffix",
    ):
        whole = _interval(operands[0])
        return Interval(0, None if whole.high is None else 2 * whole.high + SLACK)
    if node.op in ("item", "slice"):
        whole = _interval(operands[0])
        return Interval(0, whole.high)
    return UNKNOWN
