"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from runtime.api import Constraint, Delta, LogprobOptions
from runtime.errors import InvalidRequest, Unsupported
from runtime.server import answers, bodies, openai
from runtime.server.context import Context
from runtime.server.conversation import Prepared, Tool, Turn, check_tools, prepare, read_messages, split
from runtime.server.operation import JSON_OR_EVENTS, operation
from runtime.server.parts import CallPart, Part, ReasoningPart, TextPart, Whole
from runtime.server.replay import RECORDER
from runtime.server.sse import EventStream
from runtime.server.text_logprobs import entries
from runtime.server.token_text import TokenTexts


def constraint_of(form: bodies.ResponseFormat | None) -> Constraint | None:
    """What a response format demands. Raises InvalidRequest for one that is not known."""
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


def read_tools(documents: list[dict[str, Any]] | None) -> tuple[Tool, ...]:
    """Raises InvalidRequest, naming the place, for what is no function."""
    out = []
    for i, document in enumerate(documents or ()):
        kind, function = document.get("type"), document.get("function")
        if kind == "function" and not isinstance(function, dict):
            raise InvalidRequest(f"tools[{i}] has no function", param=f"tools[{i}].function")
        if kind != "function" or not isinstance(function, dict):
            raise Unsupported(
                f"tools[{i}] is of type {kind!r}; only functions are supported", param=f"tools[{i}]"
            )
        out.append(read_function(function, f"tools[{i}].function"))
    return tuple(out)


def read_function(function: dict[str, Any], where: str) -> Tool:
    name, about = function.get("name"), function.get("description")
    schema = function.get("parameters")
    if not isinstance(name, str) or not isinstance(about, str | None) or not isinstance(schema, dict | None):
        raise InvalidRequest(
            f"{where} needs a name, and may have a description and parameters, a JSON schema", param=where
        )
    if schema is not None and schema.get("type", "object") != "object":
        raise InvalidRequest(f"{where}.parameters must be a schema of an object", param=f"{where}.parameters")
    schema = {"type": "object", "properties": {}} if not schema else {"type": "object", **schema}
    return Tool(name, schema, about, strict=function.get("strict") is True)


def allowed(choice: Any, tools: tuple[Tool, ...]) -> tuple[str, tuple[Tool, ...]]:
    """The mode of a choice among some of the tools, and these. Raises InvalidRequest."""
    given = choice.get("tools") if isinstance(choice, dict) else None
    mode = choice.get("mode") if isinstance(choice, dict) else None
    if mode not in ("auto", "required") or not isinstance(given, list) or not given:
        raise InvalidRequest(
            "tool_choice of type allowed_tools needs a mode, auto or required, and tools", param="tool_choice"
        )
    names = []
    for tool in given:
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        names.append(function.get("name") if isinstance(function, dict) else None)
    known = {t.name for t in tools}
    for name in names:
        if name not in known:
            raise InvalidRequest(
                f"tool_choice allows {name!r}, which is none of the tools", param="tool_choice"
            )
    return mode, tuple(t for t in tools if t.name in names)


def turn_of(body: bodies.ChatBody) -> Turn:
    """Raises InvalidRequest, naming the place."""
    tools = read_tools(body.tools)
    choice, named = body.tool_choice, None
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        choice, tools = allowed(choice.get("allowed_tools"), tools)
    if isinstance(choice, dict):
        function = choice.get("function")
        named = function.get("name") if isinstance(function, dict) else None
        if choice.get("type") != "function" or not isinstance(named, str):
            raise InvalidRequest("tool_choice must name a function", param="tool_choice")
        choice = "named"
    choice = choice if choice is not None else "auto"
    if choice not in ("auto", "none", "required", "named"):
        raise InvalidRequest(
            f"tool_choice is {choice!r} but must be auto, none, required or a function", param="tool_choice"
        )
    if not tools and choice in ("required", "named"):
        raise InvalidRequest("tool_choice demands a call but there are no tools", param="tool_choice")
    check_tools(tools, named)
    options = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        options["reasoning_effort"] = body.reasoning_effort
    return Turn(
        read_messages(body.messages),
        tools,
        choice=choice,  # type: ignore[arg-type]
        named=named,
        parallel=body.parallel_tool_calls is not False,
        proceed=body.continue_final_message,
        options=options,
        limit=_limit(body),
    )


def _limit(body: bodies.ChatBody) -> str:
    """The field that says how many tokens may come."""
    return "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"


def _check(body: bodies.ChatBody) -> None:
    openai.check_stream(body)
    if set(body.modalities or ()) - {"text"}:
        raise Unsupported(
            "modalities may be text alone; this server answers with nothing else", param="modalities"
        )
    if body.functions or body.function_call not in (None, "none"):
        raise Unsupported(
            "functions and function_call were replaced by tools and tool_choice; send these",
            param="functions",
        )


def _logprob_options(body: bodies.ChatBody) -> LogprobOptions | None:
    top = body.top_logprobs or 0
    if not body.logprobs:
        if top:
            raise InvalidRequest("top_logprobs needs logprobs to be true", param="top_logprobs")
        return None
    if not 0 <= top <= 20:
        raise InvalidRequest(f"top_logprobs is {top} but must be between 0 and 20", param="top_logprobs")
    return LogprobOptions(top=top, text=True)


def _logprobs(delta: Delta, texts: TokenTexts) -> dict[str, Any]:
    return {"content": entries(delta, texts), "refusal": None}


def _reason(delta: Delta, called: bool) -> str | None:
    found = openai.reason(delta)
    return "tool_calls" if called and found == "stop" else found


def _call(part: CallPart) -> dict[str, Any]:
    return {"id": part.id, "type": "function", "function": {"name": part.name, "arguments": part.arguments}}


def _message(whole: Whole, separate: bool) -> dict[str, Any]:
    text = whole.text if separate or not whole.reasoning else f"{whole.reasoning}\n\n{whole.text}"
    message: dict[str, Any] = {"role": "assistant", "content": text or (None if whole.calls else "")}
    message["refusal"] = None
    if separate and whole.reasoning:
        message["reasoning_content"] = whole.reasoning
    if whole.calls:
        message["tool_calls"] = [_call(c) for c in whole.calls]
    return message


@operation(body=bodies.ChatBody, answer=answers.ChatCompletion, kinds=JSON_OR_EVENTS)
async def chat(request: web.Request) -> web.StreamResponse:
    """The assistant's next message, `n` samples of it."""
    context = Context.of(request)
    body = await bodies.read(request, bodies.ChatBody)
    context.check_model(body.model)
    _check(body)
    limit = _limit(body)
    prepared = await prepare(
        context,
        turn_of(body),
        openai.sampling_of(
            body, getattr(body, limit), constraint=constraint_of(body.response_format), limit=limit
        ),
        logprobs=_logprob_options(body),
        stream=body.stream,
        salt=body.cache_salt,
        priority=body.priority,
    )
    if body.stream:
        return await _stream(request, context, body, prepared)
    call = prepared.call
    head = openai.head(context, "chatcmpl", "chat.completion", call)
    await request.app[RECORDER].note(request, head["id"], head["seed"])
    texts = TokenTexts(context.engine.tokenizer.token_bytes)
    wholes = [Whole() for _ in range(body.n)]
    choices: list[dict[str, Any]] = []
    ends: list[Delta] = []
    async with context.run([call], {head["id"]: [call]}) as deltas:
        async for delta, parts, called in split(prepared, deltas):
            wholes[delta.index].add(parts)
            choice = {
                "index": delta.index,
                "message": _message(wholes[delta.index], body.separate_reasoning),
                "logprobs": _logprobs(delta, texts) if call.logprobs else None,
                "finish_reason": _reason(delta, called),
                "matched_stop": openai.matched(delta),
            }
            choices.append(choice)
            ends.append(delta)
    choices.sort(key=lambda c: c["index"])
    reasoned = "".join(w.reasoning for w in wholes)
    reasoning = len(context.engine.tokenizer.encode(reasoned, first=False)) if reasoned else 0
    usage = openai.usage_of(ends, prepared.prompt_tokens, reasoning)
    return web.json_response({**head, "choices": choices, "usage": usage}, headers=_notes(body))


def _notes(body: bodies.ChatBody) -> dict[str, str]:
    """Says which fields changed nothing though a caller may think so."""
    return {} if body.prediction is None else {"X-Ignored-Fields": "prediction"}


def _delta(part: Part, separate: bool) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"content": part.text}
    if isinstance(part, ReasoningPart):
        return {"reasoning_content" if separate else "content": part.text}
    if isinstance(part, CallPart):
        return {"tool_calls": [{"index": part.index, **_call(part)}]}
    return {"tool_calls": [{"index": part.index, "function": {"arguments": part.text}}]}


async def _stream(
    request: web.Request, context: Context, body: bodies.ChatBody, prepared: Prepared
) -> web.StreamResponse:
    """One chunk for each part, and one for the end; the log-probabilities of a delta are with the last of its parts."""
    call = prepared.call
    head = openai.head(context, "chatcmpl", "chat.completion.chunk", call)
    await request.app[RECORDER].note(request, head["id"], head["seed"])
    usages = openai.StreamUsage(body.stream_options, prepared.prompt_tokens)
    texts = TokenTexts(context.engine.tokenizer.token_bytes)
    reasoned: list[str] = []

    def chunk(index: int, content: dict[str, Any], delta: Delta | None = None, **end: Any) -> dict[str, Any]:
        told = call.logprobs and delta is not None and delta.output_logprobs
        logprobs = _logprobs(delta, texts) if told and delta is not None else None
        choice = {"index": index, "delta": content, "logprobs": logprobs, "finish_reason": None, **end}
        return {**head, "choices": [choice], **usages.field()}

    async with (
        context.run([call], {head["id"]: [call]}) as deltas,
        EventStream(request, _notes(body)) as events,
    ):
        for index in range(body.n):
            await events.send(chunk(index, {"role": "assistant", "content": ""}))
        async for delta, parts, called in split(prepared, deltas):
            usages.add(delta)
            reasoned += [p.text for p in parts if isinstance(p, ReasoningPart)]
            contents = [_delta(p, body.separate_reasoning) for p in parts]
            if not contents and delta.finish is None and delta.output_logprobs and call.logprobs:
                contents.append({})
            for content in contents[:-1]:
                await events.send(chunk(delta.index, content))
            if contents:
                await events.send(chunk(delta.index, contents[-1], delta))
            if delta.finish is not None:
                end = {"finish_reason": _reason(delta, called), "matched_stop": openai.matched(delta)}
                await events.send(chunk(delta.index, {}, None if contents else delta, **end))
        if usages.at_end:
            text = "".join(reasoned)
            reasoning = len(context.engine.tokenizer.encode(text, first=False)) if text else 0
            await events.send({**head, "choices": [], "usage": usages.whole(reasoning)})
        return await events.done()


def routes() -> list[web.RouteDef]:
    return [web.post("/v1/chat/completions", chat)]
