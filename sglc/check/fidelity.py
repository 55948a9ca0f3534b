"""How each constraint of a program is kept: exactly or not at all, in what form, and how much of its texts needs no model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sglc.check.tokens import Tokens
from sglc.ir.core import Node
from sglc.ir.ops import Gen

if TYPE_CHECKING:
    from sglc.ir.core import Module


def fidelity(module: Module, tokens: Tokens) -> Iterator[dict[str, Any]]:
    """Each constraint once for each gen that has it.

    Where it is refused, `exact` is false and `refused` says why; else it has its size and the lengths of its texts in
    tokens, and `forced_share` is the part of its shortest text that every text with the same beginning goes on with.
    """
    known: dict[Any, dict[str, Any]] = {}
    seen: set[Any] = set()
    nodes: list[Node] = [node for graph in module.graphs.values() for node in graph.walk()]
    for node in nodes:
        if not isinstance(node, Gen) or node.constraint is None:
            continue
        constraint = module.constraint_of(node.constraint)
        if (node.at, constraint) in seen:
            continue
        seen.add((node.at, constraint))
        key = (constraint.kind, constraint.source)
        if key not in known:
            known[key] = _told(*key, tokens)
        yield {"at": str(node.at) if node.at else None, "name": node.name, **known[key]}


def _told(kind: Any, source: str, tokens: Tokens) -> dict[str, Any]:
    from grammar import ConstraintError
    from runtime.api import Constraint
    from runtime.backends.targets import TARGETS
    from sglc.ir.restate import restated

    given = Constraint(kind, source)
    keepers = [name for name, able in TARGETS.items() if restated(able, given) is not None]
    shown = {"kind": kind, "source": source, "kept_by": keepers}
    try:
        report = tokens.compiled(kind, source).report()
    except ConstraintError as error:
        return {**shown, "exact": False, "refused": error.message}
    return {
        **shown, "exact": report.exact, "form": report.engine, "tokens": [report.min_tokens, report.max_tokens],
        "states": report.states, "classes": report.classes, "bytes": report.bytes,
        "shortest": report.witness, "begins": report.forced, "forced_share": round(report.forced_share, 3),
        "unreachable": list(report.unreachable),
    }  # fmt: skip


def to_line(told: dict[str, Any]) -> str:
    """One of `fidelity` as a line of text."""
    what = f"{told['at'] or told['name']}: {told['kind']} of {told['name'] or 'a gen'}"
    if not told["exact"]:
        return f"{what}: refused: {told['refused']}"
    least, most = told["tokens"]
    classes = f", {told['classes']} classes" if told["classes"] is not None else ""
    never = f"; never comes: {', '.join(told['unreachable'])}" if told["unreachable"] else ""
    return (
        f"{what}: exact, a {told['form']} of {told['states']:,} states{classes}, {told['bytes']:,} bytes; "
        f"{least} to {'any number of' if most is None else most} tokens, {100 * told['forced_share']:.0f} % of the shortest forced{never}"
    )
