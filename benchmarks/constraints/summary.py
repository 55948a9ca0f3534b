"""Result lines of the harness to a table: one column an engine.

python -m benchmarks.constraints.summary r.jsonl s.jsonl
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np


def quantiles(values: Sequence[float], at: Sequence[float]) -> str:
    return " / ".join(f"{float(np.quantile(values, q)):.3g}" for q in at) if len(values) else "-"


def regex_rows(runs: list[dict[str, Any]]) -> dict[str, str]:
    good = [r for r in runs if "error" not in r]
    masks = [m for r in good for m in r["mask_us"]]
    return {
        "regexes compiled": f"{len(good)} of {len(runs)}",
        "regex compile cold p50 / p99, ms": quantiles([1e3 * r["compile_cold_s"] for r in good], (0.5, 0.99)),
        "regex mask warm p50 / p99 / max, us": quantiles(masks, (0.5, 0.99, 1)),
    }


def schema_rows(runs: list[dict[str, Any]]) -> dict[str, str]:
    good = [r for r in runs if "error" not in r]
    masks = [m for r in good for m in r["mask_us"]]
    jumps = [j for r in good for j in r.get("jf", []) if "canon" in j]
    canonical = sum(j["canon"] for j in jumps) or 1
    total = {k: sum(r[k] for r in good) for k in ("valid_ok", "n_valid", "invalid_ok", "n_invalid")}
    return {
        "schemas compiled": f"{len(good)} of {len(runs)} ({100 * len(good) / len(runs):.1f} %)",
        "valid accepted": f"{total['valid_ok']} of {total['n_valid']}",
        "invalid rejected": f"{total['invalid_ok']} of {total['n_invalid']}",
        "schema compile p50 / p90 / p99, ms": quantiles(
            [1e3 * r["compile_s"] for r in good], (0.5, 0.9, 0.99)
        ),
        "first mask p50 / p90, ms": quantiles([1e3 * r["ttfm_s"] for r in good], (0.5, 0.9)),
        "schema mask p50 / p90 / p99 / p99.9, us": quantiles(masks, (0.5, 0.9, 0.99, 0.999)),
        "schema mask mean, us": f"{float(np.mean(masks)):.3g}" if masks else "-",
        "tokens forced (token-safe)": f"{100 * sum(j['ff_tokens'] or 0 for j in jumps) / canonical:.1f} %",
        "forced runs off the canonical tokens": f"{sum(j['ff_noncanon'] for j in jumps)} in {len(jumps)} texts",
    }


def main() -> None:
    runs: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for name in sys.argv[1:]:
        with open(name, encoding="utf-8") as lines:
            for line in lines:
                run = json.loads(line)
                if run.get("what") in ("regex", "schema") and "id" in run:
                    runs[run["adapter"]][run["what"]].append(run)
    columns = {}
    for engine, kinds in runs.items():
        rows = regex_rows(kinds["regex"]) if kinds["regex"] else {}
        columns[engine] = rows | (schema_rows(kinds["schema"]) if kinds["schema"] else {})
    labels = list(dict.fromkeys(label for rows in columns.values() for label in rows))
    print("| |", " | ".join(columns), "|")
    print("|---|" + "--:|" * len(columns))
    for label in labels:
        print(f"| {label} |", " | ".join(rows.get(label, "-") for rows in columns.values()), "|")


if __name__ == "__main__":
    main()
