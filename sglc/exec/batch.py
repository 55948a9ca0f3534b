"""Many rows of one program: a bounded pool of threads runs the bodies, the engine sees all their calls together."""

from __future__ import annotations

import asyncio
import contextvars
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from runtime.api import TextSegment
from runtime.backends.base import Backend
from sglc.config import global_config
from sglc.exec.interpreter import interpret, session_for
from sglc.exec.loop import event_loop
from sglc.exec.row_groups import LEAST_PREFIX, Warmup, groups_of
from sglc.ir.specs import SamplingFields


def warm_prefix(program: Any, backend: Backend, shared: dict[str, Any]) -> None:
    """Compute the text that all rows begin with, if it is known without running a body that does more than build its state."""
    from sglc.lang.chat_template import chat_template_for
    from sglc.lang.known_prefix import constant_prefix

    if not backend.capabilities.prefill:
        return
    prefix = constant_prefix(program, chat_template_for(backend.model), shared)
    if len(prefix) > LEAST_PREFIX:
        asyncio.run_coroutine_threadsafe(backend.prefill((TextSegment(prefix),)), event_loop()).result()


def interpret_batch(
    program: Any,
    rows: Sequence[dict[str, Any]],
    backend: Backend,
    sampling: SamplingFields,
    *,
    num_threads: int | str,
    progress_bar: bool,
    return_exceptions: bool,
    on_done: Callable[[int, Any], None] | None = None,
) -> list[Any]:
    """Finished states in the rows' order; see `Program.run_batch`."""
    threads = max(96, (os.cpu_count() or 1) * 16) if num_threads == "auto" else int(num_threads)
    threads = min(threads, len(rows))
    groups = groups_of(program, rows if global_config.enable_precache_with_tracing else (), backend)
    warmup = Warmup(groups, backend)
    session = session_for(backend, sampling)
    bar = None
    if progress_bar:
        from tqdm import tqdm

        bar = tqdm(total=len(rows), desc=program.__name__)

    async def warmed(position: int) -> None:
        if (task := warmup.before(position)) is not None:
            await asyncio.wait([task])

    def one(position: int, number: int) -> Any:
        if groups.groups:
            asyncio.run_coroutine_threadsafe(warmed(position), session.loop).result()
        arguments = rows[number]
        state = interpret(program, arguments, backend, sampling, session=session)
        state.sync()
        if bar is not None:
            bar.update()
        return state

    results: list[Any] = [None] * len(rows)
    order = groups.order or tuple(range(len(rows)))
    try:
        if threads == 1:
            for position, number in enumerate(order):
                results[number] = _caught(one, on_done, position, number)
        else:
            with ThreadPoolExecutor(threads, thread_name_prefix="sglc-row") as pool:
                jobs = [
                    pool.submit(contextvars.copy_context().run, _caught, one, on_done, position, number)
                    for position, number in enumerate(order)
                ]
                for number, job in zip(order, jobs, strict=True):
                    results[number] = job.result()
    finally:
        if bar is not None:
            bar.close()
    if not return_exceptions:
        failed = next((r for r in results if isinstance(r, BaseException)), None)
        if failed is not None:
            raise failed
    return results


def _caught(one: Any, done: Callable[[int, Any], None] | None, position: int, number: int) -> Any:
    try:
        found = one(position, number)
    except Exception as error:
        found = error
    if done is not None:
        done(number, found)
    return found
