"""Intervals of tokens, calls and money: what is known of a run before it runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`; None: no limit is known."""

    low: int = 0
    high: int | None = 0

    def __add__(self, other: Interval) -> Interval:
        high = None if self.high is None or other.high is None else self.high + other.high
        return Interval(self.low + other.low, high)

    def hull(self, other: Interval) -> Interval:
        high = None if self.high is None or other.high is None else max(self.high, other.high)
        return Interval(min(self.low, other.low), high)

    def times(self, low: int, high: int) -> Interval:
        return Interval(self.low * low, None if self.high is None else self.high * high)

    def wider(self, by: int) -> Interval:
        return Interval(max(self.low - by, 0), None if self.high is None else self.high + by)

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int) and self.low <= value and (self.high is None or value <= self.high)

    def __str__(self) -> str:
        if self.high is None:
            return f"at least {self.low:,}" if self.low else "no limit"
        return f"{self.low:,}" if self.low == self.high else f"{self.low:,} to {self.high:,}"


NOTHING = Interval()
UNKNOWN = Interval(0, None)


@dataclass(frozen=True)
class Cost:
    """`prompt`: tokens of all prompts; `computed`: those that no cached prefix has; `output`: new tokens."""

    calls: Interval = NOTHING
    prompt: Interval = NOTHING
    computed: Interval = NOTHING
    output: Interval = NOTHING

    def plus(self, other: Cost) -> Cost:
        return Cost(
            self.calls + other.calls,
            self.prompt + other.prompt,
            self.computed + other.computed,
            self.output + other.output,
        )

    def hull(self, other: Cost) -> Cost:
        return Cost(
            self.calls.hull(other.calls),
            self.prompt.hull(other.prompt),
            self.computed.hull(other.computed),
            self.output.hull(other.output),
        )

    def money(self, price: Price) -> tuple[float, float | None]:
        """At least, with every prompt cached, and at most, with none; None: no limit is known."""
        cached = price.input if price.cached is None else price.cached
        low = self.prompt.low * min(cached, price.input) + self.output.low * price.output
        if self.prompt.high is None or self.output.high is None:
            return low / 1e6, None
        return low / 1e6, (self.prompt.high * price.input + self.output.high * price.output) / 1e6


@dataclass(frozen=True)
class Price:
    """Of a million tokens, in whatever currency; None: cached prompt tokens cost what others cost."""

    input: float
    output: float
    cached: float | None = None
