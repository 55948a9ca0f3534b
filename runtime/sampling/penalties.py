"""What changes logits before a token is drawn: bias, penalties for tokens that occurred, no end before its time.

Frequency and presence look at the output, repetition at prompt and output. All are counted anew when a request
takes its seat, so a retraction changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from runtime.api import SamplingParams

_LAST = -1e30  # a logit below all others that is still finite at any temperature


class Penalties:
    """The state of one request; `adjust` works on one row of float32 logits [vocabulary] in place."""

    def __init__(
        self, sampling: SamplingParams, tokens: list[int], prompt: int, vocabulary: int, device: str
    ) -> None:
        self.sampling = sampling
        self.counts: Tensor | None = None
        self.seen: Tensor | None = None
        if sampling.frequency_penalty or sampling.presence_penalty:
            output = torch.tensor(tokens[prompt:], dtype=torch.long, device=device)
            self.counts = torch.bincount(output, minlength=vocabulary).float()
        if sampling.repetition_penalty != 1.0:
            self.seen = torch.zeros(vocabulary, dtype=torch.bool, device=device)
            self.seen[torch.tensor(tokens, dtype=torch.long, device=device)] = True
        self.bias: tuple[Tensor, Tensor] | None = None
        if sampling.logit_bias:
            ids = torch.tensor(list(sampling.logit_bias), dtype=torch.long, device=device)
            values = torch.tensor(list(sampling.logit_bias.values()), dtype=torch.float32, device=device)
            self.bias = ids, values

    @staticmethod
    def needed(s: SamplingParams) -> bool:
        return bool(
            s.frequency_penalty
            or s.presence_penalty
            or s.repetition_penalty != 1.0
            or s.logit_bias
            or s.min_new_tokens
        )

    def adjust(self, logits: Tensor, output: int, ends: Tensor) -> None:
        """`output` is the index of the token to be drawn, `ends` the ids that would end the request."""
        s = self.sampling
        if self.bias is not None:
            logits[self.bias[0]] += self.bias[1]
        if self.counts is not None:
            logits -= s.frequency_penalty * self.counts + s.presence_penalty * (self.counts > 0)
        if output < s.min_new_tokens:
            logits[ends] = _LAST  # not -inf: where a constraint allows nothing else, it is the end
        if self.seen is not None:
            scaled = torch.where(logits > 0, logits / s.repetition_penalty, logits * s.repetition_penalty)
            logits.copy_(torch.where(self.seen, scaled, logits))

    def add(self, token: Tensor | int) -> None:
        if self.counts is not None:
            self.counts[token] += 1
        if self.seen is not None:
            self.seen[token] = True
