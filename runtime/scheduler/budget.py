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
    """What is left in the batch being built: `tokens` of prompt."""

    tokens: int
