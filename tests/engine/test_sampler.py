"""The sampler against its definition in float64, and its promises on seeds and batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.api import SamplingParams
from runtime.errors import InvalidRequest
from runtime.sampling.penalties import Penalties
from runtime.sampling.random import child_seed, uniform
from runtime.sampling.sampler import SamplingState, logprobs_of, sample


def state(
    seed: int = 0, tokens: list[int] | None = None, prompt: int = 0, width: int = 50, **fields: object
) -> SamplingState:
    params = SamplingParams(**fields)  # type: ignore[arg-type]
    penalties = Penalties(params, tokens or [], prompt, width, "cpu") if Penalties.needed(params) else None
    return SamplingState(params, seed, torch.tensor([0, 1]), penalties=penalties)


def support(logits: np.ndarray, p: SamplingParams) -> dict[int, float]:
    """The tokens that may be drawn and their probabilities, by the definition."""
    x = logits.astype(np.float64) / p.temperature
    q = np.exp(x - x.max())
    q /= q.sum()
    order = np.argsort(-q, kind="stable")
    before = np.cumsum(q[order]) - q[order]
    keep = [
        i
        for rank, i in enumerate(order)
        if before[rank] <= p.top_p and (p.top_k == -1 or rank < p.top_k) and q[i] >= p.min_p * q.max()
    ]
    total = sum(q[i] for i in keep)
    return {int(i): float(q[i] / total) for i in keep}


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    temperature=st.floats(0.3, 2.0),
    top_p=st.sampled_from([0.3, 0.7, 0.95, 1.0]),
    top_k=st.sampled_from([-1, 1, 3, 10]),
    min_p=st.sampled_from([0.0, 0.1, 0.5]),
)
def test_draws_follow_the_definition(
    seed: int, temperature: float, top_p: float, top_k: int, min_p: float
) -> None:
    logits = torch.randn(12, generator=torch.Generator().manual_seed(seed)) * 2
    p = SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p)
    wanted = support(logits.numpy(), p)
    count = 3000
    states = [state(seed, width=12, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p)] * count
    drawn = sample(logits.repeat(count, 1), states, list(range(count))).numpy()
    observed = np.bincount(drawn, minlength=12)
    assert set(np.flatnonzero(observed)) <= set(wanted)
    chi = sum((observed[i] - count * q) ** 2 / (count * q) for i, q in wanted.items())
    assert chi < 2 * len(wanted) + 30


def test_a_draw_depends_on_seed_and_index_alone() -> None:
    logits = torch.randn(40, 50, generator=torch.Generator().manual_seed(1))
    states = [state(i, temperature=1.0, top_p=0.9 if i % 2 else 1.0) for i in range(40)]
    outputs = [i % 7 for i in range(40)]
    together = sample(logits.clone(), states, outputs).tolist()
    alone = [sample(logits[i : i + 1].clone(), [states[i]], [outputs[i]]).item() for i in range(40)]
    assert together == alone
    assert uniform(3, 4) == uniform(3, 4) != uniform(3, 5)
    assert child_seed(9, 0) == 9 and len({child_seed(9, k) for k in range(100)}) == 100
    numbers = np.array([uniform(5, k) for k in range(4000)])
    assert abs(numbers.mean() - 0.5) < 0.02 and abs(numbers.var() - 1 / 12) < 0.01


def test_greedy_rows_in_a_mixed_batch() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(2))
    states = [state(temperature=0), state(1, temperature=1.0), state(top_k=1)]
    drawn = sample(logits.clone(), states, [0, 0, 0])
    assert drawn[0] == logits[0].argmax() and drawn[2] == logits[2].argmax()


def test_penalties_bias_and_minimum() -> None:
    tokens, prompt = [5, 6, 7, 7, 8], 2
    params: dict[str, Any] = {
        "frequency_penalty": 0.5,
        "presence_penalty": 0.25,
        "repetition_penalty": 2.0,
        "logit_bias": {9: 3.0},
    }
    raw = torch.linspace(-2, 2, 50)
    row = raw.clone()
    s = state(tokens=tokens, prompt=prompt, min_new_tokens=4, **params)
    assert s.penalties is not None
    s.penalties.adjust(row, 3, s.ends)
    want = raw.clone().double()
    want[9] += 3.0
    for token, count in ((7, 2), (8, 1)):
        want[token] -= 0.5 * count + 0.25
    want[[0, 1]] = -1e30
    for token in (5, 6, 7, 8):
        want[token] = want[token] / 2 if want[token] > 0 else want[token] * 2
    assert torch.allclose(row.double(), want, atol=1e-6)
    again = state(tokens=[*tokens, 8], prompt=prompt, min_new_tokens=4, **params)
    s.penalties.add(8)
    a, b = raw.clone(), raw.clone()
    s.penalties.adjust(a, 4, s.ends)
    assert again.penalties is not None
    again.penalties.adjust(b, 4, s.ends)  # what a request that was retracted counts anew
    assert torch.equal(a, b)


def test_logprobs_are_of_raw_logits() -> None:
    logits = torch.randn(2, 50)
    (own, top), (other, none) = logprobs_of(logits, torch.tensor([3, 4]), [2, 0])
    logs = logits.double().log_softmax(-1)
    assert own.logprob == pytest.approx(logs[0, 3].item(), abs=1e-5) and other.id == 4 and none == []
    assert [t.id for t in top] == logs[0].topk(2).indices.tolist()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1 but must be at least 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0 but must be above 0 and at most 1"),
        ({"top_k": 0}, "top_k is 0 but must be -1"),
        ({"min_p": 1.5}, "min_p"),
        ({"frequency_penalty": 3}, "between -2 and 2"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"min_new_tokens": 9, "max_new_tokens": 3}, "raise the one or lower the other"),
        ({"stop": ("",)}, "stop"),
        ({"logit_bias": {3: float("nan")}}, "logit_bias is .* but must be between"),
        ({"logit_bias": {3: float("inf")}}, "logit_bias is .* but must be between"),
    ],
)
def test_bad_values_are_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        SamplingParams(**fields).check()  # type: ignore[arg-type]
