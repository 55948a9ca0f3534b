"""Which kernels Triton had to make, or to fetch from its cache on disk, while somebody watched."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import get_ident
from typing import Any


@dataclass
class Made:
    """Of one kernel: variants, and the seconds that they took; some may be made at the same time."""

    count: int = 0
    s: float = 0.0


class Compiled:
    """A context; `kernels` by name, in the order of their first. Without Triton there are none."""

    def __init__(self) -> None:
        self.kernels: dict[str, Made] = {}
        self._began: dict[int, float] = {}  # by thread
        self._knobs: Any = None
        self._before: tuple[Any, Any] = (None, None)

    def __enter__(self) -> Compiled:
        try:
            from triton import knobs
        except ImportError:
            return self
        self._knobs = knobs.runtime
        self._before = (self._knobs.jit_cache_hook, self._knobs.jit_post_compile_hook)
        self._knobs.jit_cache_hook = self._after(self._begin, self._before[0])
        self._knobs.jit_post_compile_hook = self._after(self._end, self._before[1])
        return self

    def __exit__(self, *_: object) -> None:
        if self._knobs is not None:
            self._knobs.jit_cache_hook, self._knobs.jit_post_compile_hook = self._before

    @staticmethod
    def _after(own: Callable[[str], None], other: Any) -> Callable[..., Any]:
        """Triton calls with keywords, and does not compile where a hook returns true."""

        def hook(**facts: Any) -> Any:
            own(facts["fn"].name)
            return other(**facts) if other is not None else None

        return hook

    def _begin(self, name: str) -> None:
        self._began[get_ident()] = time.perf_counter()

    def _end(self, name: str) -> None:
        made = self.kernels.setdefault(name, Made())
        made.count += 1
        made.s += time.perf_counter() - self._began[get_ident()]

    @property
    def s(self) -> float:
        return sum(made.s for made in self.kernels.values())

    def summary(self) -> dict[str, Any]:
        return {
            "variants": sum(made.count for made in self.kernels.values()),
            "s": round(self.s, 3),
            "kernels": {name: [made.count, round(made.s, 3)] for name, made in self.kernels.items()},
        }
