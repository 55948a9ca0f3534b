"""Attention in plain torch against a loop in float64, on random mixtures of prompts and decode steps."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.attention.base import AttentionInputs, Span
from runtime.attention.plain import PlainAttention
from runtime.engine.inputs import PageRows
from runtime.kv.store import KVStore
from runtime.models.spec import ArchSpec, AttnSpec, LayerSpec, MlpSpec, NormSpec


def reference(q: np.ndarray, k: np.ndarray, v: np.ndarray, start: int, spec: AttnSpec) -> np.ndarray:
    """One request: q [new, heads, dim] at positions from `start`, k and v [length, kv_heads, dim]."""
    out = np.zeros_like(q)
    group = spec.heads // spec.kv_heads
    for i in range(len(q)):
        first = 0 if spec.window is None else max(0, start + i + 1 - spec.window)
        for h in range(spec.heads):
            keys, values = k[first : start + i + 1, h // group], v[first : start + i + 1, h // group]
            scores = keys @ q[i, h] * spec.scale
            if spec.softcap is not None:
                scores = spec.softcap * np.tanh(scores / spec.softcap)
            weights = np.exp(scores - scores.max())
            out[i, h] = weights / weights.sum() @ values
    return out


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)), min_size=1, max_size=5),
    page_size=st.sampled_from([1, 4, 16]),
    window=st.sampled_from([None, 1, 7]),
    softcap=st.sampled_from([None, 5.0]),
    heads=st.sampled_from([(4, 4), (4, 2), (6, 1)]),
    seed=st.integers(0, 100),
)
def test_against_float64(
    requests: list[tuple[int, int]],
    page_size: int,
    window: int | None,
    softcap: float | None,
    heads: tuple[int, int],
    seed: int,
) -> None:
    dim = 8
    spec = AttnSpec(heads[0], heads[1], dim, 1 / math.sqrt(dim), None, window=window, softcap=softcap)
    layer = LayerSpec(spec, MlpSpec(8), NormSpec(1e-5))
    arch = ArchSpec("test", 10, heads[0] * dim, 64, (layer,), NormSpec(1e-5))
    rng = np.random.default_rng(seed)
    store = KVStore(arch, 400 // page_size, page_size, torch.float32, "cpu")
    rows = PageRows(page_size)
    free = list(rng.permutation(400 // page_size))
    spans, slots, qs, ks, vs, wanted = [], [], [], [], [], []
    at = 0
    for seat, (start, new) in enumerate(requests):
        length = start + new
        rows.seat(seat, [int(free.pop()) for _ in range(-(-length // page_size))])
        row = rows.slots(seat, length)
        q = rng.standard_normal((new, heads[0], dim))
        k, v = rng.standard_normal((2, length, heads[1], dim))
        store.k[0][torch.from_numpy(row[:start])] = torch.from_numpy(k[:start]).float()
        store.v[0][torch.from_numpy(row[:start])] = torch.from_numpy(v[:start]).float()
        spans.append(Span(at, new, start, torch.from_numpy(row)))
        slots.append(row[start:])
        qs.append(q)
        ks.append(k[start:])
        vs.append(v[start:])
        wanted.append(reference(q, k, v, start, spec))
        at += new
    impl = PlainAttention(store)
    impl.plan(AttentionInputs(spans, torch.from_numpy(np.concatenate(slots))))
    tensors = [torch.from_numpy(np.concatenate(x)).float() for x in (qs, ks, vs)]
    out = impl.run(*tensors, 0, spec)
    assert np.allclose(out.numpy(), np.concatenate(wanted), atol=2e-5)
