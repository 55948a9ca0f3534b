"""Decode attention against sums in float64."""

from __future__ import annotations

import pytest
import torch

from runtime.kernels.decode import decode_attention, decode_reference, packed_decode_attention
from runtime.kernels.merge import merge_reference, split_scratch
from runtime.kernels.rope_store import Turning, rope_store_reference
from runtime.kernels.tuning import DecodeTiles
from tests.kernels.paged_case import TOLERANCE, cache, error

SMALL = DecodeTiles(16, 4, 2, 1, 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "page_size", "splits"),
    [
        (4, 4, 64, 1, 1),
        (4, 2, 64, 16, 4),
        (8, 1, 80, 1, 16),
        (14, 2, 64, 64, 2),
        (6, 2, 96, 16, 3),
        (2, 1, 256, 1, 8),
    ],
)
def test_against_float64(
    device: torch.device,
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    dim: int,
    page_size: int,
    splits: int,
) -> None:
    torch.manual_seed(heads * dim + splits)
    c = cache([1, 0, 33, 150, 16], page_size, kv_heads, dim, dtype, device)
    q = torch.randn(5, heads, dim).to(dtype).to(device)
    at = {"page_size": page_size, "scale": dim**-0.5}
    out = torch.full_like(q, float("nan"))
    decode_attention(q, c.k, c.v, c.table, c.seats, c.lengths, splits=splits, tiles=SMALL, out=out, **at)
    assert error(out, decode_reference(q, c.k, c.v, c.table, c.seats, c.lengths, **at)) < TOLERANCE[dtype]
    assert not out[1].any(), "a padding row is zeros"


@pytest.mark.parametrize("window", [None, 1, 7, 100])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("alibi", [False, True])
def test_what_changes_scores(
    device: torch.device, window: int | None, softcap: float | None, alibi: bool
) -> None:
    torch.manual_seed(1)
    c = cache([40, 3, 65], 16, 2, 64, torch.float32, device)
    q = 3 * torch.randn(3, 6, 64, device=device)
    slopes = torch.rand(6, device=device) if alibi else None
    at = {
        "page_size": 16,
        "scale": 0.125,
        "window": window,
        "softcap": softcap,
        "slopes": slopes,
        "v_scale": 0.5,
    }
    out = decode_attention(q, c.k, c.v, c.table, c.seats, c.lengths, splits=2, tiles=SMALL, **at)
    assert error(out, decode_reference(q, c.k, c.v, c.table, c.seats, c.lengths, **at)) < 1e-5


@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_keys_and_values(device: torch.device, stored: torch.dtype) -> None:
    torch.manual_seed(2)
    c = cache([40, 3], 1, 2, 64, torch.float32, device)
    k, v = c.k.nan_to_num().to(stored), c.v.nan_to_num().to(stored)
    q = torch.randn(2, 4, 64, device=device)
    at = {"page_size": 1, "scale": 0.125, "v_scale": 2.0}
    out = decode_attention(q, k, v, c.table, c.seats, c.lengths, splits=2, tiles=SMALL, **at)
    assert error(out, decode_reference(q, k, v, c.table, c.seats, c.lengths, **at)) < 1e-5


def test_one_scratch_serves_launch_after_launch(device: torch.device) -> None:
    torch.manual_seed(3)
    scratch = split_scratch(8, 2, 4, 2, 64, device)
    for lengths in ([70, 5, 64], [1], [17, 200, 0, 33, 90]):
        c = cache(lengths, 1, 2, 64, torch.float32, device)
        q = torch.randn(len(lengths), 4, 64, device=device)
        at = {"page_size": 1, "scale": 0.125}
        out = decode_attention(
            q, c.k, c.v, c.table, c.seats, c.lengths, splits=4, scratch=scratch, tiles=SMALL, **at
        )
        assert error(out, decode_reference(q, c.k, c.v, c.table, c.seats, c.lengths, **at)) < 1e-5
        assert not scratch.arrived.any()


def test_rows_of_q_may_be_apart(device: torch.device) -> None:
    c = cache([20, 7], 1, 1, 64, torch.float32, device)
    packed = torch.randn(2, 6, 64, device=device)
    at = {"page_size": 1, "scale": 0.125}
    out = decode_attention(packed[:, :4], c.k, c.v, c.table, c.seats, c.lengths, **at)
    wanted = decode_reference(packed[:, :4], c.k, c.v, c.table, c.seats, c.lengths, **at)
    assert error(out, wanted) < 1e-5


def test_refusals(device: torch.device) -> None:
    c = cache([20, 7], 1, 2, 64, torch.float32, device)
    q = torch.randn(2, 4, 64, device=device)
    with pytest.raises(ValueError, match=r"q \(2, 3, 64\) does not fit pools"):
        decode_attention(q[:, :3], c.k, c.v, c.table, c.seats, c.lengths, page_size=1, scale=1.0)
    with pytest.raises(ValueError, match="2 requests need as many seats"):
        decode_attention(q, c.k, c.v, c.table, c.seats[:1], c.lengths, page_size=1, scale=1.0)
    small = split_scratch(1, 2, 4, 2, 64, device)
    with pytest.raises(
        ValueError, match=r"scratch is \(1, 2, 4, 2, 64\) but this launch needs \(2, 2, 4, 2, 64\)"
    ):
        decode_attention(
            q, c.k, c.v, c.table, c.seats, c.lengths, page_size=1, scale=1.0, splits=4, scratch=small
        )


def test_merge_reference_joins_parts_of_a_softmax() -> None:
    torch.manual_seed(4)
    scores, values = torch.randn(30, dtype=torch.float64), torch.randn(30, 5, dtype=torch.float64)
    parts = [slice(0, 7), slice(7, 8), slice(8, 30)]
    partial = torch.stack([scores[p].softmax(0) @ values[p] for p in parts])
    weights = torch.stack([scores[p].logsumexp(0) for p in parts]) / torch.log(torch.tensor(2.0))
    assert torch.allclose(merge_reference(partial, weights), scores.softmax(0) @ values)


@pytest.mark.parametrize(
    ("dim", "turned", "interleaved", "normed", "window", "softcap", "stored", "splits"),
    [
        (64, 64, False, False, None, None, torch.float32, 1),
        (64, 64, False, True, None, None, torch.float32, 4),
        (80, 32, True, False, 7, None, torch.float32, 2),
        (128, 128, False, False, 1, 3.0, torch.float32, 3),
        (64, 0, False, True, None, 2.0, torch.float32, 2),
        (64, 64, False, False, None, None, torch.float8_e4m3fn, 2),
    ],
)
@pytest.mark.parametrize("page_size", [1, 16])
def test_packed_projections_are_turned_stored_and_attended(
    device: torch.device,
    dim: int,
    turned: int,
    interleaved: bool,
    normed: bool,
    window: int | None,
    softcap: float | None,
    stored: torch.dtype,
    splits: int,
    page_size: int,
) -> None:
    torch.manual_seed(dim + splits)
    heads, kv_heads, lengths = 6, 2, [1, 0, 33, 150, 17]
    c = cache(lengths, page_size, kv_heads, dim, torch.float32, device)
    pools = [x.nan_to_num().to(stored) for x in (c.k, c.v)]
    qkv = torch.randn(5, (heads + 2 * kv_heads) * dim + 8, device=device)[:, : (heads + 2 * kv_heads) * dim]
    angles = torch.rand(200, turned // 2, device=device)
    weights = [torch.rand(dim, device=device) if normed else None for _ in range(2)]
    turning = Turning(
        angles.cos() if turned else None, angles.sin() if turned else None, interleaved, *weights, eps=1e-5
    )
    at = torch.tensor([max(n - 1, 0) for n in lengths], device=device)
    pages = c.table[c.seats.long(), at // page_size].long()
    slots = torch.where(c.lengths > 0, pages * page_size + at % page_size, -1)

    wanted_pools = [x.clone() for x in pools]
    q, k, v = qkv.unflatten(1, (-1, dim)).split((heads, kv_heads, kv_heads), dim=1)
    turned_q = rope_store_reference(
        q, k, v, turning.cos, turning.sin, at, slots, *wanted_pools,
        interleaved=interleaved, q_weight=weights[0], k_weight=weights[1], eps=1e-5,
    )  # fmt: skip
    how = {"page_size": page_size, "scale": dim**-0.5, "window": window, "softcap": softcap}
    wanted = decode_reference(turned_q, *wanted_pools, c.table, c.seats, c.lengths, **how)

    out = packed_decode_attention(
        qkv, heads, turning, slots, *pools, c.table, c.seats, c.lengths, splits=splits, tiles=SMALL, **how
    )
    # The interpreter truncates to float8 where a GPU rounds.
    rounding = 1e-5 if stored == torch.float32 else 6e-2
    assert error(out, wanted) < rounding
    assert not out[1].any(), "a padding row is zeros"
    for got, want in zip(pools, wanted_pools, strict=True):
        assert error(got.float(), want.float()) < rounding


def test_packed_projections_must_fit(device: torch.device) -> None:
    c = cache([20, 7], 1, 2, 64, torch.float32, device)
    slots = torch.zeros(2, dtype=torch.int64, device=device)
    more = {"page_size": 1, "scale": 1.0}
    plain = Turning(None, None)
    with pytest.raises(ValueError, match=r"qkv \(2, 500\) is not of 4 heads"):
        packed_decode_attention(
            torch.zeros(2, 500, device=device), 4, plain, slots, c.k, c.v, c.table, c.seats, c.lengths, **more
        )
    with pytest.raises(ValueError, match="need as many slots"):
        packed_decode_attention(
            torch.zeros(2, 512, device=device),
            4,
            plain,
            slots[:1],
            c.k,
            c.v,
            c.table,
            c.seats,
            c.lengths,
            **more,
        )
