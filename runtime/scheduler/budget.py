"""How much a step may hold, and how long running requests are expected to grow.

Admission reserves a share of what each running request may still write. The share starts high and falls
while nothing goes wrong; when a request had to be retracted it jumps up again.
"""

from __future__ import annotations

from dataclasses import dataclass

CLIP = 4096  # more outputs than this are not reserved for


@dataclass
class Reserve:
    """The share of the remaining outputs that admission keeps free."""

    start: float = 0.7
    least: float = 0.1
    fall: float = 0.001
    conservativeness: float = 1.0

    def __post_init__(self) -> None:
        self.share = min(1.0, self.start * self.conservativeness)

    def step(self) -> None:
        self.share = max(self.least * self.conservativeness, self.share - self.fall)

    def retracted(self) -> None:
        self.share = min(1.0, self.start * self.conservativeness + 0.2)

    def pages(self, left: int, page_size: int) -> float:
        """Pages to keep for a request that may still write `left` tokens."""
        return min(left, CLIP) * self.share / page_size


@dataclass
class Budget:
    """What is left in the batch being built: `tokens` of prompt, `guesses` of likely outputs, and `reads` of keys for these
    (each guess looks at all that precedes it)."""

    tokens: int
    guesses: int = 0
    reads: int = 1 << 15

    def guess(self, wanted: int, before: int, new: int) -> int:
        """How many of so many tokens may be guessed behind `before` others, `new` of which are computed with them."""
        return max(0, min(wanted, self.guesses, self.tokens - new, self.reads // max(1, before)))

    def guessed(self, count: int, before: int) -> None:
        self.guesses -= count
        self.tokens -= count
        self.reads -= count * before
