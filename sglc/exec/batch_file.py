"""A batch between files: rows come from JSON lines or CSV, results go to a journal that a later run goes on from.

A result line says which row it is of, by number and digest, and by which program. Lines are flushed to disk as they are
written; a line that was cut off is dropped when the journal is opened again. Rows are read as they are needed, so a file of
any length takes the memory of one chunk.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

CHUNK = 256  # rows that run together


class RowError(Exception):
    """A row that cannot be read; says file, line and why."""


@dataclass(frozen=True)
class Row:
    """`number` counts from 1; `digest` is of its values."""

    number: int
    values: dict[str, Any]
    digest: str


def rows_of(path: Path) -> Iterator[Row]:
    """Raises RowError for a line that is no row."""
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix.lower() == ".csv":
            found: Iterator[Any] = iter(csv.DictReader(file))
        else:
            found = _json_lines(path, file)
        for number, values in enumerate(found, 1):
            if not isinstance(values, dict) or None in values:
                raise RowError(
                    f"{path}, row {number}: it must give a value for each argument by name, not {values!r}"
                )
            yield Row(number, values, digest_of(values))


def _json_lines(path: Path, file: TextIO) -> Iterator[Any]:
    for line, text in enumerate(file, 1):
        if not text.strip():
            continue
        try:
            yield json.loads(text)
        except json.JSONDecodeError as error:
            raise RowError(f"{path}:{line}: this is not JSON: {error}") from None


def digest_of(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Journal:
    """The results of a batch. `program` is what made them; results of another one are not taken over.

    `done`: numbers and digests of finished rows; `failed` those whose result is an error.
    """

    def __init__(self, path: Path, program: str, *, restart: bool = False) -> None:
        self.path = path
        self.program = program
        self.done: set[tuple[int, str]] = set()
        self.failed: set[tuple[int, str]] = set()
        self.foreign = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        if restart or not path.exists():
            path.write_bytes(b"")
        else:
            self._load()
        self._file = path.open("ab")

    def _load(self) -> None:
        """Raises RowError if the file holds something else than results."""
        whole = 0
        with self.path.open("rb") as file:
            for text in file:
                if not text.endswith(b"\n"):
                    break  # its writer died here
                try:
                    line = json.loads(text)
                    key, program, error = (
                        (int(line["row"]), str(line["digest"])),
                        line["program"],
                        line.get("error"),
                    )
                except (ValueError, KeyError, TypeError):
                    raise RowError(
                        f"{self.path} holds something else than results of a batch; name another file, or give --restart"
                    ) from None
                whole += len(text)
                if program != self.program:
                    self.foreign += 1
                    continue
                (self.failed if error else self.done).add(key)
        os.truncate(self.path, whole)
        self.failed -= self.done

    def has(self, row: Row, retry_failed: bool) -> bool:
        key = (row.number, row.digest)
        return key in self.done or (key in self.failed and not retry_failed)

    def write(self, results: list[tuple[Row, dict[str, Any]]]) -> None:
        for row, found in results:
            line = {"row": row.number, "digest": row.digest, "program": self.program, **found}
            self._file.write(json.dumps(line, ensure_ascii=False, default=repr).encode() + b"\n")
            (self.failed if found.get("error") else self.done).add((row.number, row.digest))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
