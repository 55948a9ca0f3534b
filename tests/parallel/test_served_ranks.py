"""A server with two ranks: where it listens, and what callers see when a rank stops answering."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from benchmarks.traffic import process_tree
from runtime.server.launch import ServerProcess
from tests.server import malformed
from tests.server.calls import call
from tests.server.test_malformed import listening

GREEDY = {"text": "12 + 35 =", "sampling_params": {"temperature": 0, "max_new_tokens": 8, "stop": "\n"}}


def ranks(server: ServerProcess) -> list[int]:
    found = []
    for pid in process_tree(server.pid):
        if b"runtime.parallel.rank" in Path(f"/proc/{pid}/cmdline").read_bytes():
            found.append(pid)
    return found


@pytest.mark.tp
@pytest.mark.timeout(300)
def test_two_ranks_listen_to_themselves_and_a_stopped_one_is_replaced(tmp_path: Path) -> None:
    server = ServerProcess(tensor_parallel_size=2, threads=1, dist_timeout=8, hang_timeout=60)
    try:
        assert call(f"{server.url}/generate", GREEDY)[1]["text"] == " 47"
        port = int(server.url.rsplit(":", 1)[1])
        tcp = [place for kind, place in listening(set(process_tree(server.pid))) if kind != "unix"]
        assert f"0100007F:{port:04X}" in tcp
        assert all(place.startswith(("0100007F:", "0" * 24 + "01000000:")) for place in tcp), tcp
        for number in {int(place.split(":")[1], 16) for place in tcp} - {port}:
            for data in (
                malformed.bomb(str(tmp_path / "owned")),
                b"\xff\0\0\0\0\0\0\0\x01\x7f" + os.urandom(4096),
            ):
                with (
                    contextlib.suppress(OSError),
                    socket.create_connection(("127.0.0.1", number), 2) as intruder,
                ):
                    intruder.sendall(data)
        assert call(f"{server.url}/generate", {**GREEDY, "text": "21 + 34 ="})[1]["text"] == " 55"
        assert not (tmp_path / "owned").exists()
        (rank,) = ranks(server)
        os.kill(rank, signal.SIGSTOP)
        status, answer, _ = call(f"{server.url}/generate", {**GREEDY, "text": "1 + 1 ="})
        assert status in (500, 503), answer  # `call` waits a minute at most
        while call(f"{server.url}/ready")[0] != 200:
            assert server.running, server.last_lines
            time.sleep(0.2)
        assert call(f"{server.url}/generate", GREEDY)[1]["text"] == " 47"
        assert rank not in process_tree(server.pid)
    finally:
        server.shutdown()
