"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from aiohttp import web

from runtime.api import (
    Delta,
    Generate,
    LogprobOptions,
    TextSegment,
)
from runtime.errors import InvalidRequest, Unsupported
from runtime.server import answers, bodies, openai
from runtime.server.context import Context
from runtime.server.errors import naming
from runtime.server.operation import JSON_OR_EVENTS, operation
from runtime.server.replay import RECORDER
from runtime.server.sse import EventStream
from runtime.server.token_text import Offsets, TokenTexts
from runtime.tokenizer.tokenizer import Tokenizer


class _Choices:
    """Deltas as choices. Knows, for each sample, where its text stands: an echoed prompt comes first."""

    def __init__(self, body: bodies.CompletionBody, prompts: Sequence[str], texts: TokenTexts) -> None:
        self._body = body
        self._prompts = prompts
        self._texts = texts
        self._offsets: dict[int, Offsets] = {}

    def of(self, delta: Delta) -> dict[str, Any]:
        prompt = int(delta.id)
        index = prompt * self._body.n + delta.index
        first = index not in self._offsets
        given = self._prompts[prompt]
        if first:
            echoed, start = (given, 0) if self._body.echo else ("", len(given))
            specials = not self._body.skip_special_tokens
            self._offsets[index] = Offsets(self._texts, start, prompt=echoed, specials=specials)
        return {
            "index": index,
            "text": (given if first and self._body.echo else "") + delta.text,
            "logprobs": None if self._body.logprobs is None else self._table(delta, self._offsets[index]),
            "finish_reason": openai.reason(delta),
            "matched_stop": openai.matched(delta),
        }

    def _table(self, delta: Delta, offsets: Offsets) -> dict[str, Any]:
        """The tokens of the prompt, if it is echoed, and of the answer: none if no token was asked for."""
        new = () if self._body.max_tokens == 0 else delta.output_logprobs
        own = [*(delta.input_logprobs or ()), *new]
        inner: list[Any] = list(delta.input_top_logprobs or [() for _ in delta.input_logprobs or ()])
        tops = [*inner, *(delta.output_top_logprobs or [() for _ in new])]
        shown = self._texts.shown
        return {
            "tokens": [shown(t) for t in own],
            "token_logprobs": [t.logprob for t in own],
            "top_logprobs": [
                None if t.logprob is None else {shown(o): o.logprob for o in (*(top or ()), t)}
                for t, top in zip(own, tops, strict=False)
            ],
            "text_offset": [offsets.add(t) for t in own],
        }


def _calls(context: Context, body: bodies.CompletionBody) -> list[Generate]:
    """One call for each prompt; with `best_of`, of so many samples, whose log-probabilities decide."""
    if body.suffix:
        raise Unsupported("suffix is not supported; put what follows into the prompt", param="suffix")
    samples = body.n if body.best_of is None else body.best_of
    if samples < body.n:
        raise InvalidRequest(f"best_of is {samples} but n is {body.n}; it cannot be less", param="best_of")
    if samples > 128:
        raise InvalidRequest(f"best_of is {samples} but must be at most 128", param="best_of")
    if samples > body.n and body.stream:
        raise Unsupported(
            "best_of above n needs all samples first, so it cannot be streamed", param="best_of"
        )
    logprobs = None
    if body.logprobs is not None:
        if not 0 <= body.logprobs <= 20:
            raise InvalidRequest(
                f"logprobs is {body.logprobs} but must be between 0 and 20", param="logprobs"
            )
        logprobs = LogprobOptions(start=0 if body.echo else -1, top=body.logprobs, text=True)
    elif samples > body.n:
        logprobs = LogprobOptions()
    sampling = context.seeded(openai.sampling_of(body, body.max_tokens))
    prompts = openai.prompts_of(body.prompt, "prompt")
    trims = body.no_stop_trim if isinstance(body.no_stop_trim, list) else [body.no_stop_trim] * len(prompts)
    if len(trims) != len(prompts):
        raise InvalidRequest(
            f"no_stop_trim is a list of {len(trims)} values, but there are {len(prompts)} prompts",
            param="no_stop_trim",
        )
    return [
        Generate(
            prompt=(segment,),
            sampling=msgspec.structs.replace(sampling, n=samples, no_stop_trim=trim),
            id=str(i),
            logprobs=logprobs,
            stream=body.stream,
            salt=body.cache_salt or "",
            priority=body.priority,
        )
        for i, (segment, trim) in enumerate(zip(prompts, trims, strict=True))
    ]


def _said(call: Generate, ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """A prompt as its caller would write it."""
    (segment,) = call.prompt
    return segment.text if isinstance(segment, TextSegment) else tokenizer.decode(ids)


def _best(deltas: list[Delta], n: int) -> list[Delta]:
    """Of each prompt the `n` samples of the greatest mean log-probability, in that order."""

    def mean(delta: Delta) -> float:
        values = [t.logprob for t in delta.output_logprobs if t.logprob is not None]
        return sum(values) / len(values) if values else float("-inf")

    out: list[Delta] = []
    for id in dict.fromkeys(d.id for d in deltas):
        samples = sorted((d for d in deltas if d.id == id), key=lambda d: (-mean(d), d.index))
        out += [msgspec.structs.replace(d, index=i) for i, d in enumerate(samples[:n])]
    return out


@operation(body=bodies.CompletionBody, answer=answers.Completion, kinds=JSON_OR_EVENTS)
async def completions(request: web.Request) -> web.StreamResponse:
    """Prompts as text or ids, each with `n` samples; choices are ordered by prompt, then by sample."""
    context = Context.of(request)
    body = await bodies.read(request, bodies.CompletionBody)
    context.check_model(body.model)
    openai.check_stream(body)
    calls = _calls(context, body)
    context.check(calls)
    tokens = [await context.engine.ids_of(c) for c in calls]
    with naming({"max_new_tokens": "max_tokens"}):
        await context.engine.check_constraint(calls[0])
    tokenizer = context.engine.tokenizer
    prompts = [_said(c, t, tokenizer) for c, t in zip(calls, tokens, strict=True)]
    choices = _Choices(body, prompts, TokenTexts(tokenizer.token_bytes))
    head = openai.head(context, "cmpl", "text_completion", calls[0])
    await request.app[RECORDER].note(request, head["id"], head["seed"])
    prompt = sum(map(len, tokens))
    async with context.run(calls, {head["id"]: calls}) as deltas:
        if not body.stream:
            found: list[Delta] = []
            async for delta in deltas:
                openai.raise_error(delta)
                found.append(delta)
            usage = openai.usage_of(found, prompt)
            if calls[0].sampling.n > body.n:
                found = _best(found, body.n)
            ordered = sorted(found, key=lambda d: (int(d.id), d.index))
            return web.json_response({**head, "choices": [choices.of(d) for d in ordered], "usage": usage})
        usages = openai.StreamUsage(body.stream_options, prompt)
        async with EventStream(request) as events:
            async for delta in deltas:
                openai.raise_error(delta)
                usages.add(delta)
                await events.send({**head, "choices": [choices.of(delta)], **usages.field()})
            if usages.at_end:
                await events.send({**head, "choices": [], "usage": usages.whole()})
            return await events.done()


def routes() -> list[web.RouteDef]:
    return [web.post("/v1/completions", completions)]
