"""Runs batches beside the callers' own requests, through the handlers of the same routes.

A line's answer counts once it is in the journal; whatever ends the process before that, the line is sent again at the next start,
and never after it. Lines go to the routes over a private socket, so that they meet every check that a caller's request meets.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import aiohttp
import msgspec
from aiohttp import web

from runtime.errors import Conflict, Overloaded
from runtime.server import batch_lines, errors, observe
from runtime.server.batch_lines import Line
from runtime.server.context import Context
from runtime.server.records import BatchRecord, LineRecord
from runtime.server.store import StateStore
from runtime.server.uploads import StorageFull, Upload

log = logging.getLogger("runtime.server")
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
TRIES = 3  # of a line that meets a failing server
PAUSE_SECONDS = 0.5  # before a line is tried again, and before the journal is
DRAIN_SECONDS = 2.0  # for lines that are being answered when the server ends


class _Endings(Exception):
    """A batch ends early, with this status."""

    def __init__(self, status: str) -> None:
        self.status = status


class BatchRunner:
    """Works off the unfinished batches of a store, `concurrency` lines at a time in all."""

    def __init__(self, context: Context, store: StateStore, app: web.Application, concurrency: int) -> None:
        self._context = context
        self._store = store
        self._free = asyncio.Semaphore(concurrency)
        self._again = (
            asyncio.Lock()
        )  # lines that a failing server has met go one by one: one of them may be why
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._cancelled: dict[str, asyncio.Event] = {}
        self._journal = _Journal(store)
        self._closing = False
        self._inner = web.Application(
            middlewares=[observe.middleware, errors.middleware], client_max_size=batch_lines.LONGEST_LINE
        )
        for name, value in app.items():  # what its handlers look for, the context among it
            self._inner[name] = value
        for route in app.router.routes():
            path = route.resource.canonical if route.resource else ""
            if route.method == "POST" and path in ENDPOINTS:
                self._inner.router.add_post(path, route.handler)
        self.endpoints = tuple(
            e for e in ENDPOINTS if e in {r.canonical for r in self._inner.router.resources()}
        )

    @property
    def _stopping(self) -> bool:
        return self._closing or self._context.closing

    async def start(self, socket: Path) -> None:
        """Open the private socket, in a folder that nobody else may enter, and go on with what is unfinished."""
        self._runner = web.AppRunner(self._inner, access_log=None, handler_cancellation=True)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(socket)).start()
        connector = aiohttp.UnixConnector(str(socket), limit=0)
        self._client = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))
        for id in await asyncio.to_thread(self._store.unfinished):
            self.submit(id)

    def submit(self, id: str) -> None:
        """Work on a batch from now on."""
        self._cancelled[id] = asyncio.Event()
        task = asyncio.create_task(self._work(id), name=f"batch {id}")
        self._tasks[id] = task
        task.add_done_callback(lambda _: (self._tasks.pop(id, None), self._cancelled.pop(id, None)))

    def cancel(self, id: str) -> None:
        """End a batch early; its status says so already."""
        if (event := self._cancelled.get(id)) is not None:
            event.set()

    async def close(self) -> None:
        """Start nothing more, give running lines a moment, and leave the rest to the next start."""
        self._closing = True
        tasks = list(self._tasks.values())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=DRAIN_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.close()
        await self._runner.cleanup()

    # -- one batch ----------------------------------------------------------------------------------------

    async def _work(self, id: str) -> None:
        """Bring a batch to its end, however often the disk refuses."""
        problem: dict[str, object] | None = None
        while not self._stopping:
            try:
                if problem is None:
                    await self._batch(id)
                else:
                    await asyncio.to_thread(self._fail, id, problem)
                return
            except StorageFull as error:
                log.error("batch %s waits: %s", id, error)
                await asyncio.sleep(PAUSE_SECONDS)
            except Exception:
                if problem is not None:
                    raise
                log.exception("batch %s failed", id)
                problem = {
                    "code": "internal_error",
                    "message": "the server failed on this batch",
                    "line": None,
                }

    def _fail(self, id: str, problem: dict[str, object]) -> BatchRecord:
        return self._store.move(id, "failed", errors={"object": "list", "data": [problem]})

    async def _batch(self, id: str) -> None:
        record = await asyncio.to_thread(self._store.batch, id)
        if record.status == "validating":
            try:
                record = await asyncio.to_thread(self._validate, record)
            except Conflict:  # it was cancelled meanwhile
                record = await asyncio.to_thread(self._store.batch, id)
        if record.status == "failed":
            return
        ending = "cancelled" if record.status == "cancelling" else "completed"
        if record.status == "in_progress":
            try:
                await self._run(record)
            except _Endings as early:
                ending = early.status
            if self._stopping:
                return
        await asyncio.to_thread(self._finalize, record, ending)

    def _validate(self, record: BatchRecord) -> BatchRecord:
        """Count the lines; a file without any, or with too many, fails the batch before anything runs."""
        numbers: dict[bytes, int] = {}
        for line in self._lines(record):
            if len(numbers) == batch_lines.MOST_LINES:
                text = f"the file has more than {batch_lines.MOST_LINES} requests; split it"
                return self._fail(record.id, {"code": "too_many_lines", "message": text, "line": line.number})
            numbers[line.key] = line.number
        if not numbers:
            text = "the file has no requests; each line is a JSON object with custom_id, method, url and body"
            return self._fail(record.id, {"code": "empty_file", "message": text, "line": None})
        if record.resume_from is not None:
            self._store.renumber(record.id, numbers)
        counts = msgspec.structs.replace(record.request_counts, total=len(numbers))
        return self._store.move(record.id, "in_progress", only_from=("validating",), request_counts=counts)

    def _lines(self, record: BatchRecord) -> Iterator[Line]:
        return batch_lines.read_lines(self._store.content(record.input_file_id), record.endpoint)

    async def _run(self, record: BatchRecord) -> None:
        """Answer the lines that are not in the journal. Raises _Endings if it is cancelled or its time is over."""
        feed = asyncio.create_task(self._feed(record))
        cancelled = asyncio.create_task(self._cancelled[record.id].wait())
        left = max(record.expires_at - time.time(), 0)
        try:
            await asyncio.wait((feed, cancelled), timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if feed.done():
                await feed
            else:
                raise _Endings("cancelled" if cancelled.done() else "expired")
        finally:
            cancelled.cancel()
            feed.cancel()
            await asyncio.gather(feed, cancelled, return_exceptions=True)
            await self._journal.flush()

    async def _feed(self, record: BatchRecord) -> None:
        done = await asyncio.to_thread(self._store.done, record.id)
        lines = self._lines(record)
        async with asyncio.TaskGroup() as group:
            while chunk := await asyncio.to_thread(lambda: list(islice(lines, 64))):
                for line in chunk:
                    if line.key in done:
                        continue
                    await self._free.acquire()
                    if self._stopping:
                        self._free.release()
                        return
                    group.create_task(self._line(record, line)).add_done_callback(
                        lambda _: self._free.release()
                    )

    async def _line(self, record: BatchRecord, line: Line) -> None:
        """Answer one line and journal it; not if the server ends first."""
        if line.problem is not None:
            outcome: tuple[bool, bytes] | None = False, batch_lines.failure(line, *line.problem)
        else:
            outcome = await self._answer(record, line)
        if outcome is not None:
            await self._journal.add(LineRecord(record.id, line.key, line.number, *outcome))

    async def _answer(self, record: BatchRecord, line: Line) -> tuple[bool, bytes] | None:
        """Whether the line was answered well, and what its file says; None if the server ends first."""
        request_id, tries = f"req_{uuid.uuid4().hex}", 0
        while not self._stopping:
            if self._context.engine.down is not None:  # it is being started again, which is no try
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            async with self._again if tries else contextlib.nullcontext():
                status, data = await self._send(record.endpoint, line.body)
            if self._stopping and status >= 500:
                return None
            if status != 429 and not (status == 503 and _code(data) == Overloaded.code):
                tries += status >= 500
                if status < 500 or tries == TRIES:
                    body = msgspec.Raw(data or b"null")
                    return status < 400, batch_lines.answer(line, status, request_id, body)
            await asyncio.sleep(PAUSE_SECONDS)
        return None

    async def _send(self, endpoint: str, body: bytes) -> tuple[int, bytes]:
        try:
            headers = {"Content-Type": "application/json"}
            async with self._client.post(f"http://batch{endpoint}", data=body, headers=headers) as answer:
                return answer.status, await answer.read()
        except aiohttp.ClientError as error:
            return 500, msgspec.json.encode(errors.body(f"no answer: {type(error).__name__}", 500))

    # -- the end of one -----------------------------------------------------------------------------------

    def _finalize(self, record: BatchRecord, ending: str) -> None:
        """Write the result files. Whatever was begun of them before a crash has no row, so this starts anew."""
        if record.status == "in_progress" and ending == "completed":
            try:
                self._store.move(record.id, "finalizing", only_from=("in_progress",))
            except Conflict:  # cancelled after its last line
                ending = "cancelled"
        files: dict[bool, Upload] = {}

        def write(ok: bool, text: bytes) -> None:
            if ok not in files:
                files[ok] = self._store.begin_file()
            files[ok].write(text)

        try:
            for _, ok, text in self._store.results(record.id):
                write(ok, text)
            if ending != "completed":
                done = self._store.done(record.id)
                for line in self._lines(record):
                    if line.key not in done:
                        write(
                            False,
                            batch_lines.failure(line, f"batch_{ending}", f"the batch was {ending} first"),
                        )
            self._store.finish(record.id, ending, files.get(True), files.get(False))
        except BaseException:
            for upload in files.values():
                upload.discard()
            raise


def _code(data: bytes) -> str | None:
    try:
        return msgspec.json.decode(data)["error"]["code"]
    except (msgspec.MsgspecError, KeyError, TypeError):
        return None


class _Journal:
    """Lines on their way to the disk. Those that arrive during a write go together in the next, with one sync."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._pending: list[LineRecord] = []
        self._writing = asyncio.Lock()

    async def add(self, line: LineRecord) -> None:
        """Returns when the line is on the disk. A full disk is waited for."""
        self._pending.append(line)
        while True:
            try:
                await self.flush()
                return
            except StorageFull as error:
                log.error("the journal of batches waits: %s", error)
                await asyncio.sleep(PAUSE_SECONDS)

    async def flush(self) -> None:
        """Write what is pending; what could not be written stays. Raises StorageFull."""
        async with self._writing:
            lines = list(self._pending)
            if lines:
                await asyncio.to_thread(self._store.record, lines)
                del self._pending[: len(lines)]
