"""POST /v1/messages, as Anthropic's clients speak it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
from aiohttp import web

from runtime.api import Constraint, SamplingParams
from runtime.errors import InvalidRequest, Unsupported
from runtime.server import bodies
from runtime.server.chat import read_function
from runtime.server.context import Context
from runtime.server.conversation import Prepared, Tool, Turn, check_tools, prepare, split
from runtime.server.errors import naming
from runtime.server.message_events import BlockEvents, blocks_of, ending, usage_of
from runtime.server.operation import JSON_OR_EVENTS, operation
from runtime.server.parts import Whole
from runtime.server.replay import RECORDER
from runtime.server.sse import EventStream


class InMessage(msgspec.Struct, kw_only=True):
    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Any]]


class InTool(msgspec.Struct, kw_only=True):
    name: str
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool = False


class InToolChoice(msgspec.Struct, kw_only=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class OutputFormat(msgspec.Struct, kw_only=True):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, kw_only=True):
    format: OutputFormat | None = None
    effort: str | None = None


class CountBody(bodies.Body, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/messages/count_tokens."""

    model: str
    messages: list[InMessage]
    system: str | list[dict[str, Any]] | None = None
    tools: list[InTool] | None = None
    tool_choice: InToolChoice | None = None
    thinking: dict[str, Any] | None = None
    output_config: OutputConfig | None = None
    cache_control: dict[str, Any] | None = None


class MessagesBody(CountBody, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/messages."""

    max_tokens: int
    stop_sequences: list[str] | None = None
    temperature: bodies.OrNull[float] = 1.0
    top_p: float | None = None
    top_k: int | None = None
    stream: bodies.OrNull[bool] = False
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    seed: int | None = None
    cache_salt: str | None = None


class MessageUsage(msgspec.Struct):
    """`input_tokens` are those that were computed, without those read from the cache."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int


class Message(msgspec.Struct):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: str | None
    stop_sequence: str | None
    usage: MessageUsage
    system_fingerprint: str
    seed: int


class TokenCount(msgspec.Struct):
    input_tokens: int


# -- reading ------------------------------------------------------------------------------------------------


def _text(content: Any, where: str) -> str:
    """Text, or blocks of text."""
    if isinstance(content, str):
        return content
    texts = []
    for block in content if isinstance(content, list) else [content]:
        kind = block.get("type") if isinstance(block, dict) else type(block).__name__
        text = block.get("text") if isinstance(block, dict) else None
        if kind != "text" or not isinstance(text, str):
            raise Unsupported(
                f"{where} has a block of type {kind!r}, but this model takes only text", param=where
            )
        texts.append(text)
    return "".join(texts)


def _read_assistant(blocks: list[dict[str, Any]], where: str) -> dict[str, Any]:
    texts, calls, thoughts = [], [], []
    for i, block in enumerate(blocks):
        kind = block.get("type")
        if kind == "tool_use":
            name, given = block.get("name"), block.get("input")
            if not isinstance(name, str) or not isinstance(given, dict):
                raise InvalidRequest(
                    f"{where}[{i}] needs a name, and input as an object", param=f"{where}[{i}]"
                )
            function = {"name": name, "arguments": given}
            calls.append({"id": str(block.get("id")), "type": "function", "function": function})
        elif kind == "thinking":
            thoughts.append(str(block.get("thinking", "")))
        elif kind != "redacted_thinking":
            texts.append(_text([block], where))
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if calls:
        message["tool_calls"] = calls
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    return message


def read_messages(messages: Sequence[InMessage]) -> list[dict[str, Any]]:
    """In OpenAI's form: results of tools are messages of their own. Raises InvalidRequest, naming the place."""
    out: list[dict[str, Any]] = []
    for i, message in enumerate(messages):
        where = f"messages[{i}].content"
        if isinstance(message.content, str):
            out.append({"role": message.role, "content": message.content})
        elif message.role == "assistant":
            out.append(_read_assistant(message.content, where))
        else:
            rest = []
            for k, block in enumerate(message.content):
                if block.get("type") != "tool_result":
                    rest.append(block)
                    continue
                if not isinstance(block.get("tool_use_id"), str):
                    raise InvalidRequest(f"{where}[{k}] has no tool_use_id", param=f"{where}[{k}]")
                text = _text(block.get("content") or "", f"{where}[{k}].content")
                out.append({"role": "tool", "content": text, "tool_call_id": block["tool_use_id"]})
            if rest:
                out.append({"role": message.role, "content": _text(rest, where)})
    return out


def turn_of(body: CountBody) -> Turn:
    """Raises InvalidRequest, naming the place."""
    tools: list[Tool] = []
    for i, tool in enumerate(body.tools or ()):
        if tool.type not in (None, "custom"):
            raise Unsupported(
                f"tools[{i}] is of type {tool.type!r}; only own tools are supported", param="tools"
            )
        function = {
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.input_schema,
            "strict": tool.strict,
        }
        tools.append(read_function(function, f"tools[{i}]"))
    choice = body.tool_choice or InToolChoice(type="auto")
    named = choice.name if choice.type == "tool" else None
    if choice.type == "tool" and named is None:
        raise InvalidRequest("tool_choice of type tool needs a name", param="tool_choice")
    if not tools and choice.type in ("any", "tool"):
        raise InvalidRequest("tool_choice demands a call but there are no tools", param="tool_choice")
    check_tools(tools, named)
    messages = read_messages(body.messages)
    if body.system:
        messages.insert(0, {"role": "system", "content": _text(body.system, "system")})
    options: dict[str, Any] = {}
    if body.thinking is not None:
        options["enable_thinking"] = body.thinking.get("type") in ("enabled", "adaptive")
    if body.output_config is not None and body.output_config.effort is not None:
        options["reasoning_effort"] = body.output_config.effort
    kinds: Mapping[str, Any] = {"auto": "auto", "any": "required", "tool": "named", "none": "none"}
    return Turn(
        messages,
        tuple(tools),
        choice=kinds[choice.type],
        named=named,
        parallel=not choice.disable_parallel_tool_use,
        options=options,
    )


def _sampling(body: MessagesBody) -> SamplingParams:
    if body.max_tokens < 1:
        raise InvalidRequest(f"max_tokens is {body.max_tokens} but must be at least 1", param="max_tokens")
    form = body.output_config.format if body.output_config else None
    params = SamplingParams(
        max_new_tokens=body.max_tokens,
        constraint=Constraint("json_schema", json.dumps(form.schema, ensure_ascii=False)) if form else None,
        stop=tuple(body.stop_sequences or ()),
        temperature=body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=-1 if body.top_k is None else body.top_k,
        seed=body.seed,
    )
    with naming({"max_new_tokens": "max_tokens", "stop": "stop_sequences"}):
        params.check()
    return params


def _head(context: Context, prepared: Prepared) -> dict[str, Any]:
    return {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": context.model_name,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage_of(None, prepared.prompt_tokens),
        "system_fingerprint": context.fingerprint,
        "seed": prepared.call.sampling.seed,
    }


@operation(body=MessagesBody, answer=Message, kinds=JSON_OR_EVENTS)
async def messages(request: web.Request) -> web.StreamResponse:
    """The assistant's next message, in Anthropic's form."""
    context = Context.of(request)
    body = await bodies.read(request, MessagesBody)
    context.check_model(body.model)
    prepared = await prepare(
        context, turn_of(body), _sampling(body), stream=body.stream, salt=body.cache_salt
    )
    head = _head(context, prepared)
    await request.app[RECORDER].note(request, head["id"], head["seed"])
    running = context.run([prepared.call], {head["id"]: [prepared.call]})
    if not body.stream:
        whole, end = Whole(), {}
        async with running as deltas:
            async for delta, parts, called in split(prepared, deltas):
                whole.add(parts)
                if delta.finish is not None:
                    end = ending(delta, called, body.stop_sequences or ())
                    end["usage"] = usage_of(delta.usage, prepared.prompt_tokens)
        return web.json_response({**head, "content": blocks_of(whole), **end})
    async with running as deltas, EventStream(request, named=True) as events:
        await events.send({"type": "message_start", "message": head}, "message_start")
        blocks = BlockEvents(events)
        async for delta, parts, called in split(prepared, deltas):
            for part in parts:
                await blocks.add(part)
            if delta.finish is not None:
                await blocks.end()
                last = {
                    "delta": ending(delta, called, body.stop_sequences or ()),
                    "usage": usage_of(delta.usage, prepared.prompt_tokens),
                }
                await events.send({"type": "message_delta", **last}, "message_delta")
        await events.send({"type": "message_stop"}, "message_stop")
        return await events.end()


@operation(body=CountBody, answer=TokenCount)
async def count_tokens(request: web.Request) -> web.Response:
    """How many tokens a conversation would have as a prompt."""
    context = Context.of(request)
    body = await bodies.read(request, CountBody)
    context.check_model(body.model)
    prepared = await prepare(context, turn_of(body), SamplingParams(max_new_tokens=None))
    return web.json_response({"input_tokens": prepared.prompt_tokens})


PATHS = ("/v1/messages", "/v1/messages/count_tokens")
_KINDS = {413: "request_too_large", 500: "api_error", 503: "overloaded_error"}


@web.middleware
async def error_shape(request: web.Request, handler: Any) -> web.StreamResponse:
    """Errors of these routes as Anthropic's clients read them; whoever reads OpenAI's finds those fields too."""
    response: web.StreamResponse = await handler(request)
    if request.path in PATHS and response.status >= 400 and isinstance(response, web.Response):
        if response.content_type == "application/json" and isinstance(response.body, bytes):
            told = msgspec.json.decode(response.body)
            told["error"]["type"] = _KINDS.get(response.status, told["error"]["type"])
            response.body = msgspec.json.encode({"type": "error", **told, "request_id": request["id"]})
    return response


def routes() -> list[web.RouteDef]:
    return [
        web.post("/v1/messages", messages),
        web.post("/v1/messages/count_tokens", count_tokens),
    ]
