"""The engine loop in a process of its own, over a local ZeroMQ socket with msgpack; nothing is pickled.

One thread starts the process, reads from it and watches it: a process that dies or does not answer in time is lost,
every caller is told, and another one is started. The sockets lie in a private folder that is removed at the end. The
kernel kills a process whose parent has died.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import zmq

from runtime.config import EngineConfig
from runtime.engine.bytecode import kept_bytecode
from runtime.engine.collector import IdleCollector, settle
from runtime.engine.messages import Beat, Failed, In, Lost, Out, Ready, Stop
from runtime.engine.read_ahead import bytecode_folder, read_ahead
from runtime.engine.transport import error_of
from runtime.errors import EngineDead, EngineError
from runtime.folders import PrivateFolder, sweep
from runtime.parent import die_with_parent

log = logging.getLogger("runtime.engine")
BEAT_SECONDS = 1.0  # how often a healthy process is heard of
if TYPE_CHECKING:
    from runtime.engine.loop import EngineLoop

_MOST_DEATHS = 5  # within `_WINDOW` seconds; more are no accident, and starting again would hide them
_WINDOW = 600.0
_PAUSE_SECONDS = 1.0  # after a start that failed
_END_SECONDS = 5.0  # a process that is told to stop has so long
_ENCODER = msgspec.msgpack.Encoder()


class ProcessTransport:
    """
    restart       start another process when one is lost; else the engine has failed
    hang_seconds  a process that is silent for so long is killed; None waits for ever
    logs          level and format of what the process logs
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        restart: bool = False,
        hang_seconds: float | None = None,
        logs: tuple[str, str] = ("info", "text"),
    ) -> None:
        self.config = config
        self.restart = restart
        self.hang_seconds = hang_seconds
        self.logs = logs
        self._context = zmq.Context()
        self._child: _Child | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closing = threading.Event()

    @property
    def pid(self) -> int | None:
        child = self._child
        return child.pid if child else None

    def start(self, receive: Callable[[list[Out]], None]) -> Ready:
        sweep()
        first: Future[Ready] = Future()
        # The kernel takes the death of this thread for the parent's, so it lives as long as any child.
        self._thread = threading.Thread(
            target=self._supervise, args=(first, receive), name="engine-supervisor", daemon=True
        )
        self._thread.start()
        try:
            return first.result()
        except BaseException:
            self.close()
            raise

    def _supervise(self, first: Future[Ready], receive: Callable[[list[Out]], None]) -> None:
        try:
            first.set_result(self._open())
        except BaseException as error:
            first.set_exception(error)
            return
        try:
            self._keep_up(receive)
        except Exception as error:
            log.exception("the supervision of the engine process has failed")
            self._end()
            receive([Failed("internal_error", f"the supervision of the engine has failed: {error!r}")])

    def _keep_up(self, receive: Callable[[list[Out]], None]) -> None:
        """Serve, and start again what is lost, until told to stop or until that is hopeless."""
        deaths: list[float] = []
        reason = self._serve(receive)
        while reason is not None:
            self._end()
            now = time.monotonic()
            deaths = [t for t in deaths if now - t < _WINDOW] + [now]
            if not self.restart:
                receive([Failed(EngineDead.code, reason)])
                return
            if len(deaths) > _MOST_DEATHS:
                many = f"{reason}; it was lost {len(deaths)} times in {_WINDOW:g} s and is not started again"
                receive([Failed(EngineDead.code, many)])
                return
            log.error("%s; it is started again", reason)
            receive([Lost(reason)])
            try:
                ready = self._open(self.hang_seconds)
            except EngineError as error:  # killed again, or the memory of the one before is not free yet
                reason = None if self._closing.wait(_PAUSE_SECONDS) else error.message
            else:
                receive([ready])
                reason = self._serve(receive)
        self._end()

    def _open(self, hang_seconds: float | None = None) -> Ready:
        """Start a process; one that is silent for so long is given up. Raises EngineError."""
        child = _Child(self._context, self.config, self.logs)
        with self._lock:
            self._child = child
        silence = _Silence(child)
        while True:
            for message in child.read(200):
                silence = _Silence(child)
                if isinstance(message, Ready):
                    child.seal()
                    child.computes = message.info["device"] == "cpu"
                    return message
                if isinstance(message, Failed):
                    raise error_of(message.code, message.message)
            if self._closing.is_set():
                raise EngineError("the engine was closed while it was starting")
            if (code := child.exit_code) is not None:
                raise EngineError(f"the engine process ended with exit code {code} while it was starting")
            if hang_seconds is not None and silence.hangs(hang_seconds):
                raise EngineError(
                    f"the engine process has not answered for {hang_seconds:g} s while it was starting and was killed"
                )

    def _serve(self, receive: Callable[[list[Out]], None]) -> str | None:
        """Pass on what the process says until it is lost, and say why; None if it was to stop."""
        child = self._child
        assert child is not None
        silence: _Silence | None = None
        while not self._closing.is_set():
            if messages := child.read(200):
                silence = None
                receive(messages)
            elif (code := child.exit_code) is not None:
                return f"the engine process has died (exit code {code})"
            elif silence is None:
                silence = _Silence(child)
            elif self.hang_seconds is not None and silence.hangs(self.hang_seconds):
                return f"the engine process has not answered for {self.hang_seconds:g} s and was killed"
        return None

    def _end(self) -> None:
        with self._lock:
            child, self._child = self._child, None
        if child is not None:
            child.end(patient=self._closing.is_set())

    def send(self, messages: Sequence[In]) -> None:
        """What is sent while no process runs is dropped: its callers have been told, or will be."""
        if self._closing.is_set():
            raise EngineError("the engine is closed")
        data = _ENCODER.encode(list(messages))
        with self._lock:
            if self._child is not None:
                self._child.send(data)

    def close(self) -> None:
        if self._closing.is_set():
            return
        with self._lock:
            self._closing.set()
            if self._child is not None:
                self._child.send(_ENCODER.encode([Stop()]))
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()  # bounded: a child that does not stop is killed
        self._end()
        self._context.term()


class _Silence:
    """Since when a process says nothing, and what it had worked until then.

    On a GPU no step is long. On a CPU one may be, and is then seen to work; so a process that works has ten times as long.
    """

    def __init__(self, child: _Child) -> None:
        self._child = child
        self._since = time.monotonic()
        self._worked = child.cpu_seconds

    def hangs(self, limit: float) -> bool:
        passed = time.monotonic() - self._since
        if passed <= limit:
            return False
        works = self._child.cpu_seconds - self._worked > passed / 50  # others may have the cores
        return not (works and self._child.computes) or passed > 10 * limit


class _Child:
    """One engine process with its sockets. `send` may be called by any thread that holds the transport's lock, the rest
    only by the supervisor's."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], config: EngineConfig, logs: tuple[str, str]
    ) -> None:
        self._folder = PrivateFolder()
        self._to = context.socket(zmq.PUSH)
        self._from = context.socket(zmq.PULL)
        for socket, name in ((self._to, "in"), (self._from, "out")):
            socket.setsockopt(zmq.LINGER, 0)
            socket.set_hwm(0)
            socket.bind(f"ipc://{self._folder.path}/{name}")
        self._decoder = msgspec.msgpack.Decoder(list[Out])
        folder, parent = str(self._folder.path), str(os.getpid())
        command = [sys.executable, "-m", "runtime.engine.process", folder, parent, *logs]
        read_ahead(config.device)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        self.pid = self._process.pid
        self.computes = True  # on its own cores: while it starts, and then if the model runs there
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its exit code says more
            self._process.stdin.write(msgspec.json.encode(asdict(config)))
            self._process.stdin.close()

    @property
    def cpu_seconds(self) -> float:
        """Time that it has computed; 0 where nobody knows."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    def read(self, milliseconds: int) -> list[Out]:
        """What it says; nothing if it is silent for so long."""
        if not self._from.poll(milliseconds):
            return []
        data = self._from.recv()
        try:
            return self._decoder.decode(data)
        except msgspec.MsgspecError:
            log.warning(
                "%d bytes that are no messages came to the engine's socket; they are ignored", len(data)
            )
            return []

    def seal(self) -> None:
        """Take the sockets' paths away once the process is connected, so that nobody else can connect. A connection is
        never made anew: a process that loses it is lost itself."""
        if self._to.poll(int(_END_SECONDS * 1000), zmq.POLLOUT):
            for name in ("in", "out"):
                (self._folder.path / name).unlink(missing_ok=True)

    def send(self, data: bytes) -> None:
        """Dropped if nobody is there to take it: a socket that lost its peer would block its sender for ever."""
        with contextlib.suppress(zmq.Again):  # without a high-water mark a peer always takes it
            self._to.send(data, zmq.NOBLOCK)

    def end(self, *, patient: bool) -> None:
        """Wait for it to stop if it was told to, else kill it; free what it had."""
        if patient:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=_END_SECONDS)
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._to.close()
        self._from.close()
        self._folder.close()


def main(folder: str, parent: int, level: str, format: str) -> None:
    """The child: load, say so, and serve until told to stop or left alone."""
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides; Ctrl-C reaches both
    config = EngineConfig(**msgspec.json.decode(sys.stdin.buffer.read()))
    context = zmq.Context()
    inbox, outbox = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    for socket, name in ((inbox, "in"), (outbox, "out")):
        socket.set_hwm(0)
        socket.setsockopt(zmq.LINGER, 1000)
        socket.connect(f"ipc://{folder}/{name}")
    from runtime.log import configure

    configure(level, format)
    started = threading.Event()
    beats = threading.Thread(target=_beat_until, args=(started, outbox), daemon=True)
    beats.start()
    try:
        try:
            with kept_bytecode(bytecode_folder(config.device)):
                from runtime.engine.loop import EngineLoop

                loop = EngineLoop(config)
        finally:
            started.set()
            beats.join()  # a socket is one thread's at a time
        settle()
    except Exception as error:
        code = error.code if isinstance(error, EngineError) else "internal_error"
        reason = error.message if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
        outbox.send(_ENCODER.encode([Failed(code, reason)]))
        outbox.close()
        context.term()
        sys.exit(1)
    outbox.send(_ENCODER.encode([Ready(loop.info)]))
    try:
        _serve(loop, inbox, outbox, parent)
    except EngineError as error:  # another rank is gone: known, and said in one line
        log.error("the engine ends: %s", error.message)
        sys.exit(1)
    finally:
        loop.close()


def _beat_until(started: threading.Event, outbox: zmq.Socket[bytes]) -> None:
    """Tell that the process lives while its model is loaded."""
    while not started.wait(BEAT_SECONDS):
        outbox.send(_ENCODER.encode([Beat({})]))


def _serve(loop: EngineLoop, inbox: zmq.Socket[bytes], outbox: zmq.Socket[bytes], parent: int) -> None:
    """Messages in, steps, messages out, until told to stop."""
    decoder = msgspec.msgpack.Decoder(list[In])
    told = time.monotonic()
    collector = IdleCollector()
    while True:
        out: list[Out] = []
        while inbox.poll(0 if loop.busy or out else 500):
            for message in decoder.decode(inbox.recv()):
                if isinstance(message, Stop):
                    return
                out += loop.handle(message)
        collector.look(busy=loop.busy)
        out += loop.step()
        if time.monotonic() - told > BEAT_SECONDS:
            told = time.monotonic()
            if os.getppid() != parent:  # where the kernel does not see to it
                return
            out.append(Beat(loop.stats()))
        if out:
            outbox.send(_ENCODER.encode(out))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4])
