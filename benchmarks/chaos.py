"""Whether every request is answered while parts of the server are killed, stopped and broken under it.

    python -m benchmarks.chaos --rounds 20

Each round starts a server, sends mixed traffic, and lets something happen to it at random moments: its engine process or a
worker that compiles constraints is killed or stopped, a batch fails, logits turn to NaN, weights are replaced, the cache is
flushed. Exit code 1 if a request has no answer in time or one that no client should see, if anything is held afterwards, a
greedy answer changed, or a process or a folder is left behind.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import typer
from tqdm import tqdm

from benchmarks.traffic import process_tree, request_of, settled
from runtime.config import embedded_model_path
from runtime.server.launch import ServerProcess

RESULTS = Path(__file__).parent / "results" / "chaos.json"
PROBE = {"text": "12 + 35 =", "sampling_params": {"temperature": 0, "max_new_tokens": 8}}
PATIENCE = 90.0  # seconds that a request may take on a busy machine, a restart included
HANG = 3.0  # --hang-timeout of the servers
DEADLY = (
    "kill engine",
    "stop engine",
    "die",
)  # at most four of these a server: five in ten minutes are its end
OTHERS = ("kill worker", "stop worker", "error", "nan", "update", "flush", "look", "abort")


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def find(server: ServerProcess, part: str) -> list[int]:
    """The server's processes that run a module."""
    return [pid for pid in process_tree(server.pid) if part in command_of(pid)]


class Round:
    """One server and what happens to it."""

    def __init__(self, server: ServerProcess, rng: random.Random, seconds: float) -> None:
        self.server, self.rng, self.seconds = server, rng, seconds
        self.counts: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.slowest = 0.0
        self._deaths = 0

    async def run(self, at_once: int) -> None:
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True), timeout=timeout
        ) as session:
            end = time.monotonic() + self.seconds
            await asyncio.gather(
                self.trouble(session, end), *(self.client(session, end) for _ in range(at_once))
            )

    async def client(self, session: aiohttp.ClientSession, end: float) -> None:
        while time.monotonic() < end:
            path, body = request_of(self.rng, self.rng.randint(1, 64))
            patience = self.rng.choice([None, None, self.rng.random() * 0.5])
            began = time.monotonic()
            try:
                async with asyncio.timeout(patience):
                    await self.answer(session, path, body)
            except TimeoutError:
                if patience is None:
                    self.wrong[f"no answer: {path}"] += 1
                self.counts["left"] += 1
                continue
            except aiohttp.ClientError as error:
                self.wrong[f"{path}: {type(error).__name__}"] += 1
            self.slowest = max(self.slowest, time.monotonic() - began)
            await asyncio.sleep(self.rng.random() * 0.05)

    async def answer(self, session: aiohttp.ClientSession, path: str, body: dict[str, Any]) -> None:
        """Ask, and judge what comes: whole, refused, or ended with an error that says so."""
        async with session.post(self.server.url + path, json=body) as answer:
            text = (await answer.read()).decode()
        status = answer.status
        if status == 200 and body.get("stream"):
            last = [e.removeprefix("data: ") for e in text.split("\n\n") if e][-1]
            told = last == "[DONE]" or "error" in json.loads(last)
            self.counts["streams whole" if last == "[DONE]" else "streams ended by an error"] += 1
            if not told:
                self.wrong["a stream that was cut"] += 1
        elif status == 200:
            json.loads(text)
            self.counts["answers"] += 1
        else:
            error = json.loads(text)["error"]
            self.counts[f"{status} {error['code'] or error['type']}"] += 1
            if status == 500 and error["code"] not in ("internal_error", "server_error"):
                self.wrong[text[:200]] += 1
            if status not in (400, 408, 409, 429, 500, 503):
                self.wrong[f"status {status}: {text[:200]}"] += 1
            if status in (429, 503) and "Retry-After" not in answer.headers:
                self.wrong[f"status {status} without Retry-After"] += 1

    async def trouble(self, session: aiohttp.ClientSession, end: float) -> None:
        while time.monotonic() < end:
            await asyncio.sleep(self.rng.random() * 2)
            what = self.rng.choice(DEADLY * 2 + OTHERS)
            if what in DEADLY:
                if self._deaths >= 4:
                    continue
                self._deaths += 1
            self.counts[f"! {what}"] += 1
            try:
                await self.happen(session, what)
            except TimeoutError:
                self.wrong[f"no answer: {what}"] += 1
            except aiohttp.ClientError as error:
                self.wrong[f"{what}: {type(error).__name__}"] += 1

    async def happen(self, session: aiohttp.ClientSession, what: str) -> None:
        async def post(path: str, body: Any = None) -> None:
            async with session.post(self.server.url + path, json=body or {}) as answer:
                text = await answer.text()
            self.counts[f"{path} {answer.status}"] += 1
            if answer.status not in (200, 400, 404, 409, 503):
                self.wrong[f"{path} {answer.status} {text[:200]}"] += 1

        match what:
            case "kill engine" | "stop engine":
                sign = signal.SIGKILL if what.startswith("kill") else signal.SIGSTOP
                for pid in find(self.server, "runtime.engine.process"):
                    os.kill(pid, sign)
            case "kill worker" | "stop worker":
                sign = signal.SIGKILL if what.startswith("kill") else signal.SIGSTOP
                workers = [
                    p for p in process_tree(self.server.pid)[1:] if "engine.process" not in command_of(p)
                ]
                if workers:
                    os.kill(self.rng.choice(workers), sign)
            case "die" | "error" | "nan":
                await post("/debug/fault", {"kind": what})
            case "update":
                await post("/update_weights", {"model_path": str(embedded_model_path())})
            case "flush":
                await post("/flush_cache")
            case "abort":
                await post("/abort_request", {"rid": "nobody"})
            case "look":
                for path in (
                    "/get_server_info",
                    "/metrics",
                    "/health_generate",
                    "/v1/models",
                    "/debug/check",
                    "/ready",
                ):
                    async with session.get(self.server.url + path) as answer:
                        await answer.read()
                    self.counts[f"{path} {answer.status}"] += 1


async def probe(url: str) -> str:
    """A greedy answer, as soon as the server gives one."""
    end = time.monotonic() + PATIENCE
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE)) as session:
        while True:
            async with session.post(f"{url}/generate", json=PROBE) as answer:
                found = await answer.json()
                if answer.status == 200:
                    return str(found["text"])
            if time.monotonic() > end:
                raise TimeoutError(f"no answer for {PATIENCE:g} s: {found}")
            await asyncio.sleep(0.2)


def main(
    rounds: Annotated[int, typer.Option(help="Servers, one after another.")] = 20,
    seconds: Annotated[float, typer.Option(help="Of traffic and trouble in each.")] = 25.0,
    at_once: Annotated[int, typer.Option(help="Clients.")] = 12,
    seed: int = 1,
    out: Path = RESULTS,
) -> None:
    counts: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    slowest = 0.0
    expected: str | None = None
    for number in tqdm(range(rounds), unit="server"):
        rng = random.Random(f"{seed} {number}")
        with tempfile.TemporaryDirectory() as folder:
            os.environ["TMPDIR"] = folder
            server = ServerProcess(max_total_tokens=8192, debug_faults=True, hang_timeout=HANG, threads=1)
            processes: list[int] = []
            try:
                if expected is None:
                    expected = asyncio.run(probe(server.url))
                one = Round(server, rng, seconds)
                asyncio.run(one.run(at_once))
                counts += one.counts
                wrong += one.wrong
                slowest = max(slowest, one.slowest)
                if asyncio.run(probe(server.url)) != expected:
                    wrong["another greedy answer"] += 1
                end = settled(server.url, PATIENCE)
                if end["problem"] or end["kv_cache"]["used_tokens"]:
                    wrong[f"held at the end: {end}"] += 1
            except (TimeoutError, OSError) as error:
                wrong[f"round {number}: {error!r}"] += 1
            finally:
                if not server.running:
                    wrong["the server has ended"] += 1
                processes = process_tree(server.pid)
                server.shutdown()
            end_of_wait = time.monotonic() + 5
            while any(map(command_of, processes)) and time.monotonic() < end_of_wait:
                time.sleep(0.05)
            wrong.update(f"left behind: {command_of(p)[:100]}" for p in processes if command_of(p))
            wrong.update(f"left behind: {path.name}" for path in Path(folder).glob("runtime-*"))
            if wrong:
                tqdm.write(f"round {number}: {dict(wrong)}\n" + "\n".join(server.last_lines))
    result = {
        "rounds": rounds,
        "seconds": seconds,
        **counts,
        "slowest_s": round(slowest, 1),
        "wrong": dict(wrong),
    }
    out.write_text(json.dumps(result, indent=1) + "\n")
    typer.echo(json.dumps(result, indent=1))
    raise typer.Exit(bool(wrong))


if __name__ == "__main__":
    typer.run(main)
