"""The text that a run is known to begin with before it runs: constants, and arguments that are strings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sglc.ir.core import Graph, Operand, Value
from sglc.ir.ops import Begin, RoleBegin, RoleEnd, Text
from sglc.ir.pure import Pure
from sglc.lang.trace import trace


@dataclass(frozen=True)
class KnownPrefix:
    """Text and names of parameters, in order."""

    parts: tuple[str | Value, ...]

    @property
    def constant(self) -> str:
        """What all runs begin with."""
        found: list[str] = []
        for part in self.parts:
            if not isinstance(part, str):
                break
            found.append(part)
        return "".join(found)

    def text(self, arguments: Mapping[str, Any]) -> str:
        """What the run with these arguments begins with."""
        return "".join(p if isinstance(p, str) else str(arguments[p.name]) for p in self.parts)


def known_prefix(
    program: Any, template: Any = None, arguments: Mapping[str, Any] | None = None
) -> KnownPrefix:
    """Nothing, if it cannot be known safely: no body that does more than build its state is run for it.

    `template` is the chat template that role markers become; without one the text ends at the first marker.
    `arguments` are values that all runs share.
    """
    known = dict(arguments or {})
    try:
        graph = trace(program, known, frozenset(program.parameter_names) - known.keys()).graph
    except Exception:  # whatever keeps a program from being traced, it can still run
        return KnownPrefix(())
    return prefix_of(graph, template)


def constant_prefix(program: Any, template: Any = None, arguments: Mapping[str, Any] | None = None) -> str:
    """The text that every run begins with, whatever its arguments are; "" if that cannot be known safely."""
    return known_prefix(program, template, arguments).constant


def prefix_of(graph: Graph, template: Any = None) -> KnownPrefix:
    """What every run of a graph begins with."""
    return KnownPrefix(tuple(_parts(graph, template)))


def _parts(graph: Graph, template: Any) -> list[str | Value]:
    found: list[str | Value] = []
    history: list[dict[str, Any]] = []
    joined: dict[Value, list[Operand]] = {}  # the parts of concatenations
    state: Value | None = None
    for node in graph.nodes:
        if isinstance(node, Begin):
            state = node.out
        elif isinstance(node, Pure) and node.op == "concat":
            joined[node.out] = [
                p for a in node.args for p in (joined.get(a, [a]) if isinstance(a, Value) else [a])
            ]
        elif isinstance(node, Text) and node.state == state:
            for operand in node.parts:
                for part in joined.get(operand, [operand]) if isinstance(operand, Value) else [operand]:
                    if not isinstance(part, str) and part not in graph.params:
                        return found
                    found.append(part)  # type: ignore[arg-type]
            state = node.out
        elif isinstance(node, (RoleBegin, RoleEnd)) and node.state == state and template is not None:
            found.append(_marker(node, template, history))
            state = node.out
        elif state in node.uses or state in node.captures:
            break
    return found


def _marker(node: RoleBegin | RoleEnd, template: Any, history: list[dict[str, Any]]) -> str:
    """The text of a role marker after the messages in `history`, which is kept up to date."""
    text = ""
    if isinstance(node, RoleBegin):
        default = template.default_system_prompt
        if not history and node.role != "system" and default:
            text = default.join(template.get_prefix_and_suffix("system", history))
            history.append({"role": "system", "content": default})
        return text + template.get_prefix_and_suffix(node.role, history)[0]
    text = template.get_prefix_and_suffix(node.role, history)[1]
    history.append({"role": node.role, "content": ""})
    return text
