"""What a run would compile, without a GPU: every kernel's variants at the start of an engine, and those that only its requests need.

    python tests/kernels/launches.py [tiny|8b|0.5b]

The device runner works on the CPU and launches nothing: each launch is looked at as Triton's cache does. Tokens are all 0. Prints a
line of JSON for each variant: the kernel, what the caller chose (constants, warps), what Triton made of the other
arguments, and when it was first launched: in the rehearsal, at the start, in the run.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections import deque
from typing import Any
from unittest.mock import patch

os.environ.pop("TRITON_INTERPRET", None)  # before triton is loaded

import torch
from torch import Tensor
from torch.nn import functional as F
from triton._C.libtriton import native_specialize_impl
from triton.backends.compiler import BaseBackend
from triton.runtime.jit import JITFunction

from runtime.api import SamplingParams
from runtime.attention.triton import TritonAttention
from runtime.engine.device import DeviceRunner, device_runner
from runtime.engine.first_launches import launch_all, rehearse
from runtime.kernels import tuning
from runtime.kernels.mask import FIELDS, advance, mask, mask_bits
from runtime.kv.store import KVStore
from runtime.models.decoder import Decoder
from runtime.models.spec import ArchSpec, AttnSpec, LayerSpec, MlpSpec, NormSpec, RopeSpec
from runtime.request import Request
from runtime.scheduler.scheduler import Scheduler

SHAPES = {  # heads, KV heads, head size, hidden, inner, vocabulary, layers, seats
    "tiny": (4, 2, 64, 256, 512, 384, 2, 70),
    "8b": (32, 8, 128, 4096, 14336, 128256, 2, 1024),
    "0.5b": (14, 2, 64, 896, 4864, 151936, 2, 256),
}


class Seen:
    """Variants in the order of their first launch."""

    def __init__(self) -> None:
        self.when = "start"
        self.variants: dict[tuple[str, str, str], str] = {}

    def look(self, kernel: Any, *values: Any, grid: Any, warmup: bool, **more: Any) -> None:
        given = {**dict(zip(kernel.arg_names, values, strict=False)), **more}
        chosen, found = {}, {}
        for p in kernel.params:
            value = given.pop(p.name)
            if p.is_constexpr:
                chosen[p.name] = str(value)
            else:
                found[p.name] = native_specialize_impl(
                    BaseBackend,
                    value,
                    p.is_const,
                    not p.do_not_specialize,
                    not p.do_not_specialize_on_alignment,
                )
                if value is None:
                    chosen[p.name] = "None"
        name = f"{kernel.module.rpartition('.')[2]}.{kernel.fn.__name__}"
        key = (name, json.dumps({**chosen, **given}), json.dumps(found))
        self.variants.setdefault(key, self.when)


def decoder(shape: str) -> Decoder:
    heads, kv_heads, dim, hidden, inner, vocabulary, layers, _ = SHAPES[shape]
    rope = RopeSpec(dim, tuple(0.5**i for i in range(dim // 2)))
    layer = LayerSpec(AttnSpec(heads, kv_heads, dim, dim**-0.5, rope), MlpSpec(inner), NormSpec(1e-5))
    return Decoder(ArchSpec(shape, vocabulary, hidden, 2048, (layer,) * layers, layer.norm), torch.bfloat16)


def serve(runner: DeviceRunner, scheduler: Scheduler, requests: list[Request]) -> None:
    """A few at a time, so that batches of all sizes and mixtures come about."""
    rng = random.Random(3)
    flight: deque[Any] = deque()
    while requests or not scheduler.idle:
        for _ in range(min(len(requests), rng.choice((0, 0, 1, 3, 9)))):
            scheduler.add(requests.pop())
        batch = scheduler.next_batch()
        if batch is not None:
            flight.append(runner.launch(batch))
        if flight and (batch is None or len(flight) == 2):
            scheduler.commit(runner.collect(flight.popleft()))
        if flight:
            runner.draw(flight[-1])


def main(shape: str = "tiny") -> None:
    seen = Seen()
    seen.when = "rehearsal"
    JITFunction.run = seen.look  # type: ignore[method-assign]
    JITFunction.__getitem__ = lambda kernel, grid: (
        lambda *a, **k: seen.look(kernel, *a, grid=grid, warmup=False, **k)
    )  # type: ignore[method-assign]
    zeros = torch.zeros
    torch.empty = zeros  # nothing writes the results, and tokens must be tokens
    F.linear = lambda x, w, bias=None: zeros((*x.shape[:-1], w.shape[0]), dtype=x.dtype)  # type: ignore[assignment]
    tuning._name = lambda device: "NVIDIA H200"
    tuning.processors = lambda device: 132  # type: ignore[assignment]
    model = decoder(shape)
    *_, vocabulary, _, seats = SHAPES[shape]
    scheduler = Scheduler(pages=20_000, page_size=1, context=2048, chunk=600, depth=2, max_running=seats)
    store = KVStore(model.spec, scheduler.cache.pool.total, 1, torch.bfloat16, "cpu")
    with patch.object(DeviceRunner, "capture"):
        runner = device_runner(
            model, store, TritonAttention(store), (), None, seats=seats, context=2048, largest_graph=seats
        )
    runner.tables = Places(seats)  # type: ignore[assignment]
    rehearse(runner)
    seen.when = "start"
    runner.capture()
    launch_all(runner)
    runner.tables = None
    seen.when = "run"
    rng = random.Random(1)
    kinds = (
        SamplingParams(temperature=0),
        SamplingParams(temperature=0.7),
        SamplingParams(temperature=1, top_p=0.9),
        SamplingParams(temperature=0.5, frequency_penalty=0.3),
    )
    requests = [
        Request(
            str(i),
            [rng.randrange(vocabulary) for _ in range(rng.choice((1, 2, 5, 17, 70, rng.randrange(1, 500))))],
            rng.choice(kinds),
            max_new=rng.randrange(1, 9),
            seed=i,
        )
        for i in range(200)
    ]
    with torch.inference_mode():
        serve(runner, scheduler, requests)
        for rows in (1, 2, 3, 5, 8, 16, 33, 48):
            cut(rows, vocabulary, Places(seats))
    for (name, chosen, found), when in seen.variants.items():
        print(json.dumps({"kernel": name, "when": when, "chosen": chosen, "found": found}))


class Places:
    """Stands for `DeviceSeats` with no constraint in any seat."""

    def __init__(self, seats: int) -> None:
        self.places = torch.zeros(seats + 1, FIELDS, dtype=torch.int64)

    def mask(self, logits: Tensor, seats: Tensor) -> None:
        mask(logits, seats, self.places)

    def take(self, tokens: Tensor, seats: Tensor) -> None:
        advance(tokens, seats, self.places)

    def tell(self, send: Any) -> None:
        """Nothing to say."""

    def has_any(self, seats: Any) -> bool:
        return False


def cut(rows: int, vocabulary: int, tables: Places) -> None:
    """What a step with constraints launches, with views as the runner has them."""
    words = -(-vocabulary // 32)
    for dtype in (torch.bfloat16, torch.float32):
        logits = torch.zeros(rows, vocabulary, dtype=dtype)
        sent = torch.zeros(2 * rows + 2, dtype=torch.int64)
        tables.mask(logits, sent[1 : rows + 1])
        tables.take(sent[rows + 1 : 2 * rows + 1], sent[1 : rows + 1])
        there = torch.zeros(rows * (words + 1), dtype=torch.int32)
        mask_bits(logits, there[:rows], there[rows:].view(rows, words))


if __name__ == "__main__":
    main(*sys.argv[1:])
