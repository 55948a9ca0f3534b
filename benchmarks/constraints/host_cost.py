"""What a step of constrained requests costs the host: masks, the advance over drawn tokens, and what they force.

    python -m benchmarks.constraints.host_cost --tokenizer FOLDER [--requests 64] [--different]

Tokens are drawn evenly from the masks, so texts never repeat. Processor time of this thread, medians and means over the steps.
On a GPU the masks are found while the model runs; the rest is what the device waits for.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.gpu.constrained import SCHEMA, distinct
from runtime.api import Constraint, SamplingParams
from runtime.batch import Admission
from runtime.config import embedded_model_path
from runtime.constrain.compiler import ConstraintCompiler
from runtime.constrain.jump import Cuts
from runtime.constrain.masks import ConstrainedSeats
from runtime.tokenizer.tokenizer import Tokenizer


def main(
    tokenizer: Annotated[Path | None, typer.Option(help="Folder with tokenizer.json.")] = None,
    requests: Annotated[int, typer.Option(help="At a time.")] = 64,
    different: Annotated[bool, typer.Option(help="A schema of its own for each.")] = False,
    guesses: Annotated[
        int, typer.Option(help="Guess so many tokens behind each drawn one; 0: none, nor learn any.")
    ] = 0,
    steps: int = 100,
    seed: int = 1,
) -> None:
    folder = tokenizer or embedded_model_path()
    made = Tokenizer(folder)
    compiler = ConstraintCompiler(
        folder, made.ends, cuts=Cuts(partial(made.encode, first=False), made.pieces), guesses=guesses
    )
    seats = ConstrainedSeats(compiler, made.size, "cpu")
    rng = random.Random(seed)
    spent: dict[str, list[float]] = {"masks": [], "advance": [], "forced": []}

    def timed(what: str, work: Callable[[], Any]) -> Any:
        began = time.thread_time_ns()
        found = work()
        spent[what].append((time.thread_time_ns() - began) / 1e3)
        return found

    def seat(i: int) -> None:
        schema = distinct(i) if different else json.dumps(SCHEMA)
        sampling = SamplingParams(max_new_tokens=100_000, constraint=Constraint("json_schema", schema))
        seats.seat(Admission(i, [1], 1, [], sampling, i, None, 100_000))

    everyone = range(requests)
    drawn = forced = runs = 0
    for i in everyone:
        seat(i)
    for _ in range(steps):
        rows = timed("masks", lambda: [seats.bits(i).copy() for i in everyone])
        tokens = [_any(row, rng, made.ends) for row in rows]
        for i, token in enumerate(tokens):
            if token is None:  # the text is whole
                seat(i)
        taken = [(i, token) for i, token in enumerate(tokens) if token is not None]
        timed("advance", lambda taken=taken: [seats.advance(i, t) for i, t in taken])
        found = timed("forced", lambda taken=taken: [seats.forced(i) for i, _ in taken])
        if guesses:
            spent.setdefault("guesses", [])
            timed("guesses", lambda taken=taken: [seats.guesses(i) for i, _ in taken])
        drawn += len(taken)
        forced += sum(map(len, found))
        runs += sum(map(bool, found))
    result: dict[str, Any] = {
        "requests": requests,
        "different": different,
        "forced_share": round(forced / (forced + drawn), 3),
        "runs_a_step": round(runs / steps, 1),
    }
    for what, times in spent.items():
        result[f"{what}_us"] = {
            "median": round(float(np.median(times))),
            "mean": round(float(np.mean(times))),
        }
    typer.echo(json.dumps(result))


def _any(row: np.ndarray, rng: random.Random, ends: tuple[int, ...]) -> int | None:
    """One of the allowed tokens; None if only the end is."""
    allowed = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))
    token = int(allowed[rng.randrange(len(allowed))])
    return None if token in ends else token


if __name__ == "__main__":
    typer.run(main)
