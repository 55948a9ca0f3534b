"""/v1/completions, /v1/chat/completions, /v1/models."""

from __future__ import annotations

import time
import uuid
from typing import Any

import msgspec
from aiohttp import web

from runtime.api import (
    Constraint,
    Delta,
    Generate,
    LogprobOptions,
    SamplingParams,
    Segment,
    TextSegment,
    TokenLogprob,
    TokenSegment,
    Usage,
)
from runtime.errors import InvalidRequest, NotFound, Unsupported
from runtime.server import answers, bodies, errors
from runtime.server.context import Context
from runtime.server.operation import JSON_OR_EVENTS, operation
from runtime.server.sse import EventStream


def sampling_of(
    body: bodies.SamplingBody, max_tokens: int | None, *, constraint: Constraint | None = None
) -> SamplingParams:
    """Sampling fields of a body. Raises InvalidRequest with the OpenAI name of the field."""
    given = [
        Constraint(k, v) for k in ("regex", "json_schema", "ebnf") if (v := getattr(body, k)) is not None
    ]  # type: ignore[arg-type]
    given += [constraint] if constraint else []
    if len(given) > 1:
        raise InvalidRequest(
            f"{given[0].kind} and {given[1].kind} cannot be given together", param=given[1].kind
        )
    bias = {}
    for key, value in (body.logit_bias or {}).items():
        if not key.isdigit():
            raise InvalidRequest(f"logit_bias has the key {key!r}; keys are token ids", param="logit_bias")
        bias[int(key)] = value
    params = SamplingParams(
        max_new_tokens=max_tokens,
        min_new_tokens=body.min_tokens,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        repetition_penalty=body.repetition_penalty,
        ignore_eos=body.ignore_eos,
        no_stop_trim=body.no_stop_trim,
        skip_special_tokens=body.skip_special_tokens,
        logit_bias=bias,
        seed=body.seed,
        n=body.n,
        constraint=given[0] if given else None,
    )
    try:
        params.check()
    except InvalidRequest as error:
        names = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}
        message = error.message
        for ours, theirs in names.items():
            message = message.replace(ours, theirs)
        raise InvalidRequest(message, param=names.get(error.param or "", error.param)) from None
    return params


def _usage(usages: list[Usage], prompts: dict[str, int]) -> dict[str, Any]:
    prompt, completion = sum(prompts.values()), sum(u.completion_tokens for u in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(u.cached_tokens for u in usages)},
    }


def _reason(delta: Delta) -> str | None:
    if delta.finish is None:
        return None
    return {"stop": "stop", "length": "length", "abort": "abort"}.get(delta.finish.type, "error")


def _matched(delta: Delta) -> int | str | None:
    return delta.finish.matched if delta.finish is not None and delta.finish.type == "stop" else None


# -- completions ------------------------------------------------------------------------------------------


def _prompts(prompt: str | list[str | int | list[int]]) -> list[Segment]:
    """One text, several, the ids of one prompt, or those of several."""
    if isinstance(prompt, str):
        return [TextSegment(prompt)]
    kinds = {type(p) for p in prompt}
    if len(kinds) != 1:
        what = "is empty" if not kinds else "mixes texts and token ids"
        raise InvalidRequest(
            f"the prompt {what}; give a text, texts, token ids, or lists of token ids", param="prompt"
        )
    if kinds == {int}:
        return [TokenSegment(tuple(p for p in prompt if isinstance(p, int)), "")]
    return [
        TextSegment(p) if isinstance(p, str) else TokenSegment(tuple(p), "")
        for p in prompt
        if not isinstance(p, int)
    ]


def _completion_logprobs(own: list[TokenLogprob], tops: list[Any], offset: int) -> dict[str, Any]:
    texts = [t.text or "" for t in own]
    offsets = [offset + sum(len(t) for t in texts[:i]) for i in range(len(texts))]
    table = [None if top is None else {t.text or "": t.logprob for t in top} for top in tops]
    return {
        "tokens": texts,
        "token_logprobs": [t.logprob for t in own],
        "top_logprobs": table,
        "text_offset": offsets,
    }


@operation(body=bodies.CompletionBody, answer=answers.Completion, kinds=JSON_OR_EVENTS)
async def completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/completions."""
    context = Context.of(request)
    body = await bodies.read(request, bodies.CompletionBody)
    context.check_model(body.model)
    if body.suffix:
        raise Unsupported("suffix is not supported; put what follows into the prompt", param="suffix")
    if body.best_of is not None and body.best_of != body.n:
        raise Unsupported(
            f"best_of is {body.best_of} but n is {body.n}; only equal values are supported", param="best_of"
        )
    sampling = sampling_of(body, body.max_tokens)
    logprobs = None
    if body.logprobs is not None:
        if not 0 <= body.logprobs <= 20:
            raise InvalidRequest(
                f"logprobs is {body.logprobs} but must be between 0 and 20", param="logprobs"
            )
        logprobs = LogprobOptions(start=0 if body.echo else -1, top=body.logprobs, text=True)
    calls = [
        Generate(prompt=(segment,), sampling=sampling, id=str(i), logprobs=logprobs, stream=body.stream)
        for i, segment in enumerate(_prompts(body.prompt))
    ]
    context.check(calls)
    tokens = [context.engine.tokens_of(c) for c in calls]
    await context.engine.check_constraint(calls[0])
    echoes = [context.engine.tokenizer.decode(t) if body.echo else "" for t in tokens]
    head: dict[str, Any] = {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": context.model_name,
    }
    prompts = {str(i): len(t) for i, t in enumerate(tokens)}

    def choice(delta: Delta, first: bool) -> dict[str, Any]:
        i = int(delta.id)
        lead = echoes[i] if first else ""
        table = None
        if logprobs is not None:
            own = [*(delta.input_logprobs or ()), *delta.output_logprobs]
            inner: list[Any] = list(delta.input_top_logprobs or [() for _ in delta.input_logprobs or ()])
            tops = [*inner, *(delta.output_top_logprobs or [() for _ in delta.output_logprobs])]
            table = _completion_logprobs(own, tops, 0 if body.echo else len(echoes[i]))
        return {
            "index": i * body.n + delta.index,
            "text": lead + delta.text,
            "logprobs": table,
            "finish_reason": _reason(delta),
            "matched_stop": _matched(delta),
        }

    async with context.run(calls, {head["id"]: calls}) as deltas:
        if not body.stream:
            choices, usages = [], []
            async for delta in deltas:
                if delta.finish is not None and delta.finish.type == "error":
                    raise context.error(delta)
                choices.append(choice(delta, first=True))
                usages.append(delta.usage or Usage())
            choices.sort(key=lambda c: c["index"])
            return web.json_response({**head, "choices": choices, "usage": _usage(usages, prompts)})
        usages, seen = [], set()
        async with EventStream(request) as events:
            async for delta in deltas:
                if delta.finish is not None and delta.finish.type == "error":
                    await events.send(errors.body(delta.finish.message or "", 500))
                    continue
                key = (delta.id, delta.index)
                await events.send({**head, "choices": [choice(delta, key not in seen)]})
                seen.add(key)
                usages += [delta.usage] if delta.usage else []
            if body.stream_options and body.stream_options.include_usage:
                await events.send({**head, "choices": [], "usage": _usage(usages, prompts)})
            return await events.done()


# -- chat -------------------------------------------------------------------------------------------------


def _flatten(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose content is text. Raises InvalidRequest, naming the place, for what this model cannot take."""
    out = []
    if not messages:
        raise InvalidRequest("messages is empty; give at least one", param="messages")
    for i, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str):
            raise InvalidRequest(f"messages[{i}] has no role", param=f"messages[{i}].role")
        if isinstance(content, list):
            texts = []
            for part in content:
                if (
                    not isinstance(part, dict)
                    or part.get("type") != "text"
                    or not isinstance(part.get("text"), str)
                ):
                    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
                    raise Unsupported(
                        f"messages[{i}] has a part of type {kind!r}, but this model takes only text",
                        param="messages",
                    )
                texts.append(part["text"])
            content = "".join(texts)
        if not isinstance(content, str):
            raise InvalidRequest(f"messages[{i}].content must be text", param=f"messages[{i}].content")
        out.append({**message, "role": role, "content": content})
    return out


def _chat_constraint(body: bodies.ChatBody) -> Constraint | None:
    form = body.response_format
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return Constraint("json_schema", '{"type": "object"}')
    if form.type == "json_schema":
        schema = (form.json_schema or {}).get("schema")
        if schema is None:
            raise InvalidRequest("response_format has no json_schema.schema", param="response_format")
        return Constraint("json_schema", msgspec.json.encode(schema).decode())
    if form.type == "structural_tag":
        return Constraint("structural_tag", msgspec.json.encode(form).decode())
    raise InvalidRequest(
        f"response_format {form.type!r} is not known; use text, json_object, json_schema or structural_tag",
        param="response_format",
    )


def _chat_logprobs(delta: Delta) -> dict[str, Any]:
    def entry(t: TokenLogprob) -> dict[str, Any]:
        text = t.text or ""
        return {"token": text, "logprob": t.logprob, "bytes": list(text.encode())}

    tops = delta.output_top_logprobs or [() for _ in delta.output_logprobs]
    pairs = zip(delta.output_logprobs, tops, strict=True)
    return {"content": [{**entry(t), "top_logprobs": [entry(o) for o in top]} for t, top in pairs]}


@operation(body=bodies.ChatBody, answer=answers.ChatCompletion, kinds=JSON_OR_EVENTS)
async def chat(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions."""
    context = Context.of(request)
    body = await bodies.read(request, bodies.ChatBody)
    context.check_model(body.model)
    if body.tools:
        raise Unsupported("tools are not supported by this model's chat template", param="tools")
    template = context.engine.tokenizer.chat_template
    if template is None:
        raise Unsupported("this model has no chat template; use /v1/completions", param="messages")
    messages = _flatten(body.messages)
    proceed = body.continue_final_message or messages[-1]["role"] == "assistant"
    text = template.render(messages, continue_final_message=proceed)
    max_tokens = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    sampling = sampling_of(body, max_tokens, constraint=_chat_constraint(body))
    logprobs = None
    if body.logprobs:
        if not 0 <= body.top_logprobs <= 20:
            raise InvalidRequest(
                f"top_logprobs is {body.top_logprobs} but must be between 0 and 20", param="top_logprobs"
            )
        logprobs = LogprobOptions(top=body.top_logprobs, text=True)
    elif body.top_logprobs:
        raise InvalidRequest("top_logprobs needs logprobs to be true", param="top_logprobs")
    call = Generate(
        prompt=(TextSegment(text),), sampling=sampling, id="0", logprobs=logprobs, stream=body.stream
    )
    context.check([call])
    prompts = {"0": len(context.engine.tokens_of(call))}
    await context.engine.check_constraint(call)
    head: dict[str, Any] = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": context.model_name,
    }
    async with context.run([call], {head["id"]: [call]}) as deltas:
        if not body.stream:
            choices, usages = [], []
            async for delta in deltas:
                if delta.finish is not None and delta.finish.type == "error":
                    raise context.error(delta)
                choices.append(
                    {
                        "index": delta.index,
                        "message": {"role": "assistant", "content": delta.text},
                        "logprobs": _chat_logprobs(delta) if logprobs else None,
                        "finish_reason": _reason(delta),
                        "matched_stop": _matched(delta),
                    }
                )
                usages.append(delta.usage or Usage())
            choices.sort(key=lambda c: c["index"])  # type: ignore[arg-type,return-value]
            whole = {
                **head,
                "object": "chat.completion",
                "choices": choices,
                "usage": _usage(usages, prompts),
            }
            return web.json_response(whole)
        head["object"] = "chat.completion.chunk"
        usages = []

        def chunk(index: int, content: dict[str, Any], delta: Delta | None = None) -> dict[str, Any]:
            choice = {
                "index": index,
                "delta": content,
                "logprobs": _chat_logprobs(delta) if logprobs and delta else None,
                "finish_reason": _reason(delta) if delta else None,
            }
            return {**head, "choices": [choice]}

        async with EventStream(request) as events:
            for index in range(body.n):
                await events.send(chunk(index, {"role": "assistant", "content": ""}))
            async for delta in deltas:
                if delta.finish is not None and delta.finish.type == "error":
                    await events.send(errors.body(delta.finish.message or "", 500))
                    continue
                await events.send(chunk(delta.index, {"content": delta.text} if delta.text else {}, delta))
                usages += [delta.usage] if delta.usage else []
            if body.stream_options and body.stream_options.include_usage:
                await events.send({**head, "choices": [], "usage": _usage(usages, prompts)})
            return await events.done()


# -- models -----------------------------------------------------------------------------------------------


def _card(context: Context) -> dict[str, Any]:
    return {
        "id": context.model_name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "sglc",
        "root": context.config.folder,
    }


@operation(answer=answers.Models)
async def models(request: web.Request) -> web.Response:
    """The model of this server, as a list."""
    return web.json_response({"object": "list", "data": [_card(Context.of(request))]})


@operation(answer=answers.Model)
async def model(request: web.Request) -> web.Response:
    """The model of this server."""
    context = Context.of(request)
    name = request.match_info["name"]
    if name != context.model_name:
        raise NotFound(
            f"the model {name!r} does not exist; this server has {context.model_name!r}", param="model"
        )
    return web.json_response(_card(context))


def routes() -> list[web.RouteDef]:
    return [
        web.post("/v1/completions", completions),
        web.post("/v1/chat/completions", chat),
        web.get("/v1/models", models),
        web.get("/v1/models/{name:.+}", model),
    ]
