"""What the language costs beside the model: microseconds per gen with a backend that answers at once.

    python benchmarks/frontend_overhead.py

The floor is one thread hand-over per run and a few allocations per gen. SGLang 0.3.4 on the same kind of machine: 69 us per gen
in one run, 116 us in a batch of 2,000 x 10 gens, 756 us per branch of a fork of 1,000.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import sglc as sgl
from runtime.api import Delta, Finish, Generate, Prompt, Usage
from runtime.backends.base import Capabilities, ModelInfo

RESULTS = Path(__file__).parent / "results" / "frontend_overhead.json"


class Instant:
    """A backend that answers every call with the same token."""

    capabilities = Capabilities(name="instant", tokens=True)
    model = ModelInfo(model_path="instant")

    async def generate(self, requests: Sequence[Generate]) -> AsyncIterator[Delta]:
        for r in requests:
            yield Delta(id=r.id, text=" a", ids=(1,), ids_text=2, finish=Finish(type="stop"), usage=Usage())

    async def prefill(self, prompt: Prompt) -> None:
        return None


@sgl.function
def chain(s, count):
    for _ in range(count):
        s += "x" + sgl.gen("a", max_tokens=3)


@sgl.function
def fan(s, count):
    s += "p"
    forks = s.fork(count)
    forks += "x" + sgl.gen("a", max_tokens=3)
    forks.join()


def timed(work: Callable[[], object], units: int, repeats: int) -> list[float]:
    """Microseconds per unit, sorted."""
    found = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        found.append((time.perf_counter() - begun) / units * 1e6)
    return sorted(found)


def main(
    repeats: Annotated[int, typer.Option(help="Runs of each measurement; the median is reported.")] = 5,
    save: Annotated[bool, typer.Option(help="Write benchmarks/results/frontend_overhead.json.")] = True,
) -> None:
    """Measure and print a table."""
    backend = Instant()
    chain.run(10, backend=backend).sync()
    rows = [{"count": 10}] * 2000
    measured = {
        "gen, one run of 2,000": (
            timed(lambda: chain.run(2000, backend=backend).sync(), 2000, repeats),
            50,
            69,
        ),
        "gen, batch of 2,000 x 10": (
            timed(lambda: chain.run_batch(rows, backend=backend), 20_000, repeats),
            60,
            116,
        ),
        "branch, fork of 1,000": (
            timed(lambda: fan.run(1000, backend=backend).sync(), 1000, repeats),
            100,
            756,
        ),
    }
    table = Table("what", "us (median)", "least", "aim", "SGLang 0.3.4")
    for name, (values, aim, other) in measured.items():
        table.add_row(name, f"{values[len(values) // 2]:.1f}", f"{values[0]:.1f}", str(aim), str(other))
    Console().print(table)
    if save:
        RESULTS.parent.mkdir(exist_ok=True)
        result = {
            "python": platform.python_version(),
            "microseconds": {
                name: [round(v, 1) for v in values] for name, (values, _, _) in measured.items()
            },
        }
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
