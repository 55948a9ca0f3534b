"""The native API: /generate, facts about the server, and the calls of our own frontend."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import msgspec
from aiohttp import web

from runtime.api import (
    Delta,
    Embed,
    Generate,
    Prompt,
    SamplingParams,
    Score,
    ScoreResult,
    Segment,
    TextSegment,
    TokenSegment,
)
from runtime.config import Limits
from runtime.engine.native import logprob_options, meta_info, said, sampling_params
from runtime.errors import InvalidRequest, NotFound, Overloaded, Unsupported
from runtime.server import answers, bodies, errors
from runtime.server.context import Context
from runtime.server.limits import check_prompts
from runtime.server.operation import JSON_OR_EVENTS, operation
from runtime.server.replay import RECORDER
from runtime.server.sse import EventStream


def _each(value: Any, index: int, default: Any) -> Any:
    """The value for one prompt, where one may be given for all or a list for each."""
    if isinstance(value, list):
        value = value[index]
    return default if value is None else value


def _check_lists(body: bodies.GenerateBody, count: int) -> None:
    """Raises InvalidRequest for a list of values that has not one for each prompt, and for what this server has not."""
    names = ("sampling_params", "rid", "return_logprob", "logprob_start_len", "top_logprobs_num")
    for name in names:
        value = getattr(body, name)
        if isinstance(value, list) and len(value) != count:
            raise InvalidRequest(
                f"{name} is a list of {len(value)} values, but there are {count} prompts", param=name
            )
    if body.image_data not in (None, "", []):
        raise Unsupported("this model takes only text; leave image_data out", param="image_data")
    wanted = {body.modalities} if isinstance(body.modalities, str) else set(body.modalities or ())
    if wanted - {"text"}:
        raise Unsupported(f"this model takes only text, not {', '.join(sorted(wanted))}", param="modalities")
    adapters = body.lora_path if isinstance(body.lora_path, list) else [body.lora_path]
    if any(adapters):
        raise Unsupported("this server has no LoRA adapters; leave lora_path out", param="lora_path")
    if not -(2**31) <= body.priority < 2**31:
        raise InvalidRequest(f"priority is {body.priority}, which 32 bits do not hold", param="priority")


def prompts_of(body: bodies.GenerateBody | bodies.EncodeBody, limits: Limits) -> tuple[list[Segment], bool]:
    """One segment for each prompt, and whether they were given as a list."""
    if (body.text is None) == (body.input_ids is None):
        raise InvalidRequest("Either text or input_ids should be provided.", param="text")
    segments: list[Segment]
    if body.text is not None:
        one = isinstance(body.text, str)
        segments = [TextSegment(t) for t in ([body.text] if isinstance(body.text, str) else body.text)]
    else:
        ids: Any = body.input_ids
        if ids and len({type(i) for i in ids}) != 1:
            raise InvalidRequest("input_ids must be token ids, or lists of token ids", param="input_ids")
        one = bool(ids) and isinstance(ids[0], int)
        segments = [TokenSegment(tuple(i), "") for i in ([ids] if one else ids)]
    if not segments:
        raise InvalidRequest("the batch is empty; give at least one prompt", param="text")
    check_prompts(limits, len(segments))
    return segments, not one


def requests_of(body: bodies.GenerateBody, limits: Limits) -> tuple[list[Generate], bool]:
    """The calls that a /generate body asks for, and whether the answer is a list."""
    segments, many = prompts_of(body, limits)
    _check_lists(body, len(segments))
    out = []
    for i, segment in enumerate(segments):
        logprobs = logprob_options(
            _each(body.return_logprob, i, False),
            _each(body.logprob_start_len, i, -1),
            _each(body.top_logprobs_num, i, 0),
            body.return_text_in_logprobs,
        )
        params = sampling_params(_each(body.sampling_params, i, {}))
        call = Generate(
            prompt=(segment,),
            sampling=params,
            id=str(i),
            logprobs=logprobs,
            stream=body.stream,
            priority=body.priority,
            salt=body.cache_salt or "",
        )
        out.append(call)
    return out, many or out[0].sampling.n > 1


@operation(body=bodies.GenerateBody, answer=answers.Generated | list[answers.Generated], kinds=JSON_OR_EVENTS)
async def generate(request: web.Request) -> web.StreamResponse:
    """POST /generate. Streams are cumulative: each event has the whole text so far."""
    context = Context.of(request)
    body = await bodies.read(request, bodies.GenerateBody)
    calls, many = requests_of(body, context.server)
    calls = [msgspec.structs.replace(c, sampling=context.seeded(c.sampling)) for c in calls]
    context.check(calls)
    for call in calls:
        await context.engine.ids_of(call)
        await context.engine.check_constraint(call)
    names = names_of(body.rid, len(calls))
    if body.rid is None and len({c.sampling.seed for c in calls}) == 1:
        await request.app[RECORDER].note(request, names[0], calls[0].sampling.seed)
    has_text = context.engine.tokenizer.has_text

    def facts(delta: Delta) -> dict[str, Any]:
        i = int(delta.id)
        return {
            **meta_info(delta, names[i]),
            "seed": calls[i].sampling.seed,
            "system_fingerprint": context.fingerprint,
        }

    firsts = [sum(c.sampling.n for c in calls[:i]) for i in range(len(calls))]
    async with context.run(calls, {n: [c] for n, c in zip(names, calls, strict=True)}) as deltas:
        if not body.stream:
            found = {}
            async for delta in deltas:
                if delta.finish is not None and delta.finish.type == "error":
                    raise context.error(delta)
                i = int(delta.id)
                found[firsts[i] + delta.index] = {
                    **said(delta, has_text),
                    "meta_info": facts(delta),
                    "index": firsts[i] + delta.index,
                }
            ordered = [found[k] for k in sorted(found)]
            return web.json_response(ordered if many else ordered[0])
        whole: dict[int, Delta] = {}
        async with EventStream(request) as events:
            async for delta in deltas:
                i = int(delta.id)
                index = firsts[i] + delta.index
                if delta.finish is not None and delta.finish.type == "error":
                    await events.send(errors.body(delta.finish.message or "", 500))
                    continue
                whole[index] = _joined(whole.get(index), delta)
                event = {
                    **said(whole[index], has_text),
                    "meta_info": facts(whole[index]),
                    "index": index,
                }
                await events.send(event)
            return await events.done()


def names_of(rid: str | list[str] | None, count: int) -> list[str]:
    """A name for each prompt: the caller's, or one of ours."""
    if rid is None:
        return [uuid.uuid4().hex for _ in range(count)]
    if isinstance(rid, list):
        names = rid
    else:
        names = [rid] if count == 1 else [f"{rid}_{i}" for i in range(count)]
    if len(set(names)) != len(names) or not all(names) or any(len(n) > 256 for n in names):
        raise InvalidRequest("rid must be names of 1 to 256 characters, another for each prompt", param="rid")
    return names


def _joined(before: Delta | None, new: Delta) -> Delta:
    """Two deltas of one sample as one."""
    if before is None:
        return new
    return msgspec.structs.replace(
        new,
        text=before.text + new.text,
        ids=before.ids + new.ids,
        output_logprobs=before.output_logprobs + new.output_logprobs,
        output_top_logprobs=before.output_top_logprobs + new.output_top_logprobs,
        input_logprobs=before.input_logprobs if new.input_logprobs is None else new.input_logprobs,
        input_top_logprobs=before.input_top_logprobs
        if new.input_top_logprobs is None
        else new.input_top_logprobs,
    )


class CallsBody(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/calls/generate: segments of text and ids, as a program's state holds them."""

    calls: list[Generate]


class PrefillBody(msgspec.Struct, forbid_unknown_fields=True):
    prompt: Prompt


@operation(body=CallsBody, kinds=("application/x-ndjson",))
async def calls_generate(request: web.Request) -> web.StreamResponse:
    """Run calls together; each line of the answer is one Delta, as JSON."""
    context = Context.of(request)
    body = await bodies.read(request, CallsBody)
    async with context.run(body.calls) as deltas:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        async for delta in deltas:
            await response.write(msgspec.json.encode(delta) + b"\n")
        await response.write_eof()
        return response


@operation(body=Score, answer=ScoreResult)
async def calls_score(request: web.Request) -> web.Response:
    """Log-probabilities of given continuations."""
    body = await bodies.read(request, Score)
    result = await Context.of(request).engine.score(body)
    return web.Response(body=msgspec.json.encode(result), content_type="application/json")


@operation(body=PrefillBody)
async def calls_prefill(request: web.Request) -> web.Response:
    """Compute a prefix and leave it in the cache."""
    body = await bodies.read(request, PrefillBody)
    await Context.of(request).engine.prefill(body.prompt)
    return web.json_response({})


@operation(kinds=("text/plain",))
async def health(request: web.Request) -> web.Response:
    """200 while the engine loop turns: its process is heard of, and is neither lost nor being started again."""
    engine = Context.of(request).engine
    if (error := engine.failure or engine.down) is not None:
        return errors.of(error)
    return web.Response(text="")


@operation(kinds=("text/plain",))
async def ready(request: web.Request) -> web.Response:
    """200 while new requests are taken: the loop turns and the server is not shutting down."""
    if Context.of(request).closing:
        return errors.of(Overloaded("the server is shutting down"))
    return await health(request)


@operation(kinds=("text/plain",))
async def health_generate(request: web.Request) -> web.Response:
    """200 if one token can be generated, or a vector made, whichever the model does."""
    engine = Context.of(request).engine
    prompt: Prompt = (TokenSegment((0,), ""),)
    call: Generate | Embed = Embed(prompt=prompt)
    if engine.info["task"] == "generate":
        call = Generate(prompt=prompt, sampling=SamplingParams(max_new_tokens=1, temperature=0))
    async for delta in engine.generate([call]):
        if delta.finish is not None and delta.finish.type == "error":
            return errors.response(delta.finish.message or "generation failed", 503, code="engine_dead")
    return web.Response(text="")


@operation(answer=answers.ModelInfo)
async def model_info(request: web.Request) -> web.Response:
    """Which model is served, and its chat template."""
    engine = Context.of(request).engine
    model, task = engine.model, engine.info["task"]
    return web.json_response(
        {"model_path": model.model_path, "is_generation": task == "generate", "chat_template": model.jinja}
    )


@operation(answer=answers.ServerInfo)
async def server_info(request: web.Request) -> web.Response:
    """The options, facts about the model, and what is in use now."""
    context = Context.of(request)
    return web.json_response({**context.server_args(), **context.engine.info, **await context.engine.stats()})


@operation()
async def server_args(request: web.Request) -> web.Response:
    """The options of this server, without secrets."""
    return web.json_response(Context.of(request).server_args())


@operation(answer=answers.Flushed)
async def flush_cache(request: web.Request) -> web.Response:
    """Forget every cached prefix that nobody uses."""
    done = await Context.of(request).engine.flush_cache()
    return web.json_response({"flushed": done}, status=200)


@operation(body=bodies.AbortBody, answer=answers.Aborted)
async def abort(request: web.Request) -> web.Response:
    """End a running request by its id."""
    body = await bodies.read(request, bodies.AbortBody)
    if not Context.of(request).abort(body.rid):
        raise NotFound(f"no request {body.rid!r} is running", param="rid")
    return web.json_response({"aborted": body.rid})


@operation(body=bodies.TokenizeBody, answer=answers.Tokens)
async def tokenize(request: web.Request) -> web.Response:
    """The token ids of a text."""
    body = await bodies.read(request, bodies.TokenizeBody)
    text = body.text if body.text is not None else body.prompt
    if text is None:
        raise InvalidRequest("give the text to tokenize", param="text")
    encode = Context.of(request).engine.tokenizer.encode
    tokens = await asyncio.to_thread(encode, text, first=body.add_special_tokens)
    return web.json_response({"tokens": tokens, "count": len(tokens)})


@operation(body=bodies.DetokenizeBody, answer=answers.Text)
async def detokenize(request: web.Request) -> web.Response:
    """The text of token ids."""
    body = await bodies.read(request, bodies.DetokenizeBody)
    tokenizer = Context.of(request).engine.tokenizer
    wrong = next((t for t in body.tokens if not 0 <= t < tokenizer.size), None)
    if wrong is not None:
        raise InvalidRequest(
            f"token id {wrong} is outside the vocabulary (0 to {tokenizer.size - 1})", param="tokens"
        )
    return web.json_response(
        {"text": tokenizer.decode(body.tokens, skip_special_tokens=body.skip_special_tokens)}
    )


def routes() -> list[web.RouteDef]:
    return [
        web.post("/generate", generate),
        web.put("/generate", generate),
        web.get("/health", health),
        web.get("/health_generate", health_generate),
        web.get("/ready", ready),
        web.get("/get_model_info", model_info),
        web.get("/get_server_info", server_info),
        web.get("/get_server_args", server_args),
        web.get("/flush_cache", flush_cache),
        web.post("/flush_cache", flush_cache),
        web.post("/abort_request", abort),
        web.post("/tokenize", tokenize),
        web.post("/detokenize", detokenize),
        web.post("/v1/calls/generate", calls_generate),
        web.post("/v1/calls/score", calls_score),
        web.post("/v1/calls/prefill", calls_prefill),
    ]
