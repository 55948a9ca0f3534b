"""A server whose parts fail on purpose: what callers see, and that it goes on."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from runtime.server.launch import ServerProcess
from tests.server.calls import wait as wait_for

wait = partial(wait_for, seconds=40)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder: Path = tmp_path_factory.mktemp("state")
    server = ServerProcess(
        debug_faults=True, hang_timeout=4, state_dir=str(folder), max_running_requests=8, threads=1
    )
    yield server
    server.shutdown()


def call(url: str, body: Any = None, kind: str = "application/json") -> tuple[int, Any]:
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read().decode()
            return answer.status, json.loads(text) if text[:1] == "{" else text
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def generate(server: ServerProcess, text: str = "12 + 35 =", **fields: Any) -> tuple[int, Any]:
    params = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True, **fields.pop("params", {})}
    return call(f"{server.url}/generate", {"text": text, "sampling_params": params, **fields})


def fault(server: ServerProcess, **fields: Any) -> None:
    assert call(f"{server.url}/debug/fault", fields) == (200, {})


def ready(server: ServerProcess) -> bool:
    return call(f"{server.url}/ready")[0] == 200


def unharmed(server: ServerProcess) -> None:
    """Everything is as before: an answer, and nothing held."""
    status, answer = generate(server)
    assert status == 200 and answer["text"].startswith(" 47")
    info = call(f"{server.url}/get_server_info")[1]
    assert info["num_running_reqs"] == 0 and info["kv_cache"]["used_tokens"] == 0


class Beside:
    """A long request in a thread; from now on `count` requests run."""

    def __init__(self, server: ServerProcess, count: int = 1, **fields: Any) -> None:
        self.found: list[tuple[int, Any]] = []
        self._thread = threading.Thread(
            target=lambda: self.found.append(generate(server, **fields)), daemon=True
        )
        self._thread.start()
        wait(lambda: call(f"{server.url}/get_server_info")[1]["num_running_reqs"] >= count)

    def join(self) -> tuple[int, Any]:
        self._thread.join(60)
        return self.found[0]


LONG = {"params": {"max_new_tokens": 800}}


@pytest.mark.parametrize("stream", [False, True])
def test_nan_ends_that_request_and_the_batch_goes_on(broken: ServerProcess, stream: bool) -> None:
    beside = Beside(broken, text="Tell me", **LONG)
    bad = Beside(broken, 2, text="The capital of Peru", stream=stream, **LONG)
    fault(broken, kind="nan")
    status, answer = bad.join()
    if stream:
        events = [e.removeprefix("data: ") for e in answer.split("\n\n") if e]
        found = [json.loads(e) for e in events if e != "[DONE]"]
        assert "not finite" in next(e["error"]["message"] for e in found if "error" in e)
    else:
        assert status == 500 and "not finite" in answer["error"]["message"]
    status, answer = beside.join()
    assert status == 200 and answer["meta_info"]["completion_tokens"] == 800
    unharmed(broken)


def test_a_failing_step_is_told_and_forgotten(broken: ServerProcess) -> None:
    fault(broken, kind="error")
    status, answer = generate(broken, text="Something new")
    assert status == 500 and set(answer["error"]) == {"message", "type", "param", "code"}
    unharmed(broken)


def test_slow_steps_hold_up_answers_but_not_the_server(broken: ServerProcess) -> None:
    """A step that takes longer than an engine may be silent, but computes, is no reason to kill it."""
    fault(broken, kind="slow", seconds=6, steps=1)
    beside = Beside.__new__(Beside)
    beside.found = []
    beside._thread = threading.Thread(target=lambda: beside.found.append(generate(broken)), daemon=True)
    beside._thread.start()
    while beside._thread.is_alive():
        began = time.monotonic()
        assert call(f"{broken.url}/health")[0] == 200
        assert time.monotonic() - began < 5  # far from the sum of the steps on any machine
    assert beside.join()[0] == 200
    assert not any("is started again" in line for line in broken.last_lines)
    unharmed(broken)


@pytest.mark.parametrize("kind", ["die", "hang"])
def test_a_worker_that_fails_is_replaced(broken: ServerProcess, kind: str) -> None:
    beside = Beside(broken, text="Tell me", **LONG)
    call(f"{broken.url}/debug/fault", {"kind": kind})  # answered if the answer is quicker than the fault
    status, answer = beside.join()
    assert status == 503 and answer["error"]["code"] == "engine_dead"
    wait(lambda: ready(broken))
    unharmed(broken)


def upload(server: ServerProcess) -> tuple[int, Any]:
    line = {
        "custom_id": "1",
        "method": "POST",
        "url": "/v1/completions",
        "body": {"prompt": "a", "max_tokens": 1},
    }
    parts = [
        '--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n',
        '--x\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n',
        json.dumps(line) + "\n",
        "\r\n--x--\r\n",
    ]
    return call(f"{server.url}/v1/files", "".join(parts).encode(), "multipart/form-data; boundary=x")


def test_a_full_disk_is_told_and_passes(broken: ServerProcess) -> None:
    status, kept = upload(broken)
    assert status == 200
    fault(broken, kind="disk_full", seconds=3)
    status, answer = upload(broken)
    assert status == 507 and answer["error"]["code"] == "storage_full"
    status, answer = call(
        f"{broken.url}/v1/batches",
        {"input_file_id": kept["id"], "endpoint": "/v1/completions", "completion_window": "24h"},
    )
    assert status == 507 and answer["error"]["code"] == "storage_full"
    unharmed(broken)
    wait(lambda: upload(broken)[0] == 200)
    assert call(f"{broken.url}/v1/files/{kept['id']}")[1]["bytes"] == kept["bytes"]


def test_there_is_no_such_route_without_the_option(server: ServerProcess) -> None:
    assert call(f"{server.url}/debug/fault", {"kind": "die"})[0] == 404


def test_calls_of_our_frontend_are_told_when_the_engine_dies(broken: ServerProcess) -> None:
    wait(lambda: ready(broken))
    long = {"max_new_tokens": 3000, "ignore_eos": True, "n": 2}
    calls = [
        {"id": i, "prompt": [{"type": "text", "text": "a"}], "sampling": long, "stream": True} for i in "ab"
    ]
    request = urllib.request.Request(
        f"{broken.url}/v1/calls/generate",
        json.dumps({"calls": calls}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        first = json.loads(answer.readline())
        assert first["finish"] is None
        assert call(f"{broken.url}/debug/fault", {"kind": "die"})[0] in (
            200,
            503,
        )  # it may die before it answers
        lines = [json.loads(line) for line in answer]
    ended = {(d["id"], d["index"]): d["finish"] for d in lines if d["finish"] is not None}
    assert set(ended) == {(i, k) for i in "ab" for k in range(2)}
    assert all(f["type"] == "error" and f["matched"] == "engine_dead" for f in ended.values())
    wait(lambda: ready(broken))
