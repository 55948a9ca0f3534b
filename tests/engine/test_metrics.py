"""Counters against plain arithmetic, and against the client library's own parser."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from runtime.metrics import Histogram, Metrics

STATS = {
    "kv_cache": {"used_tokens": 25, "cached_tokens": 50, "total_tokens": 100},
    "num_running_reqs": 3,
    "num_waiting_reqs": 2,
    "prompt_tokens": 40,
    "reused_tokens": 10,
    "retractions": 7,
    "guessed_tokens": 9,
    "verified_tokens": 4,
}


def read(
    metrics: Metrics, stats: dict[str, Any] | None = None, restarts: int = 0, up: bool = True
) -> dict[str, float]:
    """Samples by name and labels."""
    text = metrics.text(STATS if stats is None else stats, restarts, up).decode()
    return {
        s.name.removeprefix("sglc:") + "".join(f",{k}={v}" for k, v in sorted(s.labels.items())): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 5))), st.sampled_from([0.5, 0.9, 0.99]))
def test_histograms_add_up(seen: list[tuple[float, int]], q: float) -> None:
    histogram = Histogram((0.5, 1.0, 5.0))
    for value, times in seen:
        histogram.observe(value, times)
    values = sorted(v for v, times in seen for _ in range(times))
    assert histogram.count == len(values)
    family = histogram.family("x_seconds", "x")
    found = {s.labels["le"]: s.value for s in family.samples if s.name.endswith("_bucket")}
    for bound in (0.5, 1.0, 5.0):
        assert found[str(bound)] == sum(v <= bound for v in values)
    assert found["+Inf"] == len(values)
    below = histogram.quantile(q)
    if not values:
        assert below is None
    else:
        assert below is not None and sum(v <= below for v in values) >= q * len(values)


def test_names_and_values() -> None:
    metrics = Metrics()
    metrics.first_token.observe(0.02)
    metrics.between_tokens.observe(0.01, 4)
    metrics.end("stop", prompt=10, output=5, cached=6)
    metrics.end("abort", prompt=3, output=0, cached=0)
    metrics.answer("POST", "/generate", 200)
    metrics.answer("POST", "/generate", 400)
    metrics.answer("GET", "/generate", 400)
    found = read(metrics, restarts=2)
    wanted = {
        "time_to_first_token_seconds_count": 1,
        "time_to_first_token_seconds_sum": 0.02,
        "inter_token_latency_seconds_count": 4,
        "prompt_tokens_total": 13,
        "generation_tokens_total": 5,
        "cached_tokens_total": 6,
        "num_aborted_requests_total": 1,
        "request_success_total,finished_reason=stop": 1,
        "request_success_total,finished_reason=error": 0,
        "http_requests_total,method=POST,route=/generate,status=200": 1,
        "http_errors_total,route=/generate,status=400": 2,
        "num_requests_running": 3,
        "num_requests_waiting": 2,
        "kv_cache_usage_perc": 0.25,
        "cache_hit_rate": 0.25,
        "num_preemptions_total": 7,
        "spec_decode_num_draft_tokens_total": 9,
        "spec_decode_num_accepted_tokens_total": 4,
        "engine_up": 1,
        "engine_restarts_total": 2,
    }
    assert {k: found.get(k) for k in wanted} == wanted


def test_an_engine_that_is_gone_has_no_gauges() -> None:
    found = read(Metrics(), {}, up=False)
    assert found["engine_up"] == 0 and "num_requests_running" not in found
