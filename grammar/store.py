"""Compiled constraints on disk: arrays under a key, one file each.

A file is read only if it is whole and was written by this version; anything else is deleted and compiled
again. Files are written beside their place and renamed, so a reader never sees half of one. The oldest
are removed when all of them together are too large. Nothing in a file is ever executed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
import zlib
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from grammar.cache_folder import cache_folder

MAGIC = b"sglc-constraint\n"
VERSION = 3
_ABANDONED_SECONDS = 3600.0
_DTYPES = frozenset({"bool", "uint8", "uint16", "int16", "int32", "int64"})


class _Array(msgspec.Struct, frozen=True):
    name: str
    dtype: str
    shape: tuple[int, ...]


class _Header(msgspec.Struct, frozen=True):
    version: int
    key: str
    arrays: tuple[_Array, ...]


def store_key(*parts: str) -> str:
    """A name for what `parts` determine; the format's version is one of them."""
    state = hashlib.blake2b(digest_size=20)
    for part in (str(VERSION), *parts):
        data = part.encode()
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()


class ConstraintStore:
    """A folder of compiled constraints, at most `max_bytes` large."""

    def __init__(self, folder: str | Path, max_bytes: int = 1 << 30) -> None:
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self._room = 0  # bytes that may be written before the folder is looked through again

    @staticmethod
    def default() -> ConstraintStore:
        """In the user's cache folder; where the user has no home, as in some containers, nothing is kept."""
        return ConstraintStore(cache_folder("constraints"))

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.constraint"

    def load(self, key: str) -> dict[str, np.ndarray] | None:
        """The arrays under `key`; None if there are none that can be trusted."""
        path = self.path(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        arrays = _decode(data, key)
        if arrays is None:
            with contextlib.suppress(OSError):  # it may be another's
                path.unlink(missing_ok=True)
        return arrays

    def save(self, key: str, arrays: Mapping[str, np.ndarray]) -> bool:
        """Keep `arrays`; False if they cannot be kept (no room, no permission): that costs time, nothing else."""
        payload = b"".join(np.ascontiguousarray(a).tobytes() for a in arrays.values())
        described = tuple(_Array(n, str(a.dtype), tuple(a.shape)) for n, a in arrays.items())
        header = msgspec.json.encode(_Header(VERSION, key, described))
        sizes = len(header).to_bytes(4, "little") + zlib.crc32(payload, zlib.crc32(header)).to_bytes(
            4, "little"
        )
        try:
            if self.path(key).exists():
                return True
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.folder, suffix=".partial")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(MAGIC + sizes + header + payload)
                os.replace(name, self.path(key))
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
            self._prune(len(header) + len(payload))
        except OSError:
            return False
        return True

    def _prune(self, written: int) -> None:
        self._room -= written
        if self._room >= 0:
            return
        files = []
        for path in self.folder.iterdir():
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            if path.suffix == ".constraint":
                files.append((status.st_mtime, status.st_size, path))
            elif path.suffix == ".partial" and time.time() - status.st_mtime > _ABANDONED_SECONDS:
                path.unlink(missing_ok=True)  # its writer was killed
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size
        self._room = (self.max_bytes - total) // 8  # others may write too


def _decode(data: bytes, key: str) -> dict[str, np.ndarray] | None:
    start = len(MAGIC) + 8
    if not data.startswith(MAGIC) or zlib.crc32(data[start:]) != int.from_bytes(
        data[start - 4 : start], "little"
    ):
        return None
    length = int.from_bytes(data[len(MAGIC) : start - 4], "little")
    try:
        header = msgspec.json.decode(data[start : start + length], type=_Header)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    payload = memoryview(data)[start + length :]
    if header.version != VERSION or header.key != key:
        return None
    arrays, at = {}, 0
    for described in header.arrays:
        if described.dtype not in _DTYPES or any(n < 0 for n in described.shape):
            return None
        dtype = np.dtype(described.dtype)
        size = dtype.itemsize
        for n in described.shape:
            size *= n
        if at + size > len(payload):
            return None
        arrays[described.name] = np.frombuffer(payload[at : at + size], dtype).reshape(described.shape)
        at += size
    return arrays if at == len(payload) else None
