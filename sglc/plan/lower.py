"""Graph to Plan: states become ropes, gens become calls on them, role markers become the template's text.

The graph is walked once, in order. Since a state is used once, what is known of it moves along with it and is copied only
at a fork and for the arms of a condition. A program that is called is walked in its place, on a rope of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runtime.plan import (
    Argument,
    Choose,
    Compute,
    Const,
    Decode,
    Gathered,
    HostCall,
    ImagePart,
    Named,
    Output,
    Part,
    Plan,
    PlanMessage,
    Prefill,
    Prefix,
    Ref,
    Variable,
)
from sglc.errors import PlanError
from sglc.ir.core import Graph, Module, Node, Operand, Symbol, Value
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
from sglc.ir.pure import Pure
from sglc.ir.specs import Location, SamplingFields
from sglc.plan.loops import LoopLowering
from sglc.plan.ropes import Mark, Ropes, State, Template

MAX_DEPTH = 64


def lower(module: Module, template: Template) -> Plan:
    """The Plan of the module's main graph for models with this chat template. Raises PlanError."""
    return _Lowering(module, template).plan()


class _Lowering(Ropes):
    def plan(self) -> Plan:
        graph = self.module.graph
        arguments: dict[Value, Variable] = {p: Argument(p.name) for p in graph.params}
        state, result = self.graph(graph, arguments, None, 0)
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

    # Graphs.

    def graph(
        self, graph: Graph, known: dict[Value, Variable], defaults: dict[str, Any] | None, depth: int
    ) -> tuple[State, Variable]:
        if depth > MAX_DEPTH:
            raise PlanError(f"@{graph.name}: calls are nested more than {MAX_DEPTH} deep")
        states: dict[Value, State] = {}
        walk = Walk(self, known, states, defaults, depth)
        for node in graph.nodes:
            if isinstance(node, Return):
                return states[node.state], walk.operand(node.result)
            walk.node(node)
        raise PlanError(f"@{graph.name} does not end in `return`")


class Walk:
    """One graph: its values so far."""

    def __init__(
        self,
        lowering: _Lowering,
        known: dict[Value, Variable],
        states: dict[Value, State],
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
        if any(self.to.maybe_absent(v) for v in value.items):
            raise PlanError("a joined list is used whose length depends on the path")
        items = tuple(self.packed(v) for v in value.items)
        return Ref(self.to.step(Compute(op="pack", operands=items, kind="list"), self.to.wave(items)))

    def nodes(self, nodes: Sequence[Node]) -> None:
        for node in nodes:
            self.node(node)

    def node(self, node: Node) -> None:
        at = _place(node.at)
        if isinstance(node, Begin):
            self.states[node.out] = State()
        elif isinstance(node, Fork):
            state = self.states[node.state]
            self.to.flush(state)
            for out in node.outs:
                self.states[out] = state.copy()
        elif isinstance(node, (Pure, Pack)):
            operands = tuple(self.part(v) for v in node.operands)
            keys, kind = (node.keys, node.kind) if isinstance(node, Pack) else ((), "")
            step = Compute(op=node.op, operands=operands, kind=kind, keys=keys, at=at)
            self.known[node.out] = Ref(self.to.step(step, self.to.wave(operands)))
        elif isinstance(node, Read):
            self.operand(node.value)
        elif isinstance(node, If):
            self._if(node, at)
        elif isinstance(node, Host):
            self._host(node, at)
        elif isinstance(node, Loop):
            LoopLowering(self, node, at).lower()
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
        arms: list[tuple[Walk, Sequence[Operand]]] = []
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
                self.states[out] = to.meet(cond.step, one.states[a], two.states[b])
                continue
            then, orelse = self.yielded(a), self.yielded(b)
            self.known[out] = then if then == orelse else Ref(to.pick(cond.step, then, orelse))

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

    def inside(self) -> Walk:
        """The walk through a region."""
        return Walk(self.to, self.known, dict(self.states), self.defaults, self.depth)

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
            state.scopes[node.name] = Mark(self.to.flush(state))
        elif isinstance(node, ScopeEnd):
            text = self.to.concat(self.to.after(state, state.scopes.pop(node.name)), at)
            self.known[node.text] = text
            _set(state, Named(node.name, text))
        elif isinstance(node, SetVar):
            value = self.operand(node.value)
            _set(state, Named(node.name, value, self._separated(value)))
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

    def _separated(self, value: Variable) -> int:
        """The call of whose text the value is the answer, without the reasoning; -1 if it is no such value."""
        found: Any = value
        for op in ("item", "reasoning"):
            step = self.to.steps[found.step] if isinstance(found, Ref) else None
            if (
                not isinstance(step, Compute)
                or step.op != op
                or (op == "item" and step.operands[1] != Const(1))
            ):
                return -1
            found = step.operands[0]
        return found.step if isinstance(found, Ref) else -1

    def _role_begin(self, state: State, role: str) -> None:
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
        state.opened = Mark(self.to.flush(state))

    def _role_end(self, state: State, role: str) -> None:
        if state.role is None:
            raise PlanError(f"a {role} message ends that did not begin")
        state.messages = self.to.close(state)
        _, suffix = self.to.template.get_prefix_and_suffix(role, state.history)
        state.pending.append(Const(suffix))
        state.history.append({"role": role, "content": ""})
        state.role = None

    def _open(self, state: State) -> dict[str, Any]:
        """The conversation that a call continues."""
        content = self.to.after(state, state.opened) if state.role is not None else ()
        return {"messages": state.messages, "role": state.role, "content": content}

    def _gen(self, state: State, node: Gen, at: str) -> None:
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

    def _select(self, state: State, node: Select, at: str) -> None:
        prefix = self.to.flush(state)
        self.to.uses[prefix] += 1
        choices = tuple(self.part(c) for c in node.choices)
        wave = max(self.to.waves[prefix], self.to.wave(choices), self.to.floor) + 1
        opened = self._open(state)
        step = self.to.step(
            Choose(
                prefix=prefix, choices=choices, name=node.name, method=node.method, wave=wave, at=at, **opened
            ),
            wave,
        )
        self._wrote(state, node, step)

    def _wrote(self, state: State, node: Gen | Select | Reuse, step: int) -> None:
        state.pending.append(Output(step))
        state.calls.append(step)
        self.known[node.text] = Ref(step)
        _set(state, Named(node.name, Ref(step), step))

    def _reuse(self, state: State, node: Reuse) -> None:
        source = self.known[node.source] if isinstance(node.source, Value) else None
        if not isinstance(source, Ref):
            raise PlanError(f"reuse takes the answer of a call, not {node.source}", node.at)
        self._wrote(state, node, source.step)

    def _join(self, state: State, node: Join) -> None:
        branches = [self.states.pop(b) for b in node.branches]
        for branch in branches:
            state.calls.extend(branch.calls)
        if node.mode == "concate_and_append":
            for branch in branches:
                parts = self.to.since(branch, branch.forked)
                state.pending.extend(parts)
                self.to.append_messages(state, branch, node.at)
            return
        found: dict[str | None, list[Variable]] = {}
        for branch in branches:
            for name, named in branch.variables.items():
                known = state.variables.get(name)
                if known is None:
                    found.setdefault(name, []).append(named.value)
                partial = [n for n in (known, named) if n is not None and self.to.maybe_absent(n.value)]
                if partial and known is not None and known != named:
                    raise PlanError(f"the variable {name!r} is joined, which only some paths define before")
        for name, values in found.items():
            state.variables[name] = Named(name, Gathered(tuple(values)))

    def _call(self, node: Call, at: str) -> None:
        callee = self.to.module.graph_of(node.symbol)
        known = {p: self.operand(a) for p, a in zip(callee.params, node.args, strict=True)}
        state, result = self.to.graph(callee, known, given(node.sampling), self.depth + 1)
        self.to.flush(state)
        self.known[node.text] = self.to.concat(self.to.since(state, -1), at)
        *values, last = node.values
        for value, name in zip(values, node.variables, strict=True):
            self.known[value] = state.variables[name].value
        self.known[last] = result


def _set(state: State, named: Named) -> None:
    state.variables[named.name] = named


def given(sampling: SamplingFields) -> dict[str, Any]:
    """The fields that are given, as a plan holds them."""
    fields: Mapping[str, Any] = {n: getattr(sampling, n) for n in sampling.__dataclass_fields__}
    named = {name: value for name, value in fields.items() if value is not None}
    return {n: list(v) if isinstance(v, tuple) else v for n, v in named.items()}  # as JSON would have it


def _place(at: Location | None) -> str:
    return str(at) if at is not None else ""
