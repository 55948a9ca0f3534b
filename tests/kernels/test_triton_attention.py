"""TritonAttention drives a whole model: the tokens are those of plain attention, however the work is cut."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from runtime.api import SamplingParams
from runtime.attention.base import AttentionImpl, AttentionInputs, PagedInputs, Span
from runtime.attention.plain import PlainAttention
from runtime.attention.triton import TritonAttention, paged_inputs
from runtime.engine.runner import ModelRunner
from runtime.kernels.decode import decode_reference
from runtime.kv.store import KVStore
from runtime.models.decoder import Decoder
from runtime.models.spec import ArchSpec, AttnSpec, LayerSpec, MlaSpec, MlpSpec, NormSpec, RopeSpec
from runtime.request import Request
from runtime.scheduler.scheduler import Scheduler
from tests.kernels.paged_case import error

ROPE = RopeSpec(16, tuple(0.5**i for i in range(8)))
FULL = AttnSpec(4, 2, 16, 0.25, ROPE)
NORM = NormSpec(1e-5)
LATENT = AttnSpec(
    5, 1, 24, 0.25, RopeSpec(8, ROPE.frequencies[:4], True), norm=NORM, mla=MlaSpec(12, 16, 12, 8, 10)
)
KINDS = {
    "full": (FULL, FULL),
    "windows": (replace(FULL, window=5), FULL),
    "softcap": (replace(FULL, softcap=2.0), replace(FULL, softcap=2.0, window=9)),
    "one kv head": (replace(FULL, kv_heads=1), replace(FULL, kv_heads=1)),
    "padded head": (replace(FULL, head_dim=24, rope=RopeSpec(24, tuple(0.5**i for i in range(12)))),) * 2,
    "latents": (LATENT, LATENT),
}


def model(kind: str, device: torch.device) -> Decoder:
    layers = tuple(LayerSpec(spec, MlpSpec(48), NORM) for spec in KINDS[kind])
    torch.manual_seed(3)
    decoder = Decoder(ArchSpec("tiny", 97, 32, 256, layers, NORM), torch.float32)
    for p in decoder.parameters():
        p.data = torch.ones_like(p) if p.dim() == 1 else torch.randn_like(p) * 0.4
    return decoder.to(device)


def generate(
    decoder: Decoder, page_size: int, chunk: int, plain: bool, device: torch.device
) -> dict[str, list[int]]:
    """Requests of several lengths that come one after another, so that prompts run beside decode steps."""
    generator = torch.Generator().manual_seed(8)
    scheduler = Scheduler(pages=1024 // page_size, page_size=page_size, context=256, chunk=chunk)
    store = KVStore(decoder.spec, scheduler.cache.pool.total, page_size, torch.float32, str(device))
    attention: AttentionImpl = PlainAttention(store) if plain else TritonAttention(store)
    runner = ModelRunner(decoder, store, attention)
    waiting = [
        Request(str(i), torch.randint(0, 97, (n,), generator=generator).tolist(), SamplingParams(temperature=0), max_new=3)
        for i, n in enumerate((3, 20, 11))
    ]  # fmt: skip
    out: dict[str, list[int]] = {r.id: [] for r in waiting}
    while waiting or not scheduler.idle:
        if waiting:
            scheduler.add(waiting.pop(0))
        batch = scheduler.next_batch()
        assert batch is not None
        for event in scheduler.commit(runner.run(batch)):
            out[event.request.id] += event.tokens
    return out


@pytest.mark.parametrize(
    ("kind", "page_size", "chunk"),
    [
        ("full", 1, 8),
        ("full", 16, 64),
        ("full", 64, 8),
        ("windows", 1, 8),
        ("softcap", 16, 64),
        ("one kv head", 1, 64),
        ("padded head", 16, 8),
        ("latents", 1, 8),
        ("latents", 16, 64),
        ("latents", 64, 8),
    ],
)
def test_tokens_equal_plain_attention(kind: str, page_size: int, chunk: int, device: torch.device) -> None:
    decoder = model(kind, device)
    wanted = generate(decoder, page_size, chunk, True, device)
    assert generate(decoder, page_size, chunk, False, device) == wanted
    assert all(len(tokens) == 3 for tokens in wanted.values())


def spans(lengths: list[tuple[int, int]], page_size: int, pages: int) -> AttentionInputs:
    """(start, count) of each request, its pages anywhere."""
    order = iter(torch.randperm(pages).tolist())
    found, slots, at = [], [], 0
    for start, count in lengths:
        own = [next(order) for _ in range(-(-(start + count) // page_size))]
        row = torch.tensor([p * page_size + i for p in own for i in range(page_size)])[: start + count]
        found.append(Span(at, count, start, row))
        slots.append(row[start:])
        at += count
    return AttentionInputs(found, torch.cat(slots))


def test_spans_become_a_page_table() -> None:
    inputs = spans([(7, 1), (0, 1), (0, 5), (4, 3)], 4, 20)
    paged = paged_inputs(inputs, 4)
    assert paged.decodes == 2
    assert paged.lengths.tolist() == [8, 1, 5, 7]
    assert paged.starts.tolist() == [0, 1, 2, 7, 10]
    assert (paged.max_new, paged.max_length, paged.fresh) == (5, 8, ())
    assert paged.prompts == ((2, 5, 0), (7, 3, 4))
    for row, span in zip(paged.table, inputs.spans, strict=True):
        at = torch.arange(span.start + span.count)
        assert torch.equal(row[at // 4] * 4 + at % 4, span.slots)
    assert paged_inputs(spans([(3, 1), (0, 5), (0, 2)], 4, 20), 4).fresh == ((1, 5), (6, 2))


@pytest.mark.parametrize("path", ["pages", "rows"])
def test_fresh_prompts_by_either_path(
    path: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.attention.triton.fresh_path", lambda *_: path)
    spec = FULL
    layer = LayerSpec(spec, MlpSpec(8), NORM)
    store = KVStore(ArchSpec("t", 9, 64, 64, (layer,), NORM), 64, 1, torch.float32, str(device))
    store.k.normal_()
    store.v.normal_()
    inputs = spans([(6, 1), (0, 9), (0, 20)], 1, 64)
    inputs = AttentionInputs(
        [replace(s, slots=s.slots.to(device)) for s in inputs.spans], inputs.slots.to(device)
    )
    q, k, v = torch.randn(30, 8, 16, device=device).split((4, 2, 2), dim=1)
    results = []
    for impl in (PlainAttention(store), TritonAttention(store)):
        impl.plan(inputs)
        results.append(impl.run(q, k, v, 0, spec))
    assert error(results[1], results[0]) < 1e-5


def test_latents_in_float8(device: torch.device) -> None:
    stored = torch.float8_e4m3fn
    spec = ArchSpec("t", 9, 64, 64, (LayerSpec(LATENT, MlpSpec(8), NORM),), NORM)
    wide, store = (KVStore(spec, 8, 16, dtype, str(device)) for dtype in (torch.float32, stored))
    store.k.copy_(torch.randn(store.k.shape))
    wide.k.copy_(store.k)
    inputs = spans([(40, 1), (0, 9), (20, 6)], 16, 8)
    inputs = AttentionInputs(
        [replace(s, slots=s.slots.to(device)) for s in inputs.spans], inputs.slots.to(device)
    )
    q, up = torch.randn(16, 5, 20, device=device), torch.randn(5, 22, 16, device=device)
    rows = (
        torch.randn(16, 1, 24, device=device).to(stored).float()
    )  # the interpreter truncates what a GPU rounds
    results = []
    for impl in (PlainAttention(wide), TritonAttention(store)):
        impl.plan(inputs)
        results.append(impl.run_latent(q, rows, up, 0, LATENT))
    assert torch.equal(store.k.float(), wide.k)
    assert error(results[1], results[0]) < 1e-5


def test_padding_rows_write_nothing(device: torch.device) -> None:
    layer = LayerSpec(FULL, MlpSpec(8), NORM)
    store = KVStore(ArchSpec("t", 9, 64, 64, (layer,), NORM), 32, 1, torch.float32, str(device))
    store.k.normal_()
    store.v.normal_()
    before = store.k.clone()
    table = torch.arange(32, dtype=torch.int32, device=device).reshape(4, 8)
    inputs = PagedInputs(
        table=table,
        seats=torch.tensor([2, 0], dtype=torch.int32, device=device),
        lengths=torch.tensor([5, 0], dtype=torch.int32, device=device),
        starts=torch.arange(3, dtype=torch.int32, device=device),
        slots=torch.tensor([20, -1], device=device),
        max_new=1,
        max_length=8,
        decodes=2,
    )
    attention = TritonAttention(store)
    attention.plan(inputs)
    q, k, v = torch.randn(2, 8, 16, device=device).split((4, 2, 2), dim=1)
    out = attention.run(q, k, v, 0, FULL)
    changed = (store.k[0] != before[0]).any(-1).any(-1).nonzero().flatten().tolist()
    assert changed == [20]
    wanted = decode_reference(
        q, store.k[0], store.v[0], table, inputs.seats, inputs.lengths, page_size=1, scale=FULL.scale
    )
    assert error(out, wanted) < 1e-5
    assert not out[1].any()
