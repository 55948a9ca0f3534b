"""Memory and threads of a `run_batch` of many rows, each way of running in a process of its own.

    python benchmarks/batch_memory.py [--rows 10000] [--out benchmarks/results/batch_memory.json]

`traced` rows run from their plan and need no thread; `broken` ones print nothing but call a function that cannot be
traced, so their bodies run in a bounded pool. The scripted backend answers at once.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import sglc as sgl

SEEN: list[int] = []


def note(text: str) -> None:
    SEEN.append(threading.active_count())


@sgl.function
def traced(s: Any, q: str) -> None:
    s += "Question: " + q + "\n" + sgl.gen("a", max_tokens=8)
    s += "\nShort: " + sgl.gen("b", max_tokens=4)


@sgl.function
def broken(s: Any, q: str) -> None:
    s += "Question: " + q + "\n" + sgl.gen("a", max_tokens=8)
    note(s["a"])
    s += "\nShort: " + sgl.gen("b", max_tokens=4)


def measure(kind: str, rows: int) -> dict[str, Any]:
    program = {"traced": traced, "broken": broken}[kind].compile()
    given = [{"q": f"number {k}"} for k in range(rows)]
    before = threading.active_count()
    begin = time.perf_counter()
    states = program.run_batch(given, backend=sgl.Scripted())
    seconds = time.perf_counter() - begin
    return {
        "kind": kind,
        "rows": len(states),
        "seconds": round(seconds, 2),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "threads_before": before,
        "threads_most": max([*SEEN, threading.active_count()]),
        "breaks": [found.at.line if found.at else None for found in program.breaks],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "batch_memory.json")
    parser.add_argument("--kind", choices=("traced", "broken"))
    options = parser.parse_args()
    if options.kind is not None:
        print(json.dumps(measure(options.kind, options.rows)))
        return
    found = []
    for kind in ("traced", "broken"):
        command = [sys.executable, __file__, "--kind", kind, "--rows", str(options.rows)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(found[-1]))
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
