"""Compiling kernels side by side, at a start without a kernel cache: one after another they take 18 s, while 15 cores look on.

A rehearsal goes through everything that will be launched; launches whose kernels are missing are left out and noted, and the
kernels made in threads. Whatever fails here is compiled at its first launch, as ever.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

log = logging.getLogger("runtime.engine")
# It writes ids and places that others look up: left out, they would look anywhere.
_LAUNCHED = ("runtime.kernels.decode_step", "_begin")


def compile_ahead(rehearsal: Callable[[], object], device: torch.device | None) -> int:
    """Kernels that were made. `device`: for which; None: Triton's current one."""
    began = time.perf_counter()
    try:
        missing = _missing(rehearsal)
        rehearsed = time.perf_counter()
        with ThreadPoolExecutor(min(len(missing) or 1, os.cpu_count() or 1)) as threads:
            made = sum(threads.map(lambda one: _make(one[0], one[1], device), missing))
    except Exception:
        log.debug("kernels are compiled one after another", exc_info=True)
        return 0
    took = rehearsed - began, time.perf_counter() - rehearsed
    log.info("%d kernels made side by side, after a rehearsal of %.1f s in %.1f s", made, *took)
    return made


def _missing(rehearsal: Callable[[], object]) -> list[tuple[Any, str]]:
    """Kernels with the variants that the rehearsal would have compiled."""
    from triton import knobs

    found: dict[tuple[int, str], tuple[Any, str]] = {}
    before = knobs.runtime.jit_cache_hook

    def leave_out(**facts: Any) -> Any:
        if (facts["fn"].module, facts["fn"].name) == _LAUNCHED:
            return before(**facts) if before is not None else None
        kernel, wanted = facts["fn"].jit_function, facts["compile"]
        found[id(kernel), wanted["key"]] = kernel, wanted["specialization_data"]
        return True  # neither compiled nor launched

    knobs.runtime.jit_cache_hook = leave_out
    try:
        rehearsal()
    finally:
        knobs.runtime.jit_cache_hook = before
    return list(found.values())


def _make(kernel: Any, variant: str, device: torch.device | None) -> bool:
    try:
        if device is None:
            kernel.preload(variant)
        else:
            with torch.cuda.device(device):  # each thread has its own
                kernel.preload(variant)
    except Exception:
        log.debug("a kernel is compiled at its first launch", exc_info=True)
        return False
    return True
