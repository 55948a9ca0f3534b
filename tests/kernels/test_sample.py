"""Drawn tokens are those of the plain sampler, up to sums that rounding decides."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.kernels.sample import sample
from runtime.sampling.sampler import Draws, by_triton, draw
from tests.kernels.draws_case import agrees, packed_of

fields = st.tuples(
    st.sampled_from([0.0, 0.05, 0.6, 1.0, 3.0]),
    st.sampled_from([0, 0, 2, 5, 100]),
    st.sampled_from([1.0, 1.0, 0.1, 0.9, 0.999]),
    st.sampled_from([0.0, 0.0, 0.02, 0.7]),
)


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([1, 7, 300, 8193]),
    st.lists(fields, min_size=1, max_size=3),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.sampled_from([0.2, 2.0, 20.0]),
)
def test_the_tokens_of_the_plain_sampler(
    seed: int,
    columns: int,
    given_fields: list[tuple[float, int, float, float]],
    dtype: torch.dtype,
    spread: float,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = 1 + len(given_fields)
    logits = (torch.randn(rows, columns, generator=generator) * spread).to(dtype)
    agrees(by_triton, logits.to(device), packed_of(rows, given_fields, generator).to(device))


def test_equal_logits_stay_or_go_together(device: torch.device) -> None:
    logits = torch.full((16, 50), -4.0, device=device)
    logits[:, [3, 9, 40]] = 2.0
    logits[:, 7] = 3.0
    packed = torch.zeros(5, 16, dtype=torch.float64, device=device)
    packed[0], packed[1], packed[2] = 1.0, 2, 1.0
    packed[4] = torch.linspace(0, 0.9999, 16, dtype=torch.float64)
    tokens, _ = sample(logits, packed)
    assert set(tokens.tolist()) == {3, 7, 9, 40}
    assert torch.equal(tokens.cpu(), draw(logits.cpu(), Draws.from_packed(packed.cpu())))


def test_masked_ones_are_never_drawn(device: torch.device) -> None:
    logits = torch.zeros(4, 9000, device=device)
    logits[:] = float("-inf")
    logits[:, [5, 8999]] = torch.tensor([0.0, -1.0], device=device)
    packed = torch.zeros(5, 4, dtype=torch.float64, device=device)
    packed[0], packed[2] = 1.0, torch.where(torch.arange(4) % 2 == 0, 1.0, 0.9999).to(device)
    packed[4] = torch.linspace(0, 1 - 1e-9, 4, dtype=torch.float64)
    assert set(sample(logits, packed)[0].tolist()) == {5, 8999}


def test_rows_that_are_not_finite_are_told(device: torch.device) -> None:
    logits = torch.zeros(6, 100, device=device)
    logits[0, 3], logits[1] = float("nan"), float("-inf")
    logits[2, 99] = float("inf")
    packed = torch.zeros(5, 6, dtype=torch.float64, device=device)
    packed[0, :5], packed[1, 1:3], packed[2], packed[4] = 0.7, 4, 0.9, 0.5
    tokens, best = sample(logits, packed)
    assert torch.isfinite(best).tolist() == [False, False, False, True, True, True]
    assert int(tokens.min()) >= 0 and int(tokens.max()) < 100
    with pytest.raises(ValueError, match="float64"):
        sample(logits, packed.float())
    with pytest.raises(ValueError, match="adjacent"):
        sample(logits.T, packed)
    assert sample(logits[:0], packed[:, :0].contiguous())[0].shape == (0,)
