"""A backend of the user's own, written as plain blocking methods.

A program runs on what is asynchronous (runtime/backends/base.py); `endpoint` makes that of these methods, with each call in a
thread of its own. `generate` must be written; the rest is for what the model behind it can do besides.
"""

from __future__ import annotations

import asyncio
import contextvars
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from runtime.api import (
    ChoiceScore,
    Delta,
    Finish,
    Generate,
    ImageSegment,
    Prompt,
    SamplingParams,
    Score,
    ScoreResult,
    TokenLogprob,
    Usage,
    render,
)
from runtime.backends.base import Capabilities, ModelInfo
from runtime.backends.provider import together
from sglc.lang.chat_template import (
    ChatTemplate,
    chat_template_registry,
    get_chat_template,
    register_chat_template,
)
from sglc.lang.choices import ChoicesDecision, ChoicesSamplingMethod, token_length_normalized

CALLS_AT_ONCE = 64


@dataclass(frozen=True)
class Asked:
    """The state that a method is asked to go on from."""

    text_: str
    messages_: list[dict[str, Any]]
    images_: list[bytes]


class BaseBackend(ABC):
    """Subclass it and give an instance to `run(backend=...)`.

    chat_template  what roles are written with
    constraints    kinds of constraint ("regex", "json_schema") that `generate` enforces; others are refused before it is called
    """

    constraints: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.chat_template: ChatTemplate = get_chat_template("default")

    @abstractmethod
    def generate(self, s: Asked, sampling_params: SamplingParams) -> tuple[str, dict[str, Any]]:
        """The answer, and of its meta info what is known: prompt_tokens, completion_tokens, finish_reason."""

    def generate_stream(
        self, s: Asked, sampling_params: SamplingParams
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """The answer in chunks, the last with its meta info; in one, unless this is written."""
        yield self.generate(s, sampling_params)

    def select(
        self,
        s: Asked,
        choices: Sequence[str],
        temperature: float,
        choices_method: ChoicesSamplingMethod,
    ) -> ChoicesDecision:
        """The choice; programs that select are refused unless this is written."""
        raise NotImplementedError(f"{type(self).__name__} has no select(...)")

    def cache_prefix(self, prefix_str: str) -> None:
        """Compute a prefix and keep it; nothing unless this is written."""
        return None

    def get_model_name(self) -> str:
        return type(self).__name__

    def get_chat_template(self) -> ChatTemplate:
        return self.chat_template

    def get_server_args(self) -> dict[str, Any] | None:
        return None

    def flush_cache(self) -> bool:
        return True

    def shutdown(self) -> None:
        """Free what is held."""
        return None

    @cached_property
    def endpoint(self) -> Threaded:
        """What programs run on."""
        return Threaded(self)


class Threaded:
    """A `runtime.backends.base.Backend` of blocking methods."""

    def __init__(self, own: BaseBackend) -> None:
        template = own.get_chat_template()
        if chat_template_registry.get(template.name) != template:
            register_chat_template(template)
        self._own = own
        self._threads = ThreadPoolExecutor(CALLS_AT_ONCE, thread_name_prefix="sglc-backend")
        self.model = ModelInfo(model_path=own.get_model_name(), chat_template=template.name)
        self.capabilities = Capabilities(
            name=own.get_model_name(),
            score=type(own).select is not BaseBackend.select,
            prefill=type(own).cache_prefix is not BaseBackend.cache_prefix,
            images=True,
            constraints=own.constraints,
        )

    async def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._threads, context.run, function, *args)

    def generate(self, requests: Sequence[Generate]) -> AsyncIterator[Delta]:
        return together(requests, self._ask)

    async def _ask(self, request: Generate) -> AsyncIterator[Delta]:
        asked = _asked(request.prompt, request)
        if not request.stream:
            text, meta = await self._call(self._own.generate, asked, request.sampling)
            yield _last(request.id, text, meta)
            return
        chunks = self._own.generate_stream(asked, request.sampling)
        meta = {}
        while (chunk := await self._call(next, chunks, None)) is not None:
            text, meta = chunk
            if text:
                yield Delta(id=request.id, text=text)
        yield _last(request.id, "", meta)

    async def score(self, request: Score) -> ScoreResult:
        """The choice of `select` has probability one; what a method makes of it is that choice."""
        asked = _asked(request.prompt, None)
        decided = await self._call(
            self._own.select, asked, list(request.choices), 0.0, token_length_normalized
        )
        found = []
        for number, choice in enumerate(request.choices):
            token = (TokenLogprob(0.0 if choice == decided.decision else float("-inf"), number, choice),)
            bare = (TokenLogprob(None, number, choice),) if request.unconditional else None
            found.append(ChoiceScore(token, bare))
        return ScoreResult(tuple(found))

    async def prefill(self, prompt: Prompt) -> None:
        await self._call(self._own.cache_prefix, render(prompt))

    async def flush_cache(self) -> bool:
        return await self._call(self._own.flush_cache)

    async def server_info(self) -> dict[str, Any] | None:
        return await self._call(self._own.get_server_args)

    async def close(self) -> None:
        await self._call(self._own.shutdown)
        self._threads.shutdown(wait=False)


def _asked(prompt: Prompt, request: Generate | None) -> Asked:
    messages = () if request is None else request.messages or ()
    images = [segment.data for segment in prompt if isinstance(segment, ImageSegment)]
    return Asked(render(prompt), [{"role": m.role, "content": m.content} for m in messages], images)


def _last(id: str, text: str, meta: dict[str, Any]) -> Delta:
    reason = meta.get("finish_reason") or {}
    kind = reason.get("type") if isinstance(reason, dict) else reason
    finish = Finish("length") if kind == "length" else Finish("stop")
    usage = Usage(meta.get("prompt_tokens", 0), meta.get("completion_tokens", 0))
    return Delta(id=id, text=text, finish=finish, usage=usage)
