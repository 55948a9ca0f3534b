"""A trace of what the engine's thread and its device do, for as long as somebody wants one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from runtime.errors import EngineError, InvalidRequest


class Profiler:
    """At most one trace at a time; `start` and `stop` belong to one thread."""

    def __init__(self) -> None:
        self._running: torch.profiler.profile | None = None

    def start(self) -> dict[str, Any]:
        """Raises InvalidRequest if one is running."""
        if self._running is not None:
            raise InvalidRequest("a profile is running already; stop it with /stop_profile first")
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._running = torch.profiler.profile(activities=activities)
        self._running.start()
        return {"profiling": True}

    def stop(self, folder: str) -> dict[str, Any]:
        """Write the trace (Chrome's format) into `folder`. Raises InvalidRequest if none is running."""
        if self._running is None:
            raise InvalidRequest("no profile is running; begin one with /start_profile")
        trace, self._running = self._running, None
        trace.stop()
        file = Path(folder) / f"engine-{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**6:06}.json"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            trace.export_chrome_trace(str(file))
        except (OSError, RuntimeError) as error:
            raise EngineError(f"the trace cannot be written: {error}") from None
        return {"profiling": False, "file": file.name}
