"""Rotary embedding with the store of keys and values against torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from runtime.kernels.rope_store import rope_store, rope_store_reference
from tests.kernels.paged_case import TOLERANCE, error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "turned", "interleaved", "norm", "offset"),
    [
        (4, 2, 64, 64, False, False, 0.0),
        (3, 1, 80, 32, True, True, 0.0),
        (2, 2, 128, 128, False, True, 1.0),
        (2, 1, 256, 64, False, False, 0.0),
        (14, 2, 64, 64, True, False, 0.0),
        (2, 1, 64, 0, False, False, 0.0),
    ],
)
@pytest.mark.parametrize("stored", [None, torch.float8_e4m3fn])
def test_against_torch(
    device: torch.device,
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    dim: int,
    turned: int,
    interleaved: bool,
    norm: bool,
    offset: float,
    stored: torch.dtype | None,
) -> None:
    torch.manual_seed(heads * dim)
    packed = torch.randn(5, heads + 2 * kv_heads, dim).to(dtype).to(device)
    q, k, v = packed.split((heads, kv_heads, kv_heads), dim=1)
    cos = sin = None
    if turned:
        angles = torch.rand(50, turned // 2, device=device)
        cos, sin = angles.cos(), angles.sin()
    positions = torch.tensor([0, 49, 3, 3, 8], device=device)
    slots = torch.tensor([3, 19, -1, 0, 7], device=device)
    more: dict[str, Any] = {"interleaved": interleaved, "eps": 1e-6, "offset": offset}
    if norm:
        weights = torch.randn(2, dim).to(dtype).to(device)
        more |= {"q_weight": weights[0], "k_weight": weights[1]}
    pools = [torch.ones(20, kv_heads, dim, device=device).to(stored or dtype) for _ in range(4)]
    before = packed.clone()
    keys = torch.empty(5, kv_heads, dim, dtype=dtype, device=device)
    out = rope_store(q, k, v, cos, sin, positions, slots, pools[0], pools[1], k_out=keys, **more)
    wanted = rope_store_reference(q, k, v, cos, sin, positions, slots, pools[2], pools[3], **more)
    tolerance = TOLERANCE[dtype]
    assert torch.equal(packed, before)
    assert error(out, wanted) < tolerance
    kept = [0, 1, 3, 4]
    assert torch.equal(keys[kept].to(pools[0].dtype), pools[0][slots[kept]]) or stored
    assert error(pools[0], pools[2]) < (0.07 if stored else tolerance)
    assert error(pools[1], pools[3]) < (0.07 if stored else 1e-9)


def test_refusals(device: torch.device) -> None:
    q, k = torch.zeros(2, 4, 64, device=device), torch.zeros(2, 2, 64, device=device)
    pool = torch.zeros(8, 2, 64, device=device)
    at = torch.zeros(2, dtype=torch.long, device=device)
    with pytest.raises(ValueError, match="2 tokens need as many positions and slots, got 2 and 1"):
        rope_store(q, k, k, None, None, at, at[:1], pool, pool)
    with pytest.raises(ValueError, match="do not fit"):
        rope_store(q, k[:, :1], k, None, None, at, at, pool, pool)
    table = torch.zeros(4, 40, device=device)
    with pytest.raises(ValueError, match="80 turned coordinates do not fit a head of 64"):
        rope_store(q, k, k, table, table, at, at, pool, pool)
