"""Clients write out what their callers did not set: null is as good as left out, for every field of every API."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from runtime.server import bodies
from runtime.server.launch import ServerProcess
from runtime.server.messages import CountBody, MessagesBody
from runtime.server.responses import ResponsesBody
from tests.server.calls import call

USER = {"messages": [{"role": "user", "content": "Tell me about Spain."}]}
CASES: dict[str, tuple[type[msgspec.Struct], dict[str, Any]]] = {
    "/v1/completions": (bodies.CompletionBody, {"prompt": "The capital of", "seed": 3}),
    "/v1/chat/completions": (bodies.ChatBody, {**USER, "seed": 3, "max_tokens": 8}),
    "/v1/responses": (ResponsesBody, {"input": "Hello", "seed": 3, "max_output_tokens": 8}),
    "/v1/messages": (MessagesBody, {**USER, "model": "tiny", "max_tokens": 8, "seed": 3}),
    "/v1/messages/count_tokens": (CountBody, {**USER, "model": "tiny"}),
    "/generate": (bodies.GenerateBody, {"text": "The capital", "sampling_params": {"seed": 3}}),
    "/tokenize": (bodies.TokenizeBody, {"text": "The capital"}),
    "/detokenize": (bodies.DetokenizeBody, {"tokens": [300, 301]}),
}
OF_ONE_ANSWER = ("id", "created", "created_at", "usage", "meta_info")


def said(answer: dict[str, Any]) -> str:
    """What an answer says, without what is another for each."""
    kept = {k: v for k, v in answer.items() if k not in OF_ONE_ANSWER}
    for item in kept.get("output", ()):
        item.pop("id")
    return repr(kept)


@pytest.mark.parametrize("path", CASES)
def test_null_is_as_good_as_left_out(server: ServerProcess, path: str) -> None:
    type_, given = CASES[path]
    optional = [f.name for f in msgspec.structs.fields(type_) if not f.required and f.name not in given]
    assert optional
    _, plain, _ = call(server.url + path, given)
    status, answer, _ = call(server.url + path, {**dict.fromkeys(optional), **given})
    assert status == 200, answer
    assert said(answer) == said(plain)


def test_null_is_no_embedding_format_of_its_own(server: ServerProcess) -> None:
    fields = {"encoding_format": None, "dimensions": None, "user": None, "priority": None}
    _, answer, _ = call(f"{server.url}/v1/embeddings", {"input": "a", **fields})
    assert "--is-embedding" in answer["error"]["message"]  # read, and refused for what the model is


def test_null_options_of_streams(server: ServerProcess) -> None:
    body = {"prompt": "a", "stream_options": {"include_usage": None, "include_obfuscation": None}}
    assert call(f"{server.url}/v1/completions", {**body, "stream": True})[0] == 200
    body["stream_options"] = {"include_use": True}  # type: ignore[dict-item]
    status, answer, _ = call(f"{server.url}/v1/completions", {**body, "stream": True})
    assert status == 400 and "include_use" in answer["error"]["message"]
