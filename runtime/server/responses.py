"""/v1/responses: OpenAI's newer chat API, whose answers are kept so that a later request can go on from them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
from aiohttp import web

from runtime.api import Constraint, Delta, LogprobOptions, SamplingParams, Usage
from runtime.errors import InvalidRequest, Unsupported
from runtime.server import bodies, kept_responses
from runtime.server.chat import allowed, constraint_of, read_function
from runtime.server.context import Context
from runtime.server.conversation import (
    Prepared,
    Tool,
    Turn,
    check_tools,
    past_call,
    prepare,
    read_text,
    split,
)
from runtime.server.errors import naming
from runtime.server.kept_responses import STORE, Kept, Response, Responses, items_of
from runtime.server.operation import JSON_OR_EVENTS, operation
from runtime.server.parts import TextPart, Whole
from runtime.server.replay import RECORDER
from runtime.server.response_events import Items, output_of
from runtime.server.sse import EventStream
from runtime.server.text_logprobs import TextLogprobs
from runtime.server.token_text import TokenTexts

_LOGPROBS = "message.output_text.logprobs"  # what `include` calls them


class TextOptions(msgspec.Struct, kw_only=True):
    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ReasoningOptions(msgspec.Struct, kw_only=True):
    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class StreamedPadding(bodies.Body, kw_only=True):
    """There is no padding here, whatever is said of it."""

    include_obfuscation: bodies.OrNull[bool] = False


class InputTokensBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/responses/input_tokens."""

    input: str | list[dict[str, Any]]
    model: str | None = None
    instructions: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    previous_response_id: str | None = None
    truncation: Literal["auto", "disabled"] | None = None


class ResponsesBody(InputTokensBody, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/responses."""

    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    store: bool | None = None
    stream: bool | None = False
    stream_options: StreamedPadding | None = None
    max_tool_calls: int | None = None
    background: bool | None = None
    include: list[str] | None = None
    top_logprobs: int | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    service_tier: str | None = None
    seed: int | None = None
    cache_salt: str | None = None


class InputTokens(msgspec.Struct):
    object: Literal["response.input_tokens"]
    input_tokens: int


# -- reading ------------------------------------------------------------------------------------------------


def read_items(items: str | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Input items in the form of chat messages. Raises InvalidRequest, naming the place."""
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    out: list[dict[str, Any]] = []
    for i, item in enumerate(items):
        where, kind = f"input[{i}]", item.get("type", "message")
        if kind == "message":
            role = item.get("role")
            if role not in ("system", "developer", "user", "assistant"):
                raise InvalidRequest(
                    f"{where} has the role {role!r}; roles are system, developer, user and assistant",
                    param=f"{where}.role",
                )
            out.append({"role": role, "content": read_text(item.get("content"), where)})
        elif kind == "function_call":
            call_id, name, arguments = (item.get(k) for k in ("call_id", "name", "arguments"))
            if not (isinstance(call_id, str) and isinstance(name, str) and isinstance(arguments, str)):
                raise InvalidRequest(f"{where} needs call_id, name and arguments as text", param=where)
            call = past_call(call_id, name, arguments, f"{where}.arguments")
            if out and out[-1]["role"] == "assistant":
                out[-1].setdefault("tool_calls", []).append(call)
            else:
                out.append({"role": "assistant", "content": "", "tool_calls": [call]})
        elif kind == "function_call_output":
            if not isinstance(item.get("call_id"), str):
                raise InvalidRequest(f"{where} has no call_id", param=f"{where}.call_id")
            text = read_text(item.get("output"), f"{where}.output")
            out.append({"role": "tool", "content": text, "tool_call_id": item["call_id"]})
        elif kind != "reasoning":  # reasoning of earlier turns is not shown to the model again
            raise Unsupported(f"{where} is of type {kind!r}, which is not supported", param=f"{where}.type")
    return out


def _turn(
    body: ResponsesBody | InputTokensBody, earlier: list[dict[str, Any]]
) -> tuple[Turn, list[dict[str, Any]]]:
    """The turn, and the conversation to keep; instructions belong to one request alone."""
    tools: list[Tool] = []
    for i, tool in enumerate(body.tools or ()):
        if tool.get("type") != "function":
            raise Unsupported(
                f"tools[{i}] is of type {tool.get('type')!r}; only functions are supported",
                param=f"tools[{i}]",
            )
        tools.append(read_function(tool, f"tools[{i}]"))
    choice, named = body.tool_choice or "auto", None
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        choice, some = allowed(choice, tuple(tools))
        tools = list(some)
    if isinstance(choice, dict):
        named, choice = choice.get("name"), "named" if choice.get("type") == "function" else "?"
    if choice not in ("auto", "none", "required", "named") or (choice == "named" and not named):
        raise InvalidRequest(
            "tool_choice must be auto, none, required or name a function", param="tool_choice"
        )
    if not tools and choice in ("required", "named"):
        raise InvalidRequest("tool_choice demands a call but there are no tools", param="tool_choice")
    check_tools(tools, named)
    kept = earlier + read_items(body.input)
    head = [{"role": "system", "content": body.instructions}] if body.instructions else []
    effort = body.reasoning.effort if body.reasoning else None
    turn = Turn(
        [*head, *kept],
        tuple(tools),
        choice=choice,  # type: ignore[arg-type]
        named=named,
        parallel=body.parallel_tool_calls is not False,
        options={} if effort is None else {"reasoning_effort": effort},
        field="input",
        limit="max_output_tokens",
    )
    return turn, kept


def _constraint(body: ResponsesBody) -> Constraint | None:
    form = body.text.format if body.text else None
    if form is None or form.get("type") == "text":
        return None
    if form.get("type") == "json_schema":  # its fields are those of chat's inner object
        given = bodies.ResponseFormat(type="json_schema", json_schema=form)
    else:
        given = bodies.ResponseFormat(type=str(form.get("type")))
    return constraint_of(given)


def _sampling(body: ResponsesBody) -> SamplingParams:
    if body.background:
        raise Unsupported("background is not supported; use /v1/batches", param="background")
    if unknown := set(body.include or ()) - {"reasoning.encrypted_content", _LOGPROBS}:
        raise Unsupported(f"include {sorted(unknown)} is not supported; leave it out", param="include")
    params = SamplingParams(
        max_new_tokens=body.max_output_tokens,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=body.seed,
        constraint=_constraint(body),
    )
    with naming({"max_new_tokens": "max_output_tokens"}):
        params.check()
    return params


def _logprob_options(body: ResponsesBody) -> LogprobOptions | None:
    top = body.top_logprobs or 0
    if not 0 <= top <= 20:
        raise InvalidRequest(f"top_logprobs is {top} but must be between 0 and 20", param="top_logprobs")
    return LogprobOptions(top=top, text=True) if top or _LOGPROBS in (body.include or ()) else None


# -- writing ------------------------------------------------------------------------------------------------


def _head(context: Context, body: ResponsesBody, prepared: Prepared) -> dict[str, Any]:
    text = body.text.format if body.text and body.text.format else {"type": "text"}
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": context.model_name,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "store": body.store is not False,
        "temperature": prepared.call.sampling.temperature,
        "text": {"format": text},
        "tool_choice": body.tool_choice or "auto",
        "tools": body.tools or [],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": prepared.call.sampling.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
        "seed": prepared.call.sampling.seed,
        "system_fingerprint": context.fingerprint,
    }


def _finished(
    context: Context, head: Mapping[str, Any], delta: Delta, output: list[dict[str, Any]], whole: Whole
) -> dict[str, Any]:
    u = delta.usage or Usage()
    reasoning = context.engine.tokenizer.encode(whole.reasoning, first=False) if whole.reasoning else []
    cut = delta.finish is not None and delta.finish.type in ("length", "abort")
    reason = "max_output_tokens" if delta.finish and delta.finish.type == "length" else "aborted"
    return {
        **head,
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": reason} if cut else None,
        "output": output,
        "usage": {
            "input_tokens": u.prompt_tokens,
            "input_tokens_details": {"cached_tokens": u.cached_tokens},
            "output_tokens": u.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": len(reasoning)},
            "total_tokens": u.prompt_tokens + u.completion_tokens,
        },
    }


def _keep(
    app: web.Application, response: dict[str, Any], body: ResponsesBody, messages: list[dict[str, Any]]
) -> None:
    if response["store"]:
        items = [i for i in response["output"] if i["type"] != "reasoning"]
        try:
            later = [*messages, *read_items(items)]
        except InvalidRequest:  # a call that was cut off cannot be gone on from
            later = messages
        app[STORE].put(response["id"], Kept(response, items_of(body.input), later))


@operation(body=ResponsesBody, answer=Response, kinds=JSON_OR_EVENTS)
async def create(request: web.Request) -> web.StreamResponse:
    """The model's next turn, as items."""
    context = Context.of(request)
    body = await bodies.read(request, ResponsesBody)
    context.check_model(body.model)
    earlier = request.app[STORE].get(body.previous_response_id).messages if body.previous_response_id else []
    turn, kept = _turn(body, earlier)
    sampling, options = _sampling(body), _logprob_options(body)
    prepared = await prepare(
        context,
        turn,
        sampling,
        logprobs=options,
        stream=bool(body.stream)
        or options is not None,  # step by step, so that tokens are known by their texts
        salt=body.cache_salt,
    )
    head = _head(context, body, prepared)
    await request.app[RECORDER].note(request, head["id"], head["seed"])
    whole, last = Whole(), Delta(id="0")
    tokens = TextLogprobs(TokenTexts(context.engine.tokenizer.token_bytes)) if options is not None else None
    running = context.run([prepared.call], {head["id"]: [prepared.call]})
    if not body.stream:
        logprobs: list[dict[str, Any]] = []
        async with running as deltas:
            async for delta, parts, _ in split(prepared, deltas):
                whole.add(parts)
                logprobs += tokens.feed(delta, parts) if tokens is not None else ()
                last = delta
        response = _finished(context, head, last, output_of(whole, last, logprobs), whole)
        _keep(request.app, response, body, kept)
        return web.json_response(response)
    async with running as deltas, EventStream(request, named=True) as events:
        items = Items(events)
        await items.send("response.created", {"response": head})
        await items.send("response.in_progress", {"response": head})
        async for delta, parts, _ in split(prepared, deltas):
            whole.add(parts)
            last = delta
            found = tokens.feed(delta, parts) if tokens is not None else ()
            texts = [i for i, part in enumerate(parts) if isinstance(part, TextPart)]
            for i, part in enumerate(parts):
                await items.add(part, found if texts[-1:] == [i] else ())
        await items.end(last)
        response = _finished(context, head, last, items.output, whole)
        _keep(request.app, response, body, kept)
        await items.send(f"response.{response['status']}", {"response": response})
        return await events.end()


@operation(body=InputTokensBody, answer=InputTokens, errors=(404,))
async def input_tokens(request: web.Request) -> web.Response:
    """How many tokens a request would have as a prompt."""
    context = Context.of(request)
    body = await bodies.read(request, InputTokensBody)
    context.check_model(body.model)
    earlier = request.app[STORE].get(body.previous_response_id).messages if body.previous_response_id else []
    turn, _ = _turn(body, earlier)
    prepared = await prepare(context, turn, SamplingParams(max_new_tokens=None))
    return web.json_response({"object": "response.input_tokens", "input_tokens": prepared.prompt_tokens})


def install(app: web.Application, context: Context) -> None:
    """The routes, and a store for what they keep."""
    app[STORE] = Responses(context.server.max_stored_responses)
    app.add_routes(
        [
            web.post("/v1/responses", create),
            web.post("/v1/responses/input_tokens", input_tokens),
            *kept_responses.routes(),
        ]
    )
