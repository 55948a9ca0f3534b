"""`sglc explain`: what the compiler made of a program, and what a run will cost."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sglc.cli.common import Define, Mistake, Target, defined, one_program, optimised, traced_for

if TYPE_CHECKING:
    from sglc.plan.interval import Price


def explain(
    target: Target,
    define: Define = None,
    passes: Annotated[str | None, typer.Option(help="Passes in order: a,b{k=v}.")] = None,
    template: Annotated[str, typer.Option(help="Chat template of the model.")] = "chatml",
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Folder of a model whose tokenizer counts tokens; else that of the small model."),
    ] = None,
    prices: Annotated[
        Path | None,
        typer.Option(help="TOML file: [model] input = 2.5, output = 10, cached = 1.25, by a million tokens."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what each pass did, what the run will cost at least and at most, and where, line by line."""
    from sglc.check import CheckOptions
    from sglc.ir.analysis import constant_chars, critical_path, shared_prefixes
    from sglc.lang.chat_template import get_chat_template
    from sglc.plan.cost import costs

    try:
        chosen = get_chat_template(template)
    except KeyError:
        raise Mistake(f"--template {template}: there is no chat template of that name") from None
    if tokenizer is not None and not (tokenizer / "tokenizer.json").is_file():
        raise Mistake(f"--tokenizer {tokenizer}: there is no tokenizer.json in that folder")
    program = one_program(target)
    given = defined(program, define or [])
    raw = traced_for(program, given)
    reports: list[tuple[str, dict[str, int]]] = []
    module = optimised(
        raw, passes, after=lambda item, changed, report: reports.append((str(item), dict(report.counts)))
    )
    known = {**program.defaults(), **given}
    found = costs(module, CheckOptions(tokenizer=tokenizer).count, chosen, known)
    graph = module.graph
    path = critical_path(graph)
    facts = {
        "nodes": [sum(1 for _ in raw.graph.walk()), sum(1 for _ in graph.walk())],
        "constant_characters": constant_chars(graph),
        "critical_path": len(path),
        "shared_prefixes": [count for _, count in shared_prefixes(graph)],
    }
    charged = {name: found.total.money(price) for name, price in _prices(prices).items()}
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


def _cost_json(cost: Any) -> dict[str, list[int | None]]:
    return {n: [getattr(cost, n).low, getattr(cost, n).high] for n in ("calls", "prompt", "output")}


def _prices(file: Path | None) -> dict[str, Price]:
    from sglc.plan.interval import Price

    if file is None:
        return {}
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise Mistake(f"--prices {file}: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise Mistake(f"--prices {file}: {error}") from None
    found: dict[str, Price] = {}
    for name, entry in data.items():
        try:
            found[name] = Price(**{key: float(value) for key, value in entry.items()})
        except (TypeError, ValueError, AttributeError):
            raise Mistake(
                f"--prices {file}: [{name}] needs input and output, and may have cached, as numbers"
            ) from None
    return found


def _tables(
    name: str, facts: dict[str, Any], reports: list[Any], found: Any, charged: dict[str, Any]
) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    before, after = facts["nodes"]
    console.print(f"[bold]{name}[/]: {before} nodes traced, {after} after the passes; "
                  f"{facts['critical_path']} calls wait for each other on the longest path")  # fmt: skip
    if facts["shared_prefixes"]:
        console.print(
            f"prompts shared by several calls: {', '.join(map(str, facts['shared_prefixes']))} calls each"
        )
    table = Table("pass", "what it did", box=None, pad_edge=False)
    for item, did in reports:
        table.add_row(item, ", ".join(f"{what}: {count}" for what, count in did.items()) or "-")
    console.print(table)
    lines = Table("where", "calls", "prompt tokens", "new tokens", box=None, pad_edge=False)
    for at, cost in found.lines.items():
        lines.add_row(str(at) if at else "-", str(cost.calls), str(cost.prompt), str(cost.output))
    total = found.total
    lines.add_row("[bold]in all", str(total.calls), str(total.prompt), str(total.output))
    console.print(lines)
    for model, (low, high) in charged.items():
        console.print(f"{model}: {low:.6f} to {'no limit' if high is None else f'{high:.6f}'}")
