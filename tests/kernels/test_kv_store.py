"""Keys and values arrive in their slots."""

from __future__ import annotations

import pytest
import torch

from runtime.kernels.kv_store import store_kv, store_kv_reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "dim"), [(2, 64), (3, 80), (1, 256)])
def test_only_the_named_slots_change(device: torch.device, dtype: torch.dtype, heads: int, dim: int) -> None:
    packed = torch.randn(4, 2 * heads + 1, dim).to(dtype).to(device)
    k, v = packed[:, :heads], packed[:, heads : 2 * heads]
    slots = torch.tensor([5, -1, 0, 9], device=device)
    pools = [torch.ones(10, heads, dim, dtype=dtype, device=device) for _ in range(4)]
    store_kv(k, v, pools[0], pools[1], slots)
    store_kv_reference(k, v, pools[2], pools[3], slots)
    assert torch.equal(pools[0], pools[2])
    assert torch.equal(pools[1], pools[3])
    store_kv(v, None, pools[0], pools[1], slots)
    assert torch.equal(pools[0], pools[1]), "rows without values"


def test_refusals(device: torch.device) -> None:
    k, pool = torch.zeros(2, 2, 64, device=device), torch.zeros(8, 2, 64, device=device)
    with pytest.raises(ValueError, match="2 tokens need as many slots, got 3"):
        store_kv(k, k, pool, pool, torch.zeros(3, dtype=torch.long, device=device))
    with pytest.raises(ValueError, match="do not fit"):
        store_kv(k, k[:, :1], pool, pool, torch.zeros(2, dtype=torch.long, device=device))
