"""Files and batches over HTTP: the `openai` package, bad lines, cancel, expiry, keys, and a server that is killed."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sqlite3
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from runtime.server.launch import ServerProcess
from tests.server.calls import call
from tests.server.test_supervision import engines

ENDED = ("completed", "failed", "cancelled", "expired")


@pytest.fixture()
def client(server: ServerProcess) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def line(name: str, tokens: int = 4, **body: Any) -> dict[str, Any]:
    request = {"prompt": f"{name}: 12 + 35 =", "max_tokens": tokens, "ignore_eos": True, **body}
    return {"custom_id": name, "method": "POST", "url": "/v1/completions", "body": request}


def upload(client: Any, lines: Iterable[Any], **options: Any) -> str:
    text = "\n".join(item if isinstance(item, str) else json.dumps(item) for item in lines)
    return client.files.create(file=("in.jsonl", text.encode()), purpose="batch", **options).id


def start(client: Any, lines: Iterable[Any], window: Any = "24h", **options: Any) -> str:
    made = client.batches.create(
        input_file_id=upload(client, lines), endpoint="/v1/completions", completion_window=window, **options
    )
    return made.id


def finished(client: Any, id: str, seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while (batch := client.batches.retrieve(id)).status not in ENDED:
        assert time.monotonic() < end, f"the batch is still {batch.status}: {batch.request_counts}"
        time.sleep(0.05)
    return batch


def results(client: Any, file: str | None) -> list[Any]:
    return [json.loads(text) for text in client.files.content(file).text.splitlines()] if file else []


def test_bad_lines_fail_alone(client: Any) -> None:
    lines: list[Any] = [line(f"l{i}") for i in range(10)]
    lines[2]["body"]["temperature"] = -1
    lines[5] = '{"custom_id": "l5"'
    lines[7]["url"] = "/v1/embeddings"
    batch = finished(client, start(client, lines, metadata={"run": "7"}))
    assert batch.status == "completed" and batch.metadata == {"run": "7"}
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (10, 7, 3)
    good, bad = results(client, batch.output_file_id), results(client, batch.error_file_id)
    assert [r["custom_id"] for r in good] == ["l0", "l1", "l3", "l4", "l6", "l8", "l9"]
    assert all(r["response"]["status_code"] == 200 and r["error"] is None for r in good)
    alone = client.completions.create(model="tiny", prompt="l0: 12 + 35 =", max_tokens=4, temperature=0)
    same = finished(client, start(client, [line("l0", temperature=0)]))
    (answer,) = results(client, same.output_file_id)
    assert answer["response"]["body"]["choices"][0]["text"] == alone.choices[0].text
    assert [r["custom_id"] for r in bad] == ["l2", None, "l7"]
    assert bad[0]["response"]["status_code"] == 400 and "temperature" in json.dumps(bad[0]["response"])
    assert [r["error"] and r["error"]["code"] for r in bad] == [None, "invalid_line", "mismatched_url"]


@pytest.mark.parametrize(
    ("url", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}),
        ("/v1/responses", {"input": "Hi", "max_output_tokens": 16}),
    ],
)
def test_lines_may_go_to_other_endpoints(client: Any, url: str, body: dict[str, Any]) -> None:
    request = {"custom_id": "a", "method": "POST", "url": url, "body": body}
    made = client.batches.create(
        input_file_id=upload(client, [request]), endpoint=url, completion_window="24h"
    )
    batch = finished(client, made.id)
    assert batch.request_counts.completed == 1, results(client, batch.error_file_id)


def test_files_are_listed_read_and_deleted(client: Any) -> None:
    ids = [upload(client, [line(f"{i}")]) for i in range(3)]
    listed = [f.id for f in itertools.islice(client.files.list(limit=2), 3)]
    assert listed == ids[::-1]
    file = client.files.retrieve(ids[0])
    assert file.filename == "in.jsonl" and file.purpose == "batch"
    assert len(client.files.content(ids[0]).content) == file.bytes
    assert client.files.delete(ids[0]).deleted
    with pytest.raises(openai.NotFoundError, match="there is no file"):
        client.files.retrieve(ids[0])


@pytest.mark.parametrize("name", ["/tmp/x/owned", "../../owned", "..\\owned", "a" * 5000 + "/owned"])
def test_names_of_uploads_are_never_paths(client: Any, name: str) -> None:
    file = client.files.create(file=(name, b"{}"), purpose="batch")
    assert file.filename == "owned" and file.id.startswith("file-")


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"purpose": "fine-tune"}, "purpose is 'fine-tune'; it must be 'batch'"),
        ({"extra_body": {"expires_after": "x"}}, "which is not known"),
        ({"extra_headers": {"Idempotency-Key": "k" * 300}}, "300 characters"),
    ],
)
def test_bad_uploads_are_refused(client: Any, fields: dict[str, Any], part: str) -> None:
    with pytest.raises(openai.BadRequestError, match=part):
        client.files.create(**{"file": ("x", b"{}"), "purpose": "batch", **fields})


@pytest.mark.parametrize(
    ("fields", "status", "part"),
    [
        ({"input_file_id": "file-nothing"}, 404, "there is no file"),
        ({"endpoint": "/generate"}, 400, "must be one of /v1/chat/completions"),
        ({"completion_window": "soon"}, 400, "completion_window"),
        ({"completion_window": "8d"}, 400, "at most '7d'"),
        ({"metadata": {"k": "v" * 600}}, 400, "metadata"),
        ({"extra_body": {"resume_from": "batch_x"}}, 404, "there is no batch"),
    ],
)
def test_bad_batches_are_refused(client: Any, fields: dict[str, Any], status: int, part: str) -> None:
    given = {"input_file_id": upload(client, [line("a")]), "endpoint": "/v1/completions"}
    with pytest.raises(openai.APIStatusError, match=part) as caught:
        client.batches.create(**{**given, "completion_window": "24h", **fields})  # type: ignore[arg-type]
    assert caught.value.status_code == status


def test_a_file_without_requests_fails_the_batch(client: Any) -> None:
    batch = finished(client, start(client, ["", "  "]))
    assert batch.status == "failed" and batch.errors.data[0].code == "empty_file"


def test_keys_make_one_object(client: Any) -> None:
    once = {"extra_headers": {"Idempotency-Key": "mine"}}
    file = upload(client, [line("a")], **once)
    assert upload(client, [line("a")], **once) == file
    with pytest.raises(openai.BadRequestError, match="used for another request"):
        upload(client, [line("b")], **once)
    fields: Any = {"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h"}
    first = client.batches.create(**fields, **once).id
    assert client.batches.create(**fields, **once).id == first
    with pytest.raises(openai.BadRequestError, match="used for another request"):
        client.batches.create(**fields, metadata={"a": "b"}, **once)
    assert finished(client, first).request_counts.completed == 1


def test_cancel_keeps_what_is_done_and_another_batch_can_take_it_over(client: Any) -> None:
    short = [line(f"s{i}") for i in range(20)]
    lines = [*short, *(line(f"l{i}", 3000) for i in range(40))]
    id = start(client, lines)
    while client.batches.retrieve(id).request_counts.completed < 20:
        time.sleep(0.02)
    assert client.batches.cancel(id).status in ("cancelling", "cancelled")
    batch = finished(client, id, 30)
    assert batch.status == "cancelled" and batch.cancelled_at >= batch.cancelling_at
    done = results(client, batch.output_file_id)
    left = results(client, batch.error_file_id)
    assert len(done) + len(left) == 60 and {r["custom_id"] for r in done} >= {x["custom_id"] for x in short}
    assert {r["error"]["code"] for r in left} == {"batch_cancelled"}
    with pytest.raises(openai.ConflictError, match="is cancelled"):
        client.batches.cancel(id)
    changed = [*short[::-1][:15], line("s0", 5), line("new")]
    again = finished(client, start(client, changed, extra_body={"resume_from": id}))
    assert again.request_counts.completed == again.request_counts.total == 17
    before = {r["custom_id"]: r["response"]["request_id"] for r in done}
    taken = [r["custom_id"] for r in results(client, again.output_file_id)]
    same = [
        r["custom_id"]
        for r in results(client, again.output_file_id)
        if before.get(r["custom_id"]) == r["response"]["request_id"]
    ]
    assert taken == [x["custom_id"] for x in changed] and same == taken[:15]


def test_a_batch_whose_time_is_over_keeps_what_is_done(client: Any) -> None:
    lines = [line(f"s{i}") for i in range(5)] + [line(f"l{i}", 3900) for i in range(100)]
    batch = finished(client, start(client, lines, window="1s"))
    done, left = results(client, batch.output_file_id), results(client, batch.error_file_id)
    assert batch.status == "expired" and len(done) + len(left) == 105 and left
    assert {r["error"]["code"] for r in left} == {"batch_expired"}
    assert batch.request_counts.completed == len(done) and batch.request_counts.failed == 0


def journal(folder: Path) -> dict[bytes, bytes]:
    db = sqlite3.connect(folder / "state.sqlite")
    rows = dict(db.execute("SELECT key, text FROM lines"))
    db.close()
    return rows


def killed(server: ServerProcess, name: signal.Signals) -> None:
    os.kill(server.pid, name)
    server._child.wait(timeout=90)


@pytest.mark.parametrize(
    ("size", "names"),
    [
        (60, [signal.SIGKILL, signal.SIGTERM]),
        pytest.param(
            150, [signal.SIGKILL, signal.SIGTERM] * 2 + [signal.SIGKILL], marks=pytest.mark.at_length
        ),
        pytest.param(120, [signal.SIGKILL] * 5, marks=pytest.mark.at_length),
    ],
)
def test_no_line_is_lost_or_done_twice_over_kills(
    tmp_path: Path, size: int, names: list[signal.Signals]
) -> None:
    rng = random.Random(size)
    folder = tmp_path / "state"
    options: dict[str, Any] = {"state_dir": str(folder), "batch_concurrency": 4, "threads": 1}
    lines = [line(f"l{i}", 24) for i in range(size)]
    id, before = "", dict[bytes, bytes]()
    for name in names:
        server = ServerProcess(**options)
        client: Any = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        if not id:
            id = start(client, lines)
        aim = len(before) + rng.randint(1, 20)
        while client.batches.retrieve(id).request_counts.completed < aim:
            time.sleep(0.02)
        killed(server, name)
        after = journal(folder)
        assert before.items() <= after.items()  # what was done stays as it was
        before = after
    assert len(before) < size, "the kills came too late to show anything"
    server = ServerProcess(**options)
    try:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        batch = finished(client, id)
        assert batch.status == "completed" and batch.request_counts.completed == size
        output = client.files.content(batch.output_file_id).content.splitlines(keepends=True)
        assert [json.loads(text)["custom_id"] for text in output] == [x["custom_id"] for x in lines]
        assert set(before.values()) <= set(output)
        assert {f.id for f in client.files.list()} == {p.name for p in (folder / "files").iterdir()}
    finally:
        server.shutdown()


def test_neither_a_killed_engine_nor_a_full_disk_loses_a_line(tmp_path: Path) -> None:
    server = ServerProcess(state_dir=str(tmp_path), batch_concurrency=4, debug_faults=True, threads=1)
    try:
        client: Any = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        id = start(client, [line(f"l{i}", 24) for i in range(40)])
        while client.batches.retrieve(id).request_counts.completed < 5:
            time.sleep(0.02)
        (engine,) = engines(server.pid)
        os.kill(engine, signal.SIGKILL)
        batch = finished(client, id)
        assert (batch.request_counts.completed, batch.request_counts.failed) == (40, 0)
        assert engines(server.pid) != [engine]
        id = start(client, [line(f"l{i}", 16) for i in range(40)])
        while client.batches.retrieve(id).request_counts.completed < 5:
            time.sleep(0.02)
        assert call(f"{server.url}/debug/fault", {"kind": "disk_full", "seconds": 1.5})[0] == 200
        with pytest.raises(openai.APIStatusError, match="cannot write to its disk") as caught:
            upload(client, [line("a")])
        assert caught.value.status_code == 507
        batch = finished(client, id)
        assert (batch.request_counts.completed, batch.request_counts.failed) == (40, 0)
        assert len(results(client, batch.output_file_id)) == 40
        assert upload(client, [line("a")])
    finally:
        server.shutdown()


@pytest.fixture()
def limited(tmp_path: Path) -> Iterator[ServerProcess]:
    server = ServerProcess(state_dir=str(tmp_path), max_file_bytes=1000, max_state_bytes=1500)
    yield server
    server.shutdown()


def test_uploads_are_bounded(limited: ServerProcess) -> None:
    client: Any = openai.OpenAI(base_url=f"{limited.url}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.APIStatusError, match="larger than 1000 bytes") as caught:
        client.files.create(file=("x", b"x" * 1001), purpose="batch")
    assert caught.value.status_code == 413
    client.files.create(file=("x", b"x" * 1000), purpose="batch")
    with pytest.raises(openai.APIStatusError, match="room for files is used up") as caught:
        client.files.create(file=("x", b"x" * 600), purpose="batch")
    assert caught.value.status_code == 507
    assert len(client.files.list().data) == 1
