"""A backend that counts what its calls took: tokens sent, found in a prefix cache, written."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from runtime.api import Delta, Generate, Prompt, Score, ScoreResult
from runtime.backends.base import Backend, Capabilities, ModelInfo


@dataclass
class Spent:
    """Totals since the beginning. `cached_tokens` are those of `prompt_tokens` that were not computed."""

    calls: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of the prompts' tokens that a cache had."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


class Metered:
    """A backend around `inner`; `spent` are the totals. Scores count as calls, their tokens as sent."""

    def __init__(self, inner: Any) -> None:
        self.inner: Backend = getattr(inner, "endpoint", inner)
        self.spent = Spent()

    @property
    def capabilities(self) -> Capabilities:
        return self.inner.capabilities

    @property
    def model(self) -> ModelInfo:
        return self.inner.model

    async def generate(self, requests: Sequence[Generate]) -> AsyncIterator[Delta]:
        self.spent.calls += len(requests)
        deltas: Any = self.inner.generate(requests)
        async with aclosing(deltas):
            async for delta in deltas:
                if delta.finish is not None and delta.usage is not None:
                    self._count(delta)
                yield delta

    def _count(self, delta: Delta) -> None:
        assert delta.usage is not None
        if delta.index == 0:  # samples share their prompt
            self.spent.prompt_tokens += delta.usage.prompt_tokens
            self.spent.cached_tokens += delta.usage.cached_tokens
        self.spent.completion_tokens += delta.usage.completion_tokens

    async def score(self, request: Score) -> ScoreResult:
        self.spent.calls += 1
        found = await self.inner.score(request)
        self.spent.prompt_tokens += found.prompt_tokens
        return found

    async def prefill(self, prompt: Prompt) -> None:
        await self.inner.prefill(prompt)

    async def flush_cache(self) -> bool:
        return await self.inner.flush_cache()

    async def close(self) -> None:
        await self.inner.close()

    def __getattr__(self, name: str) -> Any:
        if name != "spans":  # of a timeline inside
            raise AttributeError(name)
        return self.inner.spans  # type: ignore[attr-defined]
