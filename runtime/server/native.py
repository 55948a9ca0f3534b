"""The native API's /generate."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
from aiohttp import web

from runtime.api import (
    Delta,
    Generate,
    Segment,
    TextSegment,
    TokenSegment,
)
from runtime.config import Limits
from runtime.engine.native import logprob_options, meta_info, said, sampling_params
from runtime.errors import InvalidRequest, TooLong, Unsupported
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
        try:
            await context.engine.ids_of(call)
        except TooLong as error:
            raise TooLong(error.message, param="input_ids" if body.text is None else "text") from None
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


def routes() -> list[web.RouteDef]:
    return [web.post("/generate", generate), web.put("/generate", generate)]
