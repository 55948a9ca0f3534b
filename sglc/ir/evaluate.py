"""What a graph means, given a model as a function: the oracle that passes and executors are tested against.

Deliberately plain: one node after the other, text as str, no sharing. `model` answers one call; the same
call must get the same answer wherever it is made, so two graphs mean the same if they give equal outcomes and
make the same calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sglc.errors import IRError
from sglc.ir.core import Graph, Module, Node, Operand, Value
from sglc.ir.ops import (
    Begin,
    Break,
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
from sglc.ir.specs import RUN_DEFAULTS, SamplingFields


@dataclass(frozen=True)
class ModelCall:
    """One call: `node` says how, `sampling` are its fields over those of the program that it stands in."""

    prompt: str
    node: Gen | Select
    sampling: SamplingFields
    choices: tuple[str, ...] = ()


Model = Callable[[ModelCall], Any]


@dataclass(frozen=True)
class Situation:
    """A state while it is evaluated."""

    text: str = ""
    variables: Mapping[str | None, Any] = field(default_factory=dict)
    messages: tuple[tuple[str, str], ...] = ()
    role: str | None = None
    opened: int = 0
    scopes: Mapping[str, int] = field(default_factory=dict)
    forked: int = 0
    said: int = 0  # messages before the fork


@dataclass(frozen=True)
class Outcome:
    text: str
    variables: Mapping[str | None, Any]
    messages: tuple[tuple[str, str], ...]
    result: Any


def evaluate(
    module: Module,
    model: Model,
    arguments: Mapping[str, Any],
    template: Any,
    sampling: SamplingFields | None = None,
    hosts: Mapping[str, Callable[..., Any]] | None = None,
) -> Outcome:
    """Run the main graph. `sampling` are the run's defaults, `template` the chat template of the model, `hosts` the
    functions that `host` nodes name. Raises IRError for a graph that breaks off."""
    values = {p: arguments[p.name] for p in module.graph.params}
    evaluator = _Evaluator(module, model, template, hosts or {})
    end, result = evaluator.graph(module.graph, values, sampling or SamplingFields())
    return Outcome(end.text, end.variables, end.messages, result)


@dataclass
class _Evaluator:
    module: Module
    model: Model
    template: Any
    hosts: Mapping[str, Callable[..., Any]]

    def graph(
        self, graph: Graph, values: dict[Value, Any], sampling: SamplingFields
    ) -> tuple[Situation, Any]:
        known = dict(values)
        self.block(graph.nodes, known, sampling)
        end = graph.nodes[-1]
        if isinstance(end, Return):
            return known[end.state], _operand(end.result, known)
        if isinstance(end, Break):
            raise IRError(f"@{graph.name} breaks off: {end.reason}")
        raise IRError(f"@{graph.name} does not end in `return`")

    def block(self, nodes: Sequence[Node], known: dict[Value, Any], sampling: SamplingFields) -> None:
        def operand(item: Operand) -> Any:
            return _operand(item, known)

        for node in nodes:
            if isinstance(node, (Return, Break, Read)):
                continue
            if isinstance(node, Begin):
                known[node.out] = Situation()
            elif isinstance(node, Fork):
                here = known[node.state]
                known.update(
                    dict.fromkeys(node.outs, replace(here, forked=len(here.text), said=len(here.messages)))
                )
            elif isinstance(node, (Pure, Pack)):
                known[node.out] = node.compute(tuple(operand(v) for v in node.operands))
            elif isinstance(node, Call):
                self._call(node, known, operand)
            elif isinstance(node, (Gen, Select)):
                self._write(node, known, operand, sampling)
            elif isinstance(node, Reuse):
                answer = operand(node.source)
                known[node.text] = answer
                first = answer[0] if isinstance(answer, list) else answer
                here = known[node.state]
                variables = {**here.variables, node.name: answer}
                known[node.out] = replace(here, text=here.text + first, variables=variables)
            elif isinstance(node, If):
                arm = node.then if operand(node.cond) else node.orelse
                self.block(arm.nodes, known, sampling)
                known.update(zip(node.outs, [operand(v) for v in arm.results], strict=True))
            elif isinstance(node, Loop):
                self._loop(node, known, sampling)
            elif isinstance(node, Host):
                known[node.out] = self.hosts[node.function](*(operand(v) for v in node.args))
            else:
                known[node.defs[0]] = self._append(node, known, operand)

    def _loop(self, node: Loop, known: dict[Value, Any], sampling: SamplingFields) -> None:
        carried = [_operand(v, known) for v in node.inits]
        for _ in range(node.maximum):
            known.update(zip(node.body.params, carried, strict=True))
            self.block(node.body.nodes, known, sampling)
            again, *carried = [_operand(v, known) for v in node.body.results]
            if not again:
                break
        else:
            if not node.bounded:
                raise IRError(f"loop: more than {node.maximum} rounds")
        known.update(zip(node.outs, carried, strict=True))

    def _write(
        self, node: Gen | Select, known: dict[Value, Any], operand: Any, sampling: SamplingFields
    ) -> None:
        here: Situation = known[node.state]
        choices = tuple(operand(c) for c in node.choices) if isinstance(node, Select) else ()
        own = RUN_DEFAULTS if isinstance(node, Gen) and node.isolated else sampling
        fields = node.sampling.over(own) if isinstance(node, Gen) else SamplingFields()
        answer = self.model(ModelCall(here.text, node, fields, choices))
        first = answer[0] if isinstance(node, Gen) and node.n is not None else answer
        known[node.text] = answer
        known[node.out] = replace(
            here, text=here.text + first, variables={**here.variables, node.name: answer}
        )

    def _append(self, node: Any, known: dict[Value, Any], operand: Any) -> Situation:
        here: Situation = known[node.state]
        if isinstance(node, Text):
            return replace(here, text=here.text + "".join(str(operand(p)) for p in node.parts))
        if isinstance(node, Image):
            return replace(here, text=here.text + self.template.image_token)
        if isinstance(node, RoleBegin):
            return self._role_begin(here, node.role)
        if isinstance(node, RoleEnd):
            _, suffix = self.template.get_prefix_and_suffix(node.role, _history(here))
            content = here.text[here.opened :].lstrip()
            return replace(
                here, text=here.text + suffix, messages=(*here.messages, (node.role, content)), role=None
            )
        if isinstance(node, ScopeBegin):
            return replace(here, scopes={**here.scopes, node.name: len(here.text)})
        if isinstance(node, ScopeEnd):
            text = here.text[here.scopes[node.name] :]
            known[node.text] = text
            return replace(here, variables={**here.variables, node.name: text})
        if isinstance(node, SetVar):
            return replace(here, variables={**here.variables, node.name: operand(node.value)})
        if isinstance(node, Join):
            return _join(here, [known[b] for b in node.branches], node.mode)
        raise IRError(f"{node.op} has no meaning here: {node}")

    def _role_begin(self, here: Situation, role: str) -> Situation:
        default = self.template.default_system_prompt
        if not here.messages and role != "system" and default:
            before, after = self.template.get_prefix_and_suffix("system", [])
            here = replace(here, text=here.text + before + default + after, messages=(("system", default),))
        prefix, _ = self.template.get_prefix_and_suffix(role, _history(here))
        text = here.text + prefix
        return replace(here, text=text, role=role, opened=len(text))

    def _call(self, node: Call, known: dict[Value, Any], operand: Any) -> None:
        callee = self.module.graph_of(node.symbol)
        values = {p: operand(a) for p, a in zip(callee.params, node.args, strict=True)}
        end, result = self.graph(callee, values, node.sampling.over(RUN_DEFAULTS))
        known[node.text] = end.text
        *outs, last = node.values
        known.update((out, end.variables[name]) for out, name in zip(outs, node.variables, strict=True))
        known[last] = result


def _operand(item: Operand, known: Mapping[Value, Any]) -> Any:
    return known[item] if isinstance(item, Value) else item


def _history(here: Situation) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in here.messages]


def _join(here: Situation, branches: list[Situation], mode: str) -> Situation:
    if mode == "concate_and_append":
        said = [message for b in branches for message in b.messages[b.said :]]
        text = here.text + "".join(b.text[b.forked :] for b in branches)
        return replace(here, text=text, messages=(*here.messages, *said))
    found: dict[str | None, list[Any]] = {}
    for branch in branches:
        for name, value in branch.variables.items():
            if name not in here.variables:
                found.setdefault(name, []).append(value)
    return replace(here, variables={**here.variables, **found})
