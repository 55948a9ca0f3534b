"""A backend that keeps time: every call becomes a span of a Chrome trace, with a lane for each state.

A call belongs to the lane of the call whose prompt and answer it goes on from; where two go on from the same one, the second
opens a lane of its own, as a fork does. The file opens in Perfetto or chrome://tracing.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.api import Delta, Generate, Prompt, Score, ScoreResult, render
from runtime.backends.base import Backend, Capabilities, ModelInfo
from runtime.chrome_trace import ChromeTrace


@dataclass
class Span:
    """One call, in seconds since the timeline began. `first`: when the first text came."""

    name: str
    lane: int
    start: float
    end: float = 0.0
    first: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)


class Timeline:
    """A backend around `inner`; `spans` are the calls that ended, `save` writes them."""

    def __init__(self, inner: Backend) -> None:
        self.inner = inner
        self.spans: list[Span] = []
        self._began = time.perf_counter()
        self._ends: dict[str, int] = {}  # text after an answer -> the lane that it was written in
        self._lanes = 0

    @property
    def capabilities(self) -> Capabilities:
        return self.inner.capabilities

    @property
    def model(self) -> ModelInfo:
        return self.inner.model

    def _now(self) -> float:
        return time.perf_counter() - self._began

    def _begin(self, name: str, prompt: str) -> Span:
        before = max((t for t in self._ends if prompt.startswith(t)), key=len, default=None)
        if before is None:
            lane, self._lanes = self._lanes, self._lanes + 1
        else:
            lane = self._ends.pop(before)  # who comes next from there opens a lane
        return Span(name, lane, self._now(), facts={"prompt_characters": len(prompt)})

    def _end(self, span: Span, text: str, facts: dict[str, Any]) -> None:
        span.end = self._now()
        span.facts |= facts
        self.spans.append(span)
        self._ends[text] = span.lane

    async def generate(self, requests: Sequence[Generate]) -> AsyncIterator[Delta]:
        prompts = {r.id: render(r.prompt) for r in requests}
        spans = {r.id: self._begin(r.label or "gen", prompts[r.id]) for r in requests}
        texts = dict.fromkeys(prompts, "")
        left = {r.id: r.sampling.n for r in requests}
        async for delta in self.inner.generate(requests):
            span = spans[delta.id]
            if delta.text and span.first is None:
                span.first = self._now()
            if delta.index == 0:
                texts[delta.id] += delta.text
            if delta.finish is not None:
                left[delta.id] -= 1
                if not left[delta.id]:
                    facts: dict[str, Any] = {"finish": delta.finish.type}
                    if delta.usage is not None:
                        facts["prompt_tokens"] = delta.usage.prompt_tokens
                        facts["completion_tokens"] = delta.usage.completion_tokens
                        facts["cached_tokens"] = delta.usage.cached_tokens
                    self._end(span, prompts[delta.id] + texts[delta.id], facts)
            yield delta

    async def score(self, request: Score) -> ScoreResult:
        prompt = render(request.prompt)
        span = self._begin("select", prompt)
        result = await self.inner.score(request)
        facts = {
            "choices": len(request.choices),
            "prompt_tokens": result.prompt_tokens,
            "cached_tokens": result.cached_tokens,
        }
        self._end(span, prompt, facts)
        return result

    async def prefill(self, prompt: Prompt) -> None:
        await self.inner.prefill(prompt)

    async def flush_cache(self) -> bool:
        return await self.inner.flush_cache()

    async def close(self) -> None:
        await self.inner.close()

    def trace(self) -> ChromeTrace:
        """The calls so far."""
        found = ChromeTrace("call")
        for lane in range(self._lanes):
            found.lane(lane, f"state {lane}")
        for span in self.spans:
            found.span(span.lane, span.name, span.start, span.end, span.facts)
            if span.first is not None and span.first < span.end:
                found.mark(span.lane, "first text", span.first)
        return found

    def events(self) -> list[dict[str, Any]]:
        """The events of a Chrome trace, times in microseconds."""
        return self.trace().events

    def save(self, path: str | Path) -> None:
        self.trace().save(path)
