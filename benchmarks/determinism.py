"""One request many times, in batches of every size and beside others, with and without a prefix cache: one output, bit for bit.

python -m benchmarks.determinism --runs 1000
"""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

import sglc as sgl

RESULTS = Path(__file__).parent / "results" / "determinism.json"
SIZES = (1, 2, 64, 3, 5, 32, 8, 13, 48, 16, 24)
PROBE = "Count to a hundred: 1, 2, 3, 4, 5, "
TOKENS = 24


def outputs(engine: sgl.Engine, runs: int, tokens: int = TOKENS, seed: int = 1) -> Counter[str]:
    """How often each answer to the probe came: its tokens and their log-probabilities."""
    rng, found = random.Random(seed), Counter[str]()
    turn = 0
    while found.total() < runs:
        size = SIZES[turn % len(SIZES)]
        turn += 1
        probes = rng.randint(1, size)
        prompts = [PROBE] * probes + [
            f"{rng.randrange(10**6)} " * rng.randint(1, 40) for _ in range(size - probes)
        ]
        rng.shuffle(prompts)
        params = [
            {
                "temperature": 0,
                "max_new_tokens": tokens if p == PROBE else rng.randint(1, 2 * tokens),
                "ignore_eos": True,
            }
            for p in prompts
        ]
        answers = engine.generate(prompts, params, return_logprob=True)
        for prompt, answer in zip(prompts, answers, strict=True):
            if prompt == PROBE:
                found[repr(answer["meta_info"]["output_token_logprobs"])] += 1
    return found


def main(
    runs: Annotated[int, typer.Option(help="Answers to the probe, with a cache and again without.")] = 1000,
    threads: Annotated[int, typer.Option(help="Of the model.")] = 2,
    out: Path = RESULTS,
) -> None:
    result: dict[str, Any] = {}
    every: Counter[str] = Counter()
    for name, options in (("cache", {}), ("no cache", {"disable_radix_cache": True})):
        with sgl.Engine(threads=threads, **options) as engine:
            found = outputs(engine, runs)
        every += found
        result[name] = {"runs": found.total(), "different": len(found)}
    result["different in all"] = len(every)
    typer.echo(json.dumps(result, indent=1))
    out.write_text(json.dumps(result, indent=1) + "\n")
    raise typer.Exit(len(every) != 1)


if __name__ == "__main__":
    typer.run(main)
