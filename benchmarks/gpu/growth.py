"""Draw how a decode step's time grows with batch and context, beside the floor: from the lines that `run.py --tests g` wrote.

python -m benchmarks.gpu.growth FOLDER/llama8b.jsonl --out growth.png
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer


def points(lines: Iterable[str]) -> dict[int, dict[int, tuple[float, float]]]:
    """By batch, then by context: milliseconds of a step and its floor. Of two lines for the same the later one counts."""
    found: dict[int, dict[int, tuple[float, float]]] = {}
    for line in lines:
        row: dict[str, Any] = json.loads(line)
        if row.get("test") == "decode" and "context" in row:
            found.setdefault(row["batch"], {})[row["context"]] = (row["ms"], row["floor_ms"])
    return {batch: dict(sorted(row.items())) for batch, row in sorted(found.items())}


def draw(found: dict[int, dict[int, tuple[float, float]]], title: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for batch, row in found.items():
        if len(row) < 2:  # nothing to see
            continue
        contexts = list(row)
        (line,) = axes.plot(contexts, [ms for ms, _ in row.values()], marker="o", label=f"batch {batch}")
        if floors := [floor for _, floor in row.values() if floor]:  # a model of no known shape has none
            axes.plot(contexts[: len(floors)], floors, linestyle=":", color=line.get_color())
    axes.set(xscale="log", yscale="log", xlabel="context, tokens", ylabel="decode step, ms", title=title)
    ticks = sorted({context for row in found.values() for context in row})
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.legend(title="dotted: the floor", loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    figure.savefig(path)


def main(
    results: Annotated[Path, typer.Argument(help="File of JSON lines.")],
    out: Annotated[Path, typer.Option(help="Picture to write.")] = Path("growth.png"),
) -> None:
    """Draw."""
    lines = [line for line in results.read_text(encoding="utf-8").splitlines() if line.strip()]
    found = points(lines)
    if not found:
        raise typer.BadParameter(f"{results} has no line of a decode step with its context; run --tests g")
    row = json.loads(lines[0])
    draw(found, f"{row['model']} on {row.get('card', 'a CPU')}", out)


if __name__ == "__main__":
    typer.run(main)
