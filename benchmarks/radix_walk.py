"""The radix tree beside the plainest model, a set of prefixes, through a million random operations.

    python -m benchmarks.radix_walk --operations 1000000

Everything is compared after every operation that reads, and the whole tree is walked now and then.
"""

from __future__ import annotations

import random
import time
from typing import Annotated

import typer

from runtime.kv.pages import PagePool
from runtime.kv.radix import Node, RadixTree

ACTIONS = ("insert", "match", "evict", "lock", "unlock", "forget")


class BesideModel:
    """A tree with its pool, and the model: each prefix of whole pages, with the page it ends in."""

    def __init__(self, page_size: int = 1, pages: int = 4000) -> None:
        self.size = page_size
        self.tree, self.pool = RadixTree(page_size), PagePool(pages)
        self.content: dict[tuple[int, ...], int] = {}
        self.locks: list[tuple[Node, list[int]]] = []

    def do(self, action: str, run: list[int]) -> None:
        """One of ACTIONS, on the tree and on the model. Raises AssertionError where they differ."""
        tree, pool, size = self.tree, self.pool, self.size
        if action == "insert":
            whole = len(run) // size
            pages = pool.take(whole)
            had, _ = tree.insert(run, pages)
            pool.give(pages[:had])
            for i in range(had, whole):
                assert tuple(run[: (i + 1) * size]) not in self.content
                self.content[tuple(run[: (i + 1) * size])] = pages[i]
        elif action in ("match", "lock"):
            pages, node = tree.match(run)
            assert pages == self._expected(run)
            assert tree.matched_length(run) == len(pages) * size
            if action == "lock":
                tree.lock(node)
                self.locks.append((node, pages))
        elif action == "unlock" and self.locks:
            tree.unlock(self.locks.pop()[0])
        elif action == "forget":
            self._forget(run, len(run) // (2 * size))
        elif action == "evict":
            freed = tree.evict(len(run))
            held = {page for _, pages in self.locks for page in pages}
            assert not held & set(freed), "a locked page was evicted"
            gone = set(freed)
            self.content = {k: p for k, p in self.content.items() if p not in gone}
            pool.give(freed)

    def _expected(self, run: list[int]) -> list[int]:
        found: list[int] = []
        for end in range(self.size, len(run) + 1, self.size):
            if (page := self.content.get(tuple(run[:end]))) is None:
                break
            found.append(page)
        return found

    def _forget(self, run: list[int], keep: int) -> None:
        start = tuple(run[: (keep + 1) * self.size])
        held = {page for _, pages in self.locks for page in pages}
        gone = {
            key: page
            for key, page in self.content.items()
            if start in self.content and key[: len(start)] == start and page not in held
        }
        freed = self.tree.forget(run, keep * self.size)
        assert sorted(freed) == sorted(gone.values())
        self.pool.give(freed)
        self.content = {key: page for key, page in self.content.items() if key not in gone}

    def check(self) -> None:
        """Walk the whole tree: every page in exactly one place, sizes and locks add up."""
        self.tree.check()
        assert sorted(self.tree.pages()) == sorted(self.content.values())
        self.pool.check(self.tree.pages())


def main(
    operations: Annotated[
        int, typer.Option(help="In all, half of them with pages of three tokens.")
    ] = 1_000_000,
    every: Annotated[int, typer.Option(help="Operations between two walks.")] = 50,
    seed: int = 1,
) -> None:
    rng, began, walks = random.Random(seed), time.monotonic(), 0
    for size in (1, 3):
        both = BesideModel(size)
        for k in range(operations // 2):
            run = [rng.randrange(3) for _ in range(rng.randint(1, 24))]
            action = rng.choice(ACTIONS)
            if len(both.locks) > 8:
                action = "unlock"
            elif len(both.content) > 600:
                action = "evict"
            both.do(action, run)
            if k % every == 0:
                both.check()
                walks += 1
        both.check()
    typer.echo(
        f"{operations} operations, {walks} walks, {time.monotonic() - began:.0f} s: tree and model agree"
    )


if __name__ == "__main__":
    typer.run(main)
