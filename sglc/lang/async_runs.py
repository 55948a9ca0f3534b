"""Programs under asyncio: what runs them for callers that may not block runs in a thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sglc.lang.state import ProgramState


class AsyncRuns:
    """`arun` and `arun_batch` for what has `run` and `run_batch`."""

    run: Callable[..., ProgramState]
    run_batch: Callable[..., list[Any]]

    async def arun(self, *args: Any, **kwargs: Any) -> ProgramState:
        """`run` for asyncio; the state is finished when it returns."""
        import asyncio

        state = await asyncio.to_thread(self.run, *args, **kwargs)
        if not kwargs.get("stream"):
            await asyncio.to_thread(state.sync)
        return state

    async def arun_batch(self, batch_kwargs: Sequence[Any], **kwargs: Any) -> list[Any]:
        """`run_batch` for asyncio."""
        import asyncio

        return await asyncio.to_thread(self.run_batch, batch_kwargs, **kwargs)
