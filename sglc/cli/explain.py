"""`sglc explain`: what the compiler made of a program, and what a run will cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from sglc.cli.common import (
    Define,
    Target,
    beginning_of,
    chat_template,
    defined,
    one_program,
    optimised,
    tokenizer_folder,
    traced_for,
)
from sglc.cli.prices import FORM, prices_in


def explain(
    target: Target,
    define: Define = None,
    passes: Annotated[str | None, typer.Option(help="Passes in order: a,b{k=v}.")] = None,
    template: Annotated[str, typer.Option(help="Chat template of the model.")] = "chatml",
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Folder of a model whose tokenizer counts tokens; else `tiny`, the small one."),
    ] = None,
    prices: Annotated[
        Path | None,
        typer.Option(help=FORM),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what each pass did, what the run will cost at least and at most, and where, line by line."""
    from sglc.check import CheckOptions
    from sglc.errors import GraphBreak
    from sglc.ir.analysis import constant_chars, critical_path, shared_prefixes
    from sglc.plan.cost import costs

    chosen = chat_template(template)
    sizes = CheckOptions(tokenizer=tokenizer_folder(tokenizer)).bound
    rates = prices_in(prices)
    program = one_program(target)
    given = defined(program, define or [])
    try:
        raw = traced_for(program, given)
    except GraphBreak as error:
        start = beginning_of(program, given, error)
        if start is None:
            _interpreted(program.__name__, error, as_json)
            return
        raw = start
    reports: list[tuple[str, dict[str, int]]] = []
    module = optimised(
        raw, passes, after=lambda item, changed, report: reports.append((str(item), dict(report.counts)))
    )
    known = {**program.defaults(), **given}
    before, found = costs(raw, sizes, chosen, known), costs(module, sizes, chosen, known)
    graph = module.graph
    facts = {
        "nodes": [sum(1 for _ in raw.graph.walk()), sum(1 for _ in graph.walk())],
        "constant_characters": constant_chars(graph),
        "computed_before": _pair(before.total.computed),
        "critical_path": [_call_json(node) for node in critical_path(graph)],
        "shared_prefixes": [count for _, count in shared_prefixes(graph)],
        "breaks": [
            {"at": str(node.at) if node.at else None, "reason": node.attrs["reason"]}
            for node in graph.walk()
            if node.op == "break"
        ],
    }
    charged = {name: found.total.money(price) for name, price in rates.items()}
    if as_json:
        shown = {
            "program": graph.name,
            **facts,
            "passes": [{"pass": name, "did": did} for name, did in reports],
            "total": _cost_json(found.total),
            "lines": [{"at": str(at) if at else None, **_cost_json(c)} for at, c in found.lines.items()],
            "money": {n: list(m) for n, m in charged.items()},
        }
        print(json.dumps(shown, indent=1, ensure_ascii=False))
        return
    _tables(graph.name, facts, reports, found, charged)


def _interpreted(name: str, error: Any, as_json: bool) -> None:
    """Of a program that is not compiled there is only to say where, and why."""
    at = str(error.at) if error.at else None
    if as_json:
        print(json.dumps({"program": name, "breaks": [{"at": at, "reason": error.message}]}, indent=1))
        return
    print(f"{name} runs interpreted: it could not be traced")
    print(f"graph break at {at}: {error.message}" if at else f"graph break: {error.message}")


def _call_json(node: Any) -> dict[str, Any]:
    named = node.symbol.name if node.op == "call" else node.name
    return {"op": node.op, "name": named, "at": str(node.at) if node.at else None}


def _pair(interval: Any) -> list[int | None]:
    return [interval.low, interval.high]


def _cost_json(cost: Any) -> dict[str, list[int | None]]:
    return {n: _pair(getattr(cost, n)) for n in ("calls", "prompt", "computed", "output")}


def _tables(
    name: str, facts: dict[str, Any], reports: list[Any], found: Any, charged: dict[str, Any]
) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    before, after = facts["nodes"]
    console.print(f"[bold]{name}[/]: {before} nodes traced, {after} after the passes")
    for item in facts["breaks"]:
        console.print(
            f"graph break at {item['at']}: {item['reason']}; interpreted from there on",
            soft_wrap=True, markup=False, highlight=False,
        )  # fmt: skip
    path = facts["critical_path"]
    console.print(
        f"{len(path)} calls wait for each other on the longest path: "
        + " > ".join(c["name"] or c["op"] for c in path)
        if path
        else "no calls"
    )
    if facts["shared_prefixes"]:
        shared = ", ".join(map(str, facts["shared_prefixes"]))
        console.print(f"prompts shared by several calls: {shared} calls each")
    total = found.total
    if None not in (facts["computed_before"][1], total.computed.high, total.prompt.high):
        console.print(
            f"at most {total.computed.high:,} tokens of {total.prompt.high:,} in prompts are computed; "
            f"before the passes {facts['computed_before'][1]:,}"
        )
    table = Table("pass", "what it did", box=None, pad_edge=False)
    for item, did in reports:
        table.add_row(item, ", ".join(f"{what}: {count}" for what, count in did.items()) or "-")
    console.print(table)
    lines = Table("where", "calls", "prompt tokens", "computed", "new tokens", box=None, pad_edge=False)
    for at, cost in found.lines.items():
        lines.add_row(
            str(at) if at else "-", str(cost.calls), str(cost.prompt), str(cost.computed), str(cost.output)
        )
    lines.add_row("[bold]in all", str(total.calls), str(total.prompt), str(total.computed), str(total.output))
    console.print(lines)
    if total.prompt.high is None:
        console.print("arguments of unknown length have no limit; give them with -D NAME=VALUE")
    for model, (low, high) in charged.items():
        console.print(f"{model}: {low:.6f} to {'no limit' if high is None else f'{high:.6f}'}")
