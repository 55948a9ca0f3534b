"""What a run of a Plan can cost at most, known before it runs."""

from __future__ import annotations

import msgspec

from runtime.plan import Choose, Decode, Guard, Plan, Repeat


class Bounds(msgspec.Struct, frozen=True):
    """What a run can cost at most: model calls, and new tokens (None: a call without a limit)."""

    calls: int
    tokens: int | None

    def plus(self, other: Bounds) -> Bounds:
        limited = self.tokens is not None and other.tokens is not None
        return Bounds(self.calls + other.calls, self.tokens + other.tokens if limited else None)  # type: ignore[operator]

    def or_else(self, other: Bounds) -> Bounds:
        limited = self.tokens is not None and other.tokens is not None
        return Bounds(max(self.calls, other.calls), max(self.tokens, other.tokens) if limited else None)  # type: ignore[type-var]

    def times(self, count: int) -> Bounds:
        return Bounds(self.calls * count, None if self.tokens is None else self.tokens * count)


def bounds_of(plan: Plan, max_tokens: int | None = 128) -> Bounds:
    """Those of its dearest way; `max_tokens` is the run's default for calls that name none."""
    return _of_steps(plan, 0, len(plan.steps), None, max_tokens)


def _of_steps(plan: Plan, start: int, stop: int, outer: Guard | None, max_tokens: int | None) -> Bounds:
    """Of steps that lie in one body and are all guarded by `outer` or by conditions among them."""
    sums: dict[Guard | None, Bounds] = {}
    conds: dict[int, None] = {}
    number = start
    while number < stop:
        step = plan.steps[number]
        if step.when is not None and step.when != outer:
            conds[step.when[0]] = None
        found = Bounds(0, 0)
        if isinstance(step, (Decode, Choose)):
            found = Bounds(1, _tokens(step, max_tokens))
        elif isinstance(step, Repeat):
            found = _of_steps(plan, number + 1, step.stop, step.when, max_tokens).times(step.maximum)
            number = step.stop - 1
        sums[step.when] = sums.get(step.when, Bounds(0, 0)).plus(found)
        number += 1
    nothing = Bounds(0, 0)
    for cond in sorted(conds, reverse=True):  # what a condition guards comes after it
        worse = sums.get((cond, True), nothing).or_else(sums.get((cond, False), nothing))
        owner = plan.steps[cond].when
        sums[owner] = sums.get(owner, nothing).plus(worse)
    return sums.get(outer, nothing)


def _tokens(step: Decode | Choose, max_tokens: int | None) -> int | None:
    if isinstance(step, Choose):
        return 0
    given = {**{"max_tokens": max_tokens}, **(step.defaults or {}), **step.sampling}["max_tokens"]
    return None if given is None else given * (step.n or 1)
