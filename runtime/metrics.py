"""What a server counts, in the terms that dashboards of the field know.

Counting happens in one place each (`runtime.engine.live` for samples, `runtime.server.observe` for HTTP) and costs well
under a microsecond; Prometheus' own types are built only when somebody asks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST
_PREFIX = "sglc:"
_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5)
_WHOLE = (0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 60, 120, 240, 480)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)


class Histogram:
    """How many observations fell at or below each bound, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    @property
    def count(self) -> int:
        return sum(self.counts)

    def quantile(self, q: float) -> float | None:
        """The bound below which a share `q` of the observations lies; None without any."""
        left = q * self.count
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            left -= count
            if left <= 0 and self.count:
                return bound
        return None

    def family(self, name: str, help: str) -> HistogramMetricFamily:
        buckets, seen = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            seen += count
            buckets.append((bound, float(seen)))
        return HistogramMetricFamily(_PREFIX + name, help, buckets=buckets, sum_value=self.total)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self.first_token = Histogram(_FIRST)
        self.between_tokens = Histogram(_BETWEEN)
        self.whole = Histogram(_WHOLE)
        self.prompt_lengths = Histogram(_TOKENS)
        self.output_lengths = Histogram(_TOKENS)
        self.compile = Histogram(_FIRST)
        self.finished: Counter[str] = Counter()
        self.cached_tokens = 0
        self.answers: Counter[tuple[str, str, int]] = Counter()
        self.slow_clients = 0

    # -- what is counted ----------------------------------------------------------------------------------

    def end(self, reason: str, prompt: int, output: int, cached: int) -> None:
        """A sample has ended."""
        self.finished[reason] += 1
        self.prompt_lengths.observe(prompt)
        self.output_lengths.observe(output)
        self.cached_tokens += cached

    def answer(self, method: str, route: str, status: int) -> None:
        """An HTTP request was answered."""
        self.answers[method, route, status] += 1

    # -- what is told -------------------------------------------------------------------------------------

    def text(self, stats: dict[str, Any], restarts: int, up: bool) -> bytes:
        """Prometheus' format. `stats` are the engine's latest; empty if nothing is known of it."""
        registry = CollectorRegistry()
        registry.register(_Collected([*self._counted(), *_engine(stats, restarts, up)]))
        return generate_latest(registry)

    def _counted(self) -> Iterable[Any]:
        yield self.first_token.family("time_to_first_token_seconds", "From arrival to the first token.")
        yield self.between_tokens.family("inter_token_latency_seconds", "Between tokens of a sample.")
        yield self.whole.family("e2e_request_latency_seconds", "From arrival to the end of a sample.")
        yield self.prompt_lengths.family("request_prompt_tokens", "Prompt tokens of a sample.")
        yield self.output_lengths.family("request_generation_tokens", "Output tokens of a sample.")
        yield self.compile.family(
            "grammar_compilation_time_seconds", "Until a constraint is known to be enforceable."
        )
        yield _counter("prompt_tokens", "Prompt tokens of ended samples.", self.prompt_lengths.total)
        yield _counter("generation_tokens", "Output tokens of ended samples.", self.output_lengths.total)
        yield _counter("cached_tokens", "Prompt tokens that were not computed again.", self.cached_tokens)
        yield _counter("num_aborted_requests", "Samples that were aborted.", self.finished["abort"])
        yield _counter("slow_clients", "Connections closed as nobody read from them.", self.slow_clients)
        ended = CounterMetricFamily(
            f"{_PREFIX}request_success", "Ended samples by reason.", labels=["finished_reason"]
        )
        for reason in ("stop", "length", "abort", "error"):
            ended.add_metric([reason], self.finished[reason])
        yield ended
        http = CounterMetricFamily(
            f"{_PREFIX}http_requests", "HTTP answers.", labels=["method", "route", "status"]
        )
        failed = CounterMetricFamily(
            f"{_PREFIX}http_errors", "HTTP answers of 400 and above.", labels=["route", "status"]
        )
        errors: Counter[tuple[str, int]] = Counter()
        for (method, route, status), count in sorted(self.answers.items()):
            http.add_metric([method, route, str(status)], count)
            if status >= 400:
                errors[route, status] += count
        for (route, status), count in errors.items():
            failed.add_metric([route, str(status)], count)
        yield http
        yield failed


def _engine(stats: dict[str, Any], restarts: int, up: bool) -> Iterable[Any]:
    yield _gauge("engine_up", "1 while the engine process answers.", float(up))
    yield _counter("engine_restarts", "Engine processes that were lost and replaced.", restarts)
    if not stats:
        return
    pool = stats["kv_cache"]
    total = max(pool["total_tokens"], 1)
    yield _gauge("num_requests_running", "Samples that are computed.", stats["num_running_reqs"])
    yield _gauge("num_requests_waiting", "Samples that wait for a seat.", stats["num_waiting_reqs"])
    yield _gauge("kv_cache_usage_perc", "Share of KV memory held by requests.", pool["used_tokens"] / total)
    yield _gauge("kv_cache_cached_perc", "Share of KV memory with prefixes.", pool["cached_tokens"] / total)
    yield _gauge("kv_cache_total_tokens", "Tokens of KV memory.", pool["total_tokens"])
    seen, reused = stats["prompt_tokens"], stats["reused_tokens"]
    yield _counter("prefix_cache_queries", "Prompt tokens that were looked up in the cache.", seen)
    yield _counter("prefix_cache_hits", "Prompt tokens that were found there.", reused)
    yield _gauge("cache_hit_rate", "Share of prompt tokens found in the cache.", reused / max(seen, 1))
    yield _counter("num_preemptions", "Retractions: samples that gave way to others.", stats["retractions"])
    guessed, verified = stats["guessed_tokens"], stats["verified_tokens"]
    yield _counter(
        "spec_decode_num_draft_tokens", "Tokens of constrained answers that were guessed.", guessed
    )
    yield _counter("spec_decode_num_accepted_tokens", "Guessed tokens that the model wrote.", verified)


def _gauge(name: str, help: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(_PREFIX + name, help, value=value)


def _counter(name: str, help: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(_PREFIX + name, help, value=value)


class _Collected:
    """Families that exist already, as the registry wants them."""

    def __init__(self, families: list[Any]) -> None:
        self._families = families

    def collect(self) -> Iterable[Any]:
        return self._families
