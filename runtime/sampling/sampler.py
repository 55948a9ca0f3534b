"""Logits to tokens.

Order: bias and penalties, mask of a constraint, temperature, softmax, top-k and top-p together on the sorted
probabilities, min-p, draw. A row's token depends on its own logits, fields and (seed, index) only.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from runtime.api import LogprobOptions, SamplingParams, TokenLogprob
from runtime.sampling.penalties import Penalties
from runtime.sampling.random import uniforms


@dataclass
class SamplingState:
    """What the sampler keeps of a seated request. `ends` int64: ids that would end it."""

    sampling: SamplingParams
    seed: int
    ends: Tensor
    logprobs: LogprobOptions | None = None
    penalties: Penalties | None = None
    allowed: Tensor | None = field(default=None)  # bool [vocabulary], set by a constraint before each draw


def sample(logits: Tensor, states: list[SamplingState], outputs: list[int]) -> Tensor:
    """Draw one token per row: int64 [rows]. `logits` float32 [rows, vocabulary] are changed in place."""
    for i, state in enumerate(states):
        if state.penalties is not None:
            state.penalties.adjust(logits[i], outputs[i], state.ends)
        if state.allowed is not None:
            logits[i].masked_fill_(~state.allowed, float("-inf"))
    random = [i for i, state in enumerate(states) if not state.sampling.greedy]
    tokens = logits.argmax(dim=-1)
    if random:
        chosen = logits if len(random) == len(states) else logits[random]
        drawn = _draw(chosen, [states[i] for i in random], [outputs[i] for i in random])
        tokens = (
            drawn
            if len(random) == len(states)
            else tokens.index_copy(0, torch.tensor(random, device=tokens.device), drawn)
        )
    for i, state in enumerate(states):
        if state.penalties is not None:
            state.penalties.add(tokens[i])
    return tokens


def _draw(logits: Tensor, states: list[SamplingState], outputs: list[int]) -> Tensor:
    device = logits.device
    fields = [s.sampling for s in states]
    temperature = torch.tensor([f.temperature for f in fields], device=device, dtype=torch.float32)
    u = torch.tensor(uniforms([s.seed for s in states], outputs), device=device)
    probabilities = (logits / temperature[:, None]).softmax(dim=-1)
    tokens = torch.empty(len(states), dtype=torch.long, device=device)
    cut = [f.top_p < 1 or f.top_k != -1 or f.min_p > 0 for f in fields]
    for wanted in (False, True):
        rows = [i for i, c in enumerate(cut) if c is wanted]
        if not rows:
            continue
        p = probabilities if len(rows) == len(states) else probabilities[rows]
        at = torch.tensor(rows, device=device)
        tokens[at] = (
            _cut_and_pick(p, [fields[i] for i in rows], u[at]) if wanted else _pick(p.double(), u[at])
        )
    return tokens


def _pick(p: Tensor, u: Tensor) -> Tensor:
    """Inverse of the cumulated distribution: p float64 [rows, n] (need not sum to 1), u [rows]."""
    total = p.cumsum(dim=-1)
    index = torch.searchsorted(total, (u * total[:, -1])[:, None], right=True)[:, 0]
    last = (
        p.shape[-1] - 1 - (p > 0).flip(-1).to(torch.uint8).argmax(dim=-1)
    )  # rounding must not pick an excluded one
    return torch.minimum(index, last)


def _cut_and_pick(p: Tensor, fields: list[SamplingParams], u: Tensor) -> Tensor:
    vocabulary = p.shape[-1]
    ordered, ids = p.sort(dim=-1, descending=True, stable=True)
    ordered = ordered.double()
    before = ordered.cumsum(dim=-1) - ordered
    top_p = torch.tensor([f.top_p for f in fields], dtype=torch.float64, device=p.device)[:, None]
    top_k = torch.tensor([f.top_k if f.top_k > 0 else vocabulary for f in fields], device=p.device)[:, None]
    min_p = torch.tensor([f.min_p for f in fields], dtype=torch.float64, device=p.device)[:, None]
    keep = (
        (before <= top_p)
        & (torch.arange(vocabulary, device=p.device) < top_k)
        & (ordered >= min_p * ordered[:, :1])
    )
    keep[:, 0] = True
    picked = _pick(torch.where(keep, ordered, 0.0), u)
    return ids.gather(1, picked[:, None])[:, 0]


def logprobs_of(
    logits: Tensor, tokens: Tensor, tops: list[int]
) -> list[tuple[TokenLogprob, list[TokenLogprob]]]:
    """Of raw logits float32 [rows, vocabulary]: the log-probability of each token and of the `tops[i]` likeliest."""
    logs = logits.log_softmax(dim=-1)
    own = logs.gather(1, tokens[:, None])[:, 0].tolist()
    ids = tokens.tolist()
    most = max(tops, default=0)
    if most:
        best = logs.topk(min(most, logs.shape[-1]), dim=-1)
        values, indices = best.values.tolist(), best.indices.tolist()
    out = []
    for i, (value, token) in enumerate(zip(own, ids, strict=True)):
        top = (
            [TokenLogprob(v, t) for v, t in zip(values[i][: tops[i]], indices[i], strict=False)]
            if tops[i]
            else []
        )
        out.append((TokenLogprob(value, token), top))
    return out
