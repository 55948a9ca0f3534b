"""What the tables decide."""

from __future__ import annotations

import pytest
import torch

from runtime.kernels import tuning
from runtime.kernels.tuning import decode_tiles, fresh_path, linear_tiles, prefill_tiles, step_rows

HOPPER = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def an_h200(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "device_name", lambda index: "NVIDIA H200")
    monkeypatch.setattr(tuning, "processors", lambda device: 132)


@pytest.mark.parametrize(
    ("kv_heads", "dim", "splits"),
    [(8, 128, {1: 32, 8: 8, 32: 2, 64: 1, 256: 1}), (2, 64, {1: 32, 8: 16, 32: 4, 64: 2, 128: 1, 256: 1})],
)
def test_few_requests_are_split_and_many_are_not(kv_heads: int, dim: int, splits: dict[int, int]) -> None:
    found = {n: decode_tiles(HOPPER, n, kv_heads, dim, torch.bfloat16).splits for n in splits}
    assert found == splits


def test_a_library_plans_only_for_lengths_that_come_again() -> None:
    def path(*tokens: int, plain: bool = True, dim: int = 128, dtype: torch.dtype = torch.bfloat16) -> str:
        return fresh_path(HOPPER, dim, dtype, tokens, plain)

    assert path(8192, 2048) == "cudnn"
    assert path(8192, 2049) == path(8191) == path(300) == "rows"
    assert path(8192, plain=False) == path(8192, dim=64) == path(8192, dtype=torch.float32) == "rows"
    assert path(8192, 100) == "pages"


def test_matrices_that_were_measured_take_what_was_quickest() -> None:
    one = linear_tiles(HOPPER, 1, 4096, 14336, torch.bfloat16, False)
    assert (one.kind, one.block_n, one.block_k) == ("gemv", 2, 2048)
    assert linear_tiles(HOPPER, 200, 4096, 4096, torch.bfloat16, False).kind == "library"
    assert linear_tiles(HOPPER, 1, 1000, 640, torch.bfloat16, False).kind == "gemv"
    assert linear_tiles(HOPPER, 8, 1000, 640, torch.float32, False).kind == "library"


def test_gate_and_up_of_many_rows_go_to_the_own_kernel_on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    def kind(rows: int, dtype: torch.dtype = torch.bfloat16, gated: bool = True) -> str:
        return linear_tiles(HOPPER, rows, 14336, 4096, dtype, gated).kind

    assert [kind(n) for n in (64, 65, 128, 129, 192, 193, 8192)] == [
        "tiled", "wgmma", "wgmma", "library", "library", "wgmma", "wgmma",
    ]  # fmt: skip
    assert kind(8192, torch.float16) == kind(8192, gated=False) == "library"
    monkeypatch.setattr(tuning, "device_name", lambda index: "NVIDIA A100-SXM4-80GB")
    assert kind(8192) == "library"


def test_steps_of_few_rows_are_one_launch_on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    assert step_rows(HOPPER) == 16
    assert step_rows(torch.device("cpu")) == 0
    monkeypatch.setattr(tuning, "device_name", lambda index: "NVIDIA A100-SXM4-80GB")
    assert step_rows(HOPPER) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [16, 64, 80, 128, 256, 512])
def test_tiles_fit_shared_memory(dtype: torch.dtype, dim: int) -> None:
    """Keys and values of a block, and the queries, in 227 KB; the pipeline holds a stage less than it has."""
    width = tuning.triton_width(dim) * dtype.itemsize
    p = prefill_tiles(HOPPER, dim, dtype)
    assert (p.block_m + 2 * p.block_n * max(1, p.stages - 1)) * width <= 227 << 10
    d = decode_tiles(HOPPER, 4, 8, dim, dtype)
    assert 2 * d.block_n * max(1, d.stages - 2) * width <= 227 << 10
