"""The asyncio facade: text in, text out, over an engine loop in a thread or in a process.

Leaving an iterator early ends its requests.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import secrets
from collections.abc import AsyncIterator, Sequence

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
    Usage,
)
from runtime.backends.base import Capabilities, ModelInfo
from runtime.config import EngineConfig, find_folder
from runtime.constrain.compiler import KINDS
from runtime.engine.call import REFUSED, Call
from runtime.engine.intake import Intake
from runtime.engine.loop_client import LoopClient
from runtime.engine.messages import Add, Weights
from runtime.engine.score import score
from runtime.engine.text import Answer
from runtime.engine.transport import Transport, error_of
from runtime.errors import Aborted, EngineError, InvalidRequest
from runtime.sampling.random import child_seed
from runtime.tokenizer.ids_only import IdsOnly
from runtime.tokenizer.tokenizer import Tokenizer


class AsyncEngine(LoopClient):
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
        if config.stream_interval < 1:
            raise InvalidRequest(f"--stream-interval {config.stream_interval}: give at least 1")
        find_folder(config.folder)
        self.config = config
        self.tokenizer = (
            IdsOnly() if config.skip_tokenizer_init else Tokenizer(config.tokenizer_path or config.folder)
        )
        if transport is None:
            from runtime.engine.transport import ThreadTransport

            transport = ThreadTransport(config)
        super().__init__(transport)
        self._intake = Intake(config, self.tokenizer, self.live.counted.compile, strangers=strangers)
        self._names = itertools.count(1)

    def shutdown(self) -> None:
        """End the loop, and what tries constraints; running calls end with an error."""
        self._intake.close()
        super().shutdown()

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

    def check_task(self, vectors: bool) -> None:
        """Raises Unsupported if the model makes vectors where text is asked for, or the other way round."""
        self._intake.check_task(vectors, self.info)

    async def ids_of(self, request: Generate | Embed) -> list[int]:
        """The prompt's ids. Raises InvalidRequest for what can be seen to be wrong without running it."""
        return await self._intake.ids_of(request, self.info)

    async def check_constraint(self, request: Generate | Embed) -> None:
        """Raises InvalidRequest if the constraint cannot be enforced exactly, or not within max_new_tokens. Of callers who are
        trusted that is left to the loop, which compiles it anyway."""
        await self._intake.check_constraint(request.sampling)

    def prepare_constraints(self, constraints: Sequence[Constraint]) -> None:
        """See `PreparesConstraints`. The loop finds the tables in the store."""
        self._intake.prepare_constraints(constraints)

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
        messages: list[Add] = []
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

    def _adds(self, call: Call, request: Generate | Embed, tokens: list[int]) -> list[Add]:
        """Register the samples of a request, and what starts them."""
        sampling = request.sampling
        seed = sampling.seed
        if seed is None:
            seed = self.config.random_seed
        if seed is None:
            seed = secrets.randbits(62)
        out: list[Add] = []
        for index in range(sampling.n):
            id = f"{next(self._names)}"
            answer = Answer(self.tokenizer, request, id, index, tokens, self.config.stream_interval)
            self._begin(call, answer)
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


def embedded(delta: Delta) -> Embedded:
    """The answer to an `Embed` call. Raises the EngineError that it failed with, Aborted if somebody ended it."""
    if isinstance(delta, Embedded):
        return delta
    finish = delta.finish
    if finish is not None and finish.type == "error":
        raise error_of(str(finish.matched), finish.message or "the engine failed")
    raise Aborted("the request was aborted before its vector was computed")
