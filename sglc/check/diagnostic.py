"""One finding, and findings as text, JSON, SARIF and commands of a GitHub workflow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import quote


class Severity(StrEnum):
    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, order=True)
class Diagnostic:
    """Lines and columns count from 1; `end_column` is that after the last character, on the same line."""

    file: str
    line: int
    column: int
    code: str
    severity: Severity
    message: str
    fix: str
    end_column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.severity} {self.code}: {self.message}"


def to_text(found: Sequence[Diagnostic], sources: Mapping[str, Sequence[str]]) -> str:
    """Each finding with its line, a caret under the place, and the fix."""
    lines: list[str] = []
    for item in found:
        lines.append(str(item))
        source = sources.get(item.file, ())
        if 0 < item.line <= len(source):
            shown = source[item.line - 1].rstrip("\n")
            start = max(item.column - 1, 0)
            width = max(min(item.end_column - item.column, len(shown) - start), 1)
            lines += [f"  {shown}", "  " + _blank(shown[:start]) + "^" * width]
        lines += [f"  fix: {item.fix}", ""]
    return "\n".join(lines)


def _blank(text: str) -> str:
    return "".join(c if c == "\t" else " " for c in text)


def to_json(found: Sequence[Diagnostic]) -> str:
    return json.dumps([asdict(item) for item in found], indent=1, ensure_ascii=False) + "\n"


def to_github(found: Sequence[Diagnostic]) -> str:
    """Workflow commands, which GitHub shows beside the changed lines of a pull request."""
    kinds = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "notice"}
    lines: list[str] = []
    for item in found:
        place = {"file": _relative(item.file).as_posix(), "line": item.line, "col": item.column}
        if item.end_column > item.column:
            place["endColumn"] = item.end_column
        given = ",".join(f"{key}={_escaped(str(value), ':,')}" for key, value in place.items())
        told = _escaped(f"{item.message}\nFix: {item.fix}")
        lines.append(f"::{kinds[item.severity]} {given},title={item.code}::{told}\n")
    return "".join(lines)


def _escaped(text: str, more: str = "") -> str:
    return "".join(f"%{ord(c):02X}" if c in "%\r\n" + more else c for c in text)


def to_sarif(found: Sequence[Diagnostic], rules: Mapping[str, tuple[str, str, str]], version: str) -> str:
    """SARIF 2.1.0. `rules`: name, description and help by code."""
    used = sorted({item.code for item in found})
    log: dict[str, Any] = {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "sglc check",
                        "version": version,
                        "rules": [
                            {
                                "id": c,
                                "name": rules[c][0],
                                "shortDescription": {"text": rules[c][1]},
                                "help": {"text": rules[c][2]},
                            }
                            for c in used
                        ],
                    }
                },
                "columnKind": "unicodeCodePoints",
                "results": [_sarif_result(item, used) for item in found],
            }
        ],
    }
    return json.dumps(log, indent=1, ensure_ascii=False) + "\n"


def _sarif_result(item: Diagnostic, used: Sequence[str]) -> dict[str, Any]:
    region: dict[str, int] = {"startLine": item.line, "startColumn": max(item.column, 1)}
    if item.end_column > item.column:
        region["endColumn"] = item.end_column
    return {
        "ruleId": item.code,
        "ruleIndex": used.index(item.code),
        "level": item.severity.value,
        "message": {"text": f"{item.message} Fix: {item.fix}"},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": _uri(item.file)},
                    "region": region,
                }
            }
        ],
    }


def _uri(file: str) -> str:
    path = _relative(file)
    return path.as_uri() if path.is_absolute() else quote(path.as_posix())


def _relative(file: str) -> Path:
    """To the working folder where it can be, as those expect that show findings beside sources."""
    path = Path(file)
    return path.relative_to(Path.cwd()) if path.is_absolute() and path.is_relative_to(Path.cwd()) else path
