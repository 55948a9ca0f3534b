"""Compiling kernels side by side, at a start without a kernel cache: one after another they take 18 s, while 15 cores look on.

A rehearsal goes through everything that will be launched. Launches whose kernels are missing are left out, and threads make
these meanwhile; a launch that comes again once its kernel is there computes with whatever the others left, which nobody
reads. Whatever fails here is compiled at its first launch, as ever. Where a start of the same kind has left its
kernels in Triton's cache there is nothing to gain, and a mark beside them says so.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger("runtime.engine")
# It writes ids and places that others look up: left out, they would look anywhere.
_LAUNCHED = ("runtime.kernels.decode_step", "_begin")
_SOURCES = sorted((Path(__file__).parents[1] / "kernels").glob("*.py"))


@dataclass(frozen=True)
class StartKind:
    """Starts that need the same kernels. `mark`: the file that says that they are in the cache; None: nobody can tell."""

    mark: Path | None

    @classmethod
    def of(cls, *facts: object) -> StartKind:
        """`facts`: what, beside the kernels' own text and Triton, decides what is compiled; told apart by how they print."""
        try:
            import triton
            from triton import knobs

            digest = hashlib.sha256(repr((triton.__version__, facts)).encode())
            for source in [Path(__file__), *_SOURCES]:
                digest.update(source.read_bytes())
            return cls(Path(knobs.cache.dir) / f"started-{digest.hexdigest()[:32]}")
        except Exception:
            log.debug("nobody can tell whether kernels are in a cache", exc_info=True)
            return cls(None)

    def seen(self) -> bool:
        try:
            return self.mark is not None and self.mark.exists()
        except OSError:
            return False

    def keep(self) -> None:
        """Its kernels have been launched, so they are in the cache."""
        try:
            if self.mark is not None:
                self.mark.touch()
        except OSError:
            log.debug("%s cannot be written", self.mark, exc_info=True)


def settle_keys() -> None:
    """Find out what the kernels are called in Triton's cache, each after those that it calls.

    Triton 3.6 leaves a callee's constants out of its caller's key unless it has looked at the callee before, so the key of a
    kernel would depend on which was launched first: a rehearsal would make others than a plain start looks for.
    """
    try:
        from triton.runtime.jit import JITCallable

        modules = [import_module(f"runtime.kernels.{source.stem}") for source in _SOURCES]
    except Exception:
        log.debug("kernels of an earlier start may not be found", exc_info=True)
        return
    settled: set[int] = set()

    def settle(function: Any) -> None:
        if id(function) in settled:
            return
        settled.add(id(function))
        plain = function.fn
        for name in plain.__code__.co_names:
            called = plain.__globals__.get(name)
            if isinstance(called, JITCallable):
                settle(called)
        function.cache_key  # noqa: B018  # it keeps it

    for module in modules:
        for value in list(vars(module).values()):
            if isinstance(value, JITCallable):
                settle(value)


def compile_ahead(rehearsal: Callable[[], object], device: torch.device | None) -> int:
    """Kernels that were made. `device`: for which; None: Triton's current one."""
    began = time.perf_counter()
    try:
        with ThreadPoolExecutor(os.cpu_count() or 1, "kernels") as threads:
            found = _missing(
                rehearsal, lambda kernel, variant: threads.submit(_make, kernel, variant, device)
            )
            rehearsed = time.perf_counter()
            made = sum(future.result() for future in found)
    except Exception:
        log.info("kernels are compiled one after another, at their first launches", exc_info=True)
        return 0
    took = rehearsed - began, time.perf_counter() - rehearsed
    log.info("%d kernels made side by side, in a rehearsal of %.1f s and %.1f s after it", made, *took)
    return made


def _missing(rehearsal: Callable[[], object], make: Callable[[Any, str], Future[bool]]) -> list[Future[bool]]:
    """`make` is given each kernel with a variant that the rehearsal would have compiled, as soon as it is met."""
    from triton import knobs

    found: dict[tuple[int, str], Future[bool]] = {}
    before = knobs.runtime.jit_cache_hook

    def leave_out(**facts: Any) -> Any:
        own = (facts["fn"].module, facts["fn"].name) == _LAUNCHED
        if own or facts["is_manual_warmup"]:  # the latter are ours, from a thread
            return before(**facts) if before is not None else None
        kernel, wanted = facts["fn"].jit_function, facts["compile"]
        key = id(kernel), wanted["key"]
        if key not in found:
            found[key] = make(kernel, wanted["specialization_data"])
        return True  # neither compiled nor launched

    knobs.runtime.jit_cache_hook = leave_out
    try:
        rehearsal()
    finally:
        knobs.runtime.jit_cache_hook = before
    return list(found.values())


def make_launcher(kernel: Any, variant: str) -> None:
    """Compile a kernel and what launches it (in Triton 3.6 a library, by the C compiler: 0.1 s) into the caches on disk.

    A copy of the kernel is compiled: the rehearsal launches what it finds in a kernel's own cache, and would make the launcher itself.
    """
    try:
        twin = copy(kernel)
        twin.device_caches = defaultdict(twin.create_binder)
        twin.preload(variant).run  # noqa: B018  # it loads what it is asked for
    except Exception:
        log.debug("what launches a kernel is made at its first launch", exc_info=True)


def _make(kernel: Any, variant: str, device: torch.device | None) -> bool:
    try:
        if device is None:
            kernel.preload(variant)
        else:
            with torch.cuda.device(device):  # each thread has its own
                make_launcher(kernel, variant)
                kernel.preload(variant)
    except Exception:
        log.debug("a kernel is compiled at its first launch", exc_info=True)
        return False
    return True
