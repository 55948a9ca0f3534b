"""What the chat APIs have in common: a conversation and its tools become one call, its answer becomes parts.

The APIs differ in names and events only, so each of them reads its body to a `Turn` and writes `Part`s.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from runtime.api import Constraint, Delta, Generate, LogprobOptions, SamplingParams, TextSegment
from runtime.errors import InvalidRequest, TooLong, Unsupported
from runtime.reasoning import ReasoningTags
from runtime.server.context import Context
from runtime.server.errors import naming
from runtime.server.parts import NamedParser, Parser, Part, PlainParser, Splitter
from runtime.server.tools import format_of_template
from runtime.server.tools.calls import parse
from runtime.server.tools.describe import described
from runtime.server.tools.forced import Forced, schema_of_calls
from runtime.server.tools.parser import ToolFormat, ToolParser
from runtime.tokenizer.chat import ChatTemplate

MAX_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,128}")
_ROLES = ("system", "developer", "user", "assistant", "tool")
_OPTION = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_RESERVED = frozenset({"messages", "tools", "add_generation_prompt", "continue_final_message", "documents"})


@dataclass(frozen=True)
class Tool:
    """A function that the model may call. `strict`: its arguments must match the schema."""

    name: str
    schema: Mapping[str, Any]
    description: str | None = None
    strict: bool = False

    @property
    def document(self) -> dict[str, Any]:
        """As chat templates expect it."""
        about = {} if self.description is None else {"description": self.description}
        return {
            "type": "function",
            "function": {"name": self.name, **about, "parameters": dict(self.schema)},
        }


@dataclass(frozen=True)
class Turn:
    """A conversation that waits for the model's next message.

    choice    what tools are for; a tool's name stands in `named`
    parallel  several calls in one message
    proceed   continue the last message; None: if it is the assistant's
    options   what else the chat template is told
    field, limit  what the API calls the messages, and the tokens that may come
    """

    messages: Sequence[Mapping[str, Any]]
    tools: tuple[Tool, ...] = ()
    choice: Literal["auto", "none", "required", "named"] = "auto"
    named: str | None = None
    parallel: bool = True
    proceed: bool | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    field: str = "messages"
    limit: str = "max_tokens"


@dataclass(frozen=True)
class Prepared:
    """A call that can be made, and what reads its samples."""

    call: Generate
    prompt_tokens: int
    _parser: ToolFormat | str | None
    _schemas: Mapping[str, Any]
    _tags: ReasoningTags | None
    _several: bool

    def splitter(self) -> Splitter:
        form = self._parser
        parser: Parser
        if form is None:
            parser = PlainParser()
        elif isinstance(form, str):
            parser = NamedParser(form)
        else:
            parser = ToolParser(form, self._schemas)
        new_id = form.new_id if isinstance(form, ToolFormat) else Forced().new_id
        return Splitter(parser, self._tags, new_id, several=self._several)


async def split(
    prepared: Prepared, deltas: AsyncIterator[Delta]
) -> AsyncIterator[tuple[Delta, list[Part], bool]]:
    """Each delta with its parts, and whether its sample has called a tool by now. A failed sample raises its error."""
    splitters = [prepared.splitter() for _ in range(prepared.call.sampling.n)]
    async for delta in deltas:
        if delta.finish is not None and delta.finish.type == "error":
            raise Context.error(delta)
        splitter = splitters[delta.index]
        parts = splitter.feed(delta.text)
        if delta.finish is not None:
            parts += splitter.close()
        yield delta, parts, splitter.calls > 0


async def prepare(
    context: Context,
    turn: Turn,
    sampling: SamplingParams,
    *,
    logprobs: LogprobOptions | None = None,
    stream: bool = False,
    salt: str | None = None,
    priority: int = 0,
) -> Prepared:
    """The call of a turn. Raises InvalidRequest for what the model or its template cannot do."""
    template = context.chat_template
    if template is None:
        raise Unsupported("this model has no chat template; use /v1/completions", param="messages")
    if not turn.messages:
        raise InvalidRequest("messages is empty; give at least one", param="messages")
    tools = () if turn.choice == "none" else turn.tools
    text = _rendered(template, turn, tools)
    sent = sampling.constraint
    form, forced = _tool_use(context, template, turn, tools, sent)
    if forced is not None:
        if sent is not None and (sent.kind, turn.choice) != ("json_schema", "auto"):
            raise Unsupported(
                f"{sent.kind} cannot be combined with tools that are demanded or strict",
                param="tools",
            )
        sampling = msgspec.structs.replace(sampling, constraint=forced)
    tags = _tags(context, text) if forced is None or turn.choice == "auto" else None
    marks = (*(form.marks + form.noise if isinstance(form, ToolFormat) else ()),)
    marks += (tags.begin, tags.end) if tags is not None else ()
    if any(context.engine.tokenizer.token_id(m) in context.engine.tokenizer.special_ids for m in marks):
        sampling = msgspec.structs.replace(sampling, skip_special_tokens=False)
    stops = (*sampling.stop, *(s for s in context.chat_stops if s not in sampling.stop))
    call = Generate(
        prompt=(TextSegment(text),),
        sampling=context.seeded(msgspec.structs.replace(sampling, stop=stops)),
        id="0",
        logprobs=logprobs,
        stream=stream,
        salt=salt or "",
        priority=priority,
    )
    context.check([call])
    try:
        tokens = len(await context.engine.ids_of(call))
    except TooLong as error:
        raise TooLong(error.message, param=turn.field) from None
    with naming({"max_new_tokens": turn.limit}), _text_named(sent):
        await context.engine.check_constraint(call)
    return Prepared(call, tokens, form, {t.name: t.schema for t in tools}, tags, turn.parallel)


@contextmanager
def _text_named(sent: Constraint | None) -> Iterator[None]:
    """What is said of a text's schema beside calls is said of the schema that was sent."""
    try:
        yield
    except InvalidRequest as error:
        schema = sent is not None and sent.kind == "json_schema"
        if not schema or error.param != "structural_tag" or "#/text" not in error.message:
            raise
        message = error.message.replace("structural_tag", "json_schema", 1).replace("#/text", "#", 1)
        raise type(error)(message, param="json_schema") from None


def _rendered(template: ChatTemplate, turn: Turn, tools: tuple[Tool, ...]) -> str:
    messages = [dict(m) for m in turn.messages]
    documents = [t.document for t in tools]
    if "developer" not in template.source:
        for message in messages:
            if message["role"] == "developer":
                message["role"] = "system"
    talks = any("tool_calls" in m or m["role"] == "tool" for m in messages)
    if (documents or talks) and "tools" not in template.source:
        messages, documents = described(messages, documents), []
    proceed = turn.proceed
    if proceed is None:
        proceed = messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls")
    return template.render(
        messages, tools=documents or None, continue_final_message=proceed, **_options(turn.options)
    )


def _options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Raises InvalidRequest for what would be more than a switch of the template."""
    for name, value in options.items():
        if not _OPTION.fullmatch(name) or name in _RESERVED:
            raise InvalidRequest(
                f"chat_template_kwargs has {name!r}, which is not an option of a template",
                param="chat_template_kwargs",
            )
        if not isinstance(value, bool | str | None) and not (
            isinstance(value, int | float) and abs(value) < 1e6
        ):
            raise InvalidRequest(
                f"chat_template_kwargs.{name} must be true, false, a text or a number below 1e6",
                param="chat_template_kwargs",
            )
    return dict(options)


def _tool_use(
    context: Context, template: ChatTemplate, turn: Turn, tools: tuple[Tool, ...], wanted: Constraint | None
) -> tuple[ToolFormat | str | None, Constraint | None]:
    """How calls are read, and what the answer must match if that is not up to the model. `wanted`: what a text is to match; where it
    is a schema, the model may call instead."""
    if not tools:
        return None, None
    schemas = {t.name: t.schema for t in tools}
    if turn.choice == "named":
        assert turn.named is not None
        return turn.named, Constraint("json_schema", json.dumps(schemas[turn.named], ensure_ascii=False))
    if turn.choice == "required":
        return Forced(), Constraint("json_schema", schema_of_calls(schemas, several=turn.parallel))
    form = context.tool_format or format_of_template(template.source if "tools" in template.source else "")
    if wanted is not None and wanted.kind == "json_schema":
        return form, _text_or_calls(form, tools, wanted.source)
    if not any(t.strict for t in tools):
        return form, None
    structures, triggers = [], []
    for tool in tools:
        found = form.structure(tool.name)
        if found is None:
            raise Unsupported(
                f"strict tools are not supported with calls in the format {form.name}; leave strict out, or demand a "
                "call with tool_choice",
                param="tools",
            )
        triggers.append(found[0])
        structures.append({"begin": found[1], "schema": _arguments(tool), "end": found[2]})
    tag = {"type": "structural_tag", "triggers": sorted(set(triggers)), "structures": structures}
    return form, Constraint("structural_tag", json.dumps(tag, ensure_ascii=False))


def _arguments(tool: Tool) -> Mapping[str, Any]:
    return tool.schema if tool.strict else {"type": "object"}


def _text_or_calls(form: ToolFormat, tools: tuple[Tool, ...], schema: str) -> Constraint | None:
    """A text of the schema, or calls. None: only the text, since calls of this format cannot be told from one as it is written.
    Raises Unsupported for strict tools then."""
    try:
        text = json.loads(schema)
    except ValueError:  # refused where it is compiled
        return None
    structures: list[dict[str, Any]] = []
    for tool in tools:
        found = form.alone(tool.name)
        if found is None and any(t.strict for t in tools):
            raise Unsupported(
                f"strict tools with calls in the format {form.name} cannot be combined with a schema of the text; leave strict or "
                "the schema out",
                param="tools",
            )
        if found is None:
            return None
        structures.append({"begin": found[0], "schema": _arguments(tool), "end": found[1]})
    triggers = sorted({s["begin"][:1] for s in structures})
    tag = {"type": "structural_tag", "triggers": triggers, "structures": structures, "text": text}
    return Constraint("structural_tag", json.dumps(tag, ensure_ascii=False))


def _tags(context: Context, prompt: str) -> ReasoningTags | None:
    """The tags of the model's reasoning, as the prompt leaves them."""
    tags = context.reasoning_tags
    if tags is None:
        return None
    end = prompt.rstrip()
    if end.endswith(tags.end):  # the template closed an empty one: this turn goes without
        return None
    return ReasoningTags(tags.begin, tags.end, opened=tags.opened or end.endswith(tags.begin))


# -- reading OpenAI's form ----------------------------------------------------------------------------------


def read_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose content is text, arguments of calls as objects. Raises InvalidRequest, naming the place."""
    out = []
    for i, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str):
            raise InvalidRequest(f"messages[{i}] has no role", param=f"messages[{i}].role")
        if role not in _ROLES:
            raise InvalidRequest(
                f"messages[{i}] has the role {role!r}; roles are {', '.join(_ROLES)}",
                param=f"messages[{i}].role",
            )
        calls = message.get("tool_calls") if role == "assistant" else None
        if content is None and (calls or role == "assistant"):
            content = ""
        one: dict[str, Any] = {"role": role, "content": read_text(content, f"messages[{i}]")}
        if calls:
            one["tool_calls"] = _read_calls(calls, f"messages[{i}].tool_calls")
        if role == "tool":
            if not isinstance(message.get("tool_call_id"), str):
                raise InvalidRequest(
                    f"messages[{i}] is a tool's result but has no tool_call_id; give the id of the call",
                    param=f"messages[{i}].tool_call_id",
                )
            one["tool_call_id"] = message["tool_call_id"]
        for name in ("name", "reasoning_content"):
            if isinstance(message.get(name), str):
                one[name] = message[name]
        out.append(one)
    return out


def read_text(content: Any, where: str) -> str:
    """Text, or parts that are text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(f"{where}.content must be text", param=f"{where}.content")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        text = part.get(kind if kind == "refusal" else "text") if isinstance(part, dict) else None
        if kind not in ("text", "refusal", "input_text", "output_text") or not isinstance(text, str):
            raise Unsupported(
                f"{where} has a part of type {kind!r}, but this model takes only text", param="messages"
            )
        texts.append(text)
    return "".join(texts)


def _read_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise InvalidRequest(f"{where} must be a list", param=where)
    out = []
    for i, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        arguments = function.get("arguments") if isinstance(function, dict) else None
        if not isinstance(name, str) or not isinstance(arguments, str):
            raise InvalidRequest(
                f"{where}[{i}] must have function.name and function.arguments as text", param=f"{where}[{i}]"
            )
        out.append(past_call(str(call.get("id")), name, arguments, f"{where}[{i}].function.arguments"))
    return out


def past_call(id: str, name: str, arguments: str, where: str) -> dict[str, Any]:
    """A call that the assistant made before, as chat templates expect it."""
    try:
        value = parse(arguments or "{}")
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InvalidRequest(f"{where} is not the JSON text of an object", param=where)
    return {"id": id, "type": "function", "function": {"name": name, "arguments": value}}


def check_tools(tools: Sequence[Tool], named: str | None) -> None:
    """Raises InvalidRequest for tools that cannot be told apart, and a choice that is none of them."""
    if len(tools) > MAX_TOOLS:
        raise InvalidRequest(f"there are {len(tools)} tools; give at most {MAX_TOOLS}", param="tools")
    names = [t.name for t in tools]
    for i, name in enumerate(names):
        if not _NAME.fullmatch(name):
            raise InvalidRequest(
                f"tools[{i}] is called {name!r}; names are 1 to 128 letters, digits, '_', '-' and '.'",
                param="tools",
            )
        if name in names[:i]:
            raise InvalidRequest(f"two tools are called {name!r}", param="tools")
    if named is not None and named not in names:
        raise InvalidRequest(f"tool_choice names {named!r}, which is none of the tools", param="tool_choice")
