"""A batch between files: rows come from JSON lines or CSV, results go to a journal that a later run goes on from.

A result line says which row it is of, by number and digest, and by which program. Lines are written as rows end, so a kill
costs the rows under way and no others, and put in the order of rows when all have ended: a run that was killed and went on
leaves the file of one that was not. A line that was cut off is dropped when the journal is opened again. Rows are read as they are
needed, so a file of any length takes the memory of one chunk.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

CHUNK = 256  # rows that run together
_SYNC_SECONDS = 1.0


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
        self._synced = 0.0

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

    def write(self, row: Row, found: dict[str, Any]) -> None:
        """A row's result. The process may die after this; for the machine, a second may be lost."""
        line = {"row": row.number, "digest": row.digest, "program": self.program, **found}
        self._file.write(json.dumps(line, ensure_ascii=False, default=repr).encode() + b"\n")
        self._file.flush()
        (self.failed if found.get("error") else self.done).add((row.number, row.digest))
        if time.monotonic() > self._synced + _SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def sort(self) -> None:
        """Put this program's results in the order of rows, behind those of others; the file is whole at any moment."""
        keys: list[tuple[int, int, int, int]] = []
        at = 0
        with self.path.open("rb") as file:
            for number, text in enumerate(file):
                line = json.loads(text)
                ours = line["program"] == self.program
                keys.append((int(ours), int(line["row"]) if ours else 0, number, at))
                at += len(text)
        order = sorted(keys)
        if order == keys:
            return
        beside = self.path.with_name(self.path.name + ".sorted")
        with self.path.open("rb") as file, beside.open("wb") as out:
            for _, _, _, start in order:
                file.seek(start)
                out.write(file.readline())
            out.flush()
            os.fsync(out.fileno())
        self._file.close()
        beside.replace(self.path)
        self._file = self.path.open("ab")

    def close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
