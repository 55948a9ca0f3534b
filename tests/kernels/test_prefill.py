"""Prefill attention against sums in float64."""

from __future__ import annotations

import itertools

import pytest
import torch

from runtime.kernels.prefill import fresh_attention, prefill_attention, prefill_reference
from tests.kernels.paged_case import TOLERANCE, cache, error


def starts_of(counts: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32, device=device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "page_size"),
    [(4, 4, 64, 1), (4, 2, 64, 16), (3, 1, 80, 1), (2, 2, 96, 64), (2, 1, 256, 16)],
)
def test_against_float64(
    device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, dim: int, page_size: int
) -> None:
    """Whole prompts, one token, new tokens after a prefix, a request without new tokens."""
    torch.manual_seed(heads * dim)
    c = cache([1, 40, 33, 70, 16], page_size, kv_heads, dim, dtype, device)
    counts = [1, 40, 3, 30, 0]
    starts = starts_of(counts, device)
    q = torch.randn(sum(counts), heads, dim).to(dtype).to(device)
    at = {"page_size": page_size, "scale": dim**-0.5}
    out = torch.full_like(q, float("nan"))
    prefill_attention(q, c.k, c.v, c.table, c.seats, starts, c.lengths, max_new=40, out=out, **at)
    wanted = prefill_reference(q, c.k, c.v, c.table, c.seats, starts, c.lengths, **at)
    assert error(out, wanted) < TOLERANCE[dtype]


@pytest.mark.parametrize("window", [None, 1, 7, 30])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("alibi", [False, True])
def test_what_changes_scores(
    device: torch.device, window: int | None, softcap: float | None, alibi: bool
) -> None:
    torch.manual_seed(1)
    c = cache([40, 3, 50], 16, 1, 64, torch.float32, device)
    starts = starts_of([40, 2, 20], device)
    q = 3 * torch.randn(62, 2, 64, device=device)
    slopes = torch.rand(2, device=device) if alibi else None
    at = {"page_size": 16, "scale": 0.125, "window": window, "softcap": softcap, "slopes": slopes}
    out = prefill_attention(q, c.k, c.v, c.table, c.seats, starts, c.lengths, max_new=64, **at)
    assert error(out, prefill_reference(q, c.k, c.v, c.table, c.seats, starts, c.lengths, **at)) < 1e-5


def test_float8_keys_and_values(device: torch.device) -> None:
    torch.manual_seed(2)
    c = cache([40, 3], 1, 2, 64, torch.float32, device)
    k, v = c.k.nan_to_num().to(torch.float8_e4m3fn), c.v.nan_to_num().to(torch.float8_e4m3fn)
    starts = starts_of([20, 3], device)
    q = torch.randn(23, 4, 64, device=device)
    at = {"page_size": 1, "scale": 0.125}
    out = prefill_attention(q, k, v, c.table, c.seats, starts, c.lengths, max_new=20, **at)
    assert error(out, prefill_reference(q, k, v, c.table, c.seats, starts, c.lengths, **at)) < 1e-5


@pytest.mark.parametrize("window", [None, 9])
def test_fresh_prompts_read_rows_of_the_batch(device: torch.device, window: int | None) -> None:
    torch.manual_seed(3)
    counts = [5, 40, 1, 17]
    starts = starts_of(counts, device)
    packed = torch.randn(sum(counts), 8, 64, device=device)
    q, k, v = packed.split((4, 2, 2), dim=1)
    out = fresh_attention(q, k, v, starts, max_new=40, scale=0.125, window=window)
    table = torch.zeros(4, 64, dtype=torch.int32, device=device)
    for i, count in enumerate(counts):
        table[i, :count] = starts[i] + torch.arange(count, device=device)
    seats = torch.arange(4, dtype=torch.int32, device=device)
    lengths = starts[1:] - starts[:-1]
    wanted = prefill_reference(
        q, k, v, table, seats, starts, lengths, page_size=1, scale=0.125, window=window
    )
    assert error(out, wanted) < 1e-5


def test_refusals(device: torch.device) -> None:
    c = cache([20, 7], 1, 2, 64, torch.float32, device)
    starts = starts_of([3, 2], device)
    q = torch.randn(5, 4, 64, device=device)
    at = {"page_size": 1, "scale": 1.0, "max_new": 3}
    with pytest.raises(ValueError, match=r"q \(5, 3, 64\) does not fit k"):
        prefill_attention(q[:, :3], c.k, c.v, c.table, c.seats, starts, c.lengths, **at)
    with pytest.raises(ValueError, match="starts are of 2 requests, lengths of 1"):
        prefill_attention(q, c.k, c.v, c.table, c.seats, starts, c.lengths[:1], **at)
