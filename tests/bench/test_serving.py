"""`runtime bench serving` against our server and against servers that misbehave, and what its figures are made of."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from runtime.bench.client import APIS, Client, Served, send
from runtime.bench.commands import app
from runtime.bench.server_latency import measured
from runtime.bench.serving import (
    arrivals,
    most_at_once,
    objectives_of,
    rates_in,
    rates_of,
    summarise,
    trace_of,
)
from runtime.bench.workload import Asked
from runtime.errors import BackendError, InvalidRequest
from runtime.server.launch import ServerProcess


def served(sent: float, arrived: list[float], tokens: int, due: float | None = None) -> Served:
    return Served(sent if due is None else due, sent, arrived[-1], arrived, prompt_tokens=10, tokens=tokens)


# -- arrivals and figures -------------------------------------------------------------------------------------------


@given(
    count=st.integers(1, 50),
    rate=st.floats(0.1, 100),
    burstiness=st.floats(0.1, 10),
    seed=st.text(max_size=3),
)
def test_arrivals_go_on_from_zero(count: int, rate: float, burstiness: float, seed: str) -> None:
    found = arrivals(count, rate, burstiness, seed)
    assert found == arrivals(count, rate, burstiness, seed) == sorted(found)
    assert len(found) == count and found[0] == 0


@pytest.mark.parametrize(("burstiness", "spread"), [(1.0, 1.0), (0.25, 2.0), (16.0, 0.25)])
def test_arrivals_have_their_rate_and_burstiness(burstiness: float, spread: float) -> None:
    """The gaps' deviation, as a share of their mean, is 1 for a Poisson process and burstiness ** -0.5 in general."""
    found = arrivals(20_000, 50.0, burstiness, "seed")
    gaps = [b - a for a, b in itertools.pairwise(found)]
    assert statistics.mean(gaps) == pytest.approx(1 / 50, rel=0.05)
    assert statistics.stdev(gaps) * 50 == pytest.approx(spread, rel=0.1)


def test_an_infinite_rate_is_all_at_once() -> None:
    assert arrivals(3, math.inf, 1.0, "") == [0, 0, 0]


def test_times_of_a_request() -> None:
    one = served(1.0, [1.5, 2.0, 3.0], tokens=7)
    assert (one.ttft, one.e2e, one.tpot, one.gaps) == (0.5, 2.0, 0.25, [0.5, 1.0])
    assert served(1.0, [1.5], tokens=1).tpot is None


def test_figures_are_those_of_answered_requests() -> None:
    failed = Served(0.0, 0.0, 9.0, [], error="503: full")
    good, slow = served(0.5, [1.0, 2.0], 3, due=0.0), served(0.0, [4.0, 10.0], 3)
    found = summarise([good, slow, failed], 2.0, {"ttft": 1.0, "e2e": 5.0})
    assert (found.completed, found.failed, found.errors) == (2, 1, ["503: full"])
    assert (found.request_throughput, found.output_throughput, found.input_throughput) == (0.2, 0.6, 2.0)
    assert found.goodput == 0.1
    assert found.ttft_ms is not None and found.ttft_ms.max == 4000 and found.ttft_ms.median == 2250
    assert found.itl_ms is not None and found.itl_ms.max == 6000
    assert found.late_ms is not None and found.late_ms.max == 500
    assert found.most_at_once == 3
    assert summarise([failed], math.inf, {}).ttft_ms is None


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), max_size=20))
def test_most_at_once_is_that_of_every_moment(spans: list[tuple[float, float]]) -> None:
    requests = [Served(0, a, a + length) for a, length in spans if length > 0 and a + length > a]
    most = max((sum(r.sent <= at.sent < r.ended for r in requests) for at in requests), default=0)
    assert most_at_once(requests) == most


def test_lanes_of_the_trace_are_used_again_when_they_are_free() -> None:
    runs = [
        [served(0.0, [1.0, 2.0], 2), served(1.0, [3.0], 1), served(2.5, [4.0], 1)],
        [served(0.0, [1.0], 1)],
    ]
    events = trace_of(runs).events
    spans = [(e["tid"], e["ts"], e["dur"]) for e in events if e["name"].startswith("request")]
    assert spans == [(0, 0, 2000000), (1, 1000000, 2000000), (0, 2500000, 1500000), (0, 4000000, 1000000)]
    assert [e["args"]["name"] for e in events if e["ph"] == "M"] == ["connection 0", "connection 1"]


@pytest.mark.parametrize("text", ["", "0", "-1", "fast", "nan"])
def test_bad_rates_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="give requests a second, such as 4 or 2,4,inf"):
        rates_of(text)


@pytest.mark.parametrize("text", ["ttft", "speed:3", "ttft:0", "ttft:x"])
def test_bad_objectives_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match=f"--goodput '{text}': give ttft, tpot, e2e with milliseconds"):
        objectives_of(text)


def test_rates_and_objectives() -> None:
    assert rates_of("2, 4.5,inf") == [2, 4.5, math.inf]
    assert objectives_of("ttft:200,e2e:1500") == {"ttft": 0.2, "e2e": 1.5}
    assert objectives_of("") == {}


# -- servers --------------------------------------------------------------------------------------------------------


def chunk(text: str, **more: Any) -> bytes:
    event = {"choices": [{"text": text, "delta": {"content": text}}], **more}
    return b"data: " + json.dumps(event).encode() + b"\n\n"


USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 5}}\n\n'
DONE = b"data: [DONE]\n\n"
STREAMS = {
    "whole": [
        b'data: {"choices": [{"delta": {"role": "assistant"}}]}\n\n',
        chunk("a"),
        chunk("b"),
        USAGE,
        DONE,
    ],
    "uncounted": [chunk("a"), chunk("b"), chunk("c"), DONE],
    "cut": [chunk("a")],
    "failing": [chunk("a"), b'data: {"error": {"message": "out of memory"}}\n\n'],
    "garbled": [b"data: {\n\n"],
}


@pytest.fixture
async def foreign() -> AsyncIterator[str]:
    """A server with OpenAI's API that answers what its prompt names."""

    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        name = body["messages"][0]["content"] if "messages" in body else body["prompt"]
        if name == "busy":
            return web.Response(status=503, text="no seat is free")
        response = web.StreamResponse()
        await response.prepare(request)
        for part in STREAMS[name]:
            await response.write(part)
        return response

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "theirs"}]})

    application = web.Application()
    application.add_routes([web.post("/v1/completions", answer), web.post("/v1/chat/completions", answer)])
    application.add_routes([web.get("/v1/models", models)])
    async with TestServer(application) as server:
        yield str(server.make_url("/v1"))


async def one(url: str, prompt: str, api: str = "openai-chat") -> Served:
    async with Client(url, APIS[api]) as client:
        return (await send(client, [Asked(prompt, 5)], [0.0]))[0]


async def test_a_whole_answer_is_counted_by_the_server(foreign: str) -> None:
    found = await one(foreign, "whole")
    assert (found.error, found.prompt_tokens, found.tokens, len(found.arrivals)) == (None, 4, 5, 2)
    assert found.sent <= found.arrivals[0] <= found.arrivals[1] <= found.ended


async def test_an_answer_without_counts_has_a_token_for_each_event(foreign: str) -> None:
    found = await one(foreign, "uncounted", "openai")
    assert (found.error, found.tokens, len(found.arrivals)) == (None, 3, 3)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("busy", "503: no seat is free"),
        ("cut", "ValueError: the stream ended before its [DONE]"),
        ("failing", "{'message': 'out of memory'}"),
        ("garbled", "DecodeError: Input data was truncated"),
    ],
)
async def test_what_goes_wrong_is_noted(foreign: str, name: str, error: str) -> None:
    assert (await one(foreign, name)).error == error


async def test_no_more_than_so_many_at_once(foreign: str) -> None:
    async with Client(foreign, APIS["openai"]) as client:
        found = await send(client, [Asked("whole", 5)] * 7, [0.0] * 7, most=2)
        facts = await client.facts()
    assert most_at_once(found) <= 2 and all(s.error is None for s in found)
    assert facts["model"] == client.model == "theirs"


async def test_nobody_there() -> None:
    async with Client("http://127.0.0.1:9", APIS["openai"]) as client:
        with pytest.raises(BackendError, match="is the server up"):
            await client.facts()
    found = await one("http://127.0.0.1:9", "whole")
    assert found.error is not None and found.error.startswith("ClientConnectorError")


async def test_ids_are_not_for_a_chat(foreign: str) -> None:
    async with Client(foreign, APIS["openai-chat"]) as client:
        with pytest.raises(InvalidRequest, match="use --backend openai"):
            await send(client, [Asked([1, 2], 1)], [0.0])


# -- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    server = ServerProcess(max_total_tokens=4096)
    yield server
    server.shutdown()


@pytest.mark.parametrize("backend", list(APIS))
def test_serving(server: ServerProcess, tmp_path: Path, backend: str) -> None:
    out, profile = tmp_path / "found.json", tmp_path / "trace.json"
    arguments = [
        "serving", "--base-url", server.url, "--backend", backend, "--num-prompts", "6", "--input-len", "12", "--output-len", "5",
        "--request-rate", "200,inf", "--goodput", "e2e:600000", "--flush-cache", "--json", str(out), "--profile", str(profile),
    ]  # fmt: skip
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "Serving, tiny; times in ms, median / p99" in done.stdout and "good requests/s" in done.stdout
    found = json.loads(out.read_text())
    assert (found["bench"], found["backend"], found["model"]) == ("serving", backend, "tiny")
    assert [r.get("request_rate") for r in found["results"]] == [200, None]
    for result in found["results"]:
        assert (result["completed"], result["failed"], result["errors"]) == (6, 0, [])
        assert result["output_tokens"] == 30
        assert result["input_tokens"] == 72 if backend != "openai-chat" else result["input_tokens"] > 72
        assert result["goodput"] == pytest.approx(result["request_throughput"])
        assert result["ttft_ms"]["max"] <= result["e2e_ms"]["max"]
    names = [e["name"] for e in json.loads(profile.read_text())["traceEvents"]]
    assert names.count("first token") == 12


@pytest.mark.parametrize("backend", ["openai", "openai-chat", "native"])
def test_whole_answers(server: ServerProcess, tmp_path: Path, backend: str) -> None:
    out = tmp_path / "found.json"
    arguments = ["serving", "--base-url", server.url, "--backend", backend, "--num-prompts", "4", "--input-len", "12",
                 "--output-len", "5", "--disable-stream", "--json", str(out)]  # fmt: skip
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (result,) = json.loads(out.read_text())["results"]
    assert (result["completed"], result["failed"], result["output_tokens"]) == (4, 0, 20)
    assert result["ttft_ms"] == result["e2e_ms"] and "tpot_ms" not in result and "itl_ms" not in result


@pytest.mark.parametrize("backend", ["openai", "openai-chat", "native"])
def test_server_latency(server: ServerProcess, tmp_path: Path, backend: str) -> None:
    out = tmp_path / "found.jsonl"
    arguments = ["server-latency", "--base-url", server.url, "--backend", backend, "--batch-size", "1,3", "--input-len", "12",
                 "--output-len", "1,5", "--run-name", "mine", "--result-filename", str(out)]  # fmt: skip
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0 and "Latency of tiny" in done.stdout, done.output
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["batch_size"], r["input_len"], r["output_len"]) for r in found] == [
        (1, 12, 1), (1, 12, 5), (3, 12, 1), (3, 12, 5)
    ]  # fmt: skip
    for r in found:
        assert r["run_name"] == "mine" and 0 < r["prefill_latency"] <= r["total_latency"]
        assert ("decode_throughput" in r) == (r["output_len"] > 1)
        tokens = r["batch_size"] * (r["input_len"] + r["output_len"])
        assert r["total_throughput"] == pytest.approx(tokens / r["total_latency"])


def test_a_batch_with_a_hole_is_an_error(server: ServerProcess) -> None:
    arguments = [
        "server-latency",
        "--base-url",
        server.url,
        "--input-len",
        "12",
        "--served-model-name",
        "none",
    ]
    with pytest.raises(BackendError, match="a request of the batch failed: 404"):
        CliRunner().invoke(app, [*arguments, "--skip-warmup"], catch_exceptions=False)


def test_latency_of_a_batch_is_that_of_its_last() -> None:
    batch = [served(0.0, [0.5, 1.0], 3), served(0.1, [1.0, 2.0], 3)]
    found = measured(batch, 10, 3)
    assert (found.prefill_latency, found.total_latency, found.prefill_throughput) == (1.0, 2.0, 20.0)
    assert (found.decode_throughput, found.total_throughput) == (4.0, 13.0)


def test_a_server_is_started_where_none_is_named(tmp_path: Path) -> None:
    out = tmp_path / "found.jsonl"
    arguments = ["serving", "--num-prompts", "2", "--input-len", "4", "--output-len", "2", "--max-total-tokens", "600",
                 "--served-model-name", "mine", "--json", str(out)]  # fmt: skip
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text())
    assert (found["model"], found["total_tokens"], found["completed"]) == ("mine", 600, 2)


def test_requests_that_all_fail_are_an_error(server: ServerProcess) -> None:
    arguments = [
        "serving",
        "--base-url",
        server.url,
        "--num-prompts",
        "2",
        "--warmups",
        "0",
        "--served-model-name",
        "none",
    ]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 1
    assert "2 requests failed, for example: 404:" in done.stderr
    with pytest.raises(BackendError, match="did not answer the first request: 404"):
        CliRunner().invoke(app, [*arguments, "--warmups", "1"], catch_exceptions=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--backend", "grpc"), "--backend 'grpc' is not known; use openai, openai-chat, native"),
        (("--extra-request-body", "[]"), r"--extra-request-body '\[\]' is not a JSON object"),
        (("--base-url", "http://x", "--page-size", "4"), "--page-size is an option of a server, but --base-url"),
        (("--num-prompts", "0"), "--num-prompts 0: give at least 1"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_anything_runs(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        CliRunner().invoke(app, ["serving", *arguments], catch_exceptions=False)


def test_rates_in_a_range() -> None:
    assert rates_in("2,10,4") == [2, 6]
    assert rates_in("0.5,1.6,0.5") == [0.5, 1.0, 1.5]
    for bad in ("", "1", "1,2", "0,2,1", "2,1,1", "1,2,0", "a,b,c", "1,1e9,1"):
        with pytest.raises(InvalidRequest, match="--request-rate-range"):
            rates_in(bad)
