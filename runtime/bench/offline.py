"""`runtime bench offline`: all requests at once, no server: how many a second."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runtime.bench.driver import Driver
from runtime.bench.report import Spread
from runtime.bench.workload import Asked


@dataclass(frozen=True)
class Offline:
    """Seconds, and requests and tokens a second. `reused_share`: of prompt tokens, found in the cache."""

    requests: int
    duration: float
    request_throughput: float
    input_throughput: float
    output_throughput: float
    total_throughput: float
    input_tokens: int
    output_tokens: int
    reused_share: float
    e2e_ms: Spread | None


def measure(
    driver: Driver, asked: Sequence[Asked], temperature: float, done: Callable[[], object] | None = None
) -> Offline:
    reused, seen = driver.reused()
    outcome = driver.run(asked, temperature, done)
    reused_after, seen_after = driver.reused()
    prompts = seen_after - seen
    s = outcome.seconds
    return Offline(
        requests=len(asked),
        duration=s,
        request_throughput=len(asked) / s,
        input_throughput=prompts / s,
        output_throughput=outcome.written / s,
        total_throughput=(prompts + outcome.written) / s,
        input_tokens=prompts,
        output_tokens=outcome.written,
        reused_share=(reused_after - reused) / prompts if prompts else 0.0,
        e2e_ms=Spread.of([a.last for a in outcome.answers]),
    )
