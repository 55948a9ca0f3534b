"""What a request must pass before the engine loop hears of it: its prompt becomes ids, its constraint is tried."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from time import perf_counter
from typing import Any

from runtime.api import Constraint, Embed, Generate, SamplingParams, TextSegment, TokenSegment
from runtime.config import EngineConfig
from runtime.constrain.compiler import ConstraintCompiler
from runtime.constrain.workers import workers_for
from runtime.errors import InvalidRequest, TooLong, Unsupported
from runtime.metrics import Histogram
from runtime.tokenizer.ids_only import IdsOnly
from runtime.tokenizer.tokenizer import LONG_TEXT, Tokenizer


class Intake:
    """Checks that need the tokenizer; `info` is what the engine loop says of its model (`Ready`)."""

    def __init__(
        self, config: EngineConfig, tokenizer: Tokenizer | IdsOnly, compiled: Histogram, *, strangers: bool
    ) -> None:
        """`compiled` counts the seconds that constraints take; `strangers`: see `AsyncEngine`."""
        self._name = config.name
        self._tokenizer = tokenizer
        self._compiled = compiled
        folder = config.tokenizer_path or config.folder
        self._constraints = ConstraintCompiler(
            folder,
            tokenizer.ends,
            whitespace=config.constrained_json_whitespace,
            objects=config.constrained_json_objects,
        )
        self._prepared: set[Constraint] = set()
        self._workers = (
            workers_for(folder, tokenizer.ends, config)
            if strangers and tokenizer.has_text and not config.is_embedding
            else None
        )

    def check_task(self, vectors: bool, info: dict[str, Any]) -> None:
        """See `AsyncEngine.check_task`."""
        task = info["task"]
        if vectors and task == "generate":
            raise Unsupported(
                f"{self._name!r} is served as a model that generates text; start the server with --is-embedding "
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
            raise Unsupported(f"{self._name!r} gives {kind}, no text{remedy}", param="model")

    async def ids_of(self, request: Generate | Embed, info: dict[str, Any]) -> list[int]:
        """The prompt's ids. A long text is tokenised beside the event loop, which serves others meanwhile.

        Raises InvalidRequest for what can be seen to be wrong without running it.
        """
        size = sum(len(s.text) for s in request.prompt if isinstance(s, TextSegment))
        if size < LONG_TEXT:
            return self._tokens_of(request, info)
        return await asyncio.to_thread(self._tokens_of, request, info)

    def _tokens_of(self, request: Generate | Embed, info: dict[str, Any]) -> list[int]:
        self.check_task(isinstance(request, Embed), info)
        request.sampling.check()
        if request.logprobs is not None:
            request.logprobs.check()
        if not -(2**31) <= request.priority < 2**31:
            raise InvalidRequest(
                f"priority is {request.priority}, which 32 bits do not hold", param="priority"
            )
        if request.sampling.stop and not self._tokenizer.has_text:
            raise Unsupported(
                "stop strings need a tokenizer, and the engine was started with --skip-tokenizer-init; "
                "give stop_token_ids",
                param="stop",
            )
        size = info["vocab_size"]
        named = (*request.sampling.stop_token_ids, *request.sampling.logit_bias)
        for ids in (named, *(s.ids for s in request.prompt if isinstance(s, TokenSegment))):
            outside = next((t for t in ids if not 0 <= t < size), None)
            if outside is not None:
                raise InvalidRequest(
                    f"token id {outside} is outside the vocabulary (0 to {size - 1})",
                    param="stop_token_ids" if outside in request.sampling.stop_token_ids else None,
                )
        context = info["context_length"]
        characters = sum(len(s.text) for s in request.prompt if isinstance(s, TextSegment))
        if characters > context * self._tokenizer.longest:  # not worth the time that its tokens would take
            return self._too_long(-(-characters // self._tokenizer.longest), context)
        tokens = self._tokenizer.encode_prompt(request.prompt)
        if not tokens:
            raise InvalidRequest("the prompt is empty; give at least one token", param="prompt")
        if len(tokens) >= context:
            return self._too_long(len(tokens), context)
        return tokens

    @staticmethod
    def _too_long(tokens: int, context: int) -> list[int]:
        raise TooLong(
            f"The input ({tokens} tokens) is longer than the model's context length ({context} tokens); shorten it",
            param="prompt",
        )

    async def check_constraint(self, s: SamplingParams) -> None:
        """See `AsyncEngine.check_constraint`."""
        if s.constraint is None:
            return
        if not self._tokenizer.has_text:
            raise Unsupported("constraints need a tokenizer; start the engine without --skip-tokenizer-init")
        if self._workers is None:
            if s.constraint in self._prepared:  # once: the loop finds the table in the store then
                self._prepared.discard(s.constraint)
                await asyncio.to_thread(self._constraints.check, s.constraint, s.max_new_tokens)
            return  # the loop compiles it, and refuses what it has to
        began = perf_counter()
        try:
            await self._workers.check(s.constraint, s.max_new_tokens)
        finally:
            self._compiled.observe(perf_counter() - began)

    def prepare_constraints(self, constraints: Sequence[Constraint]) -> None:
        """See `AsyncEngine.prepare_constraints`."""
        if not self._tokenizer.has_text:
            return
        self._prepared.update(constraints)
        work = threading.Thread(
            target=self._constraints.prepare, args=(tuple(constraints),), name="constraints", daemon=True
        )
        work.start()

    def close(self) -> None:
        if self._workers is not None:
            self._workers.close()
