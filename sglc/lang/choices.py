"""How a `select` is decided from log-probabilities. Ties go to the first choice.

A method of one's own is a subclass of ChoicesSamplingMethod with the same `__call__`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.api import ScoreResult

Triples = list[tuple[float | None, int, str | None]]


@dataclass
class ChoicesDecision:
    decision: str
    meta_info: dict[str, Any] | None = None


class ChoicesSamplingMethod(ABC):
    """Decides between choices from the log-probabilities of their tokens."""

    @property
    def requires_unconditional_logprobs(self) -> bool:
        return False

    @abstractmethod
    def __call__(
        self,
        *,
        choices: list[str],
        normalized_prompt_logprobs: list[float],
        input_token_logprobs: list[Triples],
        output_token_logprobs: list[Triples],
        unconditional_token_logprobs: list[Triples] | None = None,
    ) -> ChoicesDecision: ...


class TokenLengthNormalized(ChoicesSamplingMethod):
    """The highest mean log-probability of a choice's tokens."""

    def __call__(
        self,
        *,
        choices: list[str],
        normalized_prompt_logprobs: list[float],
        input_token_logprobs: list[Triples],
        output_token_logprobs: list[Triples],
        unconditional_token_logprobs: list[Triples] | None = None,
    ) -> ChoicesDecision:
        best = choices[int(np.argmax(normalized_prompt_logprobs))]
        meta = {
            "normalized_prompt_logprobs": normalized_prompt_logprobs,
            "input_token_logprobs": input_token_logprobs,
            "output_token_logprobs": output_token_logprobs,
        }
        return ChoicesDecision(best, meta)


class GreedyTokenSelection(ChoicesSamplingMethod):
    """Token by token, keep the choices whose token is likeliest; short ones go on with their own mean."""

    def __call__(
        self,
        *,
        choices: list[str],
        normalized_prompt_logprobs: list[float],
        input_token_logprobs: list[Triples],
        output_token_logprobs: list[Triples],
        unconditional_token_logprobs: list[Triples] | None = None,
    ) -> ChoicesDecision:
        rows = [
            [v for v, *_ in tokens if v is not None] or [float("-inf")] for tokens in input_token_logprobs
        ]
        longest = max(map(len, rows))
        matrix = np.array([row + [float(np.mean(row))] * (longest - len(row)) for row in rows])
        left = np.arange(len(choices))
        for column in matrix.T:
            left = left[column[left] == column[left].max()]
            if len(left) == 1:
                break
        meta = {
            "normalized_prompt_logprobs": normalized_prompt_logprobs,
            "input_token_logprobs": input_token_logprobs,
            "output_token_logprobs": output_token_logprobs,
            "greedy_logprob_matrix": matrix.tolist(),
        }
        return ChoicesDecision(choices[int(left[0])], meta)


class UnconditionalLikelihoodNormalized(ChoicesSamplingMethod):
    """The highest mean of log p(token | prompt) - log p(token). Source: the EleutherAI blog on multiple choice normalisation."""

    @property
    def requires_unconditional_logprobs(self) -> bool:
        return True

    def __call__(
        self,
        *,
        choices: list[str],
        normalized_prompt_logprobs: list[float],
        input_token_logprobs: list[Triples],
        output_token_logprobs: list[Triples],
        unconditional_token_logprobs: list[Triples] | None = None,
    ) -> ChoicesDecision:
        if unconditional_token_logprobs is None:
            raise ValueError(
                "unconditional_likelihood_normalized needs the log-probabilities without the prompt"
            )
        scores = []
        for given, without in zip(input_token_logprobs, unconditional_token_logprobs, strict=True):
            gains = [
                (g or 0.0) - (u or 0.0)
                for (g, *_), (u, *_) in zip(given, without, strict=True)
                if g is not None
            ]
            scores.append(float(np.mean(gains)) if gains else float("-inf"))
        meta = {
            "normalized_prompt_logprobs": normalized_prompt_logprobs,
            "input_token_logprobs": input_token_logprobs,
            "output_token_logprobs": output_token_logprobs,
            "unconditional_token_logprobs": unconditional_token_logprobs,
            "normalized_unconditional_prompt_logprobs": scores,
        }
        return ChoicesDecision(choices[int(np.argmax(scores))], meta)


token_length_normalized = TokenLengthNormalized()
greedy_token_selection = GreedyTokenSelection()
unconditional_likelihood_normalized = UnconditionalLikelihoodNormalized()
METHODS: dict[str, ChoicesSamplingMethod] = {
    "token_length_normalized": token_length_normalized,
    "greedy_token_selection": greedy_token_selection,
    "unconditional_likelihood_normalized": unconditional_likelihood_normalized,
}


def decide(method: ChoicesSamplingMethod, choices: tuple[str, ...], result: ScoreResult) -> ChoicesDecision:
    """Apply a method to what a backend scored."""

    def triples(tokens: Any) -> Triples:
        return [(t.logprob, t.id, t.text) for t in tokens]

    without = None
    if all(c.unconditional is not None for c in result.choices):
        without = [triples(c.unconditional) for c in result.choices]
    return method(
        choices=list(choices),
        normalized_prompt_logprobs=[c.mean for c in result.choices],
        input_token_logprobs=[triples(c.tokens) for c in result.choices],
        output_token_logprobs=[[] for _ in choices],
        unconditional_token_logprobs=without,
    )
