"""Decode attention over latents against sums in float64."""

from __future__ import annotations

import pytest
import torch

from runtime.kernels.mla_decode import mla_decode_attention, mla_decode_reference, mla_scratch
from runtime.kernels.tuning import LatentTiles
from tests.kernels.paged_case import TOLERANCE, cache, error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("heads", "latent", "rope", "page_size", "splits"),
    [(16, 64, 16, 1, 1), (20, 64, 16, 16, 4), (5, 96, 32, 64, 2), (16, 512, 64, 1, 3)],
)
def test_against_float64(
    device: torch.device,
    dtype: torch.dtype,
    heads: int,
    latent: int,
    rope: int,
    page_size: int,
    splits: int,
) -> None:
    torch.manual_seed(heads + latent)
    c = cache([1, 0, 33, 150], page_size, 1, latent + rope, dtype, device)
    pool = c.k.squeeze(1)
    q = torch.randn(4, heads, latent).to(dtype).to(device)
    q_rope = torch.randn(4, heads, rope).to(dtype).to(device)
    tiles = LatentTiles(16, 16, 4, 2, splits)
    scratch = mla_scratch(4, heads, latent, tiles, device)
    at = {"page_size": page_size, "scale": (latent + rope) ** -0.5}
    args = (q, q_rope, pool, c.table, c.seats, c.lengths)
    for _ in range(2):  # the second launch finds the counters as the first did
        out = torch.full_like(q, float("nan"))
        mla_decode_attention(*args, tiles=tiles, scratch=scratch, out=out, **at)
        assert error(out, mla_decode_reference(*args, **at)) < TOLERANCE[dtype]
        assert not out[1].any(), "a padding row is zeros"
    assert error(mla_decode_attention(*args, **at), mla_decode_reference(*args, **at)) < TOLERANCE[dtype]


def test_refusals(device: torch.device) -> None:
    c = cache([5], 1, 1, 80, torch.float32, device)
    q, q_rope = torch.zeros(1, 4, 64, device=device), torch.zeros(1, 4, 8, device=device)
    with pytest.raises(ValueError, match=r"need rows of 72, the pool is \(8, 80\)"):
        mla_decode_attention(q, q_rope, c.k.squeeze(1), c.table, c.seats, c.lengths, page_size=1, scale=1.0)
