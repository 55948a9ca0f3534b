"""A Plan as text, as JSON, and as Graphviz."""

from __future__ import annotations

from typing import Any

import msgspec

from runtime.plan import (
    Absent,
    Argument,
    Choose,
    Compute,
    Const,
    Decode,
    Either,
    Enter,
    Gathered,
    HostCall,
    Last,
    Output,
    Part,
    Pick,
    Plan,
    Prefill,
    Ref,
    Repeat,
    Rope,
    Rounds,
    Step,
    Turn,
    refs,
)
from runtime.plan_bounds import bounds_of
from runtime.plan_verify import verify
from sglc.errors import PlanError
from sglc.ir.dot import quote
from sglc.ir.printer import print_constant


def to_json(plan: Plan, *, indent: int = 2) -> str:
    return msgspec.json.format(msgspec.json.encode(plan), indent=indent).decode()


def from_json(text: str | bytes) -> Plan:
    """Raises PlanError for JSON that is not a plan; a plan that breaks a rule raises InvalidRequest."""
    try:
        plan = msgspec.json.decode(text, type=Plan)
    except msgspec.ValidationError as error:
        raise PlanError(f"this JSON is not a plan: {error}") from None
    verify(plan)
    return plan


def to_text(plan: Plan) -> str:
    """Prefixes, then calls by wave: what may share one request. A call starts as soon as its prefix is known."""
    bounds = bounds_of(plan)
    tokens = "no limit on tokens" if bounds.tokens is None else f"at most {bounds.tokens} new tokens"
    lines = [f"plan @{plan.name}({', '.join(plan.params)}): {bounds.calls} calls, {tokens}"]
    if plan.template:
        lines[0] += f", chat template {plan.template}"
    for number, prefix in enumerate(plan.prefixes):
        before = f"p{prefix.parent} + " if prefix.parent >= 0 else ""
        lines.append(
            f"  p{number} = {before}{rope(prefix.parts)}"
            + (f"  // uses: {prefix.uses}" if prefix.uses else "")
        )
    waves: dict[int, list[str]] = {}
    computed: list[str] = []
    for number, step in enumerate(plan.steps):
        if isinstance(step, (Decode, Choose)):
            waves.setdefault(step.wave, []).append(f"    {_call(number, step)}{_guard(step)}")
        else:
            computed.append(f"    {_other(number, step)}{_guard(step)}")
    if computed:
        lines += ["  when known", *computed]
    for wave in sorted(waves):
        lines += [f"  wave {wave}", *waves[wave]]
    for named in plan.variables:
        lines.append(f"  variable {print_constant(named.name)} = {variable(named.value)}")
    if plan.result != Const(None):
        lines.append(f"  result = {variable(plan.result)}")
    lines.append(f"  text = p{plan.text}" if plan.text >= 0 else '  text = ""')
    return "\n".join(lines) + "\n"


def part(item: Part) -> str:
    if isinstance(item, Const):
        return print_constant(item.value)
    if isinstance(item, Argument):
        return f"%{item.name}"
    if isinstance(item, Ref):
        return f"value {item.step}"
    if isinstance(item, Output):
        return f"output {item.step}"
    if isinstance(item, Either):
        return f"({rope(item.then)} if value {item.cond} else {rope(item.orelse)})"
    if isinstance(item, Rounds):
        which = "all" if item.count < 0 else "earlier"
        return f"({which} rounds of {item.repeat}, state {item.state})"
    if isinstance(item, Absent):
        return "nothing"
    return f"{item.kind}({len(item.data)} bytes)"


def rope(parts: Rope) -> str:
    return " ".join(part(p) for p in parts) or '""'


def variable(value: Any) -> str:
    if isinstance(value, Gathered):
        return "[" + ", ".join(variable(v) for v in value.items) + "]"
    return part(value)


def _guard(step: Step) -> str:
    if step.when is None:
        return ""
    return f"  // if {'' if step.when[1] else 'not '}value {step.when[0]}"


def _attrs(pairs: dict[str, Any]) -> str:
    shown = ", ".join(f"{k}={print_constant(v)}" for k, v in pairs.items() if v not in (None, {}, ()))
    return f" {{{shown}}}" if shown else ""


def _call(number: int, step: Decode | Choose) -> str:
    if isinstance(step, Choose):
        attrs = {"name": step.name, "method": step.method}
        return f"{number}: choose p{step.prefix}, {', '.join(part(c) for c in step.choices)}{_attrs(attrs)}"
    fields: dict[str, Any] = {"name": step.name, "dtype": step.dtype, "n": step.n, **step.sampling}
    if step.constraint is not None:
        fields[step.constraint.kind] = step.constraint.source
    return f"{number}: decode p{step.prefix}{_attrs(fields)}"


def _other(number: int, step: Step) -> str:
    """A step that is no call."""
    if isinstance(step, Pick):
        return f"{number}: {variable(step.then)} if value {step.cond} else {variable(step.orelse)}"
    if isinstance(step, Enter):
        return f"{number}: at first {variable(step.value)}"
    if isinstance(step, Turn):
        return f"{number}: repeat {step.repeat} if {part(step.again)}"
    if isinstance(step, Last):
        return f"{number}: what repeat {step.repeat} has made of its value {step.index}"
    if isinstance(step, Repeat):
        return _repeat(number, step)
    if isinstance(step, HostCall):
        after = f" after {', '.join(map(str, step.after))}" if step.after else ""
        return f"{number}: host {step.function}({', '.join(part(a) for a in step.args)}){after}"
    if isinstance(step, Prefill):
        return f"prefill p{step.prefix} {{uses={step.uses}}}"
    assert isinstance(step, Compute), step
    return _compute(number, step)


def _repeat(number: int, step: Repeat) -> str:
    rounds = f"at most {step.maximum} rounds" + (", then on" if step.bounded else "")
    values = [f"value {v.enter} = {variable(v.value)}" for v in step.values]
    states = [f"p{s.head} = p{s.end}" for s in step.states]
    again = "; again with " + ", ".join([*states, *values]) if states or values else ""
    return f"{number}: repeat {number + 1} to {step.stop - 1}, {rounds}{again}"


def _compute(number: int, step: Compute) -> str:
    return f"{number}: {step.op} {', '.join(part(o) for o in step.operands)}" + _attrs(
        {"kind": step.kind or None, "keys": step.keys}
    )


def to_dot(plan: Plan) -> str:
    """Calls as boxes, computations as ellipses, shared prefixes as notes."""
    lines = [f"digraph {quote(plan.name)} {{", "  rankdir=LR; node [fontname=monospace];"]
    for number, prefix in enumerate(plan.prefixes):
        shown = rope(prefix.parts)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        lines.append(f"  p{number} [shape=note, label={quote(shown)}];")
        if prefix.parent >= 0:
            lines.append(f"  p{prefix.parent} -> p{number};")
        lines.extend(_edges(prefix.parts, f"p{number}"))
    for number, step in enumerate(plan.steps):
        lines.extend(_step_lines(number, step))
    return "\n".join([*lines, "}"]) + "\n"


def _edges(parts: Rope, to: str) -> list[str]:
    return [f"  s{n} -> {to};" for p in parts for n in refs(p)]


def _sources(step: Pick | Enter | Turn | Last | Repeat) -> list[int]:
    if isinstance(step, Pick):
        return [step.cond, *refs(step.then), *refs(step.orelse)]
    if isinstance(step, Enter):
        return list(refs(step.value))
    if isinstance(step, Turn):
        return list(refs(step.again))
    return [step.repeat] if isinstance(step, Last) else [step.stop - 1]


def _step_lines(number: int, step: Step) -> list[str]:
    if isinstance(step, Prefill):
        return []
    if isinstance(step, (Pick, Enter, Turn, Last, Repeat)):
        edges = [f"  s{n} -> s{number};" for n in _sources(step)]
        return [f"  s{number} [shape=diamond, label={quote(type(step).__name__.lower())}];", *edges]
    if isinstance(step, Compute):
        return [f"  s{number} [label={quote(step.op)}];", *_edges(step.operands, f"s{number}")]
    if isinstance(step, HostCall):
        return [
            f"  s{number} [shape=hexagon, label={quote(step.function)}];",
            *_edges(step.args, f"s{number}"),
        ]
    kind = "decode" if isinstance(step, Decode) else "choose"
    label = f"{kind} {step.name or number}"
    lines = [f"  s{number} [shape=box, label={quote(label)}];", f"  p{step.prefix} -> s{number};"]
    return lines + (_edges(step.choices, f"s{number}") if isinstance(step, Choose) else [])
