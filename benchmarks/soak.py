"""Whether a server stays as it is: many aborted requests, then mixed traffic for minutes; what leaks shows.

    python -m benchmarks.soak --aborts 10000 --minutes 60

Memory is RssAnon + VmSwap of all its processes. The KV pool is small, so that it is full early and its first use is not
taken for a leak. Exit code 1 if a page or seat is lost, an answer is wrong, or the last quarter takes over 5 % (at least 64 MiB)
more than the second.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import typer

from benchmarks.traffic import Tally, Watch, leave, memory, settled, stay, storm
from runtime.server.launch import ServerProcess

RESULTS = Path(__file__).parent / "results" / "soak.json"
PROBE = {"text": "12 + 35 =", "sampling_params": {"temperature": 0, "max_new_tokens": 8}}


async def mixed(url: str, seconds: float, at_once: int, seed: int) -> Tally:
    """Requests of all kinds, a third of them left, for so long; greedy answers must stay the same throughout."""
    rng, tally, end = random.Random(seed), Tally(), time.monotonic() + seconds

    async def greedy(session: aiohttp.ClientSession) -> str:
        async with session.post(f"{url}/generate", json=PROBE) as answer:
            return str((await answer.json())["text"])

    async def client(session: aiohttp.ClientSession, expected: str) -> None:
        while time.monotonic() < end:
            kind = rng.random()
            if kind < 0.05:
                tally.counts["greedy"] += 1
                tally.wrong["another greedy answer"] += await greedy(session) != expected
            else:
                await (leave if kind < 0.37 else stay)(session, url, rng, tally)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        expected = await greedy(session)
        await asyncio.gather(*(client(session, expected) for _ in range(at_once)))
    tally.wrong = +tally.wrong
    return tally


def plot(series: list[tuple[float, int]], path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        typer.echo(f"no {path.name}: matplotlib is not installed", err=True)
        return
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([t / 60 for t, _ in series], [size / 2**20 for _, size in series], linewidth=1)
    axes.set(xlabel="minutes", ylabel="MiB of the server", ylim=(0, None), title="memory under mixed traffic")
    figure.savefig(path, dpi=110)


def main(
    aborts: Annotated[int, typer.Option(help="Requests that are left in the first part.")] = 10_000,
    minutes: Annotated[float, typer.Option(help="Of mixed traffic in the second part.")] = 60.0,
    at_once: Annotated[int, typer.Option(help="Clients.")] = 24,
    seed: int = 1,
    out: Path = RESULTS,
) -> None:
    server = ServerProcess(max_total_tokens=16384)
    try:
        asyncio.run(storm(server.url, 500, at_once, seed + 1))  # what is made once is made now
        before, start = settled(server.url), memory(server.pid)
        began = time.monotonic()
        tally = asyncio.run(storm(server.url, aborts, at_once, seed))
        after, grown = settled(server.url), memory(server.pid) - start
        result: dict[str, Any] = {
            "aborts": {
                "seconds": round(time.monotonic() - began, 1),
                **tally.counts,
                "wrong": dict(tally.wrong),
                "used_tokens": after["kv_cache"]["used_tokens"],
                "problem": after["problem"],
                "more_files": after["files"] - before["files"],
                "bytes_each": round(grown / max(aborts, 1)),
            }
        }
        typer.echo(json.dumps(result["aborts"]))
        with Watch(server.url, server.pid) as watch:
            tally = asyncio.run(mixed(server.url, minutes * 60, at_once, seed))
        end = settled(server.url)
        result["mixed"] = {
            "minutes": minutes,
            **tally.counts,
            "wrong": dict(tally.wrong),
            "problem": end["problem"],
            "used_tokens": end["kv_cache"]["used_tokens"],
            "growth": round(watch.growth, 4),
            "most_mib": round(max(size for _, size in watch.memory) / 2**20),
            "slowest_health_s": round(max(watch.health), 3),
            "unwell": watch.unwell,
        }
        typer.echo(json.dumps(result["mixed"]))
        out.write_text(json.dumps(result, indent=1) + "\n")
        plot(watch.memory, out.with_suffix(".png"))
    finally:
        server.shutdown()
    most = max(64 * 2**20 / max(size for _, size in watch.memory), 0.05)
    parts = result.values()
    bad = any(part["wrong"] or part["problem"] or part["used_tokens"] for part in parts)
    raise typer.Exit(bad or bool(watch.unwell) or watch.growth > most or result["aborts"]["more_files"] > 20)


if __name__ == "__main__":
    typer.run(main)
