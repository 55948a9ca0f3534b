"""RMS norm kernels against float64 and against the plain layer's roundings."""

from __future__ import annotations

import pytest
import torch

from runtime.kernels.norm import add_rms_norm, rms_norm, rms_norm_reference
from tests.kernels.paged_case import TOLERANCE, error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [64, 200, 896])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_against_float64(device: torch.device, dtype: torch.dtype, width: int, offset: float) -> None:
    torch.manual_seed(width)
    x = torch.randn(5, width).to(dtype).to(device)
    weight = torch.randn(width).to(dtype).to(device)
    wanted = rms_norm_reference(x, weight, 1e-5, offset)
    assert error(rms_norm(x, weight, 1e-5, offset), wanted) < TOLERANCE[dtype]
    residual = torch.randn(5, width).to(dtype).to(device)
    total = residual + x
    out = add_rms_norm(x, residual, weight, 1e-5, offset)
    assert error(residual, total) < TOLERANCE[dtype]
    assert error(out, rms_norm_reference(residual, weight, 1e-5, offset)) < TOLERANCE[dtype]


def test_rows_of_x_may_be_apart(device: torch.device) -> None:
    x = torch.randn(4, 96, device=device)[:, :64]
    weight = torch.randn(64, device=device)
    assert error(rms_norm(x, weight, 1e-5), rms_norm_reference(x, weight, 1e-5)) < 1e-5


def test_refusals(device: torch.device) -> None:
    with pytest.raises(ValueError, match=r"x \(2, 8\) needs a weight of its width, got \(7,\)"):
        rms_norm(torch.zeros(2, 8, device=device), torch.zeros(7, device=device), 1e-5)
    with pytest.raises(ValueError, match="rows of 70000 are wider than 65536"):
        rms_norm(torch.zeros(1, 70000, device=device), torch.zeros(70000, device=device), 1e-5)
