"""The facts of `sglc explain` as text and tables."""

from __future__ import annotations

import linecache
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sglc.cli.common import console
from sglc.plan.interval import Interval


def print_tables(facts: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    out = console()

    def say(line: str) -> None:
        out.print(line, soft_wrap=True)

    before, after = facts["nodes"]
    out.print(Text(facts["program"], "bold"), f": {before} nodes traced, {after} after the passes", sep="")
    for item in facts["breaks"]:
        say(f"graph break at {item['shown']}")
        say("what comes after it runs interpreted, and is not counted below: it costs at least this much")
    path = facts["critical_path"]
    say(
        f"{len(path)} call{'s wait for each other' if len(path) > 1 else ''} on the longest path: " + " > ".join(c["name"] or c["op"] for c in path)
        if path
        else "no calls"
    )  # fmt: skip
    if facts["shared_prefixes"]:
        shared = ", ".join(map(str, facts["shared_prefixes"]))
        say(f"prompts shared by several calls: {shared} calls each")
    _say_computed(facts, say)

    passes = Table("pass", "what it did", box=None, pad_edge=False)
    for item in facts["passes"]:
        counts = ", ".join(f"{what}: {count}" for what, count in item["did"].items())
        passes.add_row(Text(item["pass"]), Text(counts or "-"))
    out.print(passes)

    if facts["constraints"]:
        out.print(_constraint_table(facts["constraints"]))
        for item in facts["constraints"]:
            if "refused" in item:
                say(f"refused at {_near(item['at'])}: {item['refused'].partition(chr(10))[0]}")

    files = {_file(line["at"]) for line in facts["lines"]}
    lines = Table(box=None, pad_edge=False)
    lines.add_column("line" if len(files) == 1 else "where", no_wrap=len(files) == 1, overflow="fold")
    wide = out.width >= 96
    if wide:
        lines.add_column("source", no_wrap=True, overflow="ellipsis", max_width=36)
    for title in ("calls", "prompt tokens", "computed", "new tokens"):
        lines.add_column(title, justify="right")
    for line in facts["lines"]:
        at = _line(line["at"]) if len(files) == 1 else _near(line["at"])
        lines.add_row(Text(at), *([Text(_source(line["at"]))] if wide else []), *_cells(line))
    lines.add_row(Text("in all", "bold"), *([""] if wide else []), *_cells(facts["total"]))
    if len(files) == 1 and facts["lines"]:
        say(f"in {_near(next(iter(files)))}")
    out.print(lines)

    total = facts["total"]
    if total["prompt"][1] is None and facts["unknown_arguments"]:
        names = ", ".join(facts["unknown_arguments"])
        say(f"prompts have no limit, as the length of {names} is not known; give it with -D NAME=VALUE")
    for loop in facts["endless_loops"]:
        say(
            f"the loop at {loop['at']} ends when the model lets it, and counts as 1 to {loop['rounds']:,} rounds"
        )
    for model, (low, high) in facts["money"].items():
        say(f"{model}: " + (f"at least {low:.6f}" if high is None else f"{low:.6f} to {high:.6f}"))


def _cells(cost: dict[str, list[Any]]) -> list[str]:
    return [str(Interval(*cost[n])) for n in ("calls", "prompt", "computed", "output")]


def _say_computed(facts: dict[str, Any], say: Any) -> None:
    """How much of the prompts is left to compute, and how much the passes took away."""
    total, before = facts["total"], facts["computed_before"][1]
    prompt, computed, apart = total["prompt"][1], total["computed"][1], ""
    if None in (prompt, computed, before):
        nominal = facts["nominal"]
        prompt, computed, before = nominal["prompt"], nominal["computed"], nominal["computed_before"]
        apart = ", arguments of unknown length apart" if facts["unknown_arguments"] else ""
    if None in (prompt, computed, before) or not prompt:
        return
    computed, before = min(computed, prompt), min(before, prompt)
    saved = f"; before the passes {before:,}" if before != computed else ", as before the passes"
    say(f"at most {computed:,} tokens of {prompt:,} in prompts are computed{saved}{apart}")


def _constraint_table(found: Sequence[dict[str, Any]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table("constraint", "of", "kept", "tokens", "shortest", "by", box=None, pad_edge=False)
    for item in found:
        source = Text(f"{item['kind']} {' '.join(item['source'].split())}")
        source.truncate(48, overflow="ellipsis")
        gen = f"{item['name'] or 'gen'}, line {_line(item['at'])}"
        if "refused" in item:
            table.add_row(source, gen, "refused", "-", "-", "nobody")
            continue
        shortest = Text(repr(item["shortest"]))
        shortest.truncate(32, overflow="ellipsis")
        kept = f"exactly, {item['form']} of {item['states']:,} states"
        tokens = str(Interval(*item["tokens"])) if item["tokens"][0] is not None else "-"
        table.add_row(source, gen, kept, tokens, shortest, ", ".join(item["kept_by"]))
    return table


def _file(at: str | None) -> str:
    return (at or "").rpartition(":")[0]


def _line(at: str | None) -> str:
    return (at or "").rpartition(":")[2] or "-"


def _source(at: str | None) -> str:
    return linecache.getline(_file(at), int(_line(at))).strip() if at else ""


def _near(at: str | None) -> str:
    """A place as it is called from the working folder."""
    if not at:
        return "-"
    path = Path(at)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else at
