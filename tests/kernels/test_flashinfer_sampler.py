"""What FlashInfer's kernels are asked to cut, and that what is drawn is what the plain sampler draws: with a stand-in
anywhere, with FlashInfer itself on a GPU that has it."""

from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from runtime.errors import Unsupported
from runtime.sampling.flashinfer import FlashInferSampler
from runtime.sampling.sampler import Draws, draw
from tests.kernels.draws_case import agrees, packed_of
from tests.kernels.flashinfer_case import stand_in

REAL = pytest.param(
    "real",
    marks=[
        pytest.mark.gpu,
        pytest.mark.timeout(600),  # FlashInfer compiles its kernels at first use
        pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
        pytest.mark.skipif(
            importlib.util.find_spec("flashinfer") is None, reason="flashinfer is not installed"
        ),
    ],
)
MIXED = [
    (0.8, 0, 0.9, 0.0),
    (1.0, 40, 1.0, 0.0),
    (0.0, 5, 0.5, 0.0),
    (1.3, 20, 0.8, 0.05),
    (1.0, 0, 1.0, 0.0),
]
ALL_CUT = [(0.8, 0, 0.95, 0.0), (1.0, 7, 0.6, 0.0), (2.0, 1 << 30, 1.0, 0.1), (0.6, 300, 0.999, 0.001)]


@pytest.fixture(params=["stand-in", REAL])
def sampler(
    request: pytest.FixtureRequest, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> FlashInferSampler:
    if request.param == "stand-in":
        monkeypatch.setitem(sys.modules, "flashinfer", stand_in())
    return FlashInferSampler(device)


def rows_of(packed: torch.Tensor) -> np.ndarray:
    return packed[:4].T.cpu().numpy()


def supports(sampler: FlashInferSampler, logits: torch.Tensor, packed: torch.Tensor) -> list[set[int]]:
    """What is left of each row for the draw."""
    left = logits.clone()
    sampler(left, packed, rows_of(packed))
    return [set(row.nonzero()[:, 0].tolist()) for row in left.cpu() > float("-inf")]


@pytest.mark.parametrize("fields", [MIXED, ALL_CUT], ids=["mixed", "all rows cut"])
@pytest.mark.parametrize(
    ("rows", "columns", "dtype"),
    [
        (9, 1, torch.float32),
        (20, 97, torch.float32),  # FlashInfer searches small vocabularies in another way
        (13, 2048, torch.bfloat16),
        (8, 32001, torch.float32),  # rows that are not aligned
        (150, 300, torch.float16),  # more than are in memory at once
    ],
)
def test_the_tokens_of_the_plain_sampler(
    rows: int,
    columns: int,
    dtype: torch.dtype,
    fields: list[tuple[float, int, float, float]],
    sampler: FlashInferSampler,
    device: torch.device,
) -> None:
    generator = torch.Generator().manual_seed(columns)
    logits = (torch.randn(rows, columns, generator=generator) * 3).to(dtype)
    agrees(sampler, logits.to(device), packed_of(rows, fields, generator).to(device))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("columns", [128256, 151936])
def test_whole_vocabularies(columns: int, sampler: FlashInferSampler, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(columns)
    logits = (torch.randn(64, columns, generator=generator) * 3).to(torch.bfloat16)
    agrees(sampler, logits.to(device), packed_of(64, MIXED, generator).to(device))


def test_cuts_look_at_the_same_probabilities(sampler: FlashInferSampler, device: torch.device) -> None:
    """Of 0.4, 0.3, 0.2, 0.1 the first two have 0.7; renormalised after a top-k of 3 they would have 0.78."""
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]], device=device).log().repeat(5, 1)
    packed = torch.zeros(5, 5, dtype=torch.float64, device=device)
    packed[0], packed[4] = 1.0, 0.5
    packed[1] = torch.tensor([3, 3, 0, 2, 0])
    packed[2] = torch.tensor([0.75, 0.65, 0.65, 1.0, 1.0])
    packed[3] = torch.tensor([0.0, 0.0, 0.4, 0.6, 0.6])
    assert supports(sampler, logits, packed) == [{0, 1, 2}, {0, 1}, {0, 1}, {0, 1}, {0, 1}]
    packed[0, 2:] = torch.tensor([2.0, 0.0, 1e-3])  # hotter; greedy rows are not cut
    found = supports(sampler, logits, packed)
    assert found[2:] == [{0, 1, 2}, {0, 1, 2, 3}, {0}]


def test_those_that_are_likelier_may_have_just_top_p(
    sampler: FlashInferSampler, device: torch.device
) -> None:
    logits = torch.tensor([[0.5, 0.25, 0.25]], device=device).log().repeat(2, 1)
    packed = torch.zeros(5, 2, dtype=torch.float64, device=device)
    packed[0] = 1.0
    packed[2] = logits.softmax(dim=-1)[:, 0].double()
    packed[2, 1] -= 1e-5
    assert supports(sampler, logits, packed) == [{0, 1, 2}, {0}]


@pytest.mark.parametrize("columns", [50, 4000])
def test_equal_logits_stay_or_go_together(
    columns: int, sampler: FlashInferSampler, device: torch.device
) -> None:
    logits = torch.full((3, columns), -9.0, device=device)
    logits[:, [3, 9, 40]] = 2.0
    logits[:, 7] = 3.0
    packed = torch.zeros(5, 3, dtype=torch.float64, device=device)
    packed[0], packed[2] = 1.0, torch.tensor([1.0, 0.55, 0.3])
    packed[1, 0] = 2
    assert supports(sampler, logits, packed) == [{3, 7, 9, 40}, {3, 7, 9, 40}, {7}]


@pytest.mark.parametrize("columns", [60, 4000])
def test_a_row_is_not_cut_by_what_others_ask_for(
    columns: int, sampler: FlashInferSampler, device: torch.device
) -> None:
    logits = torch.linspace(2, -2, columns, device=device).repeat(3, 1)
    packed = torch.zeros(5, 3, dtype=torch.float64, device=device)
    packed[0], packed[1], packed[2] = 1.0, torch.tensor([0, 5, columns]), torch.tensor([1.0, 0.9, 1.0])
    packed[3, 0] = 1e-9
    found = supports(sampler, logits, packed)
    assert [len(kept) for kept in found] == [columns, 5, columns]


def test_a_row_draws_alone_as_among_others(sampler: FlashInferSampler, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(4)
    logits = (torch.randn(40, 3000, generator=generator) * 2).to(device)
    packed = packed_of(40, [*MIXED, *ALL_CUT], generator).to(device)
    whole = logits.clone()
    tokens, _ = sampler(whole, packed, rows_of(packed))
    for at in range(9):
        alone, own = logits[at : at + 1].clone(), packed[:, at : at + 1].contiguous()
        assert int(sampler(alone, own, rows_of(own))[0]) == int(tokens[at])
        assert torch.equal(alone[0], whole[at]), "and the same is kept"


def test_rows_that_are_not_finite_are_told(sampler: FlashInferSampler, device: torch.device) -> None:
    for columns in (100, 3000):
        logits = torch.zeros(6, columns, device=device)
        logits[0, 3], logits[1] = float("nan"), float("-inf")
        logits[2, 99] = float("inf")
        logits[3, 1:] = float("-inf")
        packed = torch.zeros(5, 6, dtype=torch.float64, device=device)
        packed[0, :5], packed[1, 1:3], packed[2], packed[4] = 0.7, 4, 0.9, 0.5
        tokens, best = sampler(logits, packed, rows_of(packed))
        assert torch.isfinite(best).tolist() == [False, False, False, True, True, True]
        assert int(tokens.min()) >= 0 and int(tokens.max()) < columns and int(tokens[3]) == 0


def test_only_rows_that_cut_are_shown(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    module = stand_in()
    monkeypatch.setitem(sys.modules, "flashinfer", module)
    sampler = FlashInferSampler(device)
    shown = module.sampling.shown

    def calls(fields: list[tuple[float, int, float, float]], rows: int) -> list[tuple[str, int]]:
        shown.clear()
        generator = torch.Generator().manual_seed(1)
        logits = torch.randn(rows, 60, generator=generator).to(device)
        packed = packed_of(rows, fields, generator).to(device)
        before = logits.clone()
        tokens, _ = sampler(logits, packed, rows_of(packed))
        assert torch.equal(tokens.cpu(), draw(before.cpu(), Draws.from_packed(packed.cpu())))
        for at, field in enumerate(rows_of(packed)):
            cut = field[0] > 0 and (field[1] > 0 or field[2] < 1 or field[3] > 0)
            assert cut or torch.equal(logits[at], before[at])
        return list(shown)

    assert calls([(1.0, 0, 1.0, 0.0), (0.0, 9, 0.2, 0.1)], 6) == []
    assert calls([(1.0, 0, 1.0, 0.0), (1.0, 9, 1.0, 0.0), (0.0, 0, 0.2, 0.0)], 9) == [("top_k", 3)]
    assert calls([(1.0, 0, 1.0, 0.0), (0.7, 0, 0.9, 0.0)], 6) == [("top_p", 3)]
    assert calls([(1.0, 0, 1.0, 0.2), (0.0, 0, 1.0, 0.0)], 6) == []
    assert calls([(1.0, 4, 0.9, 0.0), (0.7, 0, 0.9, 0.0)], 4) == [("top_k", 4), ("top_p", 4)]
    assert calls([(1.0, 4, 1.0, 0.0)], 130) == [("top_k", 128), ("top_k", 2)]


def test_kernels_that_do_not_compile_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: object) -> None:
        raise RuntimeError("Could not find nvcc")

    module = SimpleNamespace(sampling=SimpleNamespace(top_k_mask_logits=broken))
    monkeypatch.setitem(sys.modules, "flashinfer", module)
    with pytest.raises(Unsupported) as caught:
        FlashInferSampler(torch.device("cpu"))
    assert str(caught.value) == (
        "sampling backend 'flashinfer' cannot run here: Could not find nvcc; FlashInfer 0.6.12 and a CUDA compiler are "
        "known to work; else use 'auto'"
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("fields", [MIXED, ALL_CUT], ids=["mixed", "all rows cut"])
def test_nothing_is_waited_for(fields: list[tuple[float, int, float, float]], device: torch.device) -> None:
    pytest.importorskip("flashinfer", reason="flashinfer is not installed")  # the stand-in does wait
    sampler = FlashInferSampler(device)
    generator = torch.Generator().manual_seed(2)
    packed = packed_of(16, fields, generator).to(device)
    for mode in ("default", "error"):  # the first one compiles
        logits = torch.randn(16, 5000, generator=generator).to(device)
        host = rows_of(packed)
        torch.cuda.set_sync_debug_mode(mode)
        try:
            sampler(logits, packed, host)
        finally:
            torch.cuda.set_sync_debug_mode("default")
