"""A budget that no text of the constraint fits in is refused by the name that it was sent under."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.server.launch import ServerProcess
from tests.server.calls import call

WORD = {"enum": ["a long and winding road to Madrid"]}
FORM = {"type": "json_schema", "name": "road", "schema": WORD, "strict": True}
SAYS = [{"role": "user", "content": "Hi"}]
CHAT = {"messages": SAYS, "response_format": {"type": "json_schema", "json_schema": FORM}}
MESSAGES = {
    "messages": SAYS,
    "output_config": {"format": {"type": "json_schema", "schema": WORD}},
}
CASES: list[tuple[str, str, dict[str, Any]]] = [
    (
        "/generate",
        "max_new_tokens",
        {"text": "Hi", "sampling_params": {"regex": "a{30}", "max_new_tokens": 2}},
    ),
    ("/v1/completions", "max_tokens", {"prompt": "Hi", "regex": "a{30}", "max_tokens": 2}),
    ("/v1/chat/completions", "max_tokens", {**CHAT, "max_tokens": 2}),
    ("/v1/chat/completions", "max_completion_tokens", {**CHAT, "max_completion_tokens": 2}),
    ("/v1/responses", "max_output_tokens", {"input": "Hi", "text": {"format": FORM}, "max_output_tokens": 2}),
    ("/v1/messages", "max_tokens", {**MESSAGES, "max_tokens": 2}),
]


@pytest.mark.parametrize(("path", "field", "body"), CASES, ids=[f"{p} {f}" for p, f, _ in CASES])
def test_small_budgets_name_the_field_that_was_sent(
    server: ServerProcess, path: str, field: str, body: dict[str, Any]
) -> None:
    if path != "/generate":
        body = {"model": call(f"{server.url}/v1/models")[1]["data"][0]["id"], **body}
    status, answer, _ = call(f"{server.url}{path}", body)
    message = answer["error"]["message"]
    assert status == 400 and message.startswith(f"{field} is 2 but the shortest text of the constraint takes")
    assert f"raise {field} to at least" in message and message.count("max_") == 2
    assert answer["error"].get("param", field) == field


@pytest.mark.parametrize(
    ("field", "more"), [("max_tokens", {}), ("max_completion_tokens", {"max_tokens": 5})], ids=str
)
def test_a_limit_that_is_no_limit_is_named_too(
    server: ServerProcess, field: str, more: dict[str, int]
) -> None:
    body = {"messages": SAYS, **more, field: -1, "model": call(f"{server.url}/v1/models")[1]["data"][0]["id"]}
    status, answer, _ = call(f"{server.url}/v1/chat/completions", body)
    assert status == 400 and answer["error"]["param"] == field
    assert answer["error"]["message"].startswith(field)
