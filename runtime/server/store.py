"""Files and batches on disk: a SQLite journal (WAL, synced at every commit) and contents under random ids.

A content is complete before its row exists, and a row is what makes it a file: what a crash leaves behind has no row and is
removed at the next start. A line of a batch is a row from the moment that its answer counts. Methods block; one lock orders
them, so any thread may call.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from runtime.errors import Conflict, InvalidRequest, ModelError, NotFound
from runtime.server.records import BatchRecord, Counts, FileRecord, Idempotent, LineRecord
from runtime.server.uploads import StorageFull, Upload, disk_errors

KEY_SECONDS = 24 * 3600  # how long an Idempotency-Key is remembered
UNFINISHED = ("validating", "in_progress", "finalizing", "cancelling")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (id TEXT PRIMARY KEY, created REAL NOT NULL, bytes INTEGER NOT NULL, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS batches (id TEXT PRIMARY KEY, created REAL NOT NULL, status TEXT NOT NULL, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS lines (batch TEXT NOT NULL, key BLOB NOT NULL, number INTEGER NOT NULL, ok INTEGER NOT NULL,
    text BLOB NOT NULL, PRIMARY KEY (batch, key)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS line_numbers ON lines (batch, number, ok);
CREATE TABLE IF NOT EXISTS idempotency (route TEXT NOT NULL, key TEXT NOT NULL, digest TEXT NOT NULL, object TEXT NOT NULL,
    created REAL NOT NULL, PRIMARY KEY (route, key)) WITHOUT ROWID;
PRAGMA user_version = 1;
"""


def now() -> int:
    return int(time.time())


class StateStore:
    """The store in a folder. Raises ModelError if another server uses it, or it cannot be written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._contents = folder / "files"
        self._lock = threading.RLock()
        self._open: set[Upload] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._contents.mkdir(mode=0o700, exist_ok=True)
            self._guard = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ModelError(
                f"--state-dir {str(folder)!r} cannot be used: {error.strerror}; choose another"
            ) from None
        try:
            fcntl.flock(self._guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._guard)
            raise ModelError(
                f"--state-dir {str(folder)!r} is in use by another server; give each its own"
            ) from None
        self._db = sqlite3.connect(folder / "state.sqlite", check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")  # in WAL mode: synced at each commit
        self._db.executescript(_SCHEMA)
        os.chmod(folder / "state.sqlite", 0o600)
        self._sweep()

    def close(self) -> None:
        with self._lock:
            self._db.close()
            os.close(self._guard)

    def _sweep(self) -> None:
        """Remove contents without a row: uploads and outputs that a crash cut off."""
        known = {id for (id,) in self._db.execute("SELECT id FROM files")}
        for path in self._contents.iterdir():
            if path.name not in known:
                path.unlink()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, disk_errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk has ended it already
                    self._db.execute("ROLLBACK")
                raise

    # -- files --------------------------------------------------------------------------------------------

    @property
    def used_bytes(self) -> int:
        """Of all contents, those that are being written too."""
        with self._lock:
            (total,) = self._db.execute("SELECT COALESCE(SUM(bytes), 0) FROM files").fetchone()
            return int(total) + sum(upload.size for upload in list(self._open))

    def begin_file(self) -> Upload:
        """A content to write to; it becomes a file with `add_file`."""
        with disk_errors():
            return Upload(self._contents, self._open)

    def write(self, upload: Upload, data: bytes, most: int) -> None:
        """Add to a content. Raises StorageFull also if all of them, those that are being written too, exceed `most` bytes."""
        with self._lock:
            if self.used_bytes + len(data) > most:
                raise StorageFull("the server's room for files is used up; delete some", param="file")
            upload.write(data)

    def add_file(
        self, upload: Upload, filename: str, purpose: str, once: Idempotent | None = None
    ) -> FileRecord:
        """Make a finished content a file. With `once`, the file that the same key made before."""
        with self._transaction() as db:
            if (before := self._made_before(db, once)) is not None:
                upload.discard()
                return self.file(before)
            record = self._add_file(db, upload, filename, purpose)
            self._remember(db, once, record.id)
        return record

    def _add_file(self, db: sqlite3.Connection, upload: Upload, filename: str, purpose: str) -> FileRecord:
        record = FileRecord(
            id=upload.id, bytes=upload.finish(), created_at=now(), filename=filename, purpose=purpose
        )
        row = (record.id, time.time(), record.bytes, msgspec.json.encode(record))
        db.execute("INSERT INTO files VALUES (?, ?, ?, ?)", row)
        return record

    def file(self, id: str) -> FileRecord:
        """Raises NotFound."""
        with self._lock:
            row = self._db.execute("SELECT data FROM files WHERE id = ?", (id,)).fetchone()
        if row is None:
            raise NotFound(f"there is no file {id[:100]!r}", param="file_id")
        return msgspec.json.decode(row[0], type=FileRecord)

    def content(self, id: str) -> Path:
        """Where the bytes of a file lie. Raises NotFound."""
        return self._contents / self.file(id).id

    def files(
        self, after: str | None, limit: int, *, newest_first: bool = True, purpose: str | None = None
    ) -> tuple[list[FileRecord], bool]:
        """A page of files, of one purpose or all, and whether more follow."""
        rows, more = self._page("files", after, limit, newest_first, purpose)
        return [msgspec.json.decode(row, type=FileRecord) for row in rows], more

    def delete_file(self, id: str) -> None:
        """Raises NotFound, or Conflict if an unfinished batch reads it."""
        with self._transaction() as db:
            self.file(id)
            rows = db.execute(f"SELECT data FROM batches WHERE status IN {UNFINISHED}")
            for batch in (msgspec.json.decode(data, type=BatchRecord) for (data,) in rows):
                if batch.input_file_id == id:
                    raise Conflict(
                        f"file {id!r} is the input of {batch.id}, which is {batch.status}; cancel that first",
                        param="file_id",
                    )
            db.execute("DELETE FROM files WHERE id = ?", (id,))
        (self._contents / id).unlink(missing_ok=True)

    # -- batches ------------------------------------------------------------------------------------------

    def add_batch(self, record: BatchRecord, once: Idempotent | None = None) -> tuple[BatchRecord, bool]:
        """The batch, and whether it is new: with `once`, the one that the same key made before is not."""
        with self._transaction() as db:
            if (before := self._made_before(db, once)) is not None:
                return self.batch(before), False
            row = (record.id, time.time(), record.status, msgspec.json.encode(record))
            db.execute("INSERT INTO batches VALUES (?, ?, ?, ?)", row)
            if record.resume_from is not None:
                db.execute(
                    "INSERT INTO lines SELECT ?, key, number, ok, text FROM lines WHERE batch = ? AND ok",
                    (record.id, record.resume_from),
                )
            self._remember(db, once, record.id)
        return record, True

    def batch(self, id: str) -> BatchRecord:
        """Raises NotFound."""
        with self._lock:
            row = self._db.execute("SELECT data FROM batches WHERE id = ?", (id,)).fetchone()
            if row is None:
                raise NotFound(f"there is no batch {id[:100]!r}", param="batch_id")
            return self._counted(msgspec.json.decode(row[0], type=BatchRecord))

    def _counted(self, record: BatchRecord) -> BatchRecord:
        sql = "SELECT COUNT(*), COALESCE(SUM(ok), 0) FROM lines WHERE batch = ?"
        done, good = self._db.execute(sql, (record.id,)).fetchone()
        if record.status == "validating":
            done = good = 0  # what it takes over from another batch counts once it is known to be part of it
        counts = Counts(record.request_counts.total, good, done - good)
        return msgspec.structs.replace(record, request_counts=counts)

    def batches(self, after: str | None, limit: int) -> tuple[list[BatchRecord], bool]:
        """A page of batches, newest first, and whether more follow."""
        rows, more = self._page("batches", after, limit, True)
        with self._lock:
            return [self._counted(msgspec.json.decode(row, type=BatchRecord)) for row in rows], more

    def unfinished(self) -> list[str]:
        """Ids of the batches that are not at an end, oldest first."""
        with self._lock:
            rows = self._db.execute(f"SELECT id FROM batches WHERE status IN {UNFINISHED} ORDER BY created")
            return [id for (id,) in rows]

    def move(
        self, id: str, status: str, *, only_from: Iterable[str] = UNFINISHED, **fields: Any
    ) -> BatchRecord:
        """Give a batch a status and note the time. Raises Conflict if its status is none of `only_from`."""
        with self._transaction() as db:
            return self._move(db, id, status, only_from, fields)

    def _move(
        self,
        db: sqlite3.Connection,
        id: str,
        status: str,
        only_from: Iterable[str],
        fields: dict[str, Any],
    ) -> BatchRecord:
        before = self.batch(id)
        if before.status not in only_from:
            raise Conflict(f"batch {id} is {before.status}, so it cannot become {status}", param="batch_id")
        record = msgspec.structs.replace(before, status=status, **{f"{status}_at": now()}, **fields)
        sql = "UPDATE batches SET status = ?, data = ? WHERE id = ?"
        db.execute(sql, (status, msgspec.json.encode(record), id))
        return record

    def finish(self, id: str, status: str, output: Upload | None, errors: Upload | None) -> BatchRecord:
        """Give a batch its result files and its last status, all at once."""
        with self._transaction() as db:
            out = self._add_file(db, output, f"{id}_output.jsonl", "batch_output") if output else None
            bad = self._add_file(db, errors, f"{id}_error.jsonl", "batch_output") if errors else None
            fields = {"output_file_id": out and out.id, "error_file_id": bad and bad.id}
            return self._move(db, id, status, UNFINISHED, fields)

    # -- lines --------------------------------------------------------------------------------------------

    def record(self, lines: Iterable[LineRecord]) -> None:
        """Journal lines; each key of a batch counts once, whatever comes later."""
        rows = [(r.batch, r.key, r.number, r.ok, r.text) for r in lines]
        with self._transaction() as db:
            db.executemany("INSERT OR IGNORE INTO lines VALUES (?, ?, ?, ?, ?)", rows)

    def done(self, batch: str) -> set[bytes]:
        """Keys of the lines that are journaled."""
        with self._lock:
            rows = self._db.execute("SELECT key FROM lines WHERE batch = ?", (batch,))
            return {key for (key,) in rows}

    def renumber(self, batch: str, numbers: dict[bytes, int]) -> None:
        """Keep only journaled lines with these keys, at these places: those of another batch lay elsewhere."""
        with self._transaction() as db:
            for key in self.done(batch):
                if key in numbers:
                    sql = "UPDATE lines SET number = ? WHERE batch = ? AND key = ?"
                    db.execute(sql, (numbers[key], batch, key))
                else:
                    db.execute("DELETE FROM lines WHERE batch = ? AND key = ?", (batch, key))

    def results(self, batch: str, chunk: int = 256) -> Iterator[tuple[int, bool, bytes]]:
        """(number, ok, text) of the journaled lines, in the order of the input."""
        last = -1
        while True:
            with self._lock:
                sql = "SELECT number, ok, text FROM lines WHERE batch = ? AND number > ? ORDER BY number LIMIT ?"
                rows = self._db.execute(sql, (batch, last, chunk)).fetchall()
            if not rows:
                return
            yield from ((number, bool(ok), text) for number, ok, text in rows)
            last = rows[-1][0]

    # -- keys and pages -----------------------------------------------------------------------------------

    def _made_before(self, db: sqlite3.Connection, once: Idempotent | None) -> str | None:
        if once is None:
            return None
        db.execute("DELETE FROM idempotency WHERE created < ?", (time.time() - KEY_SECONDS,))
        sql = "SELECT digest, object FROM idempotency WHERE route = ? AND key = ?"
        row = db.execute(sql, (once.route, once.key)).fetchone()
        if row is None:
            return None
        table = "files" if once.route == "files" else "batches"
        gone = db.execute(f"SELECT 1 FROM {table} WHERE id = ?", (row[1],)).fetchone() is None
        if gone:  # it was deleted since: the key is free again
            db.execute("DELETE FROM idempotency WHERE route = ? AND key = ?", (once.route, once.key))
            return None
        if row[0] != once.digest:
            raise InvalidRequest(
                "this Idempotency-Key was used for another request in the last 24 hours; take a new key",
                param="Idempotency-Key",
            )
        return str(row[1])

    @staticmethod
    def _remember(db: sqlite3.Connection, once: Idempotent | None, id: str) -> None:
        if once is not None:
            row = (once.route, once.key, once.digest, id, time.time())
            db.execute("INSERT INTO idempotency VALUES (?, ?, ?, ?, ?)", row)

    def _page(
        self, table: str, after: str | None, limit: int, newest_first: bool, purpose: str | None = None
    ) -> tuple[list[bytes], bool]:
        order, beyond = ("DESC", "<") if newest_first else ("ASC", ">")
        wanted: list[str] = []
        values: list[Any] = []
        if purpose is not None:
            wanted.append("json_extract(CAST(data AS TEXT), '$.purpose') = ?")
            values.append(purpose)
        with self._lock:
            if after is not None:
                row = self._db.execute(f"SELECT created, id FROM {table} WHERE id = ?", (after,)).fetchone()
                if row is None:
                    raise NotFound(f"'after' names {after[:100]!r}, which does not exist", param="after")
                wanted.append(f"(created, id) {beyond} (?, ?)")
                values += row
            where = f"WHERE {' AND '.join(wanted)}" if wanted else ""
            sql = f"SELECT data FROM {table} {where} ORDER BY created {order}, id {order} LIMIT ?"
            rows = [data for (data,) in self._db.execute(sql, (*values, limit + 1))]
        return rows[:limit], len(rows) > limit
