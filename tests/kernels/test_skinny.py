"""Linear layers of few rows against float64."""

from __future__ import annotations

import pytest
import torch

from runtime.kernels.skinny import RowNorm, linear_scratch, skinny_linear, skinny_linear_reference
from runtime.kernels.tuning import LinearTiles
from tests.kernels.paged_case import TOLERANCE, error

GEMV = LinearTiles("gemv", 1, 4, 64, 4, 2)
CASES = {
    "gemv": (1, 40, 128, GEMV),
    "gemv, odd k": (1, 22, 130, GEMV),
    "gemv by default": (1, 24, 96, None),
    "tiled": (3, 40, 96, LinearTiles("tiled", 16, 16, 32, 4, 2, 1)),
    "tiled, odd sizes": (20, 33, 90, LinearTiles("tiled", 16, 16, 32, 4, 2, 1)),
    "split": (5, 40, 96, LinearTiles("tiled", 16, 16, 32, 4, 2, 2)),
    "split unevenly": (33, 24, 200, LinearTiles("tiled", 16, 16, 32, 4, 2, 3)),
    "by default": (4, 128, 1024, None),
    "library": (70, 32, 64, LinearTiles("library")),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("gated", "more"), [(None, False), (None, True), ("silu", True), ("gelu", False), ("gelu_tanh", True)]
)
def test_against_float64(
    device: torch.device, dtype: torch.dtype, case: str, gated: str | None, more: bool
) -> None:
    torch.manual_seed(7)
    rows, n, k, tiles = CASES[case]
    columns = 2 * n if gated else n

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape).to(dtype).to(device)

    x, w = random(rows, k), random(columns, k) / k**0.5
    kwargs = {"gated": gated}
    if more:
        kwargs |= {
            "bias": random(columns),
            "norm": RowNorm(random(k), 1e-5, 1.0),
            "residual": random(rows, n),
        }
    out = skinny_linear(x, w, tiles=tiles, **kwargs)
    assert error(out, skinny_linear_reference(x, w, **kwargs)) < TOLERANCE[dtype]


def test_the_sum_may_replace_the_residual(device: torch.device) -> None:
    x, w = torch.randn(1, 64, device=device), torch.randn(32, 64, device=device)
    residual = torch.randn(1, 32, device=device)
    wanted = skinny_linear_reference(x, w, residual=residual)
    assert skinny_linear(x, w, residual=residual, out=residual, tiles=GEMV) is residual
    assert error(residual, wanted) < 1e-5


def test_one_scratch_serves_layer_after_layer(device: torch.device) -> None:
    scratch = linear_scratch(device, 8192)
    for n, k in ((40, 128), (16, 64), (40, 128)):
        x, w = torch.randn(3, k, device=device), torch.randn(n, k, device=device)
        out = skinny_linear(x, w, scratch=scratch, tiles=LinearTiles("tiled", 16, 16, 32, 4, 2, 2))
        assert error(out, skinny_linear_reference(x, w)) < 1e-5
        assert not scratch.arrived.any()


def test_no_rows_are_no_launch(device: torch.device) -> None:
    """The tiles of few rows are those of one."""
    x, w = torch.ones(0, 64, device=device), torch.ones(8, 64, device=device)
    for tiles in (GEMV, None):
        assert skinny_linear(x, w, tiles=tiles).shape == (0, 8)
        assert skinny_linear(x, w, gated="silu", out=torch.ones(0, 4, device=device)).shape == (0, 4)


def test_refusals(device: torch.device) -> None:
    x, w = torch.zeros(2, 64, device=device), torch.zeros(33, 64, device=device)
    with pytest.raises(
        ValueError, match=r"x \(2, 64\) torch.float32 does not fit w \(33, 64\) torch.bfloat16"
    ):
        skinny_linear(x, w.bfloat16())
    with pytest.raises(ValueError, match="'relu' over 33 columns"):
        skinny_linear(x, w, gated="relu")
    with pytest.raises(ValueError, match="gemv tiles take one row, got 2"):
        skinny_linear(x, w, tiles=GEMV)
    with pytest.raises(ValueError, match="need a scratch of 1536 elements, got 100"):
        skinny_linear(
            x, w, scratch=linear_scratch(device, 100), tiles=LinearTiles("tiled", 16, 16, 32, 4, 2, 2)
        )
