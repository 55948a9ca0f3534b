"""Steps of requests whose prompts begin alike: what a graph's attention reads once for several rows changes no logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from runtime.api import SamplingParams
from runtime.attention import triton as attention_paths
from runtime.attention.triton import TritonAttention
from runtime.engine import bundles, device
from runtime.engine.graphs import DecodeGraph
from runtime.kernels.paged_decode import DecodeShape, PagedDecode
from runtime.kv.store import KVStore
from runtime.models.decoder import Decoder
from runtime.models.spec import ArchSpec, AttnSpec, LayerSpec, MlpSpec, NormSpec, RopeSpec
from runtime.scheduler.scheduler import Request, Scheduler
from tests.kernels import emulated
from tests.kernels.paged_case import TOLERANCE, error
from tests.kernels.test_paged_decode import builder

BF16 = torch.bfloat16
ROWS, PAGE, CONTEXT = 3, 16, 160


def model(on: torch.device) -> Decoder:
    rope = RopeSpec(32, tuple(0.5**i for i in range(16)))
    layer = LayerSpec(AttnSpec(4, 2, 32, 0.2, rope), MlpSpec(96), NormSpec(1e-5))
    torch.manual_seed(1)
    made = Decoder(ArchSpec("small", 80, 64, CONTEXT, (layer,), NormSpec(1e-5)), BF16)
    for p in made.parameters():
        p.requires_grad_(False)
        if p.dim() > 1:
            p.normal_(std=p.shape[-1] ** -0.5)
        else:
            p.fill_(1.0)
    return made.to(on)


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(8)
    head = torch.randint(0, 80, (70,), generator=generator).tolist()
    tails = torch.randint(0, 80, (ROWS, 7), generator=generator).tolist()
    return [head + tail[: 2 + i] for i, tail in enumerate(tails)]


def first_step(on: torch.device, make: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[int, Tensor]:
    """Of the first step that all requests are in: its rows that share something, its logits."""
    scheduler = Scheduler(
        pages=1024 // PAGE, page_size=PAGE, context=CONTEXT, chunk=128, depth=1, max_running=ROWS, turn=1
    )
    m = model(on)
    store = KVStore(m.spec, scheduler.cache.pool.total, PAGE, BF16, str(on))
    attention = TritonAttention(store, [x.attention for x in m.spec.layers], make)
    steps: list[tuple[int, Tensor]] = []
    replay = DecodeGraph.replay

    def watched(graph: DecodeGraph) -> None:
        live = int((graph.control[1] >= 0).sum())
        shares = int(graph.control[5].count_nonzero())
        replay(graph)
        if live == ROWS:
            steps.append((shares, graph.logits[:ROWS].float().clone()))

    with torch.inference_mode(), monkeypatch.context() as patched:
        patched.setattr("runtime.engine.device.graph_sizes", lambda largest: (largest,))
        runner = device.device_runner(
            m, store, attention, (), None, seats=ROWS, context=CONTEXT, largest_graph=ROWS
        )
        patched.setattr(DecodeGraph, "replay", watched)
        waiting = [
            Request(str(i), ids, SamplingParams(temperature=0), max_new=12, seed=0)
            for i, ids in enumerate(prompts())
        ]
        scheduler.add(waiting.pop(0))
        while not steps:
            batch = scheduler.next_batch()
            assert batch is not None
            scheduler.commit(runner.collect(runner.launch(batch)))
            while waiting:  # the first one's prompt is in the cache
                scheduler.add(waiting.pop(0))
    return steps[0]


@pytest.mark.parametrize("own", [True, False])
def test_what_begins_alike_is_read_once(
    own: bool, device: torch.device, libraries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`own`: steps that share nothing are attended by the kernel in CUDA C++ as well."""
    emulated.skip_without_compiler(device)
    monkeypatch.setattr(bundles, "LEAST", 64)
    taken = range(1, 100) if own else range(100, 101)
    monkeypatch.setattr(attention_paths, "packed_rows", lambda _: (taken,))

    def make(shape: DecodeShape, window: int | None) -> PagedDecode:
        if device.type == "cuda":
            return PagedDecode(shape, device, window=window)
        return PagedDecode(shape, device, window=window, build=builder(libraries, 5), programs=3)

    found = {}
    for worth in (-(1 << 60), 1 << 60):
        monkeypatch.setattr("runtime.engine.bundles.WORTH", worth)
        found[worth] = first_step(device, make, monkeypatch)
    (shares, logits), (none, wanted) = found.values()
    assert (shares, none) == (ROWS, 0)
    assert not torch.equal(logits, wanted), "it went another way"
    assert error(logits, wanted) < TOLERANCE[BF16]
