"""`runtime bench latency`: one batch at a time, no server: how long prompts take, and each token after them."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.bench.driver import Driver, Outcome
from runtime.bench.workload import Asked, random_tokens


@dataclass(frozen=True)
class Latency:
    """Medians over repeats, in seconds and tokens a second.

    prefill_latency        until every request has its first token
    median_decode_latency  of one token of each request, by turns of the loop after that
    """

    batch_size: int
    input_len: int
    output_len: int
    prefill_latency: float
    prefill_throughput: float
    median_decode_latency: float | None
    median_decode_throughput: float | None
    total_latency: float
    total_throughput: float


def measure(driver: Driver, batch: int, input_len: int, output_len: int, repeats: int, seed: int) -> Latency:
    """Every repeat has prompts of its own, so that none is found in the cache."""
    driver.check(batch, input_len + output_len)
    found = []
    for k in range(repeats):
        rng = random.Random(f"{seed} {batch} {input_len} {output_len} {k}")
        asked = []
        for _ in range(batch):
            ids = [t for t in random_tokens(rng, input_len, driver.vocabulary) if isinstance(t, int)]
            asked.append(Asked(ids, output_len))
        found.append(driver.run(asked))
    prefill = statistics.median(first_tokens(r) for r in found)
    total = statistics.median(r.seconds for r in found)
    steps = [s for r in found if (s := decode_step(r, batch)) is not None]
    step = statistics.median(steps) if steps else None
    return Latency(
        batch_size=batch,
        input_len=input_len,
        output_len=output_len,
        prefill_latency=prefill,
        prefill_throughput=batch * input_len / prefill,
        median_decode_latency=step,
        median_decode_throughput=batch / step if step else None,
        total_latency=total,
        total_throughput=batch * (input_len + output_len) / total,
    )


def first_tokens(outcome: Outcome) -> float:
    """When the last request had its first token."""
    return max(a.first for a in outcome.answers)


def decode_step(outcome: Outcome, batch: int) -> float | None:
    """Seconds of a step in which all requests decode: the median over turns; None if there was no such turn."""
    began = first_tokens(outcome)
    ended = min(a.last for a in outcome.answers)
    took: list[float] = []
    last: float | None = None
    for at, tokens in outcome.turns:
        if last is not None and tokens and began < at <= ended:
            took += [(at - last) / (tokens / batch)] * (tokens // batch)
        if tokens:
            last = at
    return statistics.median(took) if took else None


def cases(
    batches: Sequence[int], inputs: Sequence[int], outputs: Sequence[int]
) -> list[tuple[int, int, int]]:
    """Every combination."""
    return [(b, i, o) for b in batches for i in inputs for o in outputs]
