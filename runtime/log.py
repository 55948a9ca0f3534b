"""Logging: one format, to standard error; lines about a request carry its id."""

from __future__ import annotations

import json
import logging
import time
from contextvars import ContextVar

from runtime.errors import InvalidRequest

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        id = REQUEST_ID.get()
        return text if id is None else f"{text} [{id}]"


class _Json(logging.Formatter):
    """One object a line; what is given as `extra={"fields": {...}}` becomes keys of their own."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.gmtime(record.created)
        line = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', seconds)}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (id := REQUEST_ID.get()) is not None:
            line["request_id"] = id
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def level_of(option: str, level: str) -> str:
    """As `logging` names it. Raises InvalidRequest with the option."""
    if level.lower() not in ("debug", "info", "warning", "error", "critical"):
        raise InvalidRequest(f"{option} is {level!r}; choose debug, info, warning, error or critical")
    return level.upper()


def configure(level: str = "info", format: str = "text") -> None:
    """Set up the root logger once, at the start of a process. Raises InvalidRequest for a level or format that is not known."""
    if format not in ("text", "json"):
        raise InvalidRequest(f"--log-format is {format!r}; choose text or json")
    level = level_of("--log-level", level)
    handler = logging.StreamHandler()
    handler.setFormatter(
        _Json() if format == "json" else _Text("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=level, handlers=[handler])
