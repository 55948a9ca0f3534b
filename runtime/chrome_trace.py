"""Spans of time in lanes, written as a Chrome trace: the file opens in Perfetto or chrome://tracing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class ChromeTrace:
    """Times are in seconds since one moment of the caller's; `category` is that of every span and mark."""

    def __init__(self, category: str) -> None:
        self._category = category
        self.events: list[dict[str, Any]] = []

    def lane(self, lane: int, name: str) -> None:
        """What a lane is called."""
        self.events.append({"ph": "M", "pid": 1, "tid": lane, "name": "thread_name", "args": {"name": name}})

    def span(
        self, lane: int, name: str, start: float, end: float, facts: Mapping[str, Any] | None = None
    ) -> None:
        """`facts` are shown where the span is looked at. No span is shorter than a microsecond."""
        at, length = round(start * 1e6), max(round((end - start) * 1e6), 1)
        place = {"pid": 1, "tid": lane, "cat": self._category}
        self.events.append(
            {"ph": "X", "name": name, "ts": at, "dur": length, "args": dict(facts or {}), **place}
        )

    def mark(self, lane: int, name: str, at: float) -> None:
        """A moment."""
        place = {"pid": 1, "tid": lane, "cat": self._category}
        self.events.append({"ph": "i", "name": name, "ts": round(at * 1e6), "s": "t", **place})

    def save(self, path: str | Path) -> None:
        data = {"traceEvents": self.events, "displayTimeUnit": "ms"}
        Path(path).write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
