"""The choice of the sampler and what is said of it."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch

from runtime.engine.assemble import assemble
from runtime.errors import Unsupported
from runtime.sampling.sampler import by_torch, by_triton
from runtime.sampling.select import select_sampler
from tests.tiny_loop import options

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))


@pytest.mark.parametrize("name", ["auto", "torch", "pytorch"])
def test_a_cpu_takes_plain_torch_and_says_so(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "runtime.sampling"):
        assert select_sampler(name, CPU) is by_torch
    assert caplog.messages == [f"sampling: torch on cpu ({'a CPU' if name == 'auto' else 'asked for'})"]


def test_a_gpu_takes_own_kernels(
    a_gpu: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.INFO, "runtime.sampling"):
        assert select_sampler("auto", GPU) is by_triton
        assert select_sampler("pytorch", GPU) is by_torch
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        assert select_sampler("auto", GPU) is by_torch
    assert caplog.messages == [
        "sampling: triton on cuda (a GPU)",
        "sampling: torch on cuda (asked for)",
        "sampling: torch on cuda (no triton: the package triton is not installed)",
    ]


def test_triton_needs_a_gpu_or_its_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert select_sampler("triton", CPU) is by_triton
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(Unsupported) as caught:
        select_sampler("triton", CPU)
    assert str(caught.value) == (
        "sampling backend 'triton' cannot run here: it needs a CUDA device, not cpu; use 'auto'"
    )


def test_flashinfer_names_all_that_is_missing(a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    found = {"triton": SimpleNamespace()}
    monkeypatch.setattr("importlib.util.find_spec", found.get)
    for device, more in ((GPU, ""), (CPU, "; it needs a CUDA device, not cpu")):
        with pytest.raises(Unsupported) as caught:
            select_sampler("flashinfer", device)
        assert str(caught.value) == (
            f"sampling backend 'flashinfer' cannot run here: the package flashinfer is not installed{more}; use 'auto'"
        )
    found.clear()
    found["flashinfer"] = SimpleNamespace()
    with pytest.raises(
        Unsupported, match="'flashinfer' cannot run here: the package triton is not installed;"
    ):
        select_sampler("flashinfer", GPU)


def test_unknown_names_are_refused_before_weights_are_read() -> None:
    with pytest.raises(Unsupported) as caught:
        assemble(options("/no/such/folder", sampling_backend="fa4"))
    assert str(caught.value) == (
        "sampling backend 'fa4' does not exist; use one of auto, triton, flashinfer, torch"
    )
