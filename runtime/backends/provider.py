"""What the backends of all model providers have in common: several calls at once, usage, and what none of them gives.

Each call is a stream of Deltas of its own; they are merged into one.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from runtime.api import Delta, Finish, Generate, Message, Prompt, Score, ScoreResult, Usage
from runtime.backends.base import Capabilities, ModelInfo
from runtime.backends.retries import Retries
from runtime.backends.targets import TARGETS
from runtime.errors import InvalidRequest


@dataclass
class TokenUsage:
    """Tokens that a provider has counted since the last `reset`."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    def reset(self) -> None:
        self.prompt_tokens = self.completion_tokens = 0


Ask = Callable[[Generate], AsyncIterator[Delta]]


async def together(requests: Sequence[Generate], ask: Ask) -> AsyncIterator[Delta]:
    """The Deltas of all requests as they come. An error of one ends that one; when the reader leaves, all are cancelled."""
    queue: asyncio.Queue[Delta | None] = asyncio.Queue()

    async def one(request: Generate) -> None:
        try:
            async for delta in ask(request):
                queue.put_nowait(delta)
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            for index in range(request.sampling.n):
                queue.put_nowait(Delta(id=request.id, index=index, finish=Finish("error", message=told)))
        finally:
            queue.put_nowait(None)

    tasks = [asyncio.create_task(one(r)) for r in requests]
    try:
        left = len(tasks)
        while left:
            delta = await queue.get()
            if delta is None:
                left -= 1
            else:
                yield delta
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Provider(ABC):
    """A backend of one model of a provider; a subclass asks for one answer in `ask`.

    target   its name in TARGETS; `changes` are what this model can or cannot do beyond it
    retries  when a call is sent again; the vendor's client must not do so itself
    """

    def __init__(
        self, target: str, model_name: str, chat_template: str, retries: Retries, **changes: Any
    ) -> None:
        self.retries = retries
        self.model_name = model_name
        self.token_usage = TokenUsage()
        self.model = ModelInfo(model_path=model_name, chat_template=chat_template)
        self.capabilities: Capabilities = msgspec.structs.replace(
            TARGETS[target], name=f"{target} {model_name}", **changes
        )

    @abstractmethod
    def ask(self, request: Generate) -> AsyncIterator[Delta]:
        """The Deltas of one call."""

    def generate(self, requests: Sequence[Generate]) -> AsyncIterator[Delta]:
        return together(requests, self.ask)

    def count(self, prompt: int | None, completion: int | None, cached: int | None) -> Usage:
        """Add what an answer took to `token_usage`; None is what the provider does not tell."""
        found = Usage(prompt or 0, completion or 0, cached or 0)
        self.token_usage.prompt_tokens += found.prompt_tokens
        self.token_usage.completion_tokens += found.completion_tokens
        return found

    async def score(self, request: Score) -> ScoreResult:
        raise InvalidRequest(
            f"{self.capabilities.name} gives no log-probabilities of given choices", param="choices"
        )

    async def prefill(self, prompt: Prompt) -> None:
        """A provider decides itself what it keeps."""
        return None

    async def flush_cache(self) -> bool:
        return True


def conversation(request: Generate) -> tuple[Message, ...]:
    """The messages of a call to a chat model. Raises InvalidRequest if the program has none."""
    if request.messages is None:
        raise InvalidRequest(
            "a chat model takes a conversation: write sgl.user(...) and sgl.assistant(sgl.gen(...))"
        )
    return request.messages


def missing(package: str, extra: str) -> InvalidRequest:
    """The error for a client that is not installed."""
    return InvalidRequest(
        f"this backend needs the package {package}: pip install 'sglc[{extra}]'", param="backend"
    )


def inline_image(part: Any) -> tuple[str, str] | None:
    """(media type, base64 text) of an image part of a message; None for other parts."""
    if part.get("type") != "image_url":
        return None
    head, _, data = part["image_url"]["url"].partition(";base64,")
    return head.removeprefix("data:"), data
