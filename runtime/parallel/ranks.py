"""The other processes of a tensor-parallel engine, and what they do.

Rank 0 schedules. It sends every batch to the others, as integers over a socket in a private folder, and all run it: the sums
inside of the model keep them in step, and each draws the same tokens from the same logits. After a batch a rank tells the
checksum of its tokens; one that differs, or a rank that ends, ends the engine with a message that names the rank.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import threading
import zlib
from array import array
from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import zmq

from runtime.batch import Batch, Sampled
from runtime.config import EngineConfig
from runtime.engine.assemble import assemble, device_of
from runtime.engine.collector import settle
from runtime.engine.device import DeviceRunner
from runtime.engine.pending import Pending
from runtime.errors import EngineDead, EngineError
from runtime.log import configure
from runtime.parallel.group import Group

log = logging.getLogger("runtime.parallel")
_END_SECONDS = 5.0
_SEND_SECONDS = 5.0
_LOOK_MS = 1  # how often a rank that has nothing to queue looks whether its batch has ended


class Report(msgspec.Struct, frozen=True):
    """A rank has run a batch, or could not go on (`problem`)."""

    rank: int
    step: int = 0
    checksum: int = 0
    problem: str = ""


_ENCODER = msgspec.msgpack.Encoder()
_REPORTS = msgspec.msgpack.Decoder(Report)
_BATCHES = msgspec.msgpack.Decoder(Batch)


def checksum(sampled: Sampled) -> int:
    """Of the tokens of a batch."""
    return zlib.crc32(array("q", sampled.tokens).tobytes())


class Ranks:
    """Ranks 1 and up, as rank 0 sees them. Making it starts them; `group` is rank 0's place among them."""

    def __init__(self, config: EngineConfig) -> None:
        self.size = config.tensor_parallel_size
        self._folder = tempfile.TemporaryDirectory(prefix="sglc-ranks-")  # 0700
        path = Path(self._folder.name)
        self._context = zmq.Context()
        self._reports: Any = self._socket(zmq.PULL, path / "reports")
        self._told: dict[int, dict[int, int]] = {}  # by step: checksums by rank
        self._sockets: list[Any] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        options = msgspec.json.encode(asdict(config)) + b"\n"
        for rank in range(1, self.size):
            self._sockets.append(self._socket(zmq.PUSH, path / f"rank{rank}"))
            process = subprocess.Popen(
                [sys.executable, "-m", "runtime.parallel.rank", str(path), str(rank)],
                stdin=subprocess.PIPE,
            )
            assert process.stdin is not None
            process.stdin.write(options)
            process.stdin.flush()  # left open: its end tells the rank that rank 0 is gone
            self._processes.append(process)
        try:
            self.group = Group(0, self.size, path, device_of(config), config.dist_timeout)
        except Exception as error:
            self.close()
            raise EngineDead(f"the ranks of the engine did not find each other: {error}") from error
        self.group.look = self.check

    def _socket(self, kind: int, path: Path) -> Any:
        socket = self._context.socket(kind)
        socket.set_hwm(0)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDTIMEO, int(_SEND_SECONDS * 1000))
        socket.bind(f"ipc://{path}")
        return socket

    def send(self, batch: Batch) -> None:
        """Have the others run it as well."""
        data = _ENCODER.encode(batch)
        for rank, socket in enumerate(self._sockets, 1):
            try:
                socket.send(data)
            except zmq.Again:  # nobody is connected any more
                self.check()
                raise EngineDead(f"rank {rank} of {self.size} cannot be reached") from None

    def landed(self, sampled: Sampled) -> None:
        """What rank 0 drew; compared with what the others tell as they tell it."""
        if sampled.failed and self.group.lost:
            self.check()  # it may be known which one is gone
            raise EngineDead(f"a rank of {self.size} did not answer in time; see --dist-timeout")
        self._compare(sampled.step, 0, checksum(sampled))
        self.check()

    def check(self) -> None:
        """Raises EngineDead if a rank has ended or disagrees."""
        while self._reports.poll(0):
            report = _REPORTS.decode(self._reports.recv())
            if report.problem:
                raise EngineDead(f"rank {report.rank} of {self.size} stopped: {report.problem}")
            self._compare(report.step, report.rank, report.checksum)
        for rank, process in enumerate(self._processes, 1):
            code = process.poll()
            if code is not None:
                raise EngineDead(f"rank {rank} of {self.size} has ended with exit code {code}")

    def _compare(self, step: int, rank: int, value: int) -> None:
        told = self._told.setdefault(step, {})
        told[rank] = value
        if len(set(told.values())) > 1:
            raise EngineDead(f"the ranks drew different tokens in step {step}: checksums by rank {told}")
        if len(told) == self.size:
            del self._told[step]

    def close(self) -> None:
        """End them, and take the sockets away."""
        group = getattr(self, "group", None)
        if group is not None:
            group.close()
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.close()
        for process in self._processes:
            try:
                process.wait(timeout=_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for socket in (*self._sockets, self._reports):
            socket.close()
        self._context.term()
        self._folder.cleanup()


def main(folder: str, rank: int) -> None:
    """A rank: load its part, then run the batches that rank 0 sends until rank 0 is gone."""
    config = EngineConfig(**msgspec.json.decode(sys.stdin.buffer.readline()))
    threading.Thread(target=_leave_with_rank_0, daemon=True).start()
    configure()
    context = zmq.Context()
    inbox, outbox = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    for socket, name in ((inbox, f"rank{rank}"), (outbox, "reports")):
        socket.set_hwm(0)
        socket.setsockopt(zmq.LINGER, 1000)
        socket.connect(f"ipc://{folder}/{name}")
    try:
        group = Group(
            rank, config.tensor_parallel_size, Path(folder), device_of(config, rank), config.dist_timeout
        )
        runner = assemble(config, group).runner
        settle()
        follow(runner, inbox, outbox, rank)
    except Exception as error:
        log.exception("rank %d has ended", rank)
        known = isinstance(error, EngineError)
        problem = error.message if known else f"{type(error).__name__}: {error}"  # type: ignore[attr-defined]
        outbox.send(_ENCODER.encode(Report(rank, problem=problem)))
        outbox.close()
        context.term()
        os._exit(1)  # collectives that hang must not keep it


def _leave_with_rank_0() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def follow(runner: Any, inbox: Any, outbox: Any, rank: int) -> None:
    """Run batches for ever, two in flight on a device: the next one is queued when it comes, not when the last has ended."""
    flight: deque[Pending] = deque()

    def tell(sampled: Sampled) -> None:
        outbox.send(_ENCODER.encode(Report(rank, sampled.step, checksum(sampled))))

    while True:
        if flight and not inbox.poll(_LOOK_MS):
            if flight[0].ready:
                tell(runner.collect(flight.popleft()))
            continue
        batch = _BATCHES.decode(inbox.recv())
        if not isinstance(runner, DeviceRunner):
            tell(runner.run(batch))
            continue
        flight.append(runner.launch(batch))
        while len(flight) > 1:
            tell(runner.collect(flight.popleft()))
        runner.draw(flight[-1])
        if flight[-1].done is not None:
            tell(runner.collect(flight.popleft()))
