"""Constraints of callers are tried in processes that can be killed, before an engine meets them.

A compile cannot be interrupted inside of Python, and the worst patterns cost seconds or gigabytes. So a worker compiles
first, under limits on time and memory; what becomes a table is then in the store, where the engine's process finds it, and
what remains to be done there is known to be harmless. Questions and verdicts are lines of JSON over pipes. A worker that
exceeds a limit is killed and its caller told so; the next question starts another one. Verdicts are kept by digest.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from runtime.api import Constraint
from runtime.constrain.compiler import ConstraintCompiler
from runtime.constrain.matcher import check_budget
from runtime.errors import EngineError, InvalidRequest, Overloaded
from runtime.parent import die_with_parent

_START_SECONDS = 600.0  # imports, the vocabulary, and the loops if this machine has not compiled them yet
_ANSWER_SECONDS = 30.0  # until a caller is told to come again, or patience and limit if they are more
_REFUSED_SECONDS = 60.0  # that a refusal for a limit is kept: the machine may have been busy
_LOOK_SECONDS = 0.1  # between two looks at the memory of a worker that compiles
_BEYOND = 64 << 20  # bytes between the limit that the parent watches and the one that the system holds
_KNOWN = 4096  # verdicts that are kept
_ONE_OF_EACH = (  # kinds of machines
    Constraint("json_schema", '{"type": "object"}'),
    Constraint("ebnf", 'root ::= "a" root "b" | "c"'),
)


class Setup(msgspec.Struct, frozen=True):
    """What a worker is started with: a tokenizer's folder, the ids that end an answer, limits of one compile."""

    folder: str
    ends: tuple[int, ...]
    whitespace: str = "compact"
    seconds: float = 10.0
    memory_mb: int = 2048
    objects: str = "open"


class Verdict(msgspec.Struct, frozen=True):
    """`least` tokens of the shortest text, or why the constraint is refused. Holds `until` then, on the monotonic clock."""

    least: int = 0
    refused: str | None = None
    param: str | None = None
    until: float | None = None


class _Asked:
    """A compile that is under way, and how many wait for its verdict."""

    def __init__(self, verdict: Future[Verdict]) -> None:
        self.verdict = verdict
        self.waiters = 0


class CompileWorkers:
    """
    A constraint that nobody waits for any more is not begun; one that was begun ends, since its limits are near and its
    verdict serves whoever asks again.

    count      processes; each is started when it is first needed
    waiting    constraints that may wait for one; more are refused as overload
    patience   seconds that one may wait before it is refused as overload
    """

    def __init__(self, setup: Setup, *, count: int = 2, waiting: int = 64, patience: float = 15.0) -> None:
        self.setup = setup
        self.waiting = waiting
        self.patience = patience
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="constraint-worker")
        self._own = threading.local()
        self._all: list[_Worker] = []
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, Verdict] = OrderedDict()
        self._asked: dict[bytes, _Asked] = {}

    async def check(self, constraint: Constraint, max_tokens: int | None) -> None:
        """Raises InvalidRequest if the constraint cannot be enforced, within the limits or the budget (0 asks for
        nothing); Overloaded if too many wait."""
        verdict = await self._verdict(constraint)
        if verdict.refused is not None:
            raise InvalidRequest(verdict.refused, param=verdict.param)
        check_budget(verdict.least, max_tokens or None)

    async def _verdict(self, constraint: Constraint) -> Verdict:
        key = hashlib.sha256(f"{constraint.kind}\0{constraint.source}".encode()).digest()
        with self._lock:
            known = self._known.get(key)
            if known is not None and (known.until is None or time.monotonic() < known.until):
                self._known.move_to_end(key)
                return known
            asked = self._asked.get(key)
            if asked is None:
                if len(self._asked) >= self.waiting:
                    raise Overloaded(
                        f"{self.waiting} constraints wait to be compiled; try again in a few seconds"
                    )
                job = self._pool.submit(self._try, key, constraint, time.monotonic())
                asked = self._asked[key] = _Asked(job)
            asked.waiters += 1
        patience = max(_ANSWER_SECONDS, self.patience + self.setup.seconds + 5)
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(asked.verdict)), patience)
        except TimeoutError:  # its verdict is kept for who comes again
            raise Overloaded(
                "the constraint compiler is still starting, which takes about a minute the first time on a machine; "
                "try again in a few seconds"
            ) from None
        finally:
            with self._lock:
                asked.waiters -= 1
                if asked.waiters == 0 and asked.verdict.cancel():
                    del self._asked[key]

    def _try(self, key: bytes, constraint: Constraint, asked: float) -> Verdict:
        try:
            if time.monotonic() - asked > self.patience:
                raise Overloaded(
                    f"the constraint waited {self.patience:g} s to be compiled; try again in a few seconds"
                )
            worker = getattr(self._own, "worker", None)
            if worker is None:
                worker = self._own.worker = _Worker(self.setup)
                with self._lock:
                    self._all.append(worker)
            verdict: Verdict = worker.ask(constraint)
            with self._lock:
                self._known[key] = verdict
                while len(self._known) > _KNOWN:
                    self._known.popitem(last=False)
            return verdict
        finally:
            with self._lock:
                self._asked.pop(key, None)

    def close(self) -> None:
        """End the workers, whatever they do."""
        with self._lock:
            workers, self._all = self._all, []
        for worker in workers:
            worker.kill()
        self._pool.shutdown(wait=False, cancel_futures=True)


class _Worker:
    """One process; used by one thread."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._child: subprocess.Popen[bytes] | None = None
        self._most = 0  # bytes of address space

    def ask(self, constraint: Constraint) -> Verdict:
        line = msgspec.json.encode(constraint) + b"\n"
        for attempt in range(2):
            if self._child is None or self._child.poll() is not None:
                self._start()
            assert self._child is not None and self._child.stdin is not None
            try:
                self._child.stdin.write(line)
                self._child.stdin.flush()
                break
            except OSError:  # it has just gone
                self.kill()
                if attempt:
                    raise EngineError("the constraint compiler cannot be reached") from None
        answer = self._read(self.setup.seconds)
        if answer:
            return msgspec.json.decode(answer, type=Verdict)
        self.kill()
        if answer is None:
            reason = f"takes longer than {self.setup.seconds:g} s to compile (--constraint-compile-seconds)"
        else:
            reason = f"needs more than {self.setup.memory_mb} MiB to compile (--constraint-compile-memory-mb)"
        refused = f"{constraint.kind} is refused: it {reason}; make it simpler"
        return Verdict(refused=refused, param=constraint.kind, until=time.monotonic() + _REFUSED_SECONDS)

    def _start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "runtime.constrain.workers",
            msgspec.json.encode(self.setup).decode(),
            str(os.getpid()),
        ]
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._most = sys.maxsize
        if not self._read(_START_SECONDS):
            self.kill()
            raise EngineError("the constraint compiler does not start")
        self._most = _address_space(self._child.pid) + (self.setup.memory_mb << 20)

    def _read(self, seconds: float) -> bytes | None:
        """A line; b"" if the process is gone or takes too much memory, None if it takes longer."""
        assert self._child is not None and self._child.stdout is not None
        source = self._child.stdout.fileno()
        end = time.monotonic() + seconds
        found = b""
        while not found.endswith(b"\n"):
            left = end - time.monotonic()
            if left <= 0:
                return None
            if not select.select([source], [], [], min(left, _LOOK_SECONDS))[0]:
                if _address_space(self._child.pid) > self._most:
                    return b""
                continue
            more = os.read(source, 1 << 16)
            if not more:
                return b""
            found += more
        return found

    def kill(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def workers_for(folder: str | Path, ends: Iterable[int], options: Any, **limits: Any) -> CompileWorkers:
    """For a tokenizer, under the limits of `options` (EngineConfig)."""
    setup = Setup(
        str(folder),
        tuple(ends),
        options.constrained_json_whitespace,
        options.constraint_compile_seconds,
        options.constraint_compile_memory_mb,
        options.constrained_json_objects,
    )
    return CompileWorkers(setup, count=options.constraint_workers, **limits)


def main(setup: Setup, parent: int) -> None:
    """The child: a verdict for each constraint that comes, until nobody asks any more."""
    die_with_parent(parent)  # its thread belongs to a pool, which ends after the workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides; Ctrl-C reaches both
    compiler = ConstraintCompiler(
        setup.folder, setup.ends, whitespace=setup.whitespace, objects=setup.objects, capacity=1
    )
    get_ready(compiler)
    _limit_memory((setup.memory_mb << 20) + _BEYOND)
    out = sys.stdout.buffer
    out.write(b"ready\n")
    out.flush()
    for line in sys.stdin.buffer:
        signal.alarm(int(setup.seconds) + 5)  # also when the parent is gone and kills nobody
        out.write(
            msgspec.json.encode(verdict_of(compiler, msgspec.json.decode(line, type=Constraint))) + b"\n"
        )
        out.flush()
        signal.alarm(0)


def get_ready(compiler: ConstraintCompiler) -> None:
    """Read the vocabulary and compile all loops, so that a compile's time is its own."""
    with contextlib.suppress(EngineError):
        compiler.get(Constraint("regex", "a"))
        compiler.warm_up().join()
        for constraint in _ONE_OF_EACH:
            compiler.get(constraint)


def verdict_of(compiler: ConstraintCompiler, constraint: Constraint) -> Verdict:
    """What a worker answers; it ends where memory is out."""
    try:
        return Verdict(compiler.get(constraint).min_tokens)
    except InvalidRequest as error:
        return Verdict(refused=error.message, param=error.param)
    except MemoryError:
        os._exit(1)  # what is left of it is not to be trusted; the parent tells why
    except Exception as error:  # a mistake of the compiler, not to be told as one of memory
        why = f"the compiler failed on it ({type(error).__name__}: {error}); write it otherwise, and report this"
        refused = f"{constraint.kind} is refused: {why}"
        return Verdict(refused=refused, param=constraint.kind)


def _address_space(pid: int) -> int:
    """Bytes; 0 if the process is gone."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


def _limit_memory(more: int) -> None:
    """Let this process have `more` bytes of address space beyond what it has now. This stops what is large at once; what
    grows is stopped by the parent, since CPython can unwind for ever when not even a small integer can be had."""
    most = _address_space(os.getpid()) + more
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    main(msgspec.json.decode(sys.argv[1], type=Setup), int(sys.argv[2]))
