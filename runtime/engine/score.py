"""Log-probabilities of choices after a prompt, by way of calls that generate nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

from runtime.api import (
    ChoiceScore,
    Delta,
    Generate,
    LogprobOptions,
    SamplingParams,
    Score,
    ScoreResult,
    TextSegment,
    TokenLogprob,
    TokenSegment,
    render,
)
from runtime.engine.transport import error_of
from runtime.tokenizer.ids_only import IdsOnly
from runtime.tokenizer.tokenizer import Tokenizer

Run = Callable[[Sequence[Generate]], AsyncIterator[Delta]]


async def score(generate: Run, tokenizer: Tokenizer | IdsOnly, request: Score) -> ScoreResult:
    """See `AsyncEngine.score`. Raises the EngineError of a choice that fails."""
    prompt_ids = tokenizer.encode_prompt(request.prompt)
    text = render(request.prompt)
    start = max(len(prompt_ids) - 2, 0)
    quiet = SamplingParams(max_new_tokens=0, temperature=0)
    calls = [
        Generate(
            prompt=(*request.prompt, TextSegment(choice)),
            sampling=quiet,
            id=str(i),
            logprobs=LogprobOptions(start=start),
        )
        for i, choice in enumerate(request.choices)
    ]
    kept: list[tuple[TokenLogprob, ...]] = [()] * len(calls)
    cached = 0
    async for delta in generate(calls):
        if delta.finish is not None and delta.finish.type == "error":
            raise error_of(str(delta.finish.matched), delta.finish.message or "")
        scores = list(delta.input_logprobs or ())
        if start == 0 and len(prompt_ids) == 2 and len(scores) > 1:
            scores = scores[1:]
        if scores and text.endswith(tokenizer.token_text(scores[0].id)) and len(scores) > 1:
            scores = scores[1:]
        kept[int(delta.id)] = tuple(scores)
        cached = max(cached, delta.usage.cached_tokens if delta.usage else 0)
    without = await _unconditional(generate, kept) if request.unconditional else [None] * len(kept)
    choices = tuple(ChoiceScore(k, u) for k, u in zip(kept, without, strict=True))
    return ScoreResult(choices, prompt_tokens=len(prompt_ids), cached_tokens=cached)


async def _unconditional(
    generate: Run, kept: list[tuple[TokenLogprob, ...]]
) -> list[tuple[TokenLogprob, ...] | None]:
    """Of the same tokens without the prompt."""
    quiet = SamplingParams(max_new_tokens=0, temperature=0)
    calls = [
        Generate(
            prompt=(TokenSegment(tuple(t.id for t in tokens), ""),),
            sampling=quiet,
            id=str(i),
            logprobs=LogprobOptions(start=0),
        )
        for i, tokens in enumerate(kept)
    ]
    out: list[tuple[TokenLogprob, ...] | None] = [None] * len(kept)
    async for delta in generate(calls):
        if delta.finish is not None and delta.finish.type == "error":
            raise error_of(str(delta.finish.matched), delta.finish.message or "")
        out[int(delta.id)] = delta.input_logprobs or ()
    return out
