"""The compiled CPU path against the plain one: random batches, every way to reach or miss it."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.attention.base import AttentionInputs, Span
from runtime.attention.plain import PlainAttention
from runtime.kernels.cpu.build import Variant
from runtime.kernels.cpu.path import FastAttention, FastDecoder, choose, why_not
from runtime.kv.store import KVStore
from runtime.models.decoder import Decoder
from runtime.models.spec import ArchSpec, AttnSpec, LayerSpec, MlpSpec, NormSpec, RopeSpec

DIM = 32
SLOTS = 4096
EPS = torch.finfo(torch.float32).eps
ROPE = RopeSpec(DIM, tuple(10000.0 ** (-i / 16) for i in range(16)))
LAYER = LayerSpec(AttnSpec(4, 2, DIM, DIM**-0.5, ROPE), MlpSpec(72), NormSpec(1e-5))
SPEC = ArchSpec("test", 101, 64, 512, (LAYER, LAYER), NormSpec(1e-5), tied=False)


def random_model(spec: ArchSpec, *, halved: bool) -> Decoder:
    """Random weights; `halved` makes each a bfloat16 number."""
    generator = torch.Generator().manual_seed(3)
    model = Decoder(spec, torch.float32)
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator) * 0.2 + (p.dim() == 1)
        if halved and p.dim() == 2:
            p.data = p.data.bfloat16().float()
    return model.eval()


def store_for(spec: ArchSpec, page_size: int = 1, dtype: torch.dtype = torch.float32) -> KVStore:
    store = KVStore(spec, SLOTS // page_size, page_size, dtype, "cpu")
    generator = torch.Generator().manual_seed(4)
    for rows in (store.k, store.v):
        rows.copy_(torch.randn(rows.shape, generator=generator))
    return store


def double(model: Decoder) -> Decoder:
    return copy.deepcopy(model).double()


def plainly(
    model: Decoder, ids: torch.Tensor, positions: torch.Tensor, inputs: AttentionInputs, store: KVStore
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states of all tokens and logits of every second, by the plain path in the model's own precision."""
    attention = PlainAttention(store)
    attention.plan(inputs)
    hidden = model(ids, positions, attention)
    return hidden, model.logits(hidden[::2])


@pytest.fixture(scope="module", params=["uint16", "float32"])
def model(request: pytest.FixtureRequest) -> Decoder:
    Variant(request.param, DIM).build()
    return random_model(SPEC, halved=request.param == "uint16")


spans = st.lists(
    st.tuples(
        st.integers(0, 300),  # tokens before
        st.one_of(st.just(1), st.integers(1, 70)),  # new tokens
        st.sampled_from([0, 0.5, 1]),  # share of those before that lie where the first request's do
    ),
    min_size=1,
    max_size=20,
)


def batch_of(cases: list[tuple[int, int, float]], page_size: int, seed: int) -> tuple[Any, Any, Any]:
    """ids, positions and places: pages in random order, prefixes of the first request shared by whole pages."""
    rng = np.random.default_rng(seed)
    free = list(rng.permutation(SLOTS // page_size))
    common = [free.pop() for _ in range(300 // page_size + 1)]
    out, at, slots, positions = [], 0, [], []
    for start, count, share in cases:
        pages = -(-(start + count) // page_size)
        kept = common[: int(start * share) // page_size]
        if len(free) < pages:
            break
        row = kept + [free.pop() for _ in range(pages - len(kept))]
        places = (np.array(row)[:, None] * page_size + np.arange(page_size)).reshape(-1)[: start + count]
        out.append(Span(at, count, start, torch.from_numpy(places)))
        slots.append(places[start:])
        positions.append(np.arange(start, start + count))
        at += count
    ids = torch.from_numpy(rng.integers(0, SPEC.vocabulary, at))
    inputs = AttentionInputs(out, torch.from_numpy(np.concatenate(slots)))
    return ids, torch.from_numpy(np.concatenate(positions)), inputs


@settings(max_examples=20, deadline=None)
@given(
    cases=spans, page_size=st.sampled_from([1, 16]), threads=st.sampled_from([1, 2]), seed=st.integers(0, 99)
)
def test_equals_the_plain_path(
    model: Decoder, cases: list[tuple[int, int, float]], page_size: int, threads: int, seed: int
) -> None:
    ids, positions, inputs = batch_of(cases, page_size, seed)
    mine, other, wide = (
        store_for(SPEC, page_size, dtype) for dtype in (torch.float32, torch.float32, torch.float64)
    )
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            fast, attention = choose(model, mine)
            assert isinstance(fast, FastDecoder) and isinstance(attention, FastAttention) and attention.ready
            attention.plan(inputs)
            hidden = fast(ids, positions, attention)
            logits = fast.logits(hidden[::2])
            plain, plain_logits = plainly(model, ids, positions, inputs, other)
            exact, exact_logits = plainly(double(model), ids, positions, inputs, wide)
    finally:
        torch.set_num_threads(before)
    for got, rival, truth in (
        (hidden, plain, exact),
        (logits, plain_logits, exact_logits),
        (mine.k, other.k, wide.k),
        (mine.v, other.v, wide.v),
    ):
        # float32 of either path strays with the batch: as exact as the plain one, whatever the batch
        strayed = (rival - truth).abs().max()
        assert (got - truth).abs().max() <= 8 * (strayed + EPS * truth.abs().max())


def test_one_long_prompt_is_cut_between_threads_without_losing_sight(model: Decoder) -> None:
    """A single row, so both threads work on the same request and must wait for each other's keys."""
    test_equals_the_plain_path.hypothesis.inner_test(model, [(0, 400, 0)], 1, 2, 7)  # type: ignore[attr-defined]


def test_numbers_that_are_not_finite_stay_so() -> None:
    Variant("uint16", DIM).build()
    broken = random_model(SPEC, halved=True)
    broken.embedding.weight.data[7] = float("nan")
    store = store_for(SPEC)
    fast, attention = choose(broken, store)
    ids, positions, inputs = batch_of([(0, 1, 0), (5, 1, 0)], 1, 0)
    ids[0], ids[1] = 7, 8
    with torch.inference_mode():
        attention.plan(inputs)
        logits = fast.logits(fast(ids, positions, attention))
    assert logits[0].isnan().all() and logits[1].isfinite().all()


def changed(**layer: Any) -> ArchSpec:
    new = dataclasses.replace(LAYER, **layer)
    return dataclasses.replace(SPEC, layers=(new, new))


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (changed(mlp=MlpSpec(72, "gelu")), "its MLP is not silu-gated without bias"),
        (changed(form="parallel"), "its layers have the form 'parallel'"),
        (
            changed(attention=dataclasses.replace(LAYER.attention, window=8)),
            "its attention has a window or a softcap",
        ),
        (
            changed(attention=dataclasses.replace(LAYER.attention, qkv_bias=True)),
            "its attention has biases or norms",
        ),
        (
            changed(attention=dataclasses.replace(LAYER.attention, rope=None)),
            "its rotary embedding is not over halves of whole heads",
        ),
        (dataclasses.replace(SPEC, norm=NormSpec(1e-5, offset=1.0)), "its norms are not plain RMS norms"),
        (dataclasses.replace(SPEC, logit_scale=0.5), "its embedding or logits are scaled"),
    ],
)
def test_models_that_do_not_qualify_run_plain(
    spec: ArchSpec, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "runtime.kernels")
    model, store = Decoder(spec, torch.float32), store_for(spec)
    assert why_not(model, store) == reason
    chosen, attention = choose(model, store)
    assert chosen is model and isinstance(attention, PlainAttention)
    assert caplog.messages == [f"decoding in plain torch: {reason}"]


@pytest.mark.parametrize("code", [0, 1])
def test_plain_torch_serves_while_another_process_compiles(
    code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Variant("uint16", DIM).build()
    command = [sys.executable, "-c", f"import sys; sys.stdin.read(); sys.exit({code})"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE)
    monkeypatch.setattr(Variant, "built", False)
    monkeypatch.setattr(Variant, "build_elsewhere", lambda self: child)
    model, store = random_model(SPEC, halved=True), store_for(SPEC)
    fast, attention = choose(model, store)
    assert isinstance(attention, FastAttention)
    ids, positions, inputs = batch_of([(20, 1, 0), (0, 9, 0)], 1, 1)
    with torch.inference_mode():
        attention.plan(inputs)
        assert not attention.ready
        first = fast(ids, positions, attention)
        assert child.stdin is not None
        child.stdin.close()
        child.wait()
        attention.plan(inputs)
        second = fast(ids, positions, attention)
    assert attention.ready == (code == 0)
    torch.testing.assert_close(first, second, atol=3e-5, rtol=3e-5)
    assert any("compiling kernels failed" in m for m in caplog.messages) == (code == 1)
    if code == 1:
        with pytest.raises(RuntimeError, match="could not be compiled"):
            attention.wait()


def test_one_thread_stays_one() -> None:
    """In a process of its own, where numba's threads are not yet started: starting them sets the threads of torch."""
    code = """
import torch
from runtime.config import EngineConfig
from runtime.engine.loop import EngineLoop
from runtime.engine.messages import Add
from runtime.api import SamplingParams
loop = EngineLoop(EngineConfig(device="cpu", threads=1, max_total_tokens=64))
loop.runner.attention.wait()
loop.handle(Add("a", [5, 6, 7], SamplingParams(max_new_tokens=1), seed=1))
assert loop.step(), "nothing was answered"
print(torch.get_num_threads(), loop.runner.attention.threads)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]
