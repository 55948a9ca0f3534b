"""What the page shows of a server: a second-by-second history, latencies, running samples, cached prefixes.

One task of the application takes a sample of the engine each second; a reader of the page costs nothing but the JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from runtime.engine.async_engine import AsyncEngine
from runtime.errors import EngineError
from runtime.server.context import Context

SECONDS = 300  # of history
WINDOW = 60.0  # seconds that the latencies are of
_PREFIX_AGE = 3.0  # seconds before the tree is looked at again
_SHOWN = 200  # running samples in one answer


class History:
    """Samples of one engine, the newest last: rates of the second before, and what was in use at that moment."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self.samples: deque[dict[str, float]] = deque(maxlen=SECONDS)
        self._before: tuple[float, int, int, int, int] | None = None
        self._prefixes: list[dict[str, Any]] = []
        self._prefixes_at = float("-inf")

    async def run(self) -> None:
        """Take a sample each second, for ever. An engine that is down leaves a gap."""
        while True:
            with contextlib.suppress(EngineError):
                await self.take()
            await asyncio.sleep(1.0)

    async def take(self) -> None:
        """One sample, now."""
        stats = await self._engine.stats()
        totals = self._engine.live.totals()
        now = time.monotonic()
        counts = (totals.output_tokens, totals.prompt_tokens, stats["reused_tokens"], stats["prompt_tokens"])
        before = self._before
        self._before = (now, *counts)
        if before is None or any(c < b for c, b in zip(counts, before[1:], strict=True)):
            return  # the first sample of an engine has no second before it
        passed = max(now - before[0], 1e-3)
        output, prompt, reused, computed = (c - b for c, b in zip(counts, before[1:], strict=True))
        kv = stats["kv_cache"]
        self.samples.append(
            {
                "at": time.time(),
                "output": output / passed,
                "prompt": prompt / passed,
                "running": stats["num_running_reqs"],
                "waiting": stats["num_waiting_reqs"],
                "used": kv["used_tokens"] / kv["total_tokens"],
                "cached": kv["cached_tokens"] / kv["total_tokens"],
                "hits": reused / computed if computed else 0.0,
            }
        )

    async def prefixes(self) -> list[dict[str, Any]]:
        """The largest cached prefixes, with text; not older than a few seconds."""
        if time.monotonic() - self._prefixes_at > _PREFIX_AGE:
            found = await self._engine.prefixes()
            self._prefixes_at = time.monotonic()
            shown = self._engine.tokenizer.shown
            self._prefixes = [{**p, "head": shown(p["head"])} for p in found]
        return self._prefixes


HISTORY: web.AppKey[History] = web.AppKey("history", History)


async def watch(app: web.Application, history: History) -> AsyncIterator[None]:
    """For `cleanup_ctx`: takes samples while the application lives."""
    task = asyncio.create_task(history.run(), name="history")
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def state_of(context: Context, history: History) -> dict[str, Any]:
    """Everything that the page shows. Raises EngineError while the engine does not answer."""
    engine = context.engine
    stats = await engine.stats()
    live, totals, now = engine.live.running(), engine.live.totals(), time.monotonic()
    return {
        "model": {
            "name": context.model_name,
            "architecture": engine.info["architecture"],
            "device": engine.info["device"],
            "dtype": engine.info["dtype"],
            "context_length": engine.info["context_length"],
            "images": engine.capabilities.images,
            "generates": engine.info["task"] == "generate",
        },
        "now": stats,
        "totals": {
            "requests": totals.requests,
            "finished": totals.finished,
            "aborted": totals.aborted,
            "failed": totals.failed,
            "prompt_tokens": totals.prompt_tokens,
            "output_tokens": totals.output_tokens,
        },
        "latency": {"window": WINDOW, **engine.live.percentiles(WINDOW)},
        "history": list(history.samples),
        "running": [
            {
                "id": r.id,
                "prompt_tokens": r.prompt_tokens,
                "tokens": r.tokens,
                "limit": r.limit,
                "seconds": now - r.started,
                "first_token": None if r.first is None else r.first - r.started,
                "tail": engine.tokenizer.shown(r.tail),
            }
            for r in live[:_SHOWN]
        ],
        "running_total": len(live),
        "prefixes": await history.prefixes(),
    }
