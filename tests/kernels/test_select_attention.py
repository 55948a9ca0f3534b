"""The choice of attention and what is said of it."""

from __future__ import annotations

import logging

import pytest
import torch

from runtime.attention.plain import PlainAttention
from runtime.attention.select import select_attention
from runtime.attention.triton import TritonAttention
from runtime.errors import Unsupported
from runtime.kv.store import KVStore
from runtime.models.spec import ArchSpec, AttnSpec, LayerSpec, MlaSpec, MlpSpec, NormSpec

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="describes a machine without a GPU")


def store(head_dim: int = 16) -> tuple[KVStore, ArchSpec]:
    layer = LayerSpec(AttnSpec(2, 1, head_dim, 0.25, None), MlpSpec(8), NormSpec(1e-5))
    spec = ArchSpec("t", 9, 32, 64, (layer,), NormSpec(1e-5))
    return KVStore(spec, 4, 16, torch.float32, "cpu"), spec


def test_a_cpu_takes_plain_torch_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "runtime.attention"):
        assert isinstance(select_attention("auto", *store()), PlainAttention)
    assert caplog.messages == ["attention: torch on cpu, page size 16, KV in float32 (a CPU)"]


def test_triton_runs_interpreted_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert isinstance(select_attention("triton", *store()), TritonAttention)
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(Unsupported) as caught:
        select_attention("triton", *store(1024))
    assert str(caught.value) == (
        "attention backend 'triton' cannot run this: it needs a CUDA device, not cpu; "
        "heads of 1024 are larger than 512; use 'auto'"
    )


def test_latents_are_not_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    def latents(rank: int) -> tuple[KVStore, ArchSpec]:
        mla = MlaSpec(None, rank, 128, 64, 128)
        layer = LayerSpec(AttnSpec(2, 1, rank + 64, 0.25, None, mla=mla), MlpSpec(8), NormSpec(1e-5))
        spec = ArchSpec("t", 9, 32, 64, (layer,), NormSpec(1e-5))
        return KVStore(spec, 4, 16, torch.float32, "cpu"), spec

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert isinstance(select_attention("triton", *latents(512)), TritonAttention)
    with pytest.raises(Unsupported, match="cannot run this: latents of 1024 are larger than 512; use 'auto'"):
        select_attention("triton", *latents(1024))
    with pytest.raises(Unsupported, match="latents of 256 and 64 are not of 512 and 64; it has no float32"):
        select_attention("flashinfer", *latents(256))


def test_flashinfer_names_all_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Unsupported) as caught:
        select_attention("flashinfer", *store())
    assert str(caught.value) == (
        "attention backend 'flashinfer' cannot run this: the package flashinfer is not installed; "
        "it needs a CUDA device, not cpu; heads of 16 are not one of (64, 128, 256); it has no float32; use 'auto'"
    )


def test_unknown_names_are_refused() -> None:
    with pytest.raises(Unsupported, match="'fa4' does not exist; use one of auto, triton, flashinfer, torch"):
        select_attention("fa4", *store())
