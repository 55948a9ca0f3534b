"""How long compiling takes: trace, default pipeline and lowering of programs of 100 to 10,000 nodes.

    python benchmarks/compile_speed.py

The programs stress different parts: `chain` is one long state, `fan` a fork of many branches that share a beginning,
`chat` a conversation of many turns, `branches` conditions on choices in a row. Wanted on two cores: 1,000 nodes
under 150 ms, 10,000 under 2 s, and time that grows with the size. Conditions on generated values cost more: each is one more
run of the body up to it, so `branches` grows with the square of their number (and more than 512 end the trace).
"""

from __future__ import annotations

import json
import math
import platform
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import sglc as sgl
from sglc.lang.chat_template import get_chat_template
from sglc.lang.trace import trace
from sglc.passes.pipeline import DEFAULT, Pipeline
from sglc.plan.lower import lower

RESULTS = Path(__file__).parent / "results"
SIZES = (100, 300, 1000, 3000, 10_000)
LIMITS = {1000: 0.150, 10_000: 2.0}  # seconds


@sgl.function
def chain(s, topic, count):
    for k in range(count):
        s += f"Step {k} about {topic}: " + sgl.gen(f"step{k}", max_tokens=8)


@sgl.function
def fan(s, topic, count):
    s += "Consider " + topic + "\n"
    forks = s.fork(count)
    for k, f in enumerate(forks):
        f += f"Give a reason, number {k}: "
        f += sgl.gen("reason", max_tokens=8)
    forks.join()
    s += "All in all, " + sgl.gen("verdict", max_tokens=8)


@sgl.function
def chat(s, topic, count):
    s += sgl.system("You answer in one sentence.")
    for k in range(count):
        s += sgl.user(f"Question {k} about {topic}?")
        s += sgl.assistant(sgl.gen(f"answer{k}", max_tokens=8))


@sgl.function
def branches(s, topic, count):
    for k in range(count):
        s += f"Is {k} good for {topic}? " + sgl.select(f"good{k}", ["yes", "no"])
        if s[f"good{k}"] == "yes":
            s += "Why? " + sgl.gen(f"why{k}", max_tokens=8)


PROGRAMS: dict[str, tuple[Any, int]] = {  # nodes of the traced graph that one round makes
    "chain": (chain, 3),
    "fan": (fan, 3),
    "chat": (chat, 7),
    "branches": (branches, 7),
}
MOST = {"branches": 1000}  # each condition is a run of the body, at most 512 of them


def measure(program: Any, rounds: int, repeats: int) -> dict[str, float]:
    """Seconds of each stage, the best of some runs, and the number of nodes."""
    template = get_chat_template("chatml")
    pipeline = Pipeline.parse(DEFAULT)
    best: dict[str, float] = {}
    nodes = 0
    for _ in range(repeats):
        begun = time.perf_counter()
        module = trace(program, {"topic": "tea", "count": rounds}, frozenset({"topic"}))
        traced = time.perf_counter()
        optimised = pipeline.run(module)
        passed = time.perf_counter()
        lower(optimised, template)
        lowered = time.perf_counter()
        nodes = sum(1 for graph in module.graphs.values() for _ in graph.walk())
        found = {"trace": traced - begun, "passes": passed - traced, "lower": lowered - passed}
        found["total"] = lowered - begun
        if not best or found["total"] < best["total"]:
            best = found
    return {"nodes": nodes, **best}


def growth(rows: list[dict[str, float]]) -> float:
    """The exponent e of time ~ nodes**e between 1,000 nodes and the largest size; 1 is linear."""
    tail = [r for r in rows if r["nodes"] >= 500]
    if len(tail) < 2:
        return float("nan")
    first, last = tail[0], tail[-1]
    return math.log(last["total"] / first["total"]) / math.log(last["nodes"] / first["nodes"])


def plot(results: dict[str, list[dict[str, float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for name, rows in results.items():
        axes.plot([r["nodes"] for r in rows], [r["total"] * 1e3 for r in rows], marker="o", label=name)
    ends = [min(SIZES), max(SIZES)]
    axes.plot(ends, [LIMITS[1000] * n for n in ends], linestyle=":", color="grey", label="150 us per node")
    axes.set(xscale="log", yscale="log", xlabel="nodes", ylabel="trace + passes + lower, ms")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def main(
    repeats: Annotated[int, typer.Option(help="Runs of each size; the best is reported.")] = 3,
    save: Annotated[bool, typer.Option(help="Write benchmarks/results/compile_speed.json and .png.")] = True,
) -> None:
    """Measure and print a table."""
    results: dict[str, list[dict[str, float]]] = {}
    table = Table("program", "nodes", "trace ms", "passes ms", "lower ms", "total ms", "limit ms")
    missed = []
    for name, (program, per_round) in PROGRAMS.items():
        measure(program, 10, 1)  # imports and caches
        rows = results[name] = []
        for size in SIZES:
            if size > MOST.get(name, size):
                continue
            row = measure(program, max(size // per_round, 1), repeats)
            rows.append(row)
            limit = LIMITS.get(size)
            if limit is not None and row["total"] > limit:
                missed.append(f"{name} of {size} nodes")
            shown = [f"{row[k] * 1e3:.1f}" for k in ("trace", "passes", "lower", "total")]
            table.add_row(name, str(row["nodes"]), *shown, "" if limit is None else f"{limit * 1e3:.0f}")
    console = Console()
    console.print(table)
    exponents = {name: round(growth(rows), 2) for name, rows in results.items()}
    console.print(f"time grows with nodes to the power of {exponents}")
    if missed:
        console.print(f"[bold]over the limit:[/bold] {', '.join(missed)}")
    if save:
        machine = {
            "processor": platform.processor() or platform.machine(),
            "python": platform.python_version(),
        }
        report = {"machine": machine, "rows": results, "growth": exponents, "missed": missed}
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "compile_speed.json").write_text(json.dumps(report, indent=2) + "\n")
        plot(results, RESULTS / "compile_speed.png")


if __name__ == "__main__":
    typer.run(main)
