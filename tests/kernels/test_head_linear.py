"""A head's products and likeliest tokens by cuda/head_linear.cu; on a CPU its threads are emulated (emulator/device.h)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from runtime.kernels import head_linear
from runtime.kernels.argmax import argmax_reference
from runtime.kernels.head_linear import ROWS, HeadLinear, defines, head_of
from runtime.kernels.hopper_linear import Launch
from runtime.kernels.nvrtc import MOST_SHARED
from runtime.kernels.skinny import skinny_linear_reference
from runtime.kernels.tensor_map import Maps
from runtime.kv.store import KVStore
from runtime.models.fused import FusedDecoder
from tests.kernels import emulated
from tests.kernels.paged_case import error
from tests.kernels.test_clustered import model

BF16 = torch.bfloat16
Make = Callable[..., HeadLinear]


@pytest.fixture
def make(libraries: Path, device: torch.device) -> Make:
    """A `HeadLinear` on this device."""
    emulated.skip_without_compiler(device)

    def made(k: int, programs: int = 3, seed: int = 1) -> HeadLinear:
        def build(macros: Mapping[str, int]) -> tuple[Launch, Maps]:
            library = emulated.library(libraries, macros, "head_linear")

            def launch(arguments: ctypes.Structure, early: bool) -> None:
                if not library.run(ctypes.byref(arguments), programs, ctypes.c_uint(seed)):
                    raise RuntimeError(
                        "the kernel's threads wait for each other, or its copies are not aligned"
                    )

            return launch, emulated.described

        return HeadLinear(device, k, programs=programs, build=None if device.type == "cuda" else build)

    return made


def check(linear: HeadLinear, x: Tensor, w: Tensor) -> None:
    """The product, and its maxima and their first places exactly."""
    found, high, token = linear(x, w)
    assert error(found, skinny_linear_reference(x, w)) < 3e-3
    wanted = argmax_reference(found)
    assert torch.equal(high, wanted[0].to(high.device)) and torch.equal(token, wanted[1].to(token.device))
    assert all(map(torch.equal, linear(x, w, early=True), (found, high, token))), "the same bits each time"


def operands(rows: int, n: int, k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, k).to(BF16).to(device)
    return x, (torch.randn(n, k) * k**-0.5).to(BF16).to(device)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, ROWS),
    n=st.integers(1, 150),
    k=st.sampled_from([8, 200, 328]),
    programs=st.integers(1, 5),
    seed=st.integers(0, 99),
)
@example(64, 100, 328, 1, 4)  # stages are used again
@example(1, 1, 8, 5, 5)  # most programs have no tile
def test_random_sizes(
    make: Make, device: torch.device, rows: int, n: int, k: int, programs: int, seed: int
) -> None:
    check(make(k, programs, seed), *operands(rows, 8 * n, k, device))


def test_many_stages(make: Make, device: torch.device) -> None:
    check(make(896), *operands(33, 1000, 896, device))


def test_the_first_of_equals_and_what_is_not_a_number(make: Make, device: torch.device) -> None:
    x, w = operands(6, 600, 8, device)
    w[:] = 0
    w[7, 0] = w[300, 0] = w[599, 0] = 1
    w[40, 1] = float("-inf")
    w[41:, 2] = float("nan")
    w[:, 3] = float("-inf")
    x[:] = torch.eye(8, device=device, dtype=BF16)[[0, 4, 5, 5, 5, 5]]
    linear = make(8)
    for row, (column, value, at) in enumerate(((0, 1.0, 7), (4, 0.0, 0))):
        _, high, token = linear(x[row : row + 1], w.nan_to_num(0, 0, 0))
        assert (float(high), int(token)) == (value, at), column
    for column in (1, 2, 3):
        x[:] = 0
        x[:, column] = 1
        found, high, token = linear(x, torch.where(torch.arange(8, device=device) == column, w, 0))
        wanted = argmax_reference(found)
        assert torch.equal(high, wanted[0]) and torch.equal(token, wanted[1])
    assert float(high[0]) == float("-inf") and int(token[0]) == 0, "all are equal"


@pytest.mark.parametrize("k", [64, 896, 1024, 1280])
def test_stages_fit_a_multiprocessor(k: int) -> None:
    macros = defines(k)
    assert macros["SHARED_BYTES"] <= MOST_SHARED and macros["STAGES"] >= 4


def test_a_model_takes_it(make: Make, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    m = model("qwen", device)
    monkeypatch.setattr(head_linear, "_FEWEST_TILES", 0)
    monkeypatch.setattr(head_linear, "_linear", lambda device, k: make(k))
    layers = FusedDecoder(m, KVStore(m.spec, 8, 16, BF16, str(device)), step=None)
    assert layers._head is not None
    called: list[int] = []
    run = HeadLinear.__call__

    def watched(self: HeadLinear, x: Tensor, w: Tensor, **more: bool) -> tuple[Tensor, Tensor, Tensor]:
        called.append(len(x))
        return run(self, x, w, **more)

    monkeypatch.setattr(HeadLinear, "__call__", watched)
    for rows in (32, 33, 64, 65):
        hidden = torch.randn(rows, m.spec.hidden, device=device).to(BF16)
        found, high, token = layers.likeliest_of(hidden)
        wanted = m.likeliest_of(hidden)
        assert error(found, wanted[0]) < 1e-2
        assert torch.allclose(high, wanted[1], rtol=0.02)
        best, index = argmax_reference(found)
        assert torch.equal(high, best) and torch.equal(token, index)
    assert called == [33, 64]


def test_which_heads_it_takes(make: Make, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_linear, "_linear", lambda device, k: make(k))
    monkeypatch.setattr(head_linear, "processors", lambda device: 4)
    w = torch.zeros(4 * 4 * 128, 64, dtype=BF16, device=device)
    assert head_of(w) is not None
    for other in (w[:-8], w.float(), w[:, :60], torch.zeros(2048, 1344, dtype=BF16, device=device)):
        assert head_of(other) is None
    with pytest.raises(ValueError, match="64 rows of 1344 numbers leave too little room"):
        HeadLinear(device, 1344)


def test_what_does_not_fit_is_named(make: Make, device: torch.device) -> None:
    linear = make(64)
    x, w = torch.zeros(4, 64, dtype=BF16, device=device), torch.zeros(16, 64, dtype=BF16, device=device)
    for wrong in ((x, w[:, :32]), (x[:, :32], w[:, :32]), (x.new_zeros(65, 64), w)):
        with pytest.raises(ValueError, match="do not fit 64 columns"):
            linear(*wrong)
    with pytest.raises(ValueError, match=r"float32, not torch\.bfloat16"):
        linear(x.float(), w)
    with pytest.raises(ValueError, match="not multiples of 8"):
        linear(x, w[:12])
    assert [len(t) for t in linear(x[:0], w)] == [0, 0, 0]
