"""What ordering the rows of a batch is worth: hit rate and time with row groups, and with rows as they come.

Rows are questions on many subjects, shuffled; each prompt is a system text, the subject's few-shot examples, the question.
The embedded model runs on the CPU with a KV pool that holds a few subjects only, as a data set does not fit a GPU's.
Both ways run in one process, alternating; the figures are medians. Usage: python benchmarks/row_groups.py [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import sglc as sgl
from runtime.backends.metered import Metered

SUBJECTS, EACH, REPEATS = 24, 8, 3
POOL = 3000  # tokens
SYSTEM = "Answer the question on the subject below in one word, as in the examples. "


@sgl.function
def answers(s: Any, subject: str, question: str) -> None:
    s += SYSTEM + subject
    s += "Q: " + question + "\nA:" + sgl.gen("a", max_tokens=4, temperature=0)


def rows() -> list[dict[str, str]]:
    rng = random.Random(3)
    nouns = ["fox", "river", "king", "stone", "garden", "ship", "winter", "letter", "bridge", "bird"]
    found = []
    for number in range(SUBJECTS):
        shots = [
            f"Q: what of the {rng.choice(nouns)} and the {rng.choice(nouns)}?\nA: {rng.choice(nouns)}\n"
            for _ in range(14)
        ]
        subject = f"Subject {number}.\n" + "".join(shots)
        found += [
            {"subject": subject, "question": f"what of the {rng.choice(nouns)}, {k}?"} for k in range(EACH)
        ]
    rng.shuffle(found)
    return found


def measure(engine: Any, grouped: bool, compiled: bool) -> tuple[float, float, list[str]]:
    engine.flush_cache()
    sgl.global_config.enable_precache_with_tracing = grouped
    metered = Metered(engine)
    program = answers.compile() if compiled else answers
    began = time.perf_counter()
    states = program.run_batch(rows(), backend=metered, num_threads=32)
    texts = [s["a"] for s in states]
    return time.perf_counter() - began, metered.spent.hit_rate, texts


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "row_groups.json")
    out = parser.parse_args().out
    result: dict[str, Any] = {"rows": SUBJECTS * EACH, "subjects": SUBJECTS, "pool_tokens": POOL}
    with sgl.Engine(max_total_tokens=POOL, schedule_policy="lpm") as engine:
        for compiled in (False, True):
            runs = {True: [], False: []}  # type: dict[bool, list[tuple[float, float, list[str]]]]
            for _ in range(REPEATS):
                for grouped in (False, True):
                    runs[grouped].append(measure(engine, grouped, compiled))
            assert all(r[2] == runs[True][0][2] for both in runs.values() for r in both), "answers differ"
            times = {g: statistics.median(r[0] for r in found) for g, found in runs.items()}
            name = "compiled" if compiled else "interpreted"
            result[name] = {
                "hit_rate_grouped": round(statistics.median(r[1] for r in runs[True]), 3),
                "hit_rate_as_they_come": round(statistics.median(r[1] for r in runs[False]), 3),
                "times_as_fast": round(times[False] / times[True], 2),
            }
            print(name, result[name])
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
