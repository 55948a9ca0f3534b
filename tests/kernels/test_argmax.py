"""The likeliest token: the first of equals, and what is not finite is told."""

from __future__ import annotations

import pytest
import torch

from runtime.kernels.argmax import argmax, argmax_reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 97), (2, 8192), (2, 20001)])
def test_maxima_and_first_indices(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> None:
    x = torch.randn(rows, columns, device=device).to(dtype)
    best, index = argmax_reference(x)
    high, token = argmax(x)
    assert torch.equal(high, best) and torch.equal(token, index)
    assert torch.equal(token, x.float().argmax(dim=-1)) or dtype is torch.bfloat16


def test_ties_views_and_values_that_are_not_finite(device: torch.device) -> None:
    x = torch.full((4, 9000), -3.0, device=device)[:, :8500]
    x[0, [400, 8400]] = 1.0
    x[1, 8499] = float("nan")
    x[2] = float("-inf")
    high, token = argmax(x)
    assert token.tolist()[:2] == [400, 8499] and token[2] == 0 and token[3] == 0
    assert torch.isfinite(high).tolist() == [True, False, False, True]
    assert argmax(x[:0])[1].shape == (0,)
    with pytest.raises(ValueError, match="adjacent columns"):
        argmax(x.T)
