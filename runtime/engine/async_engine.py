"""The asyncio facade: text in, text out, over an engine loop in a thread or in a process.

Calls may come from several event loops; what belongs to a call is delivered on the loop it came from. Leaving an
iterator early ends its requests.
"""

from __future__ import annotations

import asyncio
import atexit
import dataclasses
import itertools
import logging
import secrets
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from time import perf_counter
from typing import Any

import msgspec

from runtime.api import (
    Constraint,
    Delta,
    Embed,
    Embedded,
    Finish,
    Generate,
    Prompt,
    SamplingParams,
    Score,
    ScoreResult,
    Segment,
    TextSegment,
    TokenSegment,
    Usage,
)
from runtime.backends.base import Capabilities, ModelInfo
from runtime.config import EngineConfig, find_folder
from runtime.constrain.compiler import KINDS, ConstraintCompiler
from runtime.constrain.workers import workers_for
from runtime.engine.call import REFUSED, Call
from runtime.engine.live import Live
from runtime.engine.messages import (
    Add,
    Ask,
    Beat,
    End,
    Failed,
    In,
    Lost,
    Out,
    Output,
    Ready,
    Refused,
    Weights,
)
from runtime.engine.messages import Answer as Reply
from runtime.engine.score import score
from runtime.engine.text import Answer
from runtime.engine.transport import Transport, error_of
from runtime.errors import Aborted, EngineDead, EngineError, InvalidRequest, Unsupported
from runtime.sampling.random import child_seed
from runtime.tokenizer.ids_only import IdsOnly
from runtime.tokenizer.tokenizer import LONG_TEXT, Tokenizer

log = logging.getLogger("runtime.engine")


class AsyncEngine:
    """A `Backend` (runtime.backends.base) that runs a model. `start` loads it; until then nothing but the
    tokenizer is read."""

    def __init__(
        self,
        config: EngineConfig,
        transport: Transport | None = None,
        *,
        strangers: bool = False,
    ) -> None:
        """`strangers`: constraints come from callers that are not trusted, and are tried in processes that can be killed."""
        self.config = config
        if config.stream_interval < 1:
            raise InvalidRequest(f"--stream-interval {config.stream_interval}: give at least 1")
        find_folder(config.folder)
        ids_only = config.skip_tokenizer_init
        self.tokenizer = IdsOnly() if ids_only else Tokenizer(config.tokenizer_path or config.folder)
        if transport is None:
            from runtime.engine.transport import ThreadTransport

            transport = ThreadTransport(config)
        self.transport = transport
        self._constraints = ConstraintCompiler(
            config.tokenizer_path or config.folder,
            self.tokenizer.ends,
            whitespace=config.constrained_json_whitespace,
            objects=config.constrained_json_objects,
        )
        self._workers = (
            workers_for(config.tokenizer_path or config.folder, self.tokenizer.ends, config)
            if strangers and not ids_only and not config.is_embedding
            else None
        )
        self.info: dict[str, Any] = {}
        self.failure: EngineError | None = None  # for good
        self.down: EngineError | None = None  # until another engine process is ready
        self.latest: dict[str, Any] = {}  # the stats of the last heartbeat; an engine in a thread sends none
        self.restarts = 0
        self.live = Live()
        self._calls: dict[str, Call] = {}
        self._asked: dict[int, Future[dict[str, Any]]] = {}
        self._tickets = itertools.count(1)
        self._names = itertools.count(1)
        self._lock = threading.Lock()
        self._closed = False

    def start(self) -> None:
        """Load the model; blocks, and does nothing the second time. Raises EngineError."""
        with self._lock:
            if not self.info:
                self.info = self.transport.start(self._receive).info
                atexit.register(self.shutdown)  # a model thread must not outlive the interpreter

    async def open(self) -> None:
        """`start`, without blocking the event loop."""
        if not self.info:
            await asyncio.to_thread(self.start)

    # -- what it is ---------------------------------------------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            name=f"engine {self.config.name}",
            score=self.tokenizer.has_text,
            prefill=True,
            tokens=True,
            samples=True,
            logprobs=True,
            constraints=frozenset(KINDS if self.tokenizer.has_text else ()),
            context=self.info.get("context_length"),
        )

    @property
    def model(self) -> ModelInfo:
        template = self.tokenizer.chat_template
        return ModelInfo(model_path=self.config.folder, jinja=template.source if template else None)

    # -- calls --------------------------------------------------------------------------------------------

    def tokens_of(self, request: Generate | Embed) -> list[int]:
        """The prompt's ids. Raises InvalidRequest for what can be seen to be wrong without running it."""
        self.check_task(isinstance(request, Embed))
        request.sampling.check()
        if request.logprobs is not None:
            request.logprobs.check()
        if not -(2**31) <= request.priority < 2**31:
            raise InvalidRequest(
                f"priority is {request.priority}, which 32 bits do not hold", param="priority"
            )
        if request.sampling.stop and not self.tokenizer.has_text:
            raise Unsupported(
                "stop strings need a tokenizer, and the engine was started with --skip-tokenizer-init; "
                "give stop_token_ids",
                param="stop",
            )
        size = self.info["vocab_size"]
        named = (*request.sampling.stop_token_ids, *request.sampling.logit_bias)
        for ids in (named, *(s.ids for s in request.prompt if isinstance(s, TokenSegment))):
            outside = next((t for t in ids if not 0 <= t < size), None)
            if outside is not None:
                raise InvalidRequest(
                    f"token id {outside} is outside the vocabulary (0 to {size - 1})",
                    param="stop_token_ids" if outside in request.sampling.stop_token_ids else None,
                )
        context = self.info["context_length"]
        characters = sum(len(s.text) for s in request.prompt if isinstance(s, TextSegment))
        if characters > context * self.tokenizer.longest:  # not worth the time that its tokens would take
            return self._too_long(-(-characters // self.tokenizer.longest), context)
        tokens = self.tokenizer.encode_prompt(request.prompt)
        if not tokens:
            raise InvalidRequest("the prompt is empty; give at least one token", param="prompt")
        if len(tokens) >= context:
            return self._too_long(len(tokens), context)
        return tokens

    def check_task(self, vectors: bool) -> None:
        """Raises Unsupported if the model makes vectors where text is asked for, or the other way round."""
        task = self.info["task"]
        if vectors and task == "generate":
            raise Unsupported(
                f"{self.config.name!r} is served as a model that generates text; start the server with --is-embedding "
                "to have its embeddings",
                param="model",
            )
        if not vectors and task != "generate":
            kind, remedy = {
                "embed": (
                    "embeddings",
                    "; start the server with a model that generates, without --is-embedding",
                ),
                "reward": ("scores of a reward model", "; serve a model that generates"),
            }[task]
            raise Unsupported(f"{self.config.name!r} gives {kind}, no text{remedy}", param="model")

    async def ids_of(self, request: Generate | Embed) -> list[int]:
        """`tokens_of`; a long text is tokenised beside the event loop, which serves others meanwhile."""
        size = sum(len(s.text) for s in request.prompt if isinstance(s, TextSegment))
        if size < LONG_TEXT:
            return self.tokens_of(request)
        return await asyncio.to_thread(self.tokens_of, request)

    async def check_constraint(self, request: Generate | Embed) -> None:
        """Raises InvalidRequest if the constraint cannot be enforced exactly, or not within max_new_tokens."""
        s = request.sampling
        if s.constraint is None:
            return
        if not self.tokenizer.has_text:
            raise Unsupported("constraints need a tokenizer; start the engine without --skip-tokenizer-init")
        began = perf_counter()
        try:
            if self._workers is not None:
                await self._workers.check(s.constraint, s.max_new_tokens)
            else:
                await asyncio.to_thread(self._constraints.check, s.constraint, s.max_new_tokens)
        finally:
            self.live.counted.compile.observe(perf_counter() - began)

    def prepare_constraints(self, constraints: Sequence[Constraint]) -> None:
        """See `PreparesConstraints`. The loop finds the tables in the store."""
        if not self.tokenizer.has_text:
            return
        work = threading.Thread(
            target=self._constraints.prepare, args=(tuple(constraints),), name="constraints", daemon=True
        )
        work.start()

    @staticmethod
    def _too_long(tokens: int, context: int) -> list[int]:
        from runtime.errors import TooLong

        raise TooLong(
            f"The input ({tokens} tokens) is longer than the model's context length ({context} tokens); shorten it",
            param="prompt",
        )

    async def embed(self, requests: Sequence[Embed]) -> list[Embedded]:
        """The vectors of prompts, in their order. Raises the EngineError of the first that fails."""
        named = [msgspec.structs.replace(r, id=str(i)) for i, r in enumerate(requests)]
        found: dict[int, Embedded] = {}
        async for delta in self.generate(named):
            found[int(delta.id)] = embedded(delta)
        return [found[i] for i in range(len(named))]

    async def generate(
        self, requests: Sequence[Generate | Embed], *, backlog: int | None = None
    ) -> AsyncIterator[Delta]:
        """See `Backend.generate`; calls for a vector are answered with one `Embedded`. A reader that leaves more than
        `backlog` deltas waiting is cancelled."""
        await self.open()
        call = Call(asyncio.get_running_loop(), backlog)
        messages: list[In] = []
        for request in requests:
            try:
                tokens = await self.ids_of(request)
                await self.check_constraint(request)
            except EngineError as error:
                call.tell(self._refusal(request, error))
                call.answers[f"refused {len(call.answers)}"] = REFUSED
                continue
            messages += self._adds(call, request, tokens)
        left = len(call.answers)
        try:
            self._send(messages)
            while left:
                delta = await call.get()
                if isinstance(delta, EngineError):
                    raise type(delta)(delta.message)  # many calls are told by the same object
                left -= delta.finish is not None
                yield delta
        finally:
            self._abandon(call)

    def _adds(self, call: Call, request: Generate | Embed, tokens: list[int]) -> list[In]:
        """Register the samples of a request, and what starts them."""
        sampling = request.sampling
        seed = sampling.seed
        if seed is None:
            seed = self.config.random_seed
        if seed is None:
            seed = secrets.randbits(62)
        out: list[In] = []
        for index in range(sampling.n):
            id = f"{next(self._names)}"
            call.answers[id] = Answer(self.tokenizer, request, id, index, tokens, self.config.stream_interval)
            self._calls[id] = call
            self.live.begin(id, tokens, sampling.max_new_tokens)
            out.append(
                Add(
                    id,
                    tokens,
                    sampling,
                    child_seed(seed, index),
                    request.logprobs,
                    request.priority,
                    request.salt,
                    isinstance(request, Embed),
                )
            )
        return out

    @staticmethod
    def _refusal(request: Generate | Embed, error: EngineError) -> Delta:
        finish = Finish(type="error", matched=error.code, message=error.message)
        return Delta(id=request.id, finish=finish, usage=Usage())

    def _send(self, messages: list[In]) -> None:
        if (error := self.failure or self.down) is not None:
            raise type(error)(error.message)
        if self._closed:
            raise EngineError("the engine is closed")
        if messages:
            self.transport.send(messages)

    def abort(self, request: Generate | Embed) -> None:
        """End the samples of a request that runs: each answers once more, with what it has, as finished by `abort`."""
        if not self._closed and self.failure is None:
            calls = list(self._calls.items())
            if ended := [End(id) for id, call in calls if call.answers[id].request is request]:
                self.transport.send([*ended])

    def _abandon(self, call: Call) -> None:
        """End what still runs of a call whose reader has left."""
        ended: list[In] = []
        for id, answer in call.answers.items():
            if self._calls.pop(id, None) is not None and not answer.done:
                ended.append(End(id))
                self.live.end(id, "abort")
        if ended and not self._closed and self.failure is None and self.down is None:
            self.transport.send(ended)

    async def score(self, request: Score) -> ScoreResult:
        """Log-probabilities of the choices. The tokens of prompt and choice are those of the whole text, so the prompt's
        last token counts with the choice if it is tokenised differently there (token healing)."""
        await self.open()
        return await score(self.generate, self.tokenizer, request)

    async def prefill(self, prompt: Prompt) -> None:
        """Compute a prefix and leave it in the cache."""
        segments: tuple[Segment, ...] = tuple(prompt)
        if not segments:
            return
        request = Generate(prompt=segments, sampling=SamplingParams(max_new_tokens=0))
        async for _ in self.generate([request]):
            pass

    async def ask(self, what: str, value: str = "") -> dict[str, Any]:
        """What the engine loop answers. Raises the EngineError that it answers with."""
        await self.open()
        ticket = next(self._tickets)
        future: Future[dict[str, Any]] = Future()
        self._asked[ticket] = future
        try:
            self._send([Ask(ticket, what, value)])
            return await asyncio.wrap_future(future)
        finally:
            self._asked.pop(ticket, None)

    async def flush_cache(self) -> bool:
        return bool((await self.ask("flush"))["flushed"])

    async def update_weights(self, model_path: str, load_format: str = "auto") -> None:
        """Put the weights of another folder in the place of the model's; its name and its tokenizer stay.

        What runs ends first, what comes meanwhile waits. Raises ModelError, and the earlier weights stay, for those of
        another architecture and those that cannot be read; Conflict if another update is under way.
        """
        value = msgspec.json.encode(Weights(model_path, load_format)).decode()
        await self.ask("update_weights", value)
        self.config = self.transport.config = dataclasses.replace(
            self.config,
            model_path=model_path,
            load_format=load_format,
            served_model_name=self.config.name,
            tokenizer_path=self.config.tokenizer_path or self.config.folder,
        )

    async def stats(self) -> dict[str, Any]:
        """Use of the KV pool and of the seats."""
        return await self.ask("stats")

    async def check(self) -> dict[str, Any]:
        """A walk over all that holds pages and seats: `problem` is None if it adds up. Takes time on a large cache; `calls`
        counts the samples that somebody still waits for."""
        return {**await self.ask("check"), "calls": len(self._calls)}

    async def prefixes(self) -> list[dict[str, Any]]:
        """The largest cached prefixes: their first tokens, how many there are, and who uses them."""
        found: list[dict[str, Any]] = (await self.ask("prefixes"))["prefixes"]
        return found

    def end_sample(self, id: str) -> bool:
        """End one running sample, named as in `live.running()`: its caller gets what it has, finished by `abort`.
        False if there is none."""
        if id not in self._calls or self._closed or self.failure is not None:
            return False
        self.transport.send([End(id)])
        return True

    async def close(self) -> None:
        await asyncio.to_thread(self.shutdown)

    def shutdown(self) -> None:
        """End the loop; running calls end with an error."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.shutdown)
        if self._workers is not None:
            self._workers.close()
        self._fail(EngineError("the engine was closed"))
        self.transport.close()

    # -- what the loop says -------------------------------------------------------------------------------

    def _receive(self, messages: list[Out]) -> None:
        """Called from the transport's thread."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Call, Output | Refused]]] = {}
        arrived: list[tuple[str, int]] = []
        for m in messages:
            if isinstance(m, (Output, Refused)):
                if (call := self._calls.get(m.id)) is None:
                    continue
                call.held.append((call, m))
                if isinstance(m, Output):
                    arrived.append((m.id, len(m.tokens)))
                    if m.finish is None and not call.answers[m.id].eager:
                        continue  # nobody would hear of it before the end; waking the caller's loop costs a token's time
                by_loop.setdefault(call.loop, []).extend(call.held)
                call.held = []
            elif isinstance(m, Reply):
                future = self._asked.pop(m.ticket, None)
                if future is None or not future.set_running_or_notify_cancel():
                    continue
                if m.code:
                    future.set_exception(error_of(m.code, m.message))
                else:
                    future.set_result(m.value)
            elif isinstance(m, Beat):
                self.latest = m.stats
            elif isinstance(m, Lost):
                self.down = EngineDead("the engine is being started again; try again in a few seconds")
                self._fail(EngineDead(f"{m.message}; the request was lost with it, send it again"))
            elif isinstance(m, Ready):
                self.info, self.latest, self.down = m.info, {}, None
                self.restarts += 1
            elif isinstance(m, Failed):
                self.failure = error_of(m.code, m.message)
                self._fail(self.failure)
        self.live.outputs(arrived)
        for loop, items in by_loop.items():
            try:
                loop.call_soon_threadsafe(self._deliver, items)
            except RuntimeError:  # the caller's event loop is closed
                for call, _ in items:
                    self._abandon(call)

    def _deliver(self, items: list[tuple[Call, Output | Refused]]) -> None:
        ended: list[In] = []
        for call, m in items:
            answer = call.answers[m.id]
            if answer.done:
                continue
            delta, stopped = self._told(answer, m)
            if stopped:
                ended.append(End(m.id))
            if answer.done:
                self._calls.pop(m.id, None)
                cached = delta.usage.cached_tokens if delta and delta.usage else 0
                self.live.end(m.id, delta.finish.type if delta and delta.finish else "error", cached)
            if delta is not None and not call.put(delta):
                self.live.counted.slow_clients += 1
        if ended and not self._closed:
            self.transport.send(ended)

    @staticmethod
    def _told(answer: Answer, m: Output | Refused) -> tuple[Delta | None, bool]:
        """What the caller hears of it, and whether the engine must be told to stop. A mistake in here ends one sample."""
        if isinstance(m, Refused):
            return answer.fail(m.code, m.message), False
        if m.finish is not None and m.finish.type == "error":
            return answer.fail("internal_error", m.finish.message or "the engine failed"), False
        try:
            return answer.feed(m)
        except Exception:
            log.exception("the output of a request cannot be turned into text")
            return answer.fail("internal_error", "the answer could not be turned into text"), True

    def end_calls(self, error: EngineError) -> None:
        """End what runs with an error that its callers are told; the engine itself goes on."""
        ended: list[In] = [End(id) for id in list(self._calls)]
        self._fail(error)
        if ended and not self._closed and self.failure is None and self.down is None:
            self.transport.send(ended)

    def _fail(self, error: EngineError) -> None:
        for name in list(self._calls):
            self.live.end(name, "error")
        calls = {id(c): c for c in list(self._calls.values())}
        self._calls.clear()
        for call in calls.values():
            try:
                call.loop.call_soon_threadsafe(call.tell, error)
            except RuntimeError:
                continue
        for ticket in list(self._asked):
            future = self._asked.pop(ticket, None)
            if future is not None and future.set_running_or_notify_cancel():
                future.set_exception(error)


def embedded(delta: Delta) -> Embedded:
    """The answer to an `Embed` call. Raises the EngineError that it failed with, Aborted if somebody ended it."""
    if isinstance(delta, Embedded):
        return delta
    finish = delta.finish
    if finish is not None and finish.type == "error":
        raise error_of(str(finish.matched), finish.message or "the engine failed")
    raise Aborted("the request was aborted before its vector was computed")
