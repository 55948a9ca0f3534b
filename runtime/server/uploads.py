"""Contents on their way to the disk: written under a random id beside their place, synced, then renamed."""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from runtime.errors import EngineError


class StorageFull(EngineError):
    status = 507
    code = "storage_full"


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Raises StorageFull for errors that say that nothing more can be written."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
            raise
        raise StorageFull("the server cannot write to its disk; free space there and try again") from error
    except OSError as error:
        raise StorageFull("the server cannot write to its disk; free space there and try again") from error


class Upload:
    """A content that is being written, under the random id that its file will have."""

    def __init__(self, folder: Path, beside: set[Upload]) -> None:
        """`beside`: the uploads that are being written; this one is among them until it ends."""
        self.id = f"file-{secrets.token_hex(16)}"
        self._folder = folder
        self._part = folder / f"{self.id}.part"
        self._handle: BinaryIO = os.fdopen(
            os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb"
        )
        self.size = 0
        self._beside = beside
        beside.add(self)

    def write(self, data: bytes) -> None:
        """Raises StorageFull."""
        with disk_errors():
            self._handle.write(data)
        self.size += len(data)

    def finish(self) -> int:
        """Bring it to the disk under its own name; its size. Raises StorageFull."""
        with disk_errors():
            self._handle.flush()
            os.fsync(self._handle.fileno())
            self._handle.close()
            self._part.rename(self._folder / self.id)
            _sync_folder(self._folder)
        self._beside.discard(self)
        return self.size

    def discard(self) -> None:
        """Forget it, also after an error."""
        self._beside.discard(self)
        with contextlib.suppress(OSError):
            self._handle.close()
        self._part.unlink(missing_ok=True)
        (self._folder / self.id).unlink(missing_ok=True)
