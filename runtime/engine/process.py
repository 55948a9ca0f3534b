"""The engine loop in a process of its own, over a local ZeroMQ socket with msgpack; nothing is pickled.

The socket lies in a private folder that is removed at the end. A child whose parent is gone ends itself; a parent
whose child is gone tells every caller.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import msgspec
import zmq

from runtime.config import EngineConfig
from runtime.engine.messages import Failed, In, Out, Ready, Stop
from runtime.engine.transport import error_of
from runtime.errors import EngineError

_ENCODER = msgspec.msgpack.Encoder()


class ProcessTransport:
    """Starts the child, writes to it, and reads from it in a thread."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self._context = zmq.Context()
        self._folder: Path | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closing = False

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    def start(self, receive: Callable[[list[Out]], None]) -> Ready:
        self._folder = Path(tempfile.mkdtemp(prefix="runtime-"))  # mkdtemp makes it 0700
        self._to = self._context.socket(zmq.PUSH)
        self._from = self._context.socket(zmq.PULL)
        for socket, name in ((self._to, "in"), (self._from, "out")):
            socket.setsockopt(zmq.LINGER, 0)
            socket.set_hwm(0)
            socket.bind(f"ipc://{self._folder}/{name}")
        command = [sys.executable, "-m", "runtime.engine.process", str(self._folder), str(os.getpid())]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        assert self._child.stdin is not None
        self._child.stdin.write(msgspec.json.encode(asdict(self.config)))
        self._child.stdin.close()
        decoder = msgspec.msgpack.Decoder(list[Out])
        first = self._wait_ready(decoder)
        if isinstance(first, Failed):
            self.close()
            raise error_of(first.code, first.message)
        self._reader = threading.Thread(
            target=self._read, args=(decoder, receive), name="engine-reader", daemon=True
        )
        self._reader.start()
        return first

    def _wait_ready(self, decoder: msgspec.msgpack.Decoder[list[Out]]) -> Ready | Failed:
        assert self._child is not None
        while True:
            if self._from.poll(200):
                (message,) = decoder.decode(self._from.recv())
                assert isinstance(message, Ready | Failed)
                return message
            if (code := self._child.poll()) is not None:
                return Failed(
                    "internal_error", f"the engine process ended with exit code {code} while it was starting"
                )

    def _read(
        self, decoder: msgspec.msgpack.Decoder[list[Out]], receive: Callable[[list[Out]], None]
    ) -> None:
        assert self._child is not None
        while not self._closing:
            try:
                if self._from.poll(200):
                    receive(decoder.decode(self._from.recv()))
                    continue
            except zmq.ZMQError:
                return
            if (code := self._child.poll()) is not None and not self._closing:
                receive([Failed("internal_error", f"the engine process has died (exit code {code})")])
                return

    def send(self, messages: Sequence[In]) -> None:
        if self._child is None or self._closing:
            raise EngineError("the engine is closed")
        with self._lock:
            self._to.send(_ENCODER.encode(list(messages)))

    def close(self) -> None:
        if self._closing:
            return
        if self._child is not None and self._child.poll() is None:
            with contextlib.suppress(zmq.ZMQError, EngineError):
                self.send([Stop()])
            self._closing = True
            try:
                self._child.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        self._closing = True
        if self._reader is not None and self._reader is not threading.current_thread():
            self._reader.join(timeout=2)
        self._to.close()
        self._from.close()
        self._context.term()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def main(folder: str, parent: int) -> None:
    """The child: load, say so, and serve until told to stop or left alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides; Ctrl-C reaches both
    config = EngineConfig(**msgspec.json.decode(sys.stdin.buffer.read()))
    context = zmq.Context()
    inbox, outbox = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    for socket, name in ((inbox, "in"), (outbox, "out")):
        socket.set_hwm(0)
        socket.setsockopt(zmq.LINGER, 1000)
        socket.connect(f"ipc://{folder}/{name}")
    from runtime.log import configure

    configure()
    from runtime.engine.loop import EngineLoop

    try:
        loop = EngineLoop(config)
    except Exception as error:
        code = error.code if isinstance(error, EngineError) else "internal_error"
        reason = error.message if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
        outbox.send(_ENCODER.encode([Failed(code, reason)]))
        outbox.close()
        context.term()
        sys.exit(1)
    outbox.send(_ENCODER.encode([Ready(loop.info)]))
    decoder = msgspec.msgpack.Decoder(list[In])
    checked = time.monotonic()
    while True:
        out: list[Out] = []
        while inbox.poll(0 if loop.busy or out else 500):
            for message in decoder.decode(inbox.recv()):
                if isinstance(message, Stop):
                    return
                out += loop.handle(message)
        if time.monotonic() - checked > 1:
            checked = time.monotonic()
            if os.getppid() != parent:
                return
        out += loop.step()
        if out:
            outbox.send(_ENCODER.encode(out))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
