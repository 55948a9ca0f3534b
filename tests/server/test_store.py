"""The store of files and batches: what is kept, what is refused, what a crash may leave."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import Conflict, InvalidRequest, ModelError, NotFound
from runtime.server.batch_lines import read_lines
from runtime.server.records import BatchRecord, Counts, FileRecord, Idempotent, LineRecord
from runtime.server.store import StateStore
from runtime.server.uploads import StorageFull


@pytest.fixture()
def store(tmp_path: Path) -> Iterator[StateStore]:
    store = StateStore(tmp_path / "state")
    yield store
    store.close()


def put(store: StateStore, data: bytes = b"{}\n", once: Idempotent | None = None) -> FileRecord:
    upload = store.begin_file()
    upload.write(data)
    return store.add_file(upload, "in.jsonl", "batch", once)


def batch(store: StateStore, id: str, input_: str, **fields: str) -> BatchRecord:
    record = BatchRecord(
        id=id,
        endpoint="/v1/completions",
        input_file_id=input_,
        completion_window="24h",
        status=fields.pop("status", "validating"),
        created_at=1,
        expires_at=2**31,
        **fields,  # type: ignore[arg-type]
    )
    return store.add_batch(record)[0]


def test_files_and_batches_outlive_the_store(tmp_path: Path) -> None:
    first = StateStore(tmp_path)
    file = put(first, b"hello")
    batch(first, "b", file.id)
    first.record([LineRecord("b", b"k", 1, True, b"x\n")])
    first.close()
    second = StateStore(tmp_path)
    assert second.file(file.id) == file and second.content(file.id).read_bytes() == b"hello"
    assert second.unfinished() == ["b"] and second.done("b") == {b"k"}
    second.close()


def test_what_a_crash_cut_off_is_removed(tmp_path: Path) -> None:
    first = StateStore(tmp_path)
    kept = put(first)
    first.begin_file().write(b"half")  # an upload that never ended
    whole = first.begin_file()
    whole.finish()  # a content whose row was never written
    first.close()
    second = StateStore(tmp_path)
    assert [p.name for p in (tmp_path / "files").iterdir()] == [kept.id]
    second.close()


def test_two_servers_cannot_share_a_folder(tmp_path: Path, store: StateStore) -> None:
    with pytest.raises(ModelError, match="is in use by another server; give each its own"):
        StateStore(tmp_path / "state")
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"cannot be used: .*; choose another"):
        StateStore(tmp_path / "file")


def test_an_idempotency_key_makes_one_object(store: StateStore) -> None:
    once = Idempotent("files", "key", "digest")
    file = put(store, b"a", once)
    assert put(store, b"a", once) == file
    assert len(list((store.folder / "files").iterdir())) == 1
    with pytest.raises(InvalidRequest, match="used for another request in the last 24 hours"):
        put(store, b"b", Idempotent("files", "key", "other"))
    store.delete_file(file.id)
    assert put(store, b"b", Idempotent("files", "key", "other")).id != file.id


def test_an_input_in_use_cannot_be_deleted(store: StateStore) -> None:
    file = put(store)
    batch(store, "b", file.id)
    with pytest.raises(Conflict, match="is the input of b, which is validating; cancel that first"):
        store.delete_file(file.id)
    store.move("b", "failed")
    store.delete_file(file.id)
    with pytest.raises(NotFound):
        store.file(file.id)
    with pytest.raises(Conflict, match="batch b is failed, so it cannot become cancelling"):
        store.move("b", "cancelling")


def test_ids_are_looked_up_and_never_paths(store: StateStore) -> None:
    for id in ("../state.sqlite", "/etc/passwd", "..", "", "a\0b"):
        with pytest.raises(NotFound):
            store.content(id)


def test_a_full_disk_is_said_and_changes_nothing(store: StateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    upload = store.begin_file()
    upload.write(b"data")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageFull, match="cannot write to its disk; free space"):
            store.add_file(upload, "x", "batch")
    upload.discard()
    assert store.files(None, 10) == ([], False) and not list((store.folder / "files").iterdir())
    db = sqlite3.connect(store.folder / "state.sqlite")
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    db.close()
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageFull):
        store.record([LineRecord("b", b"k", 1, True, b"x" * 10**6)])
    assert store.done("b") == set()
    store._db.execute("PRAGMA max_page_count = 1000000")
    store.record([LineRecord("b", b"k", 1, True, b"x" * 10**6)])
    assert store.done("b") == {b"k"}


def test_uploads_that_are_under_way_take_their_room(store: StateStore) -> None:
    first, second = store.begin_file(), store.begin_file()
    store.write(first, b"x" * 600, 1000)
    with pytest.raises(StorageFull, match="room for files is used up"):
        store.write(second, b"x" * 600, 1000)
    store.write(second, b"x" * 400, 1000)
    store.add_file(first, "a", "batch")
    assert store.used_bytes == 1000
    second.discard()
    assert store.used_bytes == 600


@settings(max_examples=25, deadline=None)
@given(sizes=st.integers(0, 25), limit=st.integers(1, 7), newest=st.booleans())
def test_pages_show_everything_once(
    tmp_path_factory: pytest.TempPathFactory, sizes: int, limit: int, newest: bool
) -> None:
    store = StateStore(tmp_path_factory.mktemp("state"))
    made = [put(store).id for _ in range(sizes)]
    seen: list[str] = []
    more = True
    while more:
        records, more = store.files(seen[-1] if seen else None, limit, newest_first=newest)
        seen += [r.id for r in records]
    store.close()
    assert sorted(seen) == sorted(made)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=5), max_size=8))
def test_a_line_counts_once_whatever_is_written_again(
    tmp_path_factory: pytest.TempPathFactory, writes: list[list[tuple[int, bool]]]
) -> None:
    folder = tmp_path_factory.mktemp("state")
    store = StateStore(folder)
    batch(store, "b", "f", status="in_progress")
    first: dict[int, bool] = {}
    for lines in writes:
        store.record([LineRecord("b", b"%d" % n, n, ok, b"%d" % ok) for n, ok in lines])
        for n, ok in lines:
            first.setdefault(n, ok)
        store.close()  # a restart between any two writes
        store = StateStore(folder)
    assert list(store.results("b", chunk=3)) == [(n, ok, b"%d" % ok) for n, ok in sorted(first.items())]
    good = sum(first.values())
    assert store.batch("b").request_counts == Counts(0, good, len(first) - good)
    store.close()


def test_lines_are_known_by_custom_id_and_request(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    good = b'{"custom_id": "%s", "method": "POST", "url": "/v1/x", "body": {"prompt": "%s"}}'
    lines = [
        good % (b"a", b"1"),
        b"",
        good % (b"b", b"1"),
        good % (b"a", b"2"),
        b"{",
        b'{"custom_id": "c"}',
        b'{"custom_id": "d", "method": "GET", "url": "/v1/x", "body": {}}',
        b'{"custom_id": "e", "method": "POST", "url": "/v1/y", "body": {}}',
        b'{"custom_id": "f", "method": "POST", "url": "/v1/x", "body": {"stream": true}}',
        b'{"custom_id": "", "method": "POST", "url": "/v1/x", "body": {}}',
        b"[" * 100_000,
        b"\xff\xfe",
    ]
    path.write_bytes(b"\n".join(lines))
    found = list(read_lines(path, "/v1/x"))
    assert [(line.number, line.custom_id, line.problem and line.problem[0]) for line in found] == [
        (1, "a", None),
        (3, "b", None),
        (4, "a", "duplicate_custom_id"),
        (5, None, "invalid_line"),
        (6, "c", "invalid_line"),
        (7, "d", "invalid_method"),
        (8, "e", "mismatched_url"),
        (9, "f", "streaming"),
        (10, None, "invalid_custom_id"),
        (11, None, "invalid_line"),
        (12, None, "invalid_line"),
    ]
    assert len({line.key for line in found}) == len(found)
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(b"\n" * 5 + lines[2] + b"\n" + good % (b"a", b"3"))
    same, other = read_lines(moved, "/v1/x")
    assert same.key == found[1].key and other.key != found[0].key
