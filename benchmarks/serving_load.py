"""Many streams at once on a small machine: all answered or refused, memory flat, /health quick; and what HTTP costs.

    python -m benchmarks.serving_load --streams 300 --minutes 10

The same requests go to the engine process without a server before and after; the overhead is the share of that throughput that is
missing over HTTP. Client, server and engine share the cores, so it includes the client's own work; processor time is told for
each. Exit code 1 if a stream breaks, a refusal lacks Retry-After, /health takes a second, or memory grows as in benchmarks/soak.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import time
import urllib.request
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import typer

from benchmarks.traffic import Tally, Watch, cpu_seconds, process_tree
from runtime.api import Generate, SamplingParams, TextSegment
from runtime.config import EngineConfig
from runtime.engine.async_engine import AsyncEngine
from runtime.engine.process import ProcessTransport
from runtime.server.launch import ServerProcess

RESULTS = Path(__file__).parent / "results" / "serving_load.json"
POOL = 65536
PATIENCE = aiohttp.ClientTimeout(total=None, sock_read=300)  # a stream may be long, a silence may not


def prompts(seed: int) -> Iterator[tuple[str, int]]:
    """Prompts of 20 to 200 tokens with a shared beginning, and how many tokens each is to get."""
    rng = random.Random(seed)
    while True:
        numbers = "".join(f"{rng.randrange(100)}, " for _ in range(rng.randint(5, 60)))
        yield "Count to a hundred: " + numbers, rng.randint(16, 96)


async def stream(session: aiohttp.ClientSession, url: str, text: str, tokens: int, tally: Tally) -> None:
    """One stream, read to its end; a refusal is waited for as it asks."""
    body = {"prompt": text, "max_tokens": tokens, "stream": True, "ignore_eos": True}
    try:
        async with session.post(f"{url}/v1/completions", json=body) as answer:
            tally.answer(answer.status, answer.headers)
            if answer.status != 200:
                await asyncio.sleep(float(answer.headers.get("Retry-After", 1)))
                return
            tail = b""
            async for piece in answer.content.iter_any():
                tail = (tail + piece)[-4096:]
            if not tail.endswith(b"data: [DONE]\n\n") or b'"length"' not in tail:
                tally.wrong["a stream that was cut"] += 1
            else:
                tally.tokens += tokens
    except (aiohttp.ClientError, TimeoutError) as error:
        tally.wrong[type(error).__name__] += 1


async def while_running(
    clients: list[Coroutine[Any, Any, None]], count: Callable[[], int], seconds: float
) -> float:
    """Output tokens a second while all clients run: the first fifth is left out, and the end, when some have left."""
    tasks = [asyncio.create_task(c) for c in clients]
    await asyncio.sleep(seconds / 5)
    began, first = time.monotonic(), await asyncio.to_thread(count)
    await asyncio.sleep(seconds * 4 / 5)
    speed = (await asyncio.to_thread(count) - first) / (time.monotonic() - began)
    await asyncio.gather(*tasks)
    return speed


async def over_http(url: str, seconds: float, streams: int, seed: int) -> tuple[Tally, float]:
    """`streams` clients, one stream after another, for so long; the tally and the tokens a second."""
    source, tally, end = prompts(seed), Tally(), time.monotonic() + seconds

    def counted() -> int:
        with urllib.request.urlopen(f"{url}/page/state") as answer:
            return int(json.load(answer)["totals"]["output_tokens"])

    async def client(session: aiohttp.ClientSession) -> None:
        while time.monotonic() < end:
            await stream(session, url, *next(source), tally)

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=PATIENCE) as session:
        speed = await while_running([client(session) for _ in range(streams)], counted, seconds)
    return tally, speed


async def engine_alone(seconds: float, streams: int, seed: int, threads: int | None) -> float:
    """Tokens a second of the engine process, asked without HTTP."""
    config = EngineConfig(max_total_tokens=POOL, threads=threads)
    engine = AsyncEngine(config, ProcessTransport(config))
    await engine.open()
    source, end = prompts(seed), time.monotonic() + seconds

    async def client() -> None:
        while time.monotonic() < end:
            text, count = next(source)
            sampling = SamplingParams(max_new_tokens=count, ignore_eos=True)
            async for delta in engine.generate([Generate(prompt=(TextSegment(text),), sampling=sampling)]):
                assert delta.finish is not None and delta.finish.type == "length", delta

    def counted() -> int:
        return engine.live.totals().output_tokens

    try:
        return await while_running([client() for _ in range(streams)], counted, seconds)
    finally:
        await engine.close()


def main(
    streams: Annotated[int, typer.Option(help="Clients, each with one stream at a time.")] = 300,
    minutes: Annotated[float, typer.Option(help="Over HTTP.")] = 10.0,
    alone: Annotated[
        float, typer.Option(help="Seconds of the engine alone, before and after; 0: leave out.")
    ] = 30.0,
    threads: Annotated[
        int | None, typer.Option(help="Of the model; fewer than cores where others use them too.")
    ] = None,
    seed: int = 1,
    out: Path = RESULTS,
) -> None:
    own = [asyncio.run(engine_alone(alone, streams, seed, threads))] if alone else []
    server = ServerProcess(max_total_tokens=POOL, threads=threads)
    try:
        asyncio.run(over_http(server.url, min(10.0, minutes * 6), streams, seed + 1))  # first uses
        names = {server.pid: "http", os.getpid(): "client"}
        pids = [*process_tree(server.pid), os.getpid()]
        before = {pid: cpu_seconds(pid) for pid in pids}
        with Watch(server.url, server.pid) as watch:
            tally, speed = asyncio.run(over_http(server.url, minutes * 60, streams, seed))
        processor: dict[str, float] = {}
        for pid in pids:
            name = names.get(pid, "engine")
            processor[name] = round(processor.get(name, 0.0) + cpu_seconds(pid) - before[pid], 1)
    finally:
        server.shutdown()
    own += [asyncio.run(engine_alone(alone, streams, seed, threads))] if alone else []
    result: dict[str, Any] = {
        "streams": streams,
        "minutes": minutes,
        **tally.counts,
        "wrong": dict(tally.wrong),
        "tokens_per_second": round(speed, 1),
        "engine_alone": [round(x, 1) for x in own],
        "overhead": round(1 - speed / statistics.mean(own), 4) if own else None,
        "processor_seconds": processor,
        "http_share_of_engine": round(processor["http"] / processor["engine"], 4),
        "growth": round(watch.growth, 4),
        "most_mib": round(max(size for _, size in watch.memory) / 2**20),
        "health_s": {
            "median": round(statistics.median(watch.health), 4),
            "slowest": round(max(watch.health), 4),
        },
        "unwell": watch.unwell,
    }
    typer.echo(json.dumps(result, indent=1))
    out.write_text(json.dumps(result, indent=1) + "\n")
    most = max(64 * 2**20 / max(size for _, size in watch.memory), 0.05)
    bad = tally.wrong or watch.unwell or max(watch.health) > 1 or watch.growth > most
    raise typer.Exit(bool(bad))


if __name__ == "__main__":
    typer.run(main)
