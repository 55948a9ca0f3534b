"""`runtime bench serving`: what requests that arrive at random see of a server, at one rate after another."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runtime.bench.client import Served
from runtime.bench.report import Spread
from runtime.chrome_trace import ChromeTrace
from runtime.errors import InvalidRequest

OBJECTIVES = ("ttft", "tpot", "e2e")


@dataclass(frozen=True)
class Serving:
    """Of one rate. Throughputs and times are those of requests that were answered.

    request_rate   a second; None: all were sent at once
    goodput        requests a second that met every objective
    itl_ms         between two events of a stream, which may bring several tokens; `tpot_ms` is by tokens
    late_ms        how long after their time requests were sent: the client's own limit, or that of --max-concurrency
    errors         the first few, as they were told
    """

    request_rate: float | None
    completed: int
    failed: int
    duration: float
    request_throughput: float
    input_throughput: float
    output_throughput: float
    total_throughput: float
    input_tokens: int
    output_tokens: int
    most_at_once: int
    ttft_ms: Spread | None
    tpot_ms: Spread | None
    itl_ms: Spread | None
    e2e_ms: Spread | None
    late_ms: Spread | None
    goodput: float | None
    errors: list[str]


def arrivals(count: int, rate: float, burstiness: float, seed: str) -> list[float]:
    """When requests are due: gaps from a gamma distribution of mean 1 / rate.

    burstiness 1 is a Poisson process, less comes in bursts, more is more regular. An infinite rate: all at 0.
    """
    if math.isinf(rate):
        return [0.0] * count
    rng = random.Random(seed)
    found, at = [], 0.0
    for _ in range(count):
        found.append(at)
        at += rng.gammavariate(burstiness, 1 / (rate * burstiness))
    return found


def rates_of(text: str) -> list[float]:
    """`2,4,inf`. Raises InvalidRequest."""
    try:
        found = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        found = []
    if not found or not all(rate > 0 for rate in found):
        raise InvalidRequest(f"--request-rate {text!r}: give requests a second, such as 4 or 2,4,inf")
    return found


def rates_in(text: str) -> list[float]:
    """`2,34,2`: from the first up to the second, without it, in steps of the third. Raises InvalidRequest."""
    try:
        first, end, step = (float(part) for part in text.split(","))
    except ValueError:
        first, end, step = 0.0, 0.0, 0.0
    if not (first > 0 and end > first and step > 0 and (end - first) / step < 1000):
        raise InvalidRequest(
            f"--request-rate-range {text!r}: give the first rate, the end and the step, such as 2,34,2"
        )
    return [first + i * step for i in range(math.ceil((end - first) / step - 1e-9))]


def objectives_of(text: str) -> dict[str, float]:
    """`ttft:200,tpot:50`, in milliseconds, as seconds. Raises InvalidRequest."""
    found = {}
    for part in text.replace(",", " ").split():
        name, _, value = part.partition(":")
        try:
            limit = float(value)
        except ValueError:
            limit = math.nan
        if name not in OBJECTIVES or not limit > 0:
            raise InvalidRequest(
                f"--goodput {part!r}: give {', '.join(OBJECTIVES)} with milliseconds, such as ttft:200,tpot:50"
            )
        found[name] = limit / 1e3
    return found


def meets(served: Served, objectives: Mapping[str, float]) -> bool:
    """Whether an answered request kept every limit. One token has no time per token to keep."""
    times = {"ttft": served.ttft, "tpot": served.tpot or 0.0, "e2e": served.e2e}
    return all(times[name] <= limit for name, limit in objectives.items())


def most_at_once(served: Sequence[Served]) -> int:
    """The largest number of requests that were under way together."""
    moments = sorted([(s.sent, 1) for s in served] + [(s.ended, -1) for s in served])
    running = most = 0
    for _, change in moments:
        running += change
        most = max(most, running)
    return most


def summarise(served: Sequence[Served], rate: float, objectives: Mapping[str, float]) -> Serving:
    good = [s for s in served if s.error is None]
    took = max((s.ended for s in served), default=0.0) or 1e-9
    prompts, tokens = sum(s.prompt_tokens for s in good), sum(s.tokens for s in good)
    return Serving(
        request_rate=None if math.isinf(rate) else rate,
        completed=len(good),
        failed=len(served) - len(good),
        duration=took,
        request_throughput=len(good) / took,
        input_throughput=prompts / took,
        output_throughput=tokens / took,
        total_throughput=(prompts + tokens) / took,
        input_tokens=prompts,
        output_tokens=tokens,
        most_at_once=most_at_once(served),
        ttft_ms=Spread.of([s.ttft for s in good]),
        tpot_ms=Spread.of([t for s in good if (t := s.tpot) is not None]),
        itl_ms=Spread.of([gap for s in good for gap in s.gaps]),
        e2e_ms=Spread.of([s.e2e for s in good]),
        late_ms=Spread.of([s.sent - s.due for s in served]),
        goodput=sum(meets(s, objectives) for s in good) / took if objectives else None,
        errors=list(dict.fromkeys(s.error for s in served if s.error is not None))[:5],
    )


def trace_of(runs: Sequence[Sequence[Served]]) -> ChromeTrace:
    """Requests as spans, one run after another; each is in the first lane that is free."""
    trace = ChromeTrace("request")
    free: list[float] = []  # when each lane is
    start = 0.0
    for served in runs:
        for number, s in enumerate(sorted(served, key=lambda s: s.sent)):
            sent, ended = start + s.sent, start + s.ended
            lane = next((i for i, at in enumerate(free) if at <= sent), len(free))
            if lane == len(free):
                free.append(0.0)
                trace.lane(lane, f"connection {lane}")
            free[lane] = ended
            facts = {"prompt_tokens": s.prompt_tokens, "tokens": s.tokens, "error": s.error}
            trace.span(lane, f"request {number}", sent, ended, facts)
            if s.arrivals:
                trace.span(lane, "first token", sent, start + s.arrivals[0])
        start += max((s.ended for s in served), default=0.0)
    return trace
