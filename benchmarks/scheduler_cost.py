"""What a decode step costs the host, by batch: no model, no device.

python benchmarks/scheduler_cost.py [--json OUT]

Three parts of a turn, in microseconds: planning and booking (the scheduler), queueing and reading (the device runner, with a
graph that computes nothing), and the messages to whoever streams. The turn is what the host needs for one batch; with several
steps in a turn the cost of a step is that share of it. The aim: under 400 us a step at batch 256.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from runtime.api import SamplingParams
from runtime.engine.device import DeviceRunner
from runtime.engine.graphs import DecodeGraph
from runtime.engine.messages import Output
from runtime.request import Request
from runtime.scheduler.scheduler import Scheduler


class Nothing:
    """Graphs whose replay is free."""

    def __init__(self, size: int) -> None:
        control = torch.zeros(6, size, dtype=torch.long)
        logits = torch.zeros(size, 32, dtype=torch.float32)
        self._graph = DecodeGraph(size, self, control, torch.full((size,), 7), logits)

    def fits(self, count: int, *, runs: bool = False) -> bool:
        return not runs

    def graph(self, count: int, *, runs: bool = False) -> DecodeGraph:
        return self._graph

    def alike(self, count: int) -> DecodeGraph:
        return self._graph

    def bundles(self) -> tuple[int, int]:
        return 16, 8

    def replay(self) -> None:
        pass


def runner_of(batch: int, context: int) -> DeviceRunner:
    spec = SimpleNamespace(logit_scale=1.0, logit_softcap=None, vocabulary=32)
    store: Any = SimpleNamespace(k=torch.zeros(1, 1, 8, 128), page_size=1)
    model: Any = SimpleNamespace(spec=spec, finished=lambda raw: raw.float())
    attention: Any = None
    made = DeviceRunner(model, store, attention, (), None, seats=batch, context=context)
    made.graphs = Nothing(batch)  # type: ignore[assignment]
    return made


def measure(batch: int, turn: int, steps: int = 512, prompt: int = 64) -> dict[str, float]:
    """Microseconds a step: medians over turns."""
    context = prompt + steps + 64
    scheduler = Scheduler(
        pages=4 * batch * context, max_running=batch, context=context, chunk=1 << 20, depth=2, reuse=False
    )
    runner = runner_of(batch, context)
    for i in range(batch):
        scheduler.add(
            Request(str(i), [i % 31] * prompt, SamplingParams(temperature=0), max_new=steps + 32, seed=i)
        )
    while scheduler.waiting:
        first = scheduler.next_batch()
        assert first is not None
        runner._seat(first)
        runner._updates(first)
        scheduler.commit(_drawn(first))
    scheduler.turn = turn
    times: dict[str, list[float]] = {"plan": [], "queue": [], "book": [], "tell": []}
    for _ in range(steps // turn):
        t0 = time.perf_counter()
        made = scheduler.next_batch()
        t1 = time.perf_counter()
        assert made is not None
        sampled = runner.collect(runner.launch(made))
        t2 = time.perf_counter()
        events = scheduler.commit(sampled)
        t3 = time.perf_counter()
        for e in events:
            Output(e.request.id, e.tokens, e.logprobs, e.prompt_scores, e.finish, e.request.cached, e.forced)
        t4 = time.perf_counter()
        for name, took in (("plan", t1 - t0), ("queue", t2 - t1), ("book", t3 - t2), ("tell", t4 - t3)):
            times[name].append(took / turn * 1e6)
    found = {name: statistics.median(v) for name, v in times.items()}
    return {**found, "total": sum(found.values())}


def _drawn(batch: Any) -> Any:
    from runtime.batch import Sampled

    return Sampled(batch.step, [7] * sum(s.sample for s in batch.slices))


def main(
    out: Annotated[Path | None, typer.Option("--json", help="File of the results.")] = None,
    repeats: Annotated[int, typer.Option(help="Of each measurement; the median counts.")] = 3,
) -> None:
    """Measure and print a table."""
    cases = [(b, k) for b in (1, 16, 64, 256, 1024) for k in (1, 4)]
    table = Table(title="Host, us a decode step")
    for name in ("batch", "steps a turn", "plan", "queue and read", "book", "messages", "total"):
        table.add_column(name, justify="right")
    rows = []
    for batch, turn in tqdm(cases, disable=None):
        runs = [measure(batch, turn) for _ in range(repeats)]
        row = {name: statistics.median(r[name] for r in runs) for name in runs[0]}
        rows.append({"batch": batch, "steps": turn, **{k: round(v, 1) for k, v in row.items()}})
        table.add_row(*(f"{v:.0f}" for v in rows[-1].values()))
    Console().print(table)
    if out is not None:
        out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
