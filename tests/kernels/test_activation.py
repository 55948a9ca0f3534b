"""Gates against float64."""

from __future__ import annotations

import pytest
import torch

from runtime.kernels.activation import ACTIVATIONS, gated_mul, gated_reference
from tests.kernels.paged_case import TOLERANCE, error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [48, 2500])
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_against_float64(device: torch.device, dtype: torch.dtype, size: int, kind: str) -> None:
    torch.manual_seed(size)
    x = (3 * torch.randn(3, 2 * size)).to(dtype).to(device)
    assert error(gated_mul(x, kind), gated_reference(x, kind)) < TOLERANCE[dtype]


def test_an_unknown_gate_is_refused(device: torch.device) -> None:
    x = torch.randn(2, 32, device=device)
    with pytest.raises(ValueError, match="'relu' is not one of silu, gelu, gelu_tanh"):
        gated_mul(x, "relu")
