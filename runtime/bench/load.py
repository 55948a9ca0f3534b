"""A load on a server: rates in turn, each with its own requests, and what came of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from runtime.bench.client import Chat, Client, Served, send
from runtime.bench.serving import Serving, arrivals, summarise
from runtime.bench.workload import Workload
from runtime.errors import BackendError


@dataclass(frozen=True)
class Load:
    """objectives  seconds by name, that a good answer keeps
    most        requests under way at most
    vocabulary  size of the model's; None: the server's own, or prompts of words
    """

    workload: Workload
    rates: Sequence[float]
    objectives: Mapping[str, float]
    burstiness: float = 1.0
    most: int | None = None
    warmups: int = 0
    flush: bool = False
    vocabulary: int | None = None


async def run(client: Client, load: Load) -> tuple[dict[str, Any], list[tuple[Serving, list[Served]]]]:
    """What the server says of itself, and for each rate the figures and the requests.

    Raises BackendError if nobody answers, or if no warm-up is answered.
    """
    async with client:
        facts = await client.facts()
        vocabulary = None if isinstance(client.api, Chat) else load.vocabulary or facts.get("vocab_size")
        if load.warmups:
            asked = load.workload.requests(vocabulary, salt=-1)[: load.warmups]
            served = await send(client, asked, [0.0] * len(asked))
            if all(s.error is not None for s in served):
                raise BackendError(f"{client.url} did not answer the first request: {served[0].error}")
        found = []
        for number, rate in enumerate(load.rates):
            asked = load.workload.requests(vocabulary, salt=number)
            due = arrivals(len(asked), rate, load.burstiness, f"{load.workload.seed} {number}")
            if load.flush:
                await client.flush()
            with tqdm(total=len(asked), disable=None, desc=f"rate {rate:g}", unit="request") as bar:
                served = await send(client, asked, due, load.most, bar.update)
            found.append((summarise(served, rate, load.objectives), served))
        return facts, found
