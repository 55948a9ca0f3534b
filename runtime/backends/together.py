"""Calls to a provider, several at once: each is a stream of Deltas of its own, merged into one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from runtime.api import Delta, Finish, Generate


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
