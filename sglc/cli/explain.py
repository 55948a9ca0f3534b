"""`sglc explain`: what the compiler made of a program, and what a run will cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sglc.cli.common import (
    Define,
    Target,
    chat_template,
    defined,
    end_of,
    one_program,
    optimised,
    tokenizer_folder,
    traced_for,
)
from sglc.cli.explain_tables import print_tables
from sglc.cli.prices import FORM, prices_in

if TYPE_CHECKING:
    from sglc.ir.core import Module
    from sglc.plan.cost import Costs
    from sglc.plan.interval import Cost, Interval
    from sglc.plan.sizes import Sizes


def explain(
    target: Target,
    define: Define = None,
    passes: Annotated[str | None, typer.Option(help="Passes in order: a,b{k=v}.")] = None,
    template: Annotated[str, typer.Option(help="Chat template of the model.")] = "chatml",
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Folder of a model whose tokenizer counts tokens; else `tiny`, the small one."),
    ] = None,
    prices: Annotated[Path | None, typer.Option(help=FORM)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what each pass did, what the run will cost at least and at most, and where, line by line.

    Of a program with a graph break, that is told of what comes before it.
    """
    from sglc.check import Tokens
    from sglc.check.fidelity import fidelity
    from sglc.errors import GraphBreak
    from sglc.ir.analysis import constant_chars, critical_path, shared_prefixes
    from sglc.ir.ops import Loop
    from sglc.passes.pipeline import BEFORE_BREAK
    from sglc.plan.answers import answer_lengths
    from sglc.plan.cost import costs

    chosen = chat_template(template)
    tokens = Tokens(tokenizer_folder(tokenizer))
    rates = prices_in(prices)
    program = one_program(target)
    given = defined(program, define or [])
    try:
        raw, broken = traced_for(program, given)
    except GraphBreak as error:
        if error.mark or error.__cause__ is not None:
            raise
        _interpreted(program.__name__, error, as_json)
        return
    did: list[dict[str, Any]] = []
    module = optimised(
        raw, passes, after=lambda item, _, report: did.append({"pass": str(item), "did": dict(report.counts)})
    )
    known = {**program.defaults(), **given}
    written = optimised(raw, BEFORE_BREAK)

    def cost(of: Module, sizes: Sizes) -> Costs:
        return costs(of, sizes, chosen, known, answers=answer_lengths(of, tokens.compiled))

    found, nominal = cost(module, tokens.bound), cost(module, tokens.nominal).total
    graph = module.graph
    facts: dict[str, Any] = {
        "program": graph.name,
        "nodes": [sum(1 for _ in raw.graph.walk()), sum(1 for _ in graph.walk())],
        "constant_characters": constant_chars(graph),
        "critical_path": [_call_json(node) for node in critical_path(graph)],
        "shared_prefixes": [count for _, count in shared_prefixes(graph)],
        "breaks": [_break_json(raw)] if broken is not None else [],
        "passes": did,
        "computed_before": _pair(cost(written, tokens.bound).total.computed),
        "nominal": {  # with arguments of unknown length left out
            "prompt": nominal.prompt.high,
            "computed": nominal.computed.high,
            "computed_before": cost(written, tokens.nominal).total.computed.high,
        },
        "endless_loops": [
            {"at": str(node.at), "rounds": node.maximum}
            for node in graph.walk()
            if isinstance(node, Loop) and not node.bounded
        ],
        "unknown_arguments": [p.name for p in graph.params],
        "constraints": list(fidelity(module, tokens)),
        "total": _cost_json(found.total),
        "lines": [{"at": str(at) if at else None, **_cost_json(c)} for at, c in found.lines.items()],
        "money": {name: list(found.total.money(price)) for name, price in rates.items()},
    }
    if as_json:
        print(json.dumps(facts, indent=1, ensure_ascii=False))
    else:
        print_tables(facts)


def _interpreted(name: str, error: Any, as_json: bool) -> None:
    """Of a program that is not compiled there is only to say where, and why."""
    at = str(error.at) if error.at else None
    if as_json:
        print(json.dumps({"program": name, "breaks": [{"at": at, "reason": error.message}]}, indent=1))
        return
    print(f"{name} runs interpreted: nothing of it can be traced")
    print(f"graph break at {at}: {error.message}" if at else f"graph break: {error.message}")


def _break_json(module: Module) -> dict[str, Any]:
    end = module.graph.nodes[-1]
    return {"at": str(end.at) if end.at else None, "reason": end.attrs["reason"], "shown": end_of(module)}


def _call_json(node: Any) -> dict[str, Any]:
    named = node.symbol.name if node.op == "call" else node.name
    return {"op": node.op, "name": named, "at": str(node.at) if node.at else None}


def _pair(interval: Interval) -> list[int | None]:
    return [interval.low, interval.high]


def _cost_json(cost: Cost) -> dict[str, list[int | None]]:
    return {n: _pair(getattr(cost, n)) for n in ("calls", "prompt", "computed", "output")}
