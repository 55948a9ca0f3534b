"""What is known of files, batches and their lines, as OpenAI's API shows it and as the journal keeps it."""

from __future__ import annotations

from typing import Any

import msgspec


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A file, as OpenAI's API shows it."""

    id: str
    object: str = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: str = "processed"


class Counts(msgspec.Struct, frozen=True):
    total: int = 0
    completed: int = 0
    failed: int = 0


class BatchRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A batch, as OpenAI's API shows it; `request_counts` is filled in from the journal when it is read."""

    id: str
    object: str = "batch"
    endpoint: str
    input_file_id: str
    completion_window: str
    status: str
    created_at: int
    expires_at: int
    errors: dict[str, Any] | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: Counts = Counts()
    metadata: dict[str, str] | None = None
    resume_from: str | None = None


class LineRecord(msgspec.Struct, frozen=True):
    """What became of a line. `key` is its identity; `text` the line of the output file, or of the error file if not `ok`."""

    batch: str
    key: bytes
    number: int
    ok: bool
    text: bytes


class Idempotent(msgspec.Struct, frozen=True):
    """A caller's key for a creation, and the digest of what was to be created."""

    route: str
    key: str
    digest: str
