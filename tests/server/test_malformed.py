"""One server with a key, and everything that was ever found to bring a server of this kind down or to make it talk.

The rows are in tests/server/malformed.py. Whatever comes, the answer is a 4xx in the one error shape, nothing of this
machine is in it, and the same processes go on to answer the next request.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import http.server
import itertools
import json
import os
import pickle
import re
import select
import socket
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from benchmarks.traffic import memory_of
from runtime.server.launch import ServerProcess
from tests.server import malformed
from tests.server.malformed import Row

KEY = "the-right-key"
RIGHT = {"Authorization": f"Bearer {KEY}"}
ROOT = str(Path(__file__).parents[2])
LEAKS = re.compile(rf"Traceback|site-packages|File \"|0x[0-9a-f]{{6,}}|{re.escape(ROOT)}|{KEY}")


class Client:
    """A connection that is kept while the server keeps it."""

    def __init__(self, url: str) -> None:
        host, _, port = url.removeprefix("http://").rpartition(":")
        self.address = (host, int(port))
        self._connection: http.client.HTTPConnection | None = None

    def send(self, row: Row, headers: dict[str, str] | None = None) -> tuple[int, bytes, Any]:
        fields = {**(RIGHT if headers is None else headers), **row.headers}
        if row.kind is not None:
            fields["Content-Type"] = row.kind
        for again in (True, False):
            connection = self._connection or http.client.HTTPConnection(*self.address, timeout=60)
            self._connection = None
            try:
                connection.request(row.method, row.path, row.body, fields)
                answer = connection.getresponse()
                data = answer.read()
            except (ConnectionError, http.client.BadStatusLine):
                connection.close()
                if not again:
                    raise
                continue
            if answer.will_close:
                connection.close()
            else:
                self._connection = connection
            return answer.status, data, answer.headers
        raise AssertionError("unreachable")

    def raw(self, data: bytes, most: int = 65536) -> bytes:
        """What is answered to these bytes, until the server closes or is silent for a moment."""
        with socket.create_connection(self.address, timeout=10) as connection:
            connection.sendall(data)
            connection.settimeout(3)
            out = b""
            with contextlib.suppress(TimeoutError, ConnectionError):
                while len(out) < most and (piece := connection.recv(most)):
                    out += piece
            return out


class Counting(http.server.BaseHTTPRequestHandler):
    """Counts visits. `/redirect` leads back to itself."""

    def __init__(self, visits: list[str], *args: Any) -> None:
        self.visits = visits
        super().__init__(*args)

    def do_GET(self) -> None:
        self.visits.append(self.path)
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture(scope="module")
def visits() -> Iterator[tuple[int, list[str]]]:
    """A port of this machine, and who came."""
    came: list[str] = []
    canary = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Counting, came))
    threading.Thread(target=canary.serve_forever, daemon=True).start()
    yield canary.server_address[1], came
    canary.shutdown()
    canary.server_close()


@pytest.fixture(scope="module")
def victim() -> Iterator[ServerProcess]:
    server = ServerProcess(api_key=KEY, max_request_bytes=8 << 20)
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def client(victim: ServerProcess) -> Client:
    return Client(victim.url)


def family(pid: int) -> set[int]:
    """A process and its descendants."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
    found = {pid}
    while more := {p for p, parent in parents.items() if parent in found} - found:
        found |= more
    return found


@pytest.fixture(autouse=True)
def goes_on(victim: ServerProcess, client: Client) -> Iterator[None]:
    """After each test the same server and engine answer a right request."""
    before = engine_of(victim)
    yield
    body = b'{"text": "12 + 35 =", "sampling_params": {"temperature": 0, "max_new_tokens": 8, "stop": "\\n"}}'
    status, answer, _ = client.send(Row("right", "/generate", body))
    assert status == 200 and json.loads(answer)["text"] == " 47"
    assert client.send(Row("health", "/health", method="GET", kind=None), {})[0] == 200
    assert engine_of(victim) == before, "a process was started again"


def engine_of(server: ServerProcess) -> set[int]:
    """The engine processes of a server; workers that compile constraints may come and go."""
    found = set()
    for pid in family(server.pid):
        with contextlib.suppress(OSError):
            if b"runtime.engine.process" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add(pid)
    assert found
    return found


def complaint(row: Row, status: int, data: bytes, headers: Any) -> str | None:
    """What is wrong with an answer to a row, if anything."""
    if status >= 500 or (not row.debatable and status not in (row.status or range(400, 500))):
        return f"{row.name}: {status} {data[:200]!r}"
    if status < 400:
        return None
    try:
        error = json.loads(data)["error"]
    except (ValueError, KeyError, TypeError):
        return f"{row.name}: {status} is not in the error shape: {data[:200]!r}"
    if set(error) != {"message", "type", "param", "code"} or not isinstance(error["message"], str):
        return f"{row.name}: error has {sorted(error)}"
    if len(data) > 16384 or (leak := LEAKS.search(error["message"])):
        return f"{row.name}: the body is too large or tells too much: {data[:200]!r} {leak}"
    if status == 405 and row.method in headers.get("Allow", row.method):
        return f"{row.name}: 405 with Allow: {headers.get('Allow')}"
    if status in (429, 503) and "Retry-After" not in headers:
        return f"{row.name}: {status} without Retry-After"
    return None


def test_every_malformed_request_is_refused(client: Client, visits: tuple[int, list[str]]) -> None:
    port, came = visits
    rows = malformed.refused(port)
    assert len(rows) > 1200
    assert not [name for name, count in Counter((r.path, r.name, r.body) for r in rows).items() if count > 1]
    found = [complaint(row, *client.send(row)) for row in rows]
    wrong = [text for text in found if text]
    assert not wrong, f"{len(wrong)} of {len(rows)}:\n" + "\n".join(wrong)
    assert not came, "the server fetched what a request named"


def test_lines_of_batches_reach_nothing_either(victim: ServerProcess, visits: tuple[int, list[str]]) -> None:
    port, came = visits
    client: Any = openai.OpenAI(base_url=f"{victim.url}/v1", api_key=KEY, max_retries=0)
    urls = [f"http://{host.format(port=port)}" for host in malformed.HOSTS] + list(malformed.FILES)
    lines = []
    for k, url in enumerate(urls):
        message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
        request = {
            "custom_id": f"{k}",
            "method": "POST",
            "url": malformed.CHAT,
            "body": {"messages": [message]},
        }
        lines.append(json.dumps(request))
    file = client.files.create(file=("in.jsonl", "\n".join(lines).encode()), purpose="batch")
    made = client.batches.create(input_file_id=file.id, endpoint=malformed.CHAT, completion_window="24h")
    end = time.monotonic() + 60
    while (batch := client.batches.retrieve(made.id)).status != "completed":
        assert time.monotonic() < end, batch
        time.sleep(0.05)
    assert batch.request_counts.failed == len(urls) and not came
    told = client.files.content(batch.error_file_id).text
    assert told.count('"status_code":400') == len(urls) and "root:" not in told


def test_what_is_debatable_is_never_a_5xx(client: Client) -> None:
    rows = malformed.taken_or_refused()
    assert len(rows) > 140
    wrong = [text for row in rows if (text := complaint(row, *client.send(row)))]
    assert not wrong, "\n".join(wrong)


def test_files_that_are_and_are_not_there_look_alike(client: Client) -> None:
    told = set()
    for url in ("/etc/passwd", "/nonexistent/file", "file:///etc/passwd", "file:///nonexistent"):
        part = {"type": "image_url", "image_url": {"url": url}}
        body = {"messages": [{"role": "user", "content": [part]}]}
        _, answer, _ = client.send(Row(url, malformed.CHAT, json.dumps(body).encode()))
        told.add(json.loads(answer)["error"]["message"].replace(url, "<url>"))
    assert len(told) == 1


WRONG_KEYS = (None, "", "Bearer", "Bearer ", "Bearer wrong", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Bearer {KEY.upper()}",
              f"Basic {KEY}", f"Bearer x {KEY}", f"Bearer {KEY}, Bearer x", "Bearer \xff\xfe", f"Token {KEY}", KEY,
              'Bearer "' + KEY + '"')  # fmt: skip


def test_wrong_keys_open_no_route(client: Client) -> None:
    _, document, _ = client.send(Row("document", "/openapi.json", method="GET", kind=None))
    paths: dict[str, dict[str, Any]] = json.loads(document)["paths"]
    open_ = {path for path, methods in paths.items() for entry in methods.values() if not entry["security"]}
    assert {p for p in open_ if not p.startswith("/page/")} == {"/", "/health"}
    tried = 0
    for path, methods in paths.items():
        for method in methods:
            for key in WRONG_KEYS:
                if path == "/health" or (path in open_ and key is None):
                    continue
                headers = {} if key is None else {"Authorization": key}
                row = Row(
                    f"{method} {path} with {key!r}",
                    path.replace("{", "").replace("}", ""),
                    b"{}",
                    method.upper(),
                )
                status, answer, _ = client.send(row, headers)
                assert status == 401, (row.name, status, answer[:200])
                tried += 1
    assert tried > 300


@pytest.mark.parametrize(
    "target",
    [
        "//v1/models", "/v1//models", "/./v1/models", "/health/../v1/models", "/health/%2e%2e/v1/models", "/%76%31/models",
        "/v1/models/", "/v1/models?x=/health", "/v1/models#/health", "/v1/models;/health", "/V1/models", "/health/v1/models",
        "http://localhost/v1/models", "http://x/health/../v1/models", "/v1/models%00/health", "/page/../v1/models",
        "/page/style.css/../../v1/models", "/\\v1/models", "/health%2f..%2fv1%2fmodels", "*",
    ],
)  # fmt: skip
def test_no_spelling_of_a_path_passes_the_guard(client: Client, target: str) -> None:
    for host in ("x", "localhost", "/health", "127.0.0.1/health?"):
        answer = client.raw(f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        status = int(answer.split()[1]) if answer else 400
        assert 400 <= status < 500 and b"owned_by" not in answer, answer[:300]


def test_bytes_that_are_no_http(client: Client) -> None:
    pipelined = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    for data in (
        b"\0" * 100, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /health\r\n\r\n", b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 2\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", pipelined,
        b"POST /generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
        b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f" + malformed.bomb("/tmp/never"), malformed.bomb("/tmp/never"),
    ):  # fmt: skip
        answer = client.raw(data)
        assert not answer or 400 <= int(answer.split()[1]) < 500, (data[:60], answer[:200])
        assert not LEAKS.search(answer.decode("latin-1"))


def test_bombs_are_cut_and_give_their_memory_back(victim: ServerProcess, client: Client) -> None:
    pressed = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(pressed.compress(bytes(1 << 20)) for _ in range(256)) + pressed.flush()
    assert len(bomb) < 300_000
    sizes = [memory_of(victim.pid)]
    for _ in range(6):
        throw(client, bomb)
        sizes.append(memory_of(victim.pid))
    # An allocator keeps some of it, now or later, about twice the largest body; what each round left would come to more.
    assert max(sizes) - sizes[0] < 160 << 20, sizes


def throw(client: Client, bomb: bytes) -> None:
    """Bodies that grow when they are unpacked, that are too large, and that never end."""
    coded = {"Content-Encoding": "gzip", **RIGHT}
    for kind in ("gzip", "deflate"):
        row = Row("bomb", malformed.NATIVE, bomb, headers={"Content-Encoding": kind})
        status, answer, _ = client.send(row, coded | row.headers)
        assert status in (400, 413), answer
    status, _, _ = client.send(Row("64 MiB", malformed.NATIVE, bytes(64 << 20)))
    assert status == 413
    head = f"POST /generate HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
    start, chunk = (
        (head + "Transfer-Encoding: chunked\r\n\r\n").encode(),
        b"10000\r\n" + b" " * 65536 + b"\r\n",
    )
    sent = 0
    with socket.create_connection(client.address, timeout=10) as connection:
        connection.sendall(start)
        with contextlib.suppress(ConnectionError, TimeoutError):
            while sent < 256 << 20:  # without an end
                connection.sendall(chunk)
                sent += len(chunk)
                if select.select([connection], [], [], 0)[0]:
                    assert b" 413 " in connection.recv(4096)
                    break
    assert sent < 256 << 20


def listening(pids: set[int]) -> list[tuple[str, str]]:
    """(kind, place) of every socket that the processes listen at or have bound to a path."""
    inodes = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if (target := os.readlink(link)).startswith("socket:["):
                        inodes.add(target[8:-1])
    found = []
    for kind in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in inodes and (fields[3] == "0A" or kind.startswith("udp")):
                found.append((kind, fields[1]))
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[6] in inodes and len(fields) > 7:
            found.append(("unix", fields[7]))
    return found


def test_nothing_listens_but_http_and_pickles_run_nowhere(
    victim: ServerProcess, client: Client, tmp_path: Path
) -> None:
    tripwire = tmp_path / "owned"
    found = listening(family(victim.pid))
    tcp = [place for kind, place in found if kind != "unix"]
    assert tcp == [f"0100007F:{client.address[1]:04X}"]
    places = sorted({place for kind, place in found if kind == "unix"})
    greeting = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0NULL" + b"\0" * 48
    payload = malformed.bomb(str(tripwire))
    assert pickle.loads(malformed.bomb(str(tmp_path / "works"))) and (tmp_path / "works").exists()
    for place in places:
        assert not place.startswith("@"), "an abstract socket is open to every user of the machine"
        assert Path(place).parent.stat().st_mode & 0o077 == 0
        frame = b"\0" + bytes([len(payload)]) + payload
        for data in (payload, greeting + payload, greeting + frame, os.urandom(4096)):
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as intruder:
                intruder.settimeout(1)
                intruder.connect(place)
                intruder.sendall(data)
                intruder.recv(64)
    for name in ("prompt_embeds", "image_embeds", "custom_logit_processor", "input_embeds"):
        body = json.dumps({"text": "a", name: payload.hex()}).encode()
        assert client.send(Row(name, "/generate", body))[0] == 400
    assert places and not tripwire.exists()


MONSTERS = {
    "one letter": "a" * 1_000_000,
    "spaces": " " * 1_000_000,
    "line ends": "\n" * 1_000_000,
    "digits": "1" * 1_000_000,
    "emoji": "\U0001f600" * 250_000,
    "Chinese": "的" * 330_000,
    "combining": "a" + "\u0301" * 500_000,
    "special tokens": "<|im_end|>" * 100_000,
    "halves of special tokens": "<|im_" * 200_000,
    "brackets": "[{(" * 330_000,
    "contractions": "'s" * 500_000,
}


def test_monsters_are_answered_while_the_server_answers_others(client: Client, victim: ServerProcess) -> None:
    endpoints = itertools.cycle(
        ((malformed.NATIVE, "text"), (malformed.CHAT, "messages"), (malformed.TEXT, "prompt"))
    )
    beats = 0
    for (name, text), (path, field) in zip(MONSTERS.items(), endpoints, strict=False):
        value: Any = [{"role": "user", "content": text}] if field == "messages" else text
        row = Row(f"{path}: {name}", path, json.dumps({field: value}).encode())
        answers: list[tuple[int, bytes, Any]] = []
        work = threading.Thread(target=lambda r=row, a=answers: a.append(Client(victim.url).send(r)))
        work.start()
        while work.is_alive():
            assert client.send(Row("health", "/health", method="GET", kind=None), {})[0] == 200
            beats += not answers
            work.join(0.002)
        status, data, _ = answers[0]
        assert status == 400 and json.loads(data)["error"]["code"] == "context_length_exceeded", row.name
    assert beats > 3 * len(MONSTERS), "a server that tokenises on its event loop answers once for each"
