"""Figures of many: how they spread, tables of them, files of results."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import InvalidRequest


@dataclass(frozen=True)
class Spread:
    """Of times in milliseconds; percentiles between two values are interpolated."""

    mean: float
    std: float
    median: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread | None:
        """None if there are no values."""
        if not seconds:
            return None
        ms = np.asarray(seconds) * 1e3
        median, p90, p95, p99 = np.percentile(ms, (50, 90, 95, 99))
        values = (ms.mean(), ms.std(), median, p90, p95, p99, ms.max())
        return cls(*(round(float(v), 4) for v in values))


def writable(option: str, file: Path | None) -> None:
    """Raises InvalidRequest if the file could not be written after the run: figures of an hour are not lost to a typo."""
    if file is None:
        return
    if file.is_dir():
        raise InvalidRequest(f"{option} {str(file)!r} is a folder; name a file in it")
    if not file.absolute().parent.is_dir():
        raise InvalidRequest(
            f"{option} {str(file)!r}: there is no folder {str(file.parent)!r}; make it first"
        )


def save(file: Path | None, bench: str, facts: dict[str, Any], results: Sequence[dict[str, Any]]) -> None:
    """One JSON object; to a file that ends in .jsonl, one line for each result, after those it has."""
    if file is None:
        return
    if file.suffix == ".jsonl":
        with file.open("a", encoding="utf-8") as out:
            for result in results:
                out.write(json.dumps({"bench": bench, **facts, **result}) + "\n")
        return
    whole = {"bench": bench, **facts, "results": list(results)}
    file.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def plain(value: Any) -> dict[str, Any]:
    """A result as JSON's types, without what was not measured."""
    return {k: v for k, v in dataclasses.asdict(value).items() if v is not None}


def figure(value: float | None) -> str:
    """Three digits that count, and all before the point."""
    if value is None:
        return "-"
    if isinstance(value, int) or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.{1 if value >= 10 else 2 if value >= 1 else 3}f}"
