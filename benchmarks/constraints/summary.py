"""Result lines of the harness to a table, one column an engine, and to a plot of how long masks take.

python -m benchmarks.constraints.summary r.jsonl s.jsonl [--json FILE] [--plot FILE.png]
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Runs = dict[str, dict[str, list[dict[str, Any]]]]  # by engine, then by what was run

TEN_FIELDS = "obj10"
BOUNDS = {
    "regex mask warm p50 / p99 / max, us": "0.5 / 2 / 50",
    "regex compile cold p50 / p99, ms": "15 / 700",
    "regex compile p50 from the disk store, ms": "2",
    "schemas compiled": "90 %",
    "valid accepted": "100 %",
    "invalid rejected": "100 %",
    "schema compile p50 / p90 / p99, ms": "30 / 300 / -",
    "first mask p50 / p90, ms": "5 / -",
    "schema mask p50 / p99 / p99.9, us": "1.5 / 20 / 200",
    "tokens forced (token-safe)": "40 %",
    "memory of an object of ten fields (regex), MB": "3",
}
"""What is wanted of ours, by line of the table."""


def read(files: Iterable[Path], names: Mapping[str, str] | None = None) -> Runs:
    """Lines of the harness; `names` gives engines other names than their adapters'."""
    runs: Runs = defaultdict(lambda: defaultdict(list))
    for name in files:
        for line in name.read_text(encoding="utf-8").splitlines():
            run = json.loads(line)
            if run.get("what") in ("regex", "schema") and "id" in run:
                runs[(names or {}).get(run["adapter"], run["adapter"])][run["what"]].append(run)
    return runs


def quantiles(values: Sequence[float], at: Sequence[float]) -> str:
    return " / ".join(f"{float(np.quantile(values, q)):.3g}" for q in at) if len(values) else "-"


def _masks(runs: Iterable[dict[str, Any]]) -> list[float]:
    return [m for r in runs for m in r.get("mask_us", ())]


def regex_rows(runs: list[dict[str, Any]]) -> dict[str, str]:
    good = [r for r in runs if "error" not in r]
    right = [r for r in good if r["accept_ok"] == r["accept_n"] and r["reject_ok"] == r["reject_n"]]
    sizes = [r["memory_bytes"] for r in good if r["id"] == TEN_FIELDS and r["memory_bytes"]]
    return {
        "regexes compiled": f"{len(good)} of {len(runs)}",
        "regexes with every verdict right": f"{len(right)} of {len(runs)}",
        "regex compile cold p50 / p99, ms": quantiles([1e3 * r["compile_cold_s"] for r in good], (0.5, 0.99)),
        "regex mask warm p50 / p99 / max, us": quantiles(_masks(good), (0.5, 0.99, 1)),
        "memory of an object of ten fields (regex), MB": f"{sizes[0] / 1e6:.2f}" if sizes else "-",
    }


def schema_rows(runs: list[dict[str, Any]]) -> dict[str, str]:
    good = [r for r in runs if "error" not in r]
    masks = _masks(good)
    jumps = [j for r in good for j in r.get("jf", []) if "canon" in j]
    canonical = sum(j["canon"] for j in jumps) or 1
    total = {k: sum(r[k] for r in good) for k in ("valid_ok", "n_valid", "invalid_ok", "n_invalid")}
    safe = any(j["ff_tokens"] is not None for j in jumps)
    return {
        "schemas compiled": f"{len(good)} of {len(runs)} ({100 * len(good) / max(len(runs), 1):.1f} %)",
        "valid accepted": f"{total['valid_ok']} of {total['n_valid']}",
        "invalid rejected": f"{total['invalid_ok']} of {total['n_invalid']}",
        "schema compile p50 / p90 / p99, ms": quantiles(
            [1e3 * r["compile_s"] for r in good], (0.5, 0.9, 0.99)
        ),
        "first mask p50 / p90, ms": quantiles([1e3 * r["ttfm_s"] for r in good], (0.5, 0.9)),
        "schema mask p50 / p99 / p99.9, us": quantiles(masks, (0.5, 0.99, 0.999)),
        "schema mask mean, us": f"{float(np.mean(masks)):.3g}" if masks else "-",
        "tokens forced (token-safe)": f"{100 * sum(j['ff_tokens'] or 0 for j in jumps) / canonical:.1f} %"
        if safe
        else "-",
        "tokens saved if forced bytes were tokens of their own": f"{100 - 100 * sum(j['decodes'] for j in jumps) / canonical:.1f} %"
        if jumps
        else "-",
        "forced runs off the canonical tokens": f"{sum(j['ff_noncanon'] for j in jumps)} in {len(jumps)} texts"
        if safe
        else "-",
    }


def columns(runs: Runs) -> dict[str, dict[str, str]]:
    """Rows of the table by engine."""
    found = {}
    for engine, kinds in runs.items():
        rows = regex_rows(kinds["regex"]) if kinds["regex"] else {}
        found[engine] = rows | (schema_rows(kinds["schema"]) if kinds["schema"] else {})
    return found


def table(rows_of: Mapping[str, Mapping[str, str]]) -> str:
    """Markdown, the bounds in the last column."""
    labels = list(dict.fromkeys(label for rows in rows_of.values() for label in rows))
    lines = [
        "| | " + " | ".join([*rows_of, "wanted of ours"]) + " |",
        "|---|" + "--:|" * (len(rows_of) + 1),
    ]
    for label in labels:
        cells = [rows.get(label, "-") for rows in rows_of.values()]
        lines.append(f"| {label} | " + " | ".join([*cells, BOUNDS.get(label, "")]) + " |")
    return "\n".join(lines)


def plot(runs: Runs, path: Path) -> None:
    """For each engine, which part of the masks takes longer than a time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for panel, what, title in zip(
        axes, ("regex", "schema"), ("13 regexes, warm", "JSON schemas"), strict=True
    ):
        for engine, kinds in runs.items():
            masks = np.sort(np.array(_masks(r for r in kinds[what] if "error" not in r)))
            if len(masks):
                above = 1 - np.arange(len(masks)) / len(masks)
                panel.loglog(np.maximum(masks, 0.05), above, label=engine)
        panel.set(title=title, xlabel="time of one mask, us", ylim=(1e-5, 1.2))
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    axes[0].set_ylabel("part of the masks that takes longer")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    runs = read(given.files)
    report(runs, given.json, given.plot)


def report(
    runs: Runs, to: Path | None, picture: Path | None, more: Mapping[str, Mapping[str, str]] | None = None
) -> None:
    """Print the table; write it as JSON, and the plot, where asked. `more` are further rows by engine."""
    found = {engine: rows | dict((more or {}).get(engine, {})) for engine, rows in columns(runs).items()}
    print(table(found))
    if to is not None:
        to.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if picture is not None:
        plot(runs, picture)


if __name__ == "__main__":
    main()
