"""Dead and hung engine processes, signals, orphans: what a server does when its parts fail."""

from __future__ import annotations

import json
import os
import signal
import stat
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from runtime.server.launch import ServerProcess
from tests.server.calls import call
from tests.server.calls import wait as wait_for

wait = partial(wait_for, seconds=90)


def engines(pid: int, module: bytes = b"runtime.engine.process") -> list[int]:
    """Processes that run the model for the server `pid`, or another module."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == pid and module in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def long_request(tokens: int = 3000, *, stream: bool) -> dict[str, Any]:
    params = {"max_new_tokens": tokens, "ignore_eos": True, "temperature": 0}
    return {"text": "Tell me", "stream": stream, "sampling_params": params}


class Caller:
    """One /generate in a thread; `answer` is what came in the end."""

    def __init__(self, server: ServerProcess, body: dict[str, Any]) -> None:
        self.answer: Any = None
        self._thread = threading.Thread(target=self._run, args=(f"{server.url}/generate", body), daemon=True)
        self._thread.start()

    def _run(self, url: str, body: dict[str, Any]) -> None:
        self.answer = call(url, body)

    def join(self) -> tuple[int, Any, Any]:
        self._thread.join(timeout=60)
        assert self.answer is not None, "no answer came"
        return self.answer


def running(server: ServerProcess, count: int) -> None:
    wait(lambda: call(f"{server.url}/get_server_info")[1]["num_running_reqs"] == count)


@pytest.fixture()
def own_temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@pytest.fixture()
def start(own_temp: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Servers whose model has one thread: the threads of several would wait for each other by spinning."""
    started: list[ServerProcess] = []

    def begin(**options: Any) -> ServerProcess:
        server = ServerProcess(threads=1, **options)
        started.append(server)
        return server

    yield begin
    for server in started:
        if server.running:
            os.kill(server.pid, signal.SIGKILL)
            server.wait(60)


def assert_lost(answer: tuple[int, Any, Any], streamed: bool) -> None:
    """The caller was told, and not given a part as if it were the whole."""
    status, body, headers = answer
    if streamed:
        events = [e.removeprefix("data: ") for e in body.split("\n\n") if e]
        assert "[DONE]" not in events
        assert json.loads(events[-1])["error"]["code"] == "engine_dead"
    else:
        assert status == 503 and body["error"]["code"] == "engine_dead" and headers["Retry-After"]


def test_a_dead_and_a_hung_engine_are_replaced(start: Callable[..., ServerProcess]) -> None:
    server = start(hang_timeout=5)
    for name in (signal.SIGKILL, signal.SIGSTOP):
        callers = [Caller(server, long_request(stream=s)) for s in (False, True)]
        running(server, 2)
        (engine,) = engines(server.pid)
        os.kill(engine, name)
        for caller, streamed in zip(callers, (False, True), strict=True):
            assert_lost(caller.join(), streamed)
        status, body, headers = call(f"{server.url}/generate", long_request(1, stream=False))
        if status != 200:  # another one starts
            assert status == 503 and body["error"]["code"] == "engine_dead" and headers["Retry-After"]
        wait(lambda: call(f"{server.url}/ready")[0] == 200)
        assert not alive(engine) and call(f"{server.url}/health_generate")[0] == 200
        (other,) = engines(server.pid)
        assert other != engine
        status, answer, _ = call(f"{server.url}/generate", long_request(4, stream=False))
        assert status == 200 and answer["meta_info"]["completion_tokens"] == 4
    assert call(f"{server.url}/get_server_info")[1]["kv_cache"]["used_tokens"] == 0


def test_what_is_sent_before_the_death_is_noticed_is_answered(start: Callable[..., ServerProcess]) -> None:
    server = start()
    os.kill(engines(server.pid)[0], signal.SIGKILL)
    callers = []
    for _ in range(25):  # nobody takes what is sent to the engine now
        callers.append(Caller(server, long_request(1, stream=False)))
        time.sleep(0.01)
    for caller in callers:
        assert_lost(caller.join(), streamed=False)
    streamed = call(f"{server.url}/v1/completions", {"prompt": "Tell me", "stream": True})
    if streamed[0] == 200:  # another engine was there already
        assert streamed[1].endswith("data: [DONE]\n\n")
    else:
        assert_lost(streamed, streamed=False)  # no stream begins that cannot go on
    wait(lambda: call(f"{server.url}/ready")[0] == 200)
    assert call(f"{server.url}/generate", long_request(4, stream=False))[0] == 200


def test_an_engine_that_is_lost_while_it_starts_is_started_again(start: Callable[..., ServerProcess]) -> None:
    server = start(hang_timeout=5)
    lost: list[int] = []

    def another() -> list[int]:
        return [pid for pid in engines(server.pid) if pid not in lost]

    for name in (signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP):  # the second and third find it starting
        wait(another)
        lost += another()
        os.kill(lost[-1], name)
    wait(lambda: call(f"{server.url}/ready")[0] == 200)
    assert not any(map(alive, lost))
    assert call(f"{server.url}/generate", long_request(4, stream=False))[0] == 200


def test_without_restart_a_dead_engine_ends_the_server(
    start: Callable[..., ServerProcess], own_temp: Path
) -> None:
    server = start(no_restart=True)
    caller = Caller(server, long_request(stream=False))
    running(server, 1)
    os.kill(engines(server.pid)[0], signal.SIGKILL)
    assert_lost(caller.join(), streamed=False)
    assert server.wait(60) == 1
    assert any("engine process has died" in line for line in server.last_lines)
    assert not list(own_temp.glob("runtime-*"))


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_running_requests_complete_and_new_ones_are_refused(
    start: Callable[..., ServerProcess], own_temp: Path, name: signal.Signals
) -> None:
    server = start()
    callers = [Caller(server, long_request(1000, stream=s)) for s in (False, True)]
    running(server, 2)
    (engine,) = engines(server.pid)
    os.kill(engine, signal.SIGSTOP)  # so that they still run while the server is looked at
    os.kill(server.pid, name)
    wait(lambda: call(f"{server.url}/ready")[0] == 503)
    status, body, headers = call(f"{server.url}/generate", long_request(1, stream=False))
    assert status == 503 and body["error"]["code"] == "overloaded" and headers["Retry-After"]
    assert call(f"{server.url}/health")[0] == 200
    os.kill(engine, signal.SIGCONT)
    whole, streamed = (c.join()[1] for c in callers)
    assert whole["meta_info"]["completion_tokens"] == 1000
    assert streamed.rstrip().endswith("data: [DONE]") and '"completion_tokens":1000' in streamed
    assert server.wait(60) == 0
    assert not list(own_temp.glob("runtime-*"))


def test_a_second_signal_and_a_limit_end_what_runs(start: Callable[..., ServerProcess]) -> None:
    cases: list[tuple[dict[str, Any], int]] = [({}, 2), ({"shutdown_timeout": 0.2}, 1)]
    with ThreadPoolExecutor(2) as pool:
        servers = list(pool.map(lambda case: start(**case[0]), cases))
    for server, (_, signals) in zip(servers, cases, strict=True):
        callers = [Caller(server, long_request(3500, stream=s)) for s in (False, True)]
        running(server, 2)
        os.kill(server.pid, signal.SIGTERM)
        if signals == 2:
            wait(lambda server=server: call(f"{server.url}/ready")[0] == 503)  # type: ignore[misc]
            os.kill(server.pid, signal.SIGTERM)
        for caller, streamed in zip(callers, (False, True), strict=True):
            assert_lost(caller.join(), streamed)
        assert server.wait(60) == 1


def test_a_killed_server_leaves_no_process_and_frees_its_port(
    start: Callable[..., ServerProcess], own_temp: Path
) -> None:
    server = start(api_key="a-very-secret-key")
    (engine,) = engines(server.pid)
    assert b"a-very-secret-key" not in Path(f"/proc/{engine}/cmdline").read_bytes()
    key = {"Authorization": "Bearer a-very-secret-key", "Content-Type": "application/json"}
    body = json.dumps({"text": "a", "sampling_params": {"regex": "[a-z]{3}"}}).encode()
    assert urllib.request.urlopen(urllib.request.Request(f"{server.url}/generate", body, key)).status == 200
    (compiler,) = engines(server.pid, b"runtime.constrain.workers")
    for pid in (engine, compiler):
        os.kill(pid, signal.SIGSTOP)  # they cannot look after themselves
    os.kill(server.pid, signal.SIGKILL)
    server.wait(60)
    wait(lambda: not alive(engine) and not alive(compiler))
    left = set(own_temp.glob("runtime-*"))
    for folder in left:
        os.utime(folder, (0, 0))  # older than any that is just being made
    again = start(port=int(server.url.rsplit(":", 1)[1]))
    used = set(own_temp.glob("runtime-*"))
    assert again.url == server.url and left and used and not left & used
    for folder in used:
        os.utime(folder, (0, 0))
    third = start()
    for folder in used:
        assert folder.exists(), "the folder of a running server was removed"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert third.running and call(f"{again.url}/health")[0] == 200
    assert not [name for name in os.listdir("/dev/shm") if str(engine) in name or str(server.pid) in name]
    os.kill(third.pid, signal.SIGTERM)  # idle
    assert third.wait(60) == 0


def test_only_http_listens_on_the_network(server: ServerProcess) -> None:
    port = int(server.url.rsplit(":", 1)[1])
    pids = {str(server.pid), *map(str, engines(server.pid))}
    inodes = set()
    for pid in pids:
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(fd)
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                listening.append((fields[1].split(":")[0], int(fields[1].split(":")[1], 16)))
    assert listening == [("0100007F", port)]
