"""The shapes of JSON answers, for the OpenAPI document and for tests that hold answers against them.

Handlers build dictionaries, which cost less than structs; what is optional here is what they leave out.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from aiohttp import web


def as_json(value: Any, status: int = 200) -> web.Response:
    """An answer of structs, or one that is large: faster than aiohttp's own way."""
    return web.Response(body=msgspec.json.encode(value), content_type="application/json", status=status)


class Generated(msgspec.Struct):
    """/generate, for each sample. `meta_info` has the id, the reason of the end, token counts and log-probabilities."""

    text: str
    meta_info: dict[str, Any]
    index: int


class ModelInfo(msgspec.Struct):
    model_path: str
    is_generation: bool
    chat_template: str | None


class KVCache(msgspec.Struct):
    """`used_tokens` are held by running requests; `cached_tokens` can be reused or evicted."""

    used_tokens: int
    cached_tokens: int
    total_tokens: int


class ServerInfo(msgspec.Struct):
    """The server's options are there as well, each under its own name."""

    kv_cache: KVCache
    num_running_reqs: int
    num_waiting_reqs: int
    context_length: int
    vocab_size: int
    model_path: str


class Flushed(msgspec.Struct):
    flushed: bool


class Updated(msgspec.Struct):
    success: bool
    message: str


class Aborted(msgspec.Struct):
    aborted: str


class Tokens(msgspec.Struct):
    tokens: list[int]
    count: int


class Text(msgspec.Struct):
    text: str


class PromptTokensDetails(msgspec.Struct):
    cached_tokens: int


class CompletionTokensDetails(msgspec.Struct):
    reasoning_tokens: int


class TokenUsage(msgspec.Struct, omit_defaults=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | None = None


class CompletionLogprobs(msgspec.Struct):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None


class Completion(msgspec.Struct):
    """/v1/completions; a stream has the same shape, piece by piece."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    seed: int
    choices: list[CompletionChoice]
    usage: TokenUsage


class CalledFunction(msgspec.Struct):
    """`arguments` is the JSON text of an object."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct):
    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(msgspec.Struct, omit_defaults=True):
    role: str
    content: str | None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(msgspec.Struct):
    index: int
    message: ChatMessage
    logprobs: dict[str, Any] | None
    finish_reason: str | None


class ChatCompletion(msgspec.Struct):
    """/v1/chat/completions; a stream sends chunks with `delta` in place of `message`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    seed: int
    choices: list[ChatChoice]
    usage: TokenUsage


class Encoded(msgspec.Struct):
    """/encode and /judge, for each prompt: its embedding, or its scores. `meta_info` has the id and token counts."""

    embedding: list[float]
    meta_info: dict[str, Any]
    index: int


class Embedding(msgspec.Struct):
    """`embedding` is the base64 text of little-endian float32 if that was asked for."""

    object: Literal["embedding"]
    embedding: list[float] | str
    index: int


class EmbeddingUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Embeddings(msgspec.Struct):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class Model(msgspec.Struct):
    id: str
    object: Literal["model"]
    type: Literal["model"]
    display_name: str
    created: int
    created_at: str
    lifecycle: Literal["active"]
    owned_by: str
    root: str
    max_model_len: int
    max_input_tokens: int


class Models(msgspec.Struct):
    object: Literal["list"]
    data: list[Model]
    first_id: str
    last_id: str
    has_more: bool
