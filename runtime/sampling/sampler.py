"""Logits to tokens.

Order: bias and penalties, mask of a constraint, temperature, softmax, then top-k, top-p and min-p together on these
probabilities, draw. A row's token depends on its own logits, fields and (seed, index) only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from runtime.api import LogprobOptions, SamplingParams, TokenLogprob
from runtime.sampling.penalties import Penalties
from runtime.sampling.random import uniforms


@dataclass
class SamplingState:
    """What the sampler keeps of a seated request. `ends` int64: ids that would end it, for penalties."""

    sampling: SamplingParams
    seed: int
    ends: Tensor
    logprobs: LogprobOptions | None = None
    penalties: Penalties | None = None
    allowed: Tensor | None = field(default=None)  # bool [vocabulary], set by a constraint before each draw


@dataclass(frozen=True)
class Draws:
    """How each row's token is drawn, one entry a row. Rows of temperature 0 get their likeliest token.

    A token is kept if its probability is at least `min_p` of the largest, fewer than `top_k` tokens are likelier (0: any
    number), and those that are likelier have at most `top_p` of the mass; so equal ones stay or go together. Among those kept,
    in the order of their ids, the share `u` of the mass picks one.
    """

    temperature: Tensor  # float32
    top_k: Tensor  # int64
    top_p: Tensor  # float64
    min_p: Tensor  # float64
    u: Tensor  # float64, in [0, 1)

    @classmethod
    def from_packed(cls, packed: Tensor) -> Draws:
        """`packed` float64 [5, rows]: `fields_of` each row, then u."""
        temperature, top_k, top_p, min_p, u = packed
        return cls(temperature.float(), top_k.long(), top_p, min_p, u)


Sampler = Callable[[Tensor, Tensor, np.ndarray], tuple[Tensor, Tensor]]
"""Draws by the definition of `Draws`; the logits may be changed in place.

logits  [rows, vocabulary], float32, bfloat16 or float16
packed  float64 [5, rows] on their device, see `Draws.from_packed`
fields  float64 [rows, 4]: `fields_of` each row, on the host, so that nobody has to ask the device who cuts

Returns tokens int64 [rows], and float32 [rows] that is finite where the row's logits could be drawn from.
"""


def fields_of(s: SamplingParams) -> tuple[float, float, float, float]:
    """temperature, top_k, top_p and min_p as `Draws` has them."""
    return (0.0 if s.greedy else s.temperature, max(s.top_k, 0), s.top_p, s.min_p)


def by_torch(logits: Tensor, packed: Tensor, fields: np.ndarray) -> tuple[Tensor, Tensor]:
    """`Sampler` for any device; on a GPU the host waits for it."""
    wide = logits.float()
    return draw(wide, Draws.from_packed(packed)), wide.amax(dim=-1)


def by_triton(logits: Tensor, packed: Tensor, fields: np.ndarray) -> tuple[Tensor, Tensor]:
    """`Sampler` in two launches, see kernels/sample.py."""
    from runtime.kernels.sample import sample as launch  # triton is not everywhere

    return launch(logits, packed)


def sample(
    logits: Tensor, states: list[SamplingState], outputs: list[int], sampler: Sampler = by_torch
) -> Tensor:
    """Draw one token per row: int64 [rows]. `logits` float32 [rows, vocabulary] are changed in place."""
    adjust(logits, states, outputs)
    fields = np.array([fields_of(s.sampling) for s in states], dtype=np.float64).reshape(-1, 4)
    u = uniforms([s.seed for s in states], outputs)
    packed = torch.from_numpy(np.stack((*fields.T, u))).to(logits.device)
    tokens, _ = sampler(logits, packed, fields)
    count(tokens, states)
    return tokens


def adjust(logits: Tensor, states: Sequence[SamplingState], outputs: Sequence[int]) -> None:
    """Bias, penalties and masks of constraints, on float32 logits in place."""
    for i, state in enumerate(states):
        if state.penalties is not None:
            state.penalties.adjust(logits[i], outputs[i], state.ends)
        if state.allowed is not None:
            logits[i].masked_fill_(~state.allowed, float("-inf"))


def count(tokens: Tensor, states: Sequence[SamplingState]) -> None:
    """Let penalties know what was drawn."""
    for i, state in enumerate(states):
        if state.penalties is not None:
            state.penalties.add(tokens[i])


def draw(logits: Tensor, draws: Draws) -> Tensor:
    """One token per row, int64 [rows], of float32 logits [rows, vocabulary]. On a GPU, kernels/sample.py does the same."""
    tokens = logits.argmax(dim=-1)
    random = draws.temperature > 0
    cut = random & ((draws.top_k > 0) | (draws.top_p < 1) | (draws.min_p > 0))
    for rows in (random & ~cut, cut):
        at = rows.nonzero()[:, 0]
        if not len(at):
            continue
        p = (logits[at] / draws.temperature[at, None]).softmax(dim=-1)
        if rows is cut:
            p = torch.where(_kept(p, draws, at), p, 0.0)
        tokens[at] = _pick(p.double(), draws.u[at])
    return tokens


def _pick(p: Tensor, u: Tensor) -> Tensor:
    """Inverse of the cumulated distribution: p float64 [rows, n] (need not sum to 1), u [rows]."""
    total = p.cumsum(dim=-1)
    index = torch.searchsorted(total, (u * total[:, -1])[:, None], right=True)[:, 0]
    last = (
        p.shape[-1] - 1 - (p > 0).flip(-1).to(torch.uint8).argmax(dim=-1)
    )  # rounding must not pick an excluded one
    return torch.minimum(index, last)


def _kept(p: Tensor, draws: Draws, at: Tensor) -> Tensor:
    """bool [rows, vocabulary]: which tokens may be drawn, of probabilities p; `at` are the rows' places in `draws`."""
    ordered = p.sort(dim=-1, descending=True).values
    wide = ordered.double()
    before = wide.cumsum(dim=-1) - wide
    top_k, top_p, min_p = draws.top_k[at, None], draws.top_p[at, None], draws.min_p[at, None]
    ranks = torch.arange(p.shape[-1], device=p.device)
    keep = (before <= top_p) & ((ranks < top_k) | (top_k == 0)) & (wide >= min_p * wide[:, :1])
    keep[:, 0] = True
    least = ordered.gather(1, keep.sum(dim=-1, keepdim=True) - 1)  # equal ones share the fate of their first
    return p >= least


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
