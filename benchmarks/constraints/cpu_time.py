"""CPU time of each mask, which other work on the machine does not lengthen: all masks of walks over public schemas.

    python -m benchmarks.constraints.cpu_time --corpus FOLDER [-n 300] [--objects open|closed|strict] [--order declared|any] [--out FILE]

Needs the harness `cdbench` on the path. A mask that was made before is read in place; the others are first visits. Reading the
clock takes about 0.6 us, which is part of each figure.
"""

from __future__ import annotations

import argparse
import gc
import json
from pathlib import Path
from time import thread_time_ns

import numpy as np
from cdbench import corpus
from cdbench import vocab as vocabularies

from grammar.compile import Options, compile_constraint
from grammar.constraint_errors import ConstraintError
from grammar.vocabulary import Vocabulary
from grammar.warm import warm_up

AT = (50, 90, 99, 99.9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("-n", type=int, default=300)
    parser.add_argument("--objects", choices=("open", "closed", "strict"), default="open")
    parser.add_argument("--order", choices=("declared", "any"), default="declared")
    parser.add_argument("--out")
    given = parser.parse_args()
    vocab = vocabularies.load("tekken")
    vocabulary = Vocabulary.of(vocab.tokens, [vocab.eos], vocab.specials)
    warm_up(vocabulary)
    gc.collect()
    gc.freeze()  # as an engine's process does
    options = Options(objects=given.objects, any_order=given.order == "any")
    compiles, masks, steps = [], [], []
    for job in corpus.sample(given.corpus, given.n):
        began = thread_time_ns()
        try:
            automaton = compile_constraint(
                "json_schema", job["schema"], vocabulary, options=options
            ).automaton
        except ConstraintError:
            continue
        compiles.append((thread_time_ns() - began) / 1e6)
        assert automaton is not None
        for test in job["tests"]:
            if not test["valid"]:
                continue
            state = 0
            text = json.dumps(test["data"], ensure_ascii=False, separators=(",", ":"))
            for token in [*vocab.encode(text), vocab.eos]:
                began = thread_time_ns()
                automaton.allowed(state)
                between = thread_time_ns()
                masks.append((between - began) / 1e3)
                state = automaton.step(state, token)
                steps.append((thread_time_ns() - between) / 1e3)
                if state < 0:
                    break
    told = {
        "objects": given.objects,
        "order": given.order,
        "schemas": len(compiles),
        "masks": len(masks),
        "compile_ms": _quantiles(compiles),
        "mask_us": {**_quantiles(masks), "mean": round(float(np.mean(masks)), 2)},
        "step_us": _quantiles(steps),
    }
    text = json.dumps(told, indent=2)
    print(text)
    if given.out:
        Path(given.out).write_text(text + "\n", encoding="utf-8")


def _quantiles(values: list[float]) -> dict[str, float]:
    return {f"p{at:g}": round(float(np.percentile(values, at)), 2) for at in AT}


if __name__ == "__main__":
    main()
