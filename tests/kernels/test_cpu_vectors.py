"""The vector loops of attention against numpy, for every shape of head and both widths of register."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit

from runtime.kernels.cpu import vectors
from runtime.kernels.cpu.vectors import LOWEST, QUERIES, TILE


@pytest.mark.parametrize("columns", [[16] * 4, [8] * 2], ids=["512 bits", "256 bits"])
@pytest.mark.parametrize("dim", [8, 24, 32, 72, 128])
def test_two_tiles_are_a_softmax_over_both(
    dim: int, columns: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "COLUMNS", columns)
    monkeypatch.setattr(vectors, "WIDTH", columns[0])
    turn_keys, score, soften, mix = vectors.turn_keys, vectors.score, vectors.soften, vectors.mix
    width = columns[0]

    @njit
    def fold(k, v, places, seen, queries, keys, weights, keeps, tops, totals, out, lanes):  # type: ignore[no-untyped-def]
        for j in range(0, len(places), width):
            turn_keys(k, places, 1, j, keys, lanes)
        score(queries, QUERIES, keys, weights, lanes)
        soften(weights, seen, QUERIES, tops, totals, keeps)
        mix(weights, keeps, v, places, 1, len(places), out, QUERIES, lanes)

    rng = np.random.default_rng(dim)
    k, v = rng.standard_normal((2, 300, 3, dim), dtype=np.float32)
    queries = rng.standard_normal((2 * QUERIES, dim), dtype=np.float32) * np.float32(dim**-0.5)
    places = rng.permutation(300)[: TILE + 41]
    keys, weights = np.zeros(dim * TILE, np.float32), np.zeros(QUERIES * TILE, np.float32)
    keeps = np.zeros(QUERIES, np.float32)
    tops, totals = np.full(2 * QUERIES, LOWEST), np.zeros(2 * QUERIES * width, np.float32)
    out = np.zeros((2 * QUERIES, dim), np.float32)
    limits = np.array([TILE + 41, TILE + 7, TILE, 5])  # what each query sees
    for at in (0, TILE):
        part = places[at : at + TILE]
        seen = np.clip(limits - at, 0, len(part))
        fold(
            k, v, part, seen, queries.ravel(), keys, weights, keeps, tops, totals, out.reshape(-1), (0,) * dim
        )
    got = out[QUERIES:] / totals.reshape(-1, width).sum(1)[QUERIES:, None]
    for q, limit in enumerate(limits):
        scores = queries[QUERIES + q].astype(np.float64) @ k[places[:limit], 1].T.astype(np.float64)
        share = 2.0 ** (scores - scores.max())
        expected = share @ v[places[:limit], 1].astype(np.float64) / share.sum()
        np.testing.assert_allclose(got[q], expected, atol=2e-6, rtol=1e-5)
    assert not out[:QUERIES].any() and not totals[: QUERIES * width].any()  # other rows are left alone


def test_a_score_that_is_not_a_number_reaches_the_output() -> None:
    turn_keys, score, soften, mix = vectors.turn_keys, vectors.score, vectors.soften, vectors.mix

    @njit
    def fold(k, v, places, seen, queries, keys, weights, keeps, tops, totals, out, lanes):  # type: ignore[no-untyped-def]
        turn_keys(k, places, 0, 0, keys, lanes)
        score(queries, 0, keys, weights, lanes)
        soften(weights, seen, 0, tops, totals, keeps)
        mix(weights, keeps, v, places, 0, len(places), out, 0, lanes)

    dim = 16
    k = np.ones((8, 1, dim), np.float32)
    k[2, 0, 3] = np.nan
    tops, totals = np.full(QUERIES, LOWEST), np.zeros(QUERIES * vectors.WIDTH, np.float32)
    out = np.zeros(QUERIES * dim, np.float32)
    fold(
        k, np.ones_like(k), np.arange(8), np.array([8, 2, 8, 2]), np.ones(QUERIES * dim, np.float32),
        np.zeros(dim * TILE, np.float32), np.zeros(QUERIES * TILE, np.float32), np.zeros(QUERIES, np.float32),
        tops, totals, out, (0,) * dim,
    )  # fmt: skip
    sums = totals.reshape(QUERIES, -1).sum(1)
    assert list(np.isnan(sums)) == [True, False, True, False]  # only the queries that see it
