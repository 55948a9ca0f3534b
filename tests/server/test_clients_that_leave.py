"""A client that leaves before its request has a seat: within two seconds nothing is left of it, and nobody else noticed."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from runtime.server.launch import ServerProcess
from tests.server.calls import call, wait

SEATS, QUEUE = 2, 4
SLOW = r"[\s\S]{60000}"  # no compile of it ends within the limit


@pytest.fixture(scope="module")
def small() -> Iterator[ServerProcess]:
    server = ServerProcess(max_running_requests=SEATS, max_queued_requests=QUEUE)
    yield server
    server.shutdown()


def begin(server: ServerProcess, body: dict[str, Any]) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    data = json.dumps(body).encode()
    head = "POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return connection


def endless(stream: bool = False, **params: Any) -> dict[str, Any]:
    sampling = {"max_new_tokens": 4000, "ignore_eos": True, **params}
    return {"text": "Tell me", "sampling_params": sampling, "stream": stream}


def counts(server: ServerProcess) -> tuple[int, int]:
    """Who runs and who waits, as the engine sees it."""
    info = call(f"{server.url}/get_server_info")[1]
    return info["num_running_reqs"], info["num_waiting_reqs"]


def full(server: ServerProcess) -> bool:
    """Whether one more request is refused."""
    with begin(server, endless()) as connection:
        connection.settimeout(0.3)
        with contextlib.suppress(TimeoutError):
            return b" 429 " in connection.recv(1 << 12)
    return False


@pytest.mark.parametrize(
    "bodies",
    [
        [endless(stream=True)] * QUEUE,
        [endless()] * QUEUE,
        [endless(n=QUEUE)],
        [endless(stream=True, n=QUEUE)],
        [endless(regex="[a-z ]{3000,}")] * QUEUE,
        [endless(stream=True, regex="[a-z ]{3000,}", n=QUEUE)],
    ],
    ids=["streamed", "whole", "n=4", "n=4 streamed", "grammar", "grammar, n=4 streamed"],
)
def test_nothing_is_left_of_a_queued_request(small: ServerProcess, bodies: list[dict[str, Any]]) -> None:
    with contextlib.ExitStack() as seated:
        for _ in range(SEATS):
            seated.enter_context(begin(small, endless(stream=True)))
        wait(lambda: counts(small) == (SEATS, 0))
        with contextlib.ExitStack() as queued:
            for body in bodies:
                queued.enter_context(begin(small, body))
            wait(lambda: counts(small) == (SEATS, QUEUE))
            assert full(small)
        wait(lambda: counts(small) == (SEATS, 0), 2)  # seconds, as promised
        assert not full(small)
    wait(lambda: counts(small) == (0, 0), 2)


def test_nothing_is_left_of_requests_whose_grammars_are_compiled(small: ServerProcess) -> None:
    """They hold no seat yet, but a place in the compiler's queue."""
    numbers = itertools.count()

    def crowded() -> bool:
        with begin(small, endless(regex=f"[0-9]{{{next(numbers) + 5}}}")) as connection:
            connection.settimeout(0.3)
            with contextlib.suppress(TimeoutError):
                return b" 503 " in connection.recv(1 << 12)
        return False

    assert not crowded()
    with contextlib.ExitStack() as queued:
        for number in range(70):
            body = endless(stream=number % 2 == 1, regex=f"{SLOW}{number}", n=1 + 3 * (number % 3))
            queued.enter_context(begin(small, body))
        wait(crowded)
        assert counts(small) == (0, 0)
    wait(lambda: not crowded(), 2)
    body = endless(max_new_tokens=2)
    assert call(f"{small.url}/generate", body)[0] == 200
    assert call(f"{small.url}/debug/check")[1]["problem"] is None
