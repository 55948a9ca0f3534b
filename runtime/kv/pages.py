"""Which KV pages are free.

A page has exactly one owner: this pool while it is free, the radix tree once its tokens are cached, or one
request. So there are no reference counts; what many requests read belongs to the tree, and they lock it there.
"""

from __future__ import annotations


def must(condition: bool, broken: str) -> None:
    """For checks that a running server is asked for: unlike `assert`, also under `python -O`."""
    if not condition:
        raise AssertionError(broken)


class PagePool:
    """Page ids 0 .. total - 1; those given back last are taken first (their memory is warm)."""

    __slots__ = ("_free", "total")

    def __init__(self, total: int) -> None:
        if total < 1:
            raise ValueError(f"PagePool: needs at least one page, got {total}")
        self.total = total
        self._free = list(range(total - 1, -1, -1))

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """`count` free pages; the caller has made sure that there are as many."""
        if count > len(self._free):
            raise ValueError(
                f"PagePool: {count} pages wanted but only {len(self._free)} of {self.total} are free"
            )
        if count == 0:
            return []
        if count == 1:
            return [self._free.pop()]
        taken = self._free[-count:]
        del self._free[-count:]
        return taken

    def give(self, pages: list[int]) -> None:
        self._free.extend(pages)

    def check(self, owned: list[int]) -> None:
        """Raise AssertionError unless `owned` and the free pages are every page exactly once."""
        seen = sorted(self._free + owned)
        free, different = len(self._free), len(set(seen))
        must(
            seen == list(range(self.total)),
            f"{self.total} pages, but {free} free and {len(owned)} owned ({different} different ones)",
        )
