"""In which order the requests of one call are handed to the loop."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.engine.messages import Add

_HEAD = 16  # tokens at the beginning of a prompt that others may have computed


def longest_first(calls: Sequence[Add]) -> list[Add]:
    """For requests whose answers are awaited together: most outputs first, so that no long one is left to run alone (R. L.
    Graham's rule for jobs on parallel machines, 1969). Prompts that begin alike stay where their caller put them, since
    neighbours find each other's prefixes in the cache."""
    heads = {tuple(c.tokens[:_HEAD]) for c in calls}
    if len(heads) < len(calls):
        return list(calls)
    return sorted(calls, key=_outputs, reverse=True)


def _outputs(call: Add) -> float:
    most = call.sampling.max_new_tokens
    return float("inf") if most is None else most
