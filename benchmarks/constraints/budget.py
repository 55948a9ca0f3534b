"""What masks cost near the end of the token budget: random walks through a schema whose texts just fit.

    python -m benchmarks.constraints.budget FOLDER --eos ID ... [--walks 64] [--open]

FOLDER holds a tokenizer.json. The schema is that of `benchmarks/gpu/constrained.py` (its shortest text has about 205 bytes); the
walks take a token at random out of each mask, so texts are as long as the budget lets them be. CPU time of the thread,
without waiting for other processes; reading that clock is about 0.6 us of each figure.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from benchmarks.gpu.constrained import SCHEMA
from grammar.compile import compile_constraint
from grammar.vocabulary import Vocabulary
from grammar.warm import warm_up
from runtime.constrain.matcher import Matcher


def us(seconds: list[float]) -> str:
    x = np.array(seconds) * 1e6
    p50, p90, p99 = np.percentile(x, [50, 90, 99])
    return f"p50 {p50:8.1f}  p90 {p90:8.1f}  p99 {p99:9.1f}  max {x.max():9.1f}  mean {x.mean():8.1f} us"


def walks(matchers: list[Matcher], tokens: int) -> tuple[list[float], list[float]]:
    """CPU seconds of each mask and of each step of walks side by side, as rows of a batch go."""
    rng = np.random.default_rng(0)
    masks, steps = [], []
    for _ in range(tokens):
        for matcher in matchers:
            if matcher.ended or matcher.left == 0:
                continue
            start = time.thread_time()
            row = matcher.mask()
            masks.append(time.thread_time() - start)
            choices = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))
            assert len(choices), "no token is left although the budget allows one"
            token = int(rng.choice(choices))
            start = time.thread_time()
            matcher.advance(token)
            steps.append(time.thread_time() - start)

    return masks, steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--eos", type=int, nargs="+", required=True)
    parser.add_argument("--walks", type=int, default=64)
    parser.add_argument("--open", action="store_true", help="objects may have other members")
    options = parser.parse_args()
    schema = json.loads(json.dumps(SCHEMA))
    if options.open:
        del (
            schema["items"]["additionalProperties"],
            schema["items"]["properties"]["address"]["additionalProperties"],
        )
    start = time.thread_time()
    vocabulary = Vocabulary.from_tokenizer_json(options.folder / "tokenizer.json", options.eos)
    read = time.thread_time()
    warm_up(vocabulary)
    warm = time.thread_time()
    print(
        f"{len(vocabulary)} tokens: read in {read - start:.2f} s, warmed up in {warm - read:.2f} s of CPU time"
    )
    for name in ("256", "least + 5", "4000"):
        start = time.thread_time()
        automaton = compile_constraint("json_schema", schema, vocabulary).automaton
        assert automaton is not None
        took = time.thread_time() - start
        least = automaton.min_tokens
        budget = least + 5 if name == "least + 5" else int(name)
        masks, steps = walks([Matcher(automaton, budget) for _ in range(options.walks)], min(budget, 300))
        print(
            f"max_tokens {budget} (the shortest text takes {least}), {len(masks)} masks, compiled in {took * 1e3:.0f} ms"
        )
        print(f"  masks    {us(masks)}\n  advance  {us(steps)}", flush=True)


if __name__ == "__main__":
    main()
