"""`runtime bench server-latency`: one batch at a time against a server, as its clients see it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runtime.bench.client import Chat, Client, Served, send
from runtime.bench.workload import Asked, random_tokens
from runtime.errors import BackendError


@dataclass(frozen=True)
class ServerLatency:
    """Of one batch whose requests were sent together; seconds, and tokens a second.

    prefill_latency    until every request had its first token
    decode_throughput  of the tokens after the first; None for answers of one
    """

    batch_size: int
    input_len: int
    output_len: int
    prefill_latency: float
    prefill_throughput: float
    decode_throughput: float | None
    total_latency: float
    total_throughput: float


def measured(served: Sequence[Served], input_len: int, output_len: int) -> ServerLatency:
    """Raises BackendError if a request failed: a batch with a hole in it measures nothing."""
    failed = next((s.error for s in served if s.error is not None), None)
    if failed is not None:
        raise BackendError(f"a request of the batch failed: {failed}")
    batch = len(served)
    began = min(s.sent for s in served)
    first = max(s.sent + s.ttft for s in served) - began
    total = max(s.ended for s in served) - began
    later = sum(s.tokens for s in served) - batch
    return ServerLatency(
        batch_size=batch,
        input_len=input_len,
        output_len=output_len,
        prefill_latency=first,
        prefill_throughput=batch * input_len / first,
        decode_throughput=later / (total - first) if later > 0 and total > first else None,
        total_latency=total,
        total_throughput=(batch * input_len + sum(s.tokens for s in served)) / total,
    )


async def run(
    client: Client, cases: Sequence[tuple[int, int, int]], seed: int, *, warmup: bool
) -> tuple[dict[str, Any], list[ServerLatency]]:
    """What the server says of itself, and the figures of each case (batch, input, output).

    Every batch has prompts of its own, so that none is found in the cache. Raises BackendError for a server that does
    not answer, or refuses.
    """
    async with client:
        facts = await client.facts()
        vocabulary = None if isinstance(client.api, Chat) else facts.get("vocab_size")
        found = []
        for number, (batch, given, new) in enumerate([cases[0], *cases] if warmup else cases):
            rng = random.Random(f"{seed} {number}")
            asked = [Asked(_prompt(rng, given, vocabulary), new) for _ in range(batch)]
            found.append(measured(await send(client, asked, [0.0] * batch), given, new))
        return facts, found[1:] if warmup else found


def _prompt(rng: random.Random, length: int, vocabulary: int | None) -> str | list[int]:
    """Ids, or as many words where the server does not say how many ids there are."""
    tokens = random_tokens(rng, length, vocabulary)
    ids = [t for t in tokens if isinstance(t, int)]
    return ids if len(ids) == len(tokens) else " ".join(map(str, tokens))
