"""Clients of all kinds, and how much memory a server takes: what the soak, the load script and their tests share."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp


def request_of(rng: random.Random, tokens: int) -> tuple[str, dict[str, Any]]:
    """A route and a request of at most `tokens` tokens; streamed, batched, sampled, scored or constrained."""
    start = rng.randint(0, 9)
    text = f"Count to a hundred, starting at {start}: " + "1, 2, 3, " * rng.randint(0, 60)
    params: dict[str, Any] = {"max_new_tokens": tokens, "ignore_eos": True}
    match rng.randrange(7):
        case 0:
            return "/generate", {"text": text, "sampling_params": params, "stream": True}
        case 1:
            return "/generate", {"text": text, "sampling_params": {**params, "n": 4}}
        case 2:
            both = [text, text[::-1]]
            return "/generate", {"text": both, "sampling_params": params, "return_logprob": True}
        case 3:
            salt = f"salt {rng.randrange(10**6)}"
            return "/v1/completions", {
                "prompt": text,
                "max_tokens": tokens,
                "stream": True,
                "cache_salt": salt,
            }
        case 4:  # a regex that was not compiled before
            regex = f"[a-z]{{8,{8 + rng.randrange(1, 40)}}}{rng.randrange(10**6)}"
            return "/generate", {"text": text, "sampling_params": {"max_new_tokens": 120, "regex": regex}}
        case 5:
            bad = rng.choice([{"top_p": 7}, {"regex": "("}, {"max_new_tokens": "many"}, {"nothing": 1}])
            return "/generate", {"text": text, "sampling_params": bad}
    messages = [{"role": "user", "content": text}]
    return "/v1/chat/completions", {"messages": messages, "max_tokens": tokens, "stream": True}


@dataclass
class Tally:
    """What became of requests. `wrong` is what must stay empty: statuses and endings that no client should see."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    tokens: int = 0

    def answer(self, status: int, headers: Any, refused_by_us: bool = False) -> None:
        """Note a status: 200 is an answer, 429 and 503 with Retry-After a refusal, 400 fits a bad request only."""
        if status == 200:
            self.counts["answered"] += 1
        elif status in (429, 503) and "Retry-After" in headers:
            self.counts["refused"] += 1
        elif status == 400 and refused_by_us:
            self.counts["bad requests"] += 1
        else:
            self.wrong[f"status {status}"] += 1


async def leave(session: aiohttp.ClientSession, url: str, rng: random.Random, tally: Tally) -> None:
    """Start a request that would run for long, and go away after a moment."""
    path, body = request_of(rng, 2000)
    patience = rng.choice([0.002, 0.02, 0.1, 0.4]) * rng.random()
    try:
        async with asyncio.timeout(patience), session.post(url + path, json=body) as answer:
            await answer.read()
            tally.answer(answer.status, answer.headers, refused_by_us=True)
    except (TimeoutError, aiohttp.ClientError):
        tally.counts["aborted"] += 1


async def stay(session: aiohttp.ClientSession, url: str, rng: random.Random, tally: Tally) -> None:
    """Send a request and read its answer to the end."""
    path, body = request_of(rng, rng.randint(1, 48))
    try:
        async with session.post(url + path, json=body) as answer:
            text = await answer.read()
            tally.answer(answer.status, answer.headers, refused_by_us=True)
            if answer.status == 200 and body.get("stream") and not text.endswith(b"data: [DONE]\n\n"):
                tally.wrong["a stream that was cut"] += 1
    except aiohttp.ClientError as error:
        tally.wrong[type(error).__name__] += 1


async def storm(url: str, count: int, at_once: int, seed: int) -> Tally:
    """`count` requests that are left, `at_once` at a time."""
    rng, tally, left = random.Random(seed), Tally(), iter(range(count))

    async def client(session: aiohttp.ClientSession) -> None:
        for _ in left:
            await leave(session, url, rng, tally)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(client(session) for _ in range(at_once)))
    return tally


def settled(url: str, seconds: float = 30) -> dict[str, Any]:
    """What /debug/check finds once nothing runs. Raises TimeoutError if something is still held then."""
    end = time.monotonic() + seconds
    while True:
        with urllib.request.urlopen(f"{url}/debug/check", timeout=seconds) as answer:
            found: dict[str, Any] = json.load(answer)
        if found["idle"] and found["calls"] == found["admitted"] == 0:
            return found
        if time.monotonic() > end:
            raise TimeoutError(f"still held after {seconds:g} s: {found}")
        time.sleep(0.05)


def process_tree(pid: int) -> list[int]:
    """The process and all below it."""
    found = [pid]
    for parent in found:
        try:
            tasks = list(Path(f"/proc/{parent}/task").iterdir())
            for task in tasks:
                found += map(int, (task / "children").read_text().split())
        except OSError:  # it ended meanwhile
            continue
    return found


def memory(pid: int) -> int:
    """Bytes that only the process tree holds: anonymous memory, in RAM or swapped out."""
    return sum(map(memory_of, process_tree(pid)))


def memory_of(pid: int) -> int:
    """`memory` of one process; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    sizes = [line.split()[1] for line in status.splitlines() if line.startswith(("RssAnon:", "VmSwap:"))]
    return sum(map(int, sizes)) * 1024


def cpu_seconds(pid: int) -> float:
    """Processor time of one process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


class Watch:
    """Samples a server's memory and asks for its health, from a thread, until it is left."""

    def __init__(self, url: str, pid: int, every: float = 0.5) -> None:
        self.memory: list[tuple[float, int]] = []
        self.health: list[float] = []
        self.unwell: list[str] = []
        self._url, self._pid, self._every = url, pid, every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            began = time.monotonic()
            try:
                with urllib.request.urlopen(f"{self._url}/health", timeout=10):
                    pass
            except OSError as error:
                self.unwell.append(repr(error))
            self.health.append(time.monotonic() - began)
            self.memory.append((time.monotonic() - self._began, memory(self._pid)))

    @property
    def growth(self) -> float:
        """Most memory in the last quarter over that in the second, minus one."""
        sizes = [size for _, size in self.memory]
        quarter = max(len(sizes) // 4, 1)
        return max(sizes[-quarter:]) / max(sizes[quarter : 2 * quarter] or sizes[:1]) - 1
