"""What FlashInfer's wrappers are asked for, and, on a GPU that has it, what they answer."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from runtime.attention.base import PagedInputs
from runtime.attention.flashinfer import FlashInferAttention
from runtime.attention.triton import TritonAttention
from runtime.kv.store import KVStore
from runtime.models.spec import ArchSpec, AttnSpec, LayerSpec, MlaSpec, MlpSpec, NormSpec
from tests.kernels.paged_case import error

FULL = AttnSpec(8, 2, 64, 0.125, None)
LOCAL = replace(FULL, window=6, softcap=20.0)
SPEC = ArchSpec(
    "t",
    9,
    512,
    256,
    tuple(LayerSpec(s, MlpSpec(8), NormSpec(1e-5)) for s in (FULL, LOCAL, FULL)),
    NormSpec(1e-5),
)

LATENT = AttnSpec(4, 1, 576, 0.07, None, norm=NormSpec(1e-6), mla=MlaSpec(None, 512, 32, 64, 24))
LATENTS = replace(SPEC, layers=(LayerSpec(LATENT, MlpSpec(8), NormSpec(1e-5)),))


class Recorder:
    """Stands in for a wrapper: keeps what it is called with and fills the output with its number."""

    made: list[Recorder]

    def __init__(self, kind: str, *args: Any, **kwargs: Any) -> None:
        self.kind, self.made_with, self.plans, self.runs = kind, kwargs, [], 0
        Recorder.made.append(self)

    def plan(self, *args: Any, **kwargs: Any) -> None:
        self.plans.append((args, kwargs))

    def run(self, q: torch.Tensor, pools: tuple[torch.Tensor, torch.Tensor], out: torch.Tensor) -> None:
        assert q.shape == out.shape and q.is_contiguous()
        assert pools[0].shape[1:] == (16, 2, 64)
        self.runs += 1
        out.fill_(Recorder.made.index(self))


class Latents(Recorder):
    """Stands in for the wrapper over latents, and computes what it is documented to."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("latents", *args, **kwargs)

    def run(self, *given: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        q, q_rope, latents, keys = given
        (rows, bounds, pages, lengths, heads, rank, rope, size, causal, scale, *_) = self.plans[-1][0]
        assert rows.tolist() == list(range(len(rows))) and not causal
        assert q.shape[1:] == (heads, rank) and q_rope.shape[1:] == (heads, rope)
        assert latents.shape[1:] == (size, rank) and keys.shape[1:] == (size, rope)
        out = []
        for i, length in enumerate(lengths.tolist()):
            own = pages[bounds[i] : bounds[i + 1]].long()
            values, turned = latents[own].flatten(0, 1)[:length], keys[own].flatten(0, 1)[:length]
            scores = (q[i] @ values.T + q_rope[i] @ turned.T) * scale
            out.append(scores.softmax(-1) @ values)
        return torch.stack(out)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    Recorder.made = []
    module = SimpleNamespace(
        BatchDecodeWithPagedKVCacheWrapper=lambda *a, **k: Recorder("decode", *a, **k),
        BatchPrefillWithPagedKVCacheWrapper=lambda *a, **k: Recorder("prefill", *a, **k),
        mla=SimpleNamespace(BatchMLAPagedAttentionWrapper=Latents),
    )
    monkeypatch.setitem(sys.modules, "flashinfer", module)


def mixed(device: str = "cpu") -> PagedInputs:
    """Two decode rows, one of them padding, and two prompts, one after a prefix; pages of 16."""
    table = torch.tensor([[7, 3, 0], [1, 2, 5], [4, 6, 0], [8, 9, 0]], dtype=torch.int32)
    values = {
        "table": table,
        "seats": torch.tensor([1, 0, 3, 2], dtype=torch.int32),
        "lengths": torch.tensor([33, 0, 16, 20], dtype=torch.int32),
        "starts": torch.tensor([0, 1, 2, 18, 21], dtype=torch.int32),
        "slots": torch.tensor([80, -1, *range(128, 144), 6 * 16 + 1, 6 * 16 + 2, 6 * 16 + 3]),
    }
    return PagedInputs(
        **{n: t.to(device) for n, t in values.items()},
        max_new=16,
        max_length=33,
        decodes=2,
        prompts=((2, 16, 0), (18, 3, 17)),
    )


def test_what_is_planned(fake: None) -> None:
    store = KVStore(SPEC, 10, 16, torch.bfloat16, "cpu")
    attention = FlashInferAttention(store, SPEC, torch.bfloat16)
    assert [w.kind for w in Recorder.made] == ["decode", "decode", "prefill", "prefill"], (
        "one pair a kind of layer"
    )
    assert all(w.made_with["use_tensor_cores"] for w in Recorder.made[:2])
    attention.plan(mixed())
    for number, spec in ((0, FULL), (1, LOCAL)):
        (args, kwargs) = Recorder.made[number].plans[0]
        assert [a.tolist() for a in args[:3]] == [[0, 3, 4], [1, 2, 5, 7], [1, 1]]
        assert args[3:] == (8, 2, 64, 16)
        assert kwargs == {
            "sm_scale": 0.125,
            "window_left": -1 if spec.window is None else 5,
            "logits_soft_cap": spec.softcap,
            "q_data_type": torch.bfloat16,
            "kv_data_type": torch.bfloat16,
        }
        (args, kwargs) = Recorder.made[2 + number].plans[0]
        assert [a.tolist() for a in args[:4]] == [[0, 16, 19], [0, 1, 3], [8, 4, 6], [16, 4]]
        assert kwargs["causal"] is True


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="its tensors are on the CPU, for kernels that are interpreted"
)
def test_each_layer_runs_its_kind(fake: None) -> None:
    store = KVStore(SPEC, 10, 16, torch.float32, "cpu")
    attention = FlashInferAttention(store, SPEC, torch.float32)
    attention.plan(mixed())
    q, k, v = torch.randn(21, 12, 64).split((8, 2, 2), dim=1)
    for layer, spec in enumerate((FULL, LOCAL, FULL)):
        out = attention.run(q, k, v, layer, spec)
        number = int(spec is LOCAL)
        assert out[:, 0, 0].tolist() == [number] * 2 + [2 + number] * 19
        assert torch.equal(store.k[layer][mixed().slots[2:]], k[2:])
    assert [w.runs for w in Recorder.made] == [2, 1, 2, 1]


def test_a_captured_size_has_wrappers_of_its_own(fake: None) -> None:
    store = KVStore(SPEC, 10, 16, torch.float32, "cpu")
    attention = FlashInferAttention(store, SPEC, torch.float32)
    attention.for_graph(2, 40)
    captured = Recorder.made[4:]
    assert [w.made_with["paged_kv_indices_buffer"].numel() for w in captured] == [40, 40]
    assert [w.made_with["paged_kv_indptr_buffer"].numel() for w in captured] == [3, 3]
    whole = mixed()
    decodes = replace(
        whole,
        seats=whole.seats[:2],
        lengths=whole.lengths[:2],
        starts=whole.starts[:3],
        slots=whole.slots[:2],
    )
    attention.plan(decodes)
    assert [len(w.plans) for w in captured] == [1, 1]
    assert attention.run_stored(torch.zeros(2, 8, 64), 1, LOCAL)[:, 0, 0].tolist() == [5, 5]
    attention.plan(whole)
    assert [len(w.plans) for w in Recorder.made] == [1, 1, 1, 1, 1, 1], "beside prompts nothing is captured"


def latents(device: str, dtype: torch.dtype) -> tuple[KVStore, list[torch.Tensor]]:
    """A filled store, and q, rows and up for the batch of `mixed`."""
    store = KVStore(LATENTS, 10, 16, dtype, device)
    store.k.normal_()
    shapes = ((21, 4, 96), (21, 1, 576), (4, 56, 512))
    return store, [(torch.randn(s) / s[2] ** 0.25).to(dtype).to(device) for s in shapes]


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="its tensors are on the CPU, for kernels that are interpreted"
)
def test_latents_are_planned_and_read(fake: None) -> None:
    """Single tokens through the wrapper, prompts in torch: together what own kernels give."""
    store, given = latents("cpu", torch.float32)
    found = FlashInferAttention(store, LATENTS, torch.float32)
    assert [w.kind for w in Recorder.made] == ["latents"], "prompts have no wrapper"
    found.for_graph(2, 40)
    assert Recorder.made[1].made_with["kv_indices"].numel() == 40
    results = []
    for impl in (found, TritonAttention(store)):
        impl.plan(mixed())
        results.append(impl.run_latent(*given, 0, LATENT))
    kept = [0, *range(2, 21)]
    assert error(results[0][kept], results[1][kept]) < 1e-5
    assert [len(w.plans) for w in Recorder.made] == [1, 0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.skipif(importlib.util.find_spec("flashinfer") is None, reason="flashinfer is not installed")
@pytest.mark.timeout(600)
def test_latents_equal_own_kernels() -> None:
    store, given = latents("cuda", torch.bfloat16)
    results = []
    for impl in (FlashInferAttention(store, LATENTS, torch.bfloat16), TritonAttention(store)):
        impl.plan(mixed("cuda"))
        results.append(impl.run_latent(*given, 0, LATENT))
    kept = [0, *range(2, 21)]
    assert error(results[0][kept], results[1][kept]) < 2e-2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.skipif(importlib.util.find_spec("flashinfer") is None, reason="flashinfer is not installed")
@pytest.mark.timeout(600)  # FlashInfer compiles its kernels at first use
def test_results_equal_own_kernels() -> None:
    store = KVStore(SPEC, 10, 16, torch.bfloat16, "cuda")
    store.k.normal_()
    store.v.normal_()
    q, k, v = torch.randn(21, 12, 64, device="cuda", dtype=torch.bfloat16).split((8, 2, 2), dim=1)
    inputs = mixed("cuda")
    for layer, spec in enumerate((FULL, LOCAL, FULL)):
        results = []
        for impl in (FlashInferAttention(store, SPEC, torch.bfloat16), TritonAttention(store)):
            impl.plan(inputs)
            results.append(impl.run(q, k, v, layer, spec))
        kept = [0, *range(2, 21)]
        assert error(results[0][kept], results[1][kept]) < 1e-2
