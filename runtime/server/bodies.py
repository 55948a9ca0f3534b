"""Typed request bodies, and how they are read."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, TypeVar

import msgspec
from aiohttp import web

from runtime.engine.native import sampling_schema
from runtime.errors import EngineError, InvalidRequest

T = TypeVar("T")
if TYPE_CHECKING:
    OrNull = Annotated[T, "null stands for the default"]
else:
    OrNull = Optional


class NotJson(EngineError):
    status = 415
    code = "unsupported_media_type"


async def read(request: web.Request, type_: type[T]) -> T:
    """The JSON body as `type_`. Raises InvalidRequest that names the field, NotJson for another content type."""
    if request.content_type != "application/json":
        raise NotJson(f"the content type is {request.content_type!r}; send application/json")
    data = await request.read()
    try:
        return msgspec.json.decode(data, type=type_)
    except msgspec.ValidationError as error:
        text = str(error)
        raise InvalidRequest(f"request body: {text}", param=_field_of(text)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None


def _field_of(text: str) -> str | None:
    """The field that a ValidationError is about: where it is, and what is missing or unknown there."""
    places = [text.partition("`$.")[2].partition("`")[0]]
    if found := re.search(r"(?:missing required|contains unknown) field `([^`]*)`", text):
        places.append(found[1])
    return ".".join(p for p in places if p) or None


@cache
def _defaults(type_: type[msgspec.Struct]) -> tuple[tuple[str, Any], ...]:
    """The fields that have a value when they are left out, and that value."""
    fields = msgspec.structs.fields(type_)
    return tuple((f.name, f.default) for f in fields if f.default not in (None, msgspec.NODEFAULT))


class Body(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A body in which null is as if the field were left out: clients write out what their callers did not set. A field that
    has a default says so with `OrNull`; for handlers it is never null."""

    def __post_init__(self) -> None:
        for name, default in _defaults(type(self)):
            if getattr(self, name) is None:
                setattr(self, name, default)


NativeSampling = Annotated[dict[str, Any], msgspec.Meta(extra_json_schema=sampling_schema())]


class GenerateBody(Body, kw_only=True, forbid_unknown_fields=True):
    """POST /generate. `sampling_params` and what follows it: one value for all prompts, or a list with one for each."""

    text: str | list[str] | None = None
    input_ids: list[int | list[int]] | None = None
    sampling_params: NativeSampling | list[NativeSampling] | None = None
    rid: str | list[str] | None = None
    return_logprob: bool | list[bool] | None = None
    logprob_start_len: int | list[int] | None = None
    top_logprobs_num: int | list[int] | None = None
    return_text_in_logprobs: OrNull[bool] = False
    stream: OrNull[bool] = False
    image_data: Any = None
    modalities: str | list[str] | None = None
    lora_path: str | list[str | None] | None = None
    cache_salt: str | None = None
    priority: OrNull[int] = 0


class StreamOptions(Body, kw_only=True):
    """`continuous_usage_stats` asks for the usage so far in every chunk, `include_obfuscation` for padding, of which there is
    none here."""

    include_usage: OrNull[bool] = False
    continuous_usage_stats: OrNull[bool] = False
    include_obfuscation: OrNull[bool] = False


class SamplingBody(Body, kw_only=True, forbid_unknown_fields=True):
    """What both OpenAI endpoints take. Fields that a client may send and that change nothing are accepted and named here;
    a field that would change the answer and is not supported is refused by name."""

    model: str | None = None
    frequency_penalty: OrNull[float] = 0.0
    presence_penalty: OrNull[float] = 0.0
    repetition_penalty: OrNull[float] = 1.0
    logit_bias: dict[str, float] | None = None
    n: OrNull[int] = 1
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: OrNull[bool] = False
    stream_options: StreamOptions | None = None
    temperature: OrNull[float] = 1.0
    top_p: OrNull[float] = 1.0
    top_k: OrNull[int] = -1
    min_p: OrNull[float] = 0.0
    min_tokens: OrNull[int] = 0
    stop_token_ids: list[int] | None = None
    ignore_eos: OrNull[bool] = False
    no_stop_trim: OrNull[bool] = False
    skip_special_tokens: OrNull[bool] = True
    spaces_between_special_tokens: OrNull[bool] = True
    cache_salt: str | None = None
    priority: OrNull[int] = 0
    regex: str | None = None
    ebnf: str | None = None
    json_schema: str | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None


class CompletionBody(SamplingBody, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/completions."""

    prompt: str | list[str | int | list[int]]
    no_stop_trim: OrNull[bool | list[bool]] = False  # type: ignore[assignment]  # or one for each prompt
    best_of: int | None = None
    echo: OrNull[bool] = False
    logprobs: int | None = None
    max_tokens: OrNull[int] = 16
    suffix: str | None = None


class ResponseFormat(msgspec.Struct, kw_only=True, omit_defaults=True):
    """`triggers`, `structures` and `text` belong to structural_tag (grammar/structural_tag.py)."""

    type: str
    json_schema: dict[str, Any] | None = None
    triggers: list[Any] | None = None
    structures: list[Any] | None = None
    text: Any = msgspec.UNSET


class ChatBody(SamplingBody, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]]
    logprobs: bool | None = False
    top_logprobs: int | None = 0
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    response_format: ResponseFormat | None = None
    continue_final_message: bool | None = None
    tools: list[dict[str, Any]] | None = None
    store: bool | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    separate_reasoning: OrNull[bool] = True
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    modalities: list[str] | None = None
    prediction: dict[str, Any] | None = None
    verbosity: str | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: str | dict[str, Any] | None = None


class EncodeBody(Body, kw_only=True, forbid_unknown_fields=True):
    """POST /encode."""

    text: str | list[str] | None = None
    input_ids: list[int | list[int]] | None = None
    rid: str | list[str] | None = None
    cache_salt: str | None = None
    priority: OrNull[int] = 0


class JudgeBody(Body, kw_only=True, forbid_unknown_fields=True):
    """POST /judge. `conv`: the messages of one conversation, or a list of conversations."""

    conv: list[dict[str, Any] | list[dict[str, Any]]]
    rid: str | list[str] | None = None
    cache_salt: str | None = None
    priority: OrNull[int] = 0


class EmbeddingBody(Body, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/embeddings."""

    input: str | list[str | int | list[int]]
    model: str | None = None
    encoding_format: OrNull[Literal["float", "base64"]] = "float"
    dimensions: int | None = None
    cache_salt: str | None = None
    priority: OrNull[int] = 0
    user: str | None = None


class TokenizeBody(Body, kw_only=True, forbid_unknown_fields=True):
    text: str | None = None
    prompt: str | None = None
    add_special_tokens: OrNull[bool] = True
    model: str | None = None


class DetokenizeBody(Body, kw_only=True, forbid_unknown_fields=True):
    tokens: list[int]
    skip_special_tokens: OrNull[bool] = True
    model: str | None = None


class WeightsBody(Body, kw_only=True, forbid_unknown_fields=True):
    """POST /update_weights."""

    model_path: str
    load_format: OrNull[str] = "auto"


class AbortBody(Body, kw_only=True, forbid_unknown_fields=True):
    rid: str
