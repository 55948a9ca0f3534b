"""Graph to Plan: states become ropes, gens become calls on them, role markers become the template's text.

The graph is walked once, in order. A state is where its rope ends, the variables it has and the message
that is open; since a state is used once, what is known of it moves along with it and is copied only
at a fork. A program that is called is walked in its place, on a rope of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from runtime.plan import (
    Absent,
    Argument,
    Carried,
    Carrier,
    Choose,
    Compute,
    Const,
    Decode,
    Either,
    Enter,
    Gathered,
    Guard,
    HostCall,
    ImagePart,
    Last,
    Named,
    Output,
    Part,
    Pick,
    Plan,
    PlanMessage,
    Prefill,
    Prefix,
    Ref,
    Repeat,
    Rope,
    Rounds,
    Step,
    Turn,
    Variable,
    refs,
)
from sglc.errors import PlanError
from sglc.ir.core import Graph, Module, Node, Operand, Symbol, Value, walk
from sglc.ir.ops import (
    Begin,
    Call,
    Fork,
    Gen,
    Host,
    If,
    Image,
    Join,
    Loop,
    Pack,
    Pure,
    Read,
    Return,
    Reuse,
    RoleBegin,
    RoleEnd,
    ScopeBegin,
    ScopeEnd,
    Select,
    SetVar,
    Text,
)
from sglc.ir.specs import Location, SamplingFields

MAX_DEPTH = 64


class Template(Protocol):
    """What lowering needs of a chat template."""

    @property
    def name(self) -> str: ...

    @property
    def default_system_prompt(self) -> str | None: ...

    @property
    def image_token(self) -> str: ...

    def get_prefix_and_suffix(self, role: str, hist_messages: Any) -> tuple[str, str]: ...


@dataclass(frozen=True)
class _Mark:
    """A place in a state: `parts` before the end of a prefix; where arms met that each had passed it, an `Either`."""

    prefix: int
    parts: Rope = ()


_START = _Mark(-1)


@dataclass
class _State:
    """What is known of a state."""

    prefix: int = -1
    pending: list[Part] = field(default_factory=list)
    variables: dict[str | None, Named] = field(default_factory=dict)
    messages: int = -1
    history: list[dict[str, Any]] = field(default_factory=list)
    role: str | None = None
    opened: _Mark = _START  # before the open message's content
    scopes: dict[str, _Mark] = field(default_factory=dict)
    forked: int = -1  # the prefix it was forked at
    calls: list[int] = field(default_factory=list)  # those whose failure is its failure

    def copy(self) -> _State:
        return dataclasses.replace(
            self,
            pending=list(self.pending),
            variables=dict(self.variables),
            history=list(self.history),
            scopes=dict(self.scopes),
            forked=self.prefix,
            calls=[],
        )

    def in_arm(self) -> _State:
        """The same state, for one arm of an `if`."""
        return dataclasses.replace(
            self,
            pending=list(self.pending),
            variables=dict(self.variables),
            history=list(self.history),
            scopes=dict(self.scopes),
            calls=list(self.calls),
        )


def lower(module: Module, template: Template) -> Plan:
    """The Plan of the module's main graph for models with this chat template. Raises PlanError."""
    return _Lowering(module, template).plan()


class _Lowering:
    def __init__(self, module: Module, template: Template) -> None:
        self.module = module
        self.template = template
        self.prefixes: list[tuple[int, Rope]] = []
        self.uses: list[int] = []
        self.waves: list[int] = []  # by prefix: the wave in which its text is complete
        self.step_waves: list[int] = []
        self.conversation: list[PlanMessage] = []
        self.steps: list[Step] = []
        self.reads: set[int] = set()
        self.awaited: tuple[
            int, ...
        ] = ()  # what the body has read up to here, for host calls that come after
        self.guard: Guard | None = None
        self.floor = 0  # the wave in which the guard's condition is known
        self.hosts = any(isinstance(n, Host) for g in module.graphs.values() for n in g.walk())
        self.partial: set[int] = set()  # picks that have no value on one side

    def plan(self) -> Plan:
        graph = self.module.graph
        arguments: dict[Value, Variable] = {p: Argument(p.name) for p in graph.params}
        state, result = self._graph(graph, arguments, None, 0)
        self.flush(state)
        uses = self._total_uses()
        self._prefill_shared(uses)
        return Plan(
            name=graph.name,
            params=tuple(p.name for p in graph.params),
            prefixes=tuple(
                Prefix(parent, parts, n) for (parent, parts), n in zip(self.prefixes, uses, strict=True)
            ),
            conversation=tuple(self.conversation),
            steps=tuple(self.steps),
            variables=tuple(state.variables.values()),
            text=state.prefix,
            messages=state.messages,
            result=result,
            reads=tuple(sorted(self.reads)),
            fatal=tuple(sorted(state.calls)),
            template=self.template.name,
        )

    def _prefill_shared(self, uses: Sequence[int]) -> None:
        """Say which prefixes several ropes of calls go on from."""
        ways = list(self.uses)
        for number, (parent, parts) in enumerate(self.prefixes):
            goes_on = bool(parts) and isinstance(parts[0], Output)  # after a call on the parent: the same way
            if parent >= 0 and uses[number] and not goes_on:
                ways[parent] += 1
        for number, count in enumerate(ways):
            if count > 1 and uses[number] > 1 and self._has_text(number):
                self.step(Prefill(prefix=number, uses=uses[number]), self.waves[number])

    def _has_text(self, prefix: int) -> bool:
        while prefix >= 0:
            parent, parts = self.prefixes[prefix]
            if parts:
                return True
            prefix = parent
        return False

    def _total_uses(self) -> list[int]:
        total = list(self.uses)
        for number in range(len(self.prefixes) - 1, -1, -1):
            parent = self.prefixes[number][0]
            if parent >= 0:
                total[parent] += total[number]
        return total

    # Ropes.

    def flush(self, state: _State) -> int:
        """End the rope here, so that others can go on from it; its number."""
        if state.pending or state.prefix < 0:
            parts = _merged(state.pending)
            wave = self.waves[state.prefix] if state.prefix >= 0 else self.floor
            state.prefix = self.prefix(state.prefix, parts, max(wave, self._wave(parts)))
            state.pending = []
        return state.prefix

    def prefix(self, parent: int, parts: Rope, wave: int) -> int:
        self.prefixes.append((parent, parts))
        self.uses.append(0)
        self.waves.append(wave)
        return len(self.prefixes) - 1

    def _wave(self, parts: Sequence[Part]) -> int:
        """The wave after which all parts are known."""
        return max((self.step_waves[n] for p in parts for n in refs(p)), default=self.floor)

    def since(self, state: _State, mark: int) -> Rope:
        """What was appended since the rope ended at `mark`."""
        found: list[Rope] = [tuple(state.pending)]
        step = state.prefix
        while step != mark:
            if step < 0:
                raise PlanError(
                    f"the graph @{self.module.main}: text is asked for from a place that is not before it"
                )
            parent, parts = self.prefixes[step]
            found.append(parts)
            step = parent
        return _merged([part for parts in reversed(found) for part in parts])

    def after(self, state: _State, mark: _Mark) -> Rope:
        """What was appended since a mark."""
        return _merged((*mark.parts, *self.since(state, mark.prefix)))

    def read(self, step: int) -> None:
        """The body waits for this step."""
        self.reads.add(step)
        if self.hosts and step not in self.awaited:
            self.awaited = (*self.awaited, step)

    def step(self, step: Step, wave: int) -> int:
        if self.guard is not None:
            step = msgspec.structs.replace(step, when=self.guard)
        self.steps.append(step)
        self.step_waves.append(wave)
        return len(self.steps) - 1

    def _concat(self, parts: Rope, at: str) -> Variable:
        if not parts:
            return Const("")
        if len(parts) == 1 and not isinstance(parts[0], ImagePart):
            part = parts[0]
            return Ref(part.step) if isinstance(part, Output) else part
        return Ref(self.step(Compute(op="concat", operands=parts, at=at), self._wave(parts)))

    # Graphs.

    def _graph(
        self, graph: Graph, known: dict[Value, Variable], defaults: dict[str, Any] | None, depth: int
    ) -> tuple[_State, Variable]:
        if depth > MAX_DEPTH:
            raise PlanError(f"@{graph.name}: calls are nested more than {MAX_DEPTH} deep")
        states: dict[Value, _State] = {}
        walk = _Walk(self, known, states, defaults, depth)
        for node in graph.nodes:
            if isinstance(node, Return):
                return states[node.state], walk.operand(node.result)
            walk.node(node)
        raise PlanError(f"@{graph.name} does not end in `return`")

    # Arms that meet.

    def _meet(self, cond: int, one: _State, two: _State) -> _State:
        """The state that is one or the other."""
        start = self._common(one.prefix, two.prefix)
        then, orelse = self.since(one, start), self.since(two, start)
        pending: list[Part] = list(then) if then == orelse else [Either(cond, then, orelse)]
        if one.role != two.role:
            raise PlanError("the two ways of a condition end in different messages")
        if list(one.scopes) != list(two.scopes):
            raise PlanError("the two ways of a condition end in different scopes")
        met = dataclasses.replace(one, prefix=start, pending=pending)

        def mark(a: _Mark, b: _Mark) -> _Mark:
            if a == b:
                return a
            return _Mark(self.flush(met), (Either(cond, self.after(one, a), self.after(two, b)),))

        met.scopes = {n: mark(m, two.scopes[n]) for n, m in one.scopes.items()}
        if one.role is not None:
            met.opened = mark(one.opened, two.opened)
        messages = one.messages
        if one.messages != two.messages:
            self.conversation.append(PlanMessage(one.messages, "", (), cond, two.messages))
            messages = len(self.conversation) - 1
        return dataclasses.replace(
            met,
            variables=self._meet_variables(cond, one.variables, two.variables),
            messages=messages,
            history=self.meet_history(one.history, two.history),
            calls=list(dict.fromkeys((*one.calls, *two.calls))),
        )

    def _common(self, one: int, two: int) -> int:
        """The last prefix that both begin with."""
        while one != two:
            if one > two:
                one = self.prefixes[one][0]
            else:
                two = self.prefixes[two][0]
        return one

    def meet_history(self, one: list[dict[str, Any]], two: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What later role markers need to know of the messages before."""
        if [m["role"] for m in one] == [m["role"] for m in two]:
            return one
        style = getattr(self.template, "style", None)
        if getattr(style, "name", "PLAIN") != "PLAIN" or (
            self.template.default_system_prompt and bool(one) != bool(two)
        ):
            raise PlanError(
                f"the two ways of a condition write different messages, on which the markers of the chat template "
                f"{self.template.name} depend"
            )
        return one or two

    def _meet_variables(
        self, cond: int, one: dict[str | None, Named], two: dict[str | None, Named]
    ) -> dict[str | None, Named]:
        found: dict[str | None, Named] = {}
        for name in {**one, **two}:
            a, b = one.get(name), two.get(name)
            if a == b and a is not None:
                found[name] = a
                continue
            values = (a.value if a else Absent(), b.value if b else Absent())
            steps = (a.step if a else -1, b.step if b else -1)
            pick = self._pick(cond, *values, steps)
            found[name] = Named(name, Ref(pick), pick if max(steps) >= 0 else -1)
        return found

    def _pick(self, cond: int, then: Variable, orelse: Variable, steps: tuple[int, int] = (-1, -1)) -> int:
        wave = max(self.step_waves[n] for v in (Ref(cond), then, orelse) for n in refs(v))
        number = self.step(Pick(cond=cond, then=then, orelse=orelse, steps=steps), wave)
        if any(self.maybe_absent(v) for v in (then, orelse)):
            self.partial.add(number)
        return number

    def maybe_absent(self, value: Variable) -> bool:
        return isinstance(value, Absent) or (isinstance(value, Ref) and value.step in self.partial)

    def _close(self, state: _State) -> int:
        """The conversation with the open message as its last one."""
        assert state.role is not None
        content = self.after(state, state.opened)
        self.conversation.append(PlanMessage(state.messages, state.role, content))
        return len(self.conversation) - 1


class _Walk:
    """One graph: its values so far."""

    def __init__(
        self,
        lowering: _Lowering,
        known: dict[Value, Variable],
        states: dict[Value, _State],
        defaults: dict[str, Any] | None,
        depth: int,
    ) -> None:
        self.to = lowering
        self.known = known
        self.states = states
        self.defaults = defaults
        self.depth = depth

    def operand(self, operand: Operand) -> Variable:
        if isinstance(operand, Value):
            found = self.known[operand]
            self._read(found)
            return found
        if isinstance(operand, Symbol):
            raise PlanError(f"{operand} is not a value")
        return Const(operand)

    def _read(self, value: Variable) -> None:
        """The body read it: only through a variable can a value be used again."""
        if isinstance(value, Gathered):
            for item in value.items:
                self._read(item)
        elif isinstance(value, (Ref, Output)):
            self.to.read(value.step)

    def part(self, operand: Operand) -> Part:
        """An operand of a rope or of a computation; lists of variables become packed values."""
        return self.packed(self.operand(operand))

    def packed(self, value: Variable) -> Part:
        if not isinstance(value, Gathered):
            return value
        items = tuple(self.packed(v) for v in value.items)
        return Ref(self.to.step(Compute(op="pack", operands=items, kind="list"), self.to._wave(items)))

    def nodes(self, nodes: Sequence[Node]) -> None:
        for node in nodes:
            self.node(node)

    def node(self, node: Node) -> None:
        at = _place(node.at)
        if isinstance(node, Begin):
            self.states[node.out] = _State()
        elif isinstance(node, Fork):
            state = self.states[node.state]
            self.to.flush(state)
            for out in node.outs:
                self.states[out] = state.copy()
        elif isinstance(node, (Pure, Pack)):
            operands = tuple(self.part(v) for v in node.operands)
            keys, kind = (node.keys, node.kind) if isinstance(node, Pack) else ((), "")
            step = Compute(op=node.op, operands=operands, kind=kind, keys=keys, at=at)
            self.known[node.out] = Ref(self.to.step(step, self.to._wave(operands)))
        elif isinstance(node, Read):
            self.operand(node.value)
        elif isinstance(node, If):
            self._if(node, at)
        elif isinstance(node, Host):
            self._host(node, at)
        elif isinstance(node, Loop):
            _Round(self, node, at).lower()
        elif isinstance(node, Call):
            self._call(node, at)
        else:
            self._append(node, at)

    def _if(self, node: If, at: str) -> None:
        cond = self.operand(node.cond)
        if not isinstance(cond, Ref):
            cond = Ref(self.to.step(Compute(op="bool", operands=(self.packed(cond),), at=at), self.to.floor))
        to, outer = self.to, (self.to.guard, self.to.floor)
        held = {v: self.states[v] for v in node.captures if v.type == "state"}
        for state in held.values():
            to.flush(state)
        arms: list[tuple[_Walk, Sequence[Operand]]] = []
        awaited, after = to.awaited, to.awaited[:0]
        for wanted, region in ((True, node.then), (False, node.orelse)):
            walk = self.inside()
            walk.states.update({v: s.in_arm() for v, s in held.items()})
            to.guard, to.floor = (cond.step, wanted), max(outer[1], to.step_waves[cond.step])
            to.awaited = awaited
            walk.nodes(region.nodes)
            after = (*after, *to.awaited)
            to.guard, to.floor = outer
            arms.append((walk, region.results))
        to.awaited = tuple(dict.fromkeys(after))
        (one, ones), (two, twos) = arms
        for out, a, b in zip(node.outs, ones, twos, strict=True):
            if isinstance(a, Value) and isinstance(b, Value) and out.type == "state":
                self.states[out] = to._meet(cond.step, one.states[a], two.states[b])
                continue
            then, orelse = self.yielded(a), self.yielded(b)
            self.known[out] = then if then == orelse else Ref(to._pick(cond.step, then, orelse))

    def yielded(self, value: Operand) -> Variable:
        """What an arm hands on; the body has not read it by that."""
        return self.known[value] if isinstance(value, Value) else self.operand(value)

    def _host(self, node: Host, at: str) -> None:
        """After all that was read before, so that effects happen as if the body ran line by line."""
        to = self.to
        args = tuple(self.part(v) for v in node.args)
        call = HostCall(function=node.function, args=args, result=node.out.type, after=to.awaited, at=at)
        number = to.step(call, max((to.step_waves[n] for n in to.awaited), default=to.floor))
        to.awaited = ()
        to.read(number)
        self.known[node.out] = Ref(number)

    def inside(self) -> _Walk:
        """The walk through a region."""
        return _Walk(self.to, self.known, dict(self.states), self.defaults, self.depth)

    def _append(self, node: Any, at: str) -> None:
        if not hasattr(node, "state"):
            raise PlanError(f"there is no way to lower {node.op!r}", node.at)
        state = self.states.pop(node.state)
        self.states[node.out] = state
        if isinstance(node, Text):
            state.pending.extend(self.part(p) for p in node.parts)
        elif isinstance(node, Image):
            state.pending.append(ImagePart(node.data, self.to.template.image_token, node.kind))
        elif isinstance(node, RoleBegin):
            self._role_begin(state, node.role)
        elif isinstance(node, RoleEnd):
            self._role_end(state, node.role)
        elif isinstance(node, ScopeBegin):
            state.scopes[node.name] = _Mark(self.to.flush(state))
        elif isinstance(node, ScopeEnd):
            text = self.to._concat(self.to.after(state, state.scopes.pop(node.name)), at)
            self.known[node.text] = text
            _set(state, Named(node.name, text))
        elif isinstance(node, SetVar):
            _set(state, Named(node.name, self.operand(node.value)))
        elif isinstance(node, Gen):
            self._gen(state, node, at)
        elif isinstance(node, Select):
            self._select(state, node, at)
        elif isinstance(node, Reuse):
            self._reuse(state, node)
        elif isinstance(node, Join):
            self._join(state, node)
        else:
            raise PlanError(f"there is no way to lower {node.op!r} ({node})")

    def _role_begin(self, state: _State, role: str) -> None:
        template = self.to.template
        if not state.history and role != "system" and template.default_system_prompt:
            prefix, suffix = template.get_prefix_and_suffix("system", state.history)
            text = template.default_system_prompt
            state.pending.append(Const(prefix + text + suffix))
            state.history.append({"role": "system", "content": text})
            self.to.conversation.append(PlanMessage(state.messages, "system", (Const(text),)))
            state.messages = len(self.to.conversation) - 1
        prefix, _ = template.get_prefix_and_suffix(role, state.history)
        state.pending.append(Const(prefix))
        state.role = role
        state.opened = _Mark(self.to.flush(state))

    def _role_end(self, state: _State, role: str) -> None:
        if state.role is None:
            raise PlanError(f"a {role} message ends that did not begin")
        state.messages = self.to._close(state)
        _, suffix = self.to.template.get_prefix_and_suffix(role, state.history)
        state.pending.append(Const(suffix))
        state.history.append({"role": role, "content": ""})
        state.role = None

    def _open(self, state: _State) -> dict[str, Any]:
        """The conversation that a call continues."""
        content = self.to.after(state, state.opened) if state.role is not None else ()
        return {"messages": state.messages, "role": state.role, "content": content}

    def _gen(self, state: _State, node: Gen, at: str) -> None:
        prefix = self.to.flush(state)
        self.to.uses[prefix] += 1
        wave = max(self.to.waves[prefix], self.to.floor) + 1
        step = self.to.step(
            Decode(
                prefix=prefix,
                name=node.name,
                sampling=given(node.sampling),
                defaults={} if node.isolated else self.defaults,
                constraint=self.to.module.constraint_of(node.constraint) if node.constraint else None,
                dtype=node.dtype,
                n=node.n,
                wave=wave,
                at=at,
                **self._open(state),
            ),
            wave,
        )
        self._wrote(state, node, step)

    def _select(self, state: _State, node: Select, at: str) -> None:
        prefix = self.to.flush(state)
        self.to.uses[prefix] += 1
        choices = tuple(self.part(c) for c in node.choices)
        wave = max(self.to.waves[prefix], self.to._wave(choices), self.to.floor) + 1
        opened = self._open(state)
        step = self.to.step(
            Choose(
                prefix=prefix, choices=choices, name=node.name, method=node.method, wave=wave, at=at, **opened
            ),
            wave,
        )
        self._wrote(state, node, step)

    def _wrote(self, state: _State, node: Gen | Select | Reuse, step: int) -> None:
        state.pending.append(Output(step))
        state.calls.append(step)
        self.known[node.text] = Ref(step)
        _set(state, Named(node.name, Ref(step), step))

    def _reuse(self, state: _State, node: Reuse) -> None:
        source = self.known[node.source] if isinstance(node.source, Value) else None
        if not isinstance(source, Ref):
            raise PlanError(f"reuse takes the answer of a call, not {node.source}", node.at)
        self._wrote(state, node, source.step)

    def _join(self, state: _State, node: Join) -> None:
        branches = [self.states.pop(b) for b in node.branches]
        for branch in branches:
            state.calls.extend(branch.calls)
        if node.mode == "concate_and_append":
            for branch in branches:
                parts = self.to.since(branch, branch.forked)
                state.pending.extend(parts)
            return
        found: dict[str | None, list[Variable]] = {}
        for branch in branches:
            for name, named in branch.variables.items():
                known = state.variables.get(name)
                if known is None:
                    found.setdefault(name, []).append(named.value)
                partial = [n for n in (known, named) if n is not None and self.to.maybe_absent(n.value)]
                if partial and known != named:
                    raise PlanError(f"the variable {name!r} is joined, which only some paths define")
        for name, values in found.items():
            state.variables[name] = Named(name, Gathered(tuple(values)))

    def _call(self, node: Call, at: str) -> None:
        callee = self.to.module.graph_of(node.symbol)
        known = {p: self.operand(a) for p, a in zip(callee.params, node.args, strict=True)}
        state, result = self.to._graph(callee, known, given(node.sampling), self.depth + 1)
        self.to.flush(state)
        self.known[node.text] = self.to._concat(self.to.since(state, -1), at)
        *values, last = node.values
        for value, name in zip(values, node.variables, strict=True):
            self.known[value] = state.variables[name].value
        self.known[last] = result


@dataclass
class _Goes:
    """A state that goes round: as it was before, at the beginning of a round, and at its end."""

    before: _State
    head: _State
    message: int
    enters: dict[str | None, int]


class _Round:
    """A loop: its body once, and what goes round."""

    def __init__(self, walk: _Walk, node: Loop, at: str) -> None:
        self.walk = walk
        self.to = walk.to
        self.loop = node
        self.at = at
        self.number = -1
        self.values: list[Carried] = []
        self.outs: list[tuple[bool, int]] = []  # of each carried value: may it be absent, its wave

    def lower(self) -> None:
        to, node = self.to, self.loop
        pairs = list(zip(node.body.params, node.inits, strict=True))
        states = [(p, v) for p, v in pairs if p.type == "state" and isinstance(v, Value)]
        held = {v: self.walk.states[v] for v in node.captures if v.type == "state"}
        for state in (*held.values(), *(self.walk.states[v] for _, v in states)):
            to.flush(state)
        empty = Repeat(stop=0, prefixes=(0, 0), messages=(0, 0))
        self.number = to.step(empty, to.floor)
        low, first = len(to.prefixes), len(to.conversation)
        body = self.walk.inside()
        body.states.update({v: s.in_arm() for v, s in held.items()})
        names = _names_in(node)
        going = {p: self._head(k, self.walk.states.pop(v), names) for k, (p, v) in enumerate(states)}
        body.states.update({p: g.head.in_arm() for p, g in going.items()})
        enters = {}
        for param, init in pairs:
            if param.type != "state":
                enters[param] = self._enter(self.walk.yielded(init), -1)
                body.known[param] = Ref(enters[param])
        body.nodes(node.body.nodes)
        again, *results = node.body.results
        ends = dict(zip(node.body.params, results, strict=True))
        turn_on = body.packed(body.operand(again))
        carriers = [self._end(g, body.states[_value(ends[p])], k) for k, (p, g) in enumerate(going.items())]
        for param, entry in enters.items():
            self._carry(entry, body.yielded(ends[param]), -1)
        wave = max(to.step_waves[self.number :], default=to.floor)
        to.step(Turn(repeat=self.number, again=turn_on, after=to.awaited, at=self.at), wave)
        to.awaited = ()
        to.read(self.number)
        to.steps[self.number] = msgspec.structs.replace(
            empty,
            stop=len(to.steps),
            prefixes=(low, len(to.prefixes)),
            messages=(first, len(to.conversation)),
            values=tuple(self.values),
            states=tuple(c for c, _ in carriers),
            maximum=node.maximum,
            bounded=node.bounded,
            at=self.at,
            when=to.guard,
        )
        to.step_waves[self.number] = wave
        left = iter(zip(carriers, going.values(), strict=True))
        for param, out in zip(node.body.params, node.outs, strict=True):
            if param.type == "state":
                (carrier, end), goes = next(left)
                self.walk.states[out] = self._after(carrier, goes, end, wave)
            else:
                self.walk.known[out] = self._last(enters[param], wave)

    def _head(self, number: int, before: _State, names: frozenset[str | None]) -> _Goes:
        """The state with which a round begins."""
        to = self.to
        prefix = to.prefix(before.prefix, (Rounds(self.number, number, 0),), to.waves[before.prefix])
        to.conversation.append(PlanMessage(before.messages, "", ()))
        message = len(to.conversation) - 1
        head = dataclasses.replace(before.in_arm(), prefix=prefix, messages=message)
        enters: dict[str | None, int] = {}
        for name, named in before.variables.items():
            if name in names:
                enters[name] = number = self._enter(named.value, named.step)
                head.variables[name] = Named(name, Ref(number), number if named.step >= 0 else -1)
        return _Goes(before, head, message, enters)

    def _end(self, goes: _Goes, end: _State, number: int) -> tuple[Carrier, _State]:
        """What a round has made of a state."""
        to, head = self.to, goes.head
        to.flush(end)
        if end.role != head.role or (end.role is not None and end.opened != head.opened):
            raise PlanError(f"a round of a loop ends in another message than it began in ({self.at})")
        if end.scopes != head.scopes:
            raise PlanError(f"a round of a loop ends in another scope than it began in ({self.at})")
        to.meet_history(head.history, end.history)
        for name, entry in goes.enters.items():
            now = end.variables[name]
            self._carry(entry, now.value, now.step)
        for name, named in end.variables.items():
            if name not in head.variables:
                if any(isinstance(n, Join) for n in walk(self.loop.body.nodes)):
                    raise PlanError(f"the variable {name!r} is joined in a loop that defines it ({self.at})")
                goes.enters[name] = entry = self._enter(Absent(), -1)
                self._carry(entry, named.value, named.step)
        added = to.since(end, head.prefix)
        return Carrier(head.prefix, end.prefix, added, goes.message, end.messages), end

    def _after(self, carrier: Carrier, goes: _Goes, end: _State, wave: int) -> _State:
        """The state after the loop."""
        to, before = self.to, goes.before
        number = next(k for k, s in enumerate(self._repeat().states) if s is carrier)
        prefix = to.prefix(before.prefix, (Rounds(self.number, number),), wave)
        messages = before.messages
        if end.messages != goes.message:
            to.conversation.append(PlanMessage(before.messages, "", (), repeat=self.number, state=number))
            messages = len(to.conversation) - 1
        variables = dict(before.variables)
        for name, entry in goes.enters.items():
            value = self._last(entry, wave)
            wrote = next(v.step for v in self.values if v.enter == entry) >= 0
            variables[name] = Named(name, value, value.step if wrote else -1)
        return dataclasses.replace(
            before,
            prefix=prefix,
            pending=[],
            variables=variables,
            messages=messages,
            history=end.history,
            calls=list(dict.fromkeys((*before.calls, *end.calls))),
        )

    def _repeat(self) -> Repeat:
        found = self.to.steps[self.number]
        assert isinstance(found, Repeat)
        return found

    def _enter(self, value: Variable, step: int) -> int:
        to = self.to
        wave = max((to.step_waves[n] for n in refs(value)), default=to.floor)
        number = to.step(Enter(value=value, step=step), wave)
        if to.maybe_absent(value):
            to.partial.add(number)
        return number

    def _carry(self, enter: int, value: Variable, step: int) -> None:
        self.values.append(Carried(enter, value, step))

    def _last(self, enter: int, wave: int) -> Ref:
        """The value that goes round, after the loop."""
        index, carried = next((k, v) for k, v in enumerate(self._repeat().values) if v.enter == enter)
        number = self.to.step(Last(repeat=self.number, index=index), wave)
        if self.to.maybe_absent(carried.value):
            self.to.partial.add(number)
        return Ref(number)


def _value(operand: Operand) -> Value:
    assert isinstance(operand, Value), "a state is a value"
    return operand


def _names_in(loop: Loop) -> frozenset[str | None]:
    """Variables that the body may give a value."""
    found: set[str | None] = set()
    for node in walk(loop.body.nodes):
        if isinstance(node, (Gen, Select, Reuse, SetVar, ScopeEnd)):
            found.add(node.name)
    return frozenset(found)


def _set(state: _State, named: Named) -> None:
    state.variables[named.name] = named


def _merged(parts: Sequence[Part]) -> Rope:
    """Neighbouring constant texts joined, empty ones dropped."""
    found: list[Part] = []
    run: list[str] = []
    for part in parts:
        if isinstance(part, Const) and isinstance(part.value, str):
            run.append(part.value)
            continue
        if text := "".join(run):
            found.append(Const(text))
        run = []
        found.append(part)
    if text := "".join(run):
        found.append(Const(text))
    return tuple(found)


def given(sampling: SamplingFields) -> dict[str, Any]:
    """The fields that are given, as a plan holds them."""
    fields: Mapping[str, Any] = {n: getattr(sampling, n) for n in sampling.__dataclass_fields__}
    named = {name: value for name, value in fields.items() if value is not None}
    return {n: list(v) if isinstance(v, tuple) else v for n, v in named.items()}  # as JSON would have it


def _place(at: Location | None) -> str:
    return str(at) if at is not None else ""
