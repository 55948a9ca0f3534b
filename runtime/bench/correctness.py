"""`runtime bench latency --correctness-test`: a prompt with a part in the cache gives what a computed one does."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from runtime.config import EngineConfig
from runtime.engine.engine import Engine

PROMPTS = (
    "The capital of France is",
    "The capital of the United Kingdom is",
    "Today is a sunny day and I like",
)
_TOLERANCE = 0.05  # of a log-probability: sums of another order, in half precision


@dataclass(frozen=True)
class Compared:
    """One prompt, answered twice. `difference`: the largest, of a log-probability of prompt or answer."""

    prompt: str
    text: str
    tokens: int
    cached: int
    difference: float
    same: bool


def compare(config: EngineConfig, cut: int, new: int = 16) -> list[Compared]:
    """Each prompt computed whole, then with its first `cut` tokens from the cache. Raises EngineError."""
    with Engine(**dataclasses.asdict(config)) as engine:
        return [_compare(engine, prompt, cut, new) for prompt in PROMPTS]


def _compare(engine: Engine, prompt: str, cut: int, new: int) -> Compared:
    ids = engine.get_tokenizer().encode(prompt)
    cut = min(cut, len(ids) - 1)
    sampling = {"temperature": 0, "max_new_tokens": new, "ignore_eos": True}
    answers = []
    for warm in (False, True):
        engine.flush_cache()
        if warm:
            engine.generate(input_ids=ids[:cut], sampling_params={"max_new_tokens": 0})
        answer = engine.generate(
            input_ids=ids, sampling_params=sampling, return_logprob=True, logprob_start_len=cut
        )
        answers.append(answer)
    first, second = (
        a["meta_info"]["input_token_logprobs"] + a["meta_info"]["output_token_logprobs"] for a in answers
    )
    same = [t[1] for t in first] == [t[1] for t in second]
    difference = max(abs(a[0] - b[0]) for a, b in zip(first, second, strict=True) if a[0] is not None)
    cached = answers[1]["meta_info"]["cached_tokens"]
    return Compared(
        prompt, answers[1]["text"], len(ids), cached, difference, same and difference < _TOLERANCE
    )
