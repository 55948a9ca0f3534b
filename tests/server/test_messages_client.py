"""The real `anthropic` package against `runtime serve`: sync, async, streams, tools, errors."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest

from runtime.server.launch import ServerProcess
from tests.server.calls import call

QUESTION = [{"role": "user", "content": "What is the capital of Spain?"}]
ANSWER = "The capital of Spain is Madrid."
GREEDY = {"temperature": 0}
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)


def ask(client: anthropic.Anthropic, **fields: Any) -> Any:
    body = {"temperature": fields.pop("temperature", 0)}  # the package no longer has the parameter
    given = {"model": "tiny", "max_tokens": 32, "messages": QUESTION, "extra_body": body, **fields}
    return client.messages.create(**given)


def test_a_message(client: anthropic.Anthropic) -> None:
    answer = ask(client)
    assert answer.type == "message" and answer.role == "assistant" and answer.id.startswith("msg_")
    (block,) = answer.content
    assert block.type == "text" and block.text == ANSWER
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    usage = answer.usage
    assert usage.output_tokens == 8 and usage.input_tokens + usage.cache_read_input_tokens == 15
    again = ask(client)
    assert again.usage.cache_read_input_tokens == 14 and again.usage.input_tokens == 1
    assert answer.system_fingerprint == again.system_fingerprint


def test_models(client: anthropic.Anthropic) -> None:
    page = client.models.list()
    (found,) = page
    assert not page.has_more and found.display_name == "tiny" and found.created_at.tzinfo is not None
    assert client.models.retrieve(found.id) == found and found.max_input_tokens and found.type == "model"


def test_why_it_stopped(client: anthropic.Anthropic) -> None:
    assert ask(client, max_tokens=2).stop_reason == "max_tokens"
    answer = ask(client, stop_sequences=[" is", "x"])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", " is")
    assert answer.content[0].text == "The capital of Spain"


def test_system_blocks_and_a_prefilled_answer(client: anthropic.Anthropic) -> None:
    answer = ask(
        client,
        system=[{"type": "text", "text": "You are a helpful assistant."}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "What is the capital of Spain?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "The capital of"}]},
        ],
    )
    assert answer.content[0].text.startswith(" Spain is Madrid.")


def test_a_stream_adds_up_to_the_message(client: anthropic.Anthropic) -> None:
    with client.messages.stream(
        model="tiny", max_tokens=32, messages=QUESTION, extra_body=GREEDY, stop_sequences=["x"]
    ) as stream:
        kinds = [e.type for e in stream]
        final = stream.get_final_message()
    assert final.content[0].text == ANSWER and final.stop_reason == "end_turn"
    assert final.usage.output_tokens == 8
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop" and "text" in kinds
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 1


def test_tools_whole_and_streamed(client: anthropic.Anthropic) -> None:
    for choice in (
        {"type": "any", "disable_parallel_tool_use": True},
        {"type": "tool", "name": "get_weather"},
    ):
        answer = ask(client, tools=[WEATHER], tool_choice=choice, max_tokens=64)
        (block,) = answer.content
        assert block.type == "tool_use" and block.name == "get_weather" and block.id.startswith("toolu_")
        assert block.input["city"] in ("Paris", "Rome") and answer.stop_reason == "tool_use"
        with client.messages.stream(
            model="tiny",
            max_tokens=64,
            messages=QUESTION,
            extra_body=GREEDY,
            tools=[WEATHER],
            tool_choice=choice,
        ) as stream:
            final = stream.get_final_message()
        assert final.content[0].input == block.input and final.stop_reason == "tool_use"
    later = [
        *QUESTION,
        {"role": "assistant", "content": [b.model_dump() for b in answer.content]},
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": block.id,
                    "content": [{"type": "text", "text": "Sunny"}],
                },
                {"type": "text", "text": "So?"},
            ],
        },
    ]
    assert ask(client, messages=later, tools=[WEATHER]).content[0].type == "text"
    assert ask(client, tools=[WEATHER], tool_choice={"type": "none"}).content[0].text == ANSWER


def test_an_answer_of_a_schema(client: anthropic.Anthropic) -> None:
    form = {"type": "json_schema", "schema": {"enum": ["Madrid", "Rome"]}}
    answer = ask(client, output_config={"format": form, "effort": "low"}, cache_control={"type": "ephemeral"})
    assert answer.content[0].text in ('"Madrid"', '"Rome"')


def test_tokens_are_counted(client: anthropic.Anthropic) -> None:
    assert client.messages.count_tokens(model="tiny", messages=QUESTION).input_tokens == 15


async def test_async(server: ServerProcess) -> None:
    client = anthropic.AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0)
    answer = await client.messages.create(model="tiny", max_tokens=32, messages=QUESTION, extra_body=GREEDY)
    assert answer.content[0].text == ANSWER
    text = ""
    async with client.messages.stream(
        model="tiny", max_tokens=32, messages=QUESTION, extra_body=GREEDY
    ) as stream:
        async for piece in stream.text_stream:
            text += piece
    assert text == ANSWER


@pytest.mark.parametrize(
    ("fields", "error", "param"),
    [
        ({"model": "claude-9"}, anthropic.NotFoundError, "model"),
        ({"max_tokens": 0}, anthropic.BadRequestError, "max_tokens"),
        ({"temperature": -1}, anthropic.BadRequestError, "temperature"),
        ({"stop_sequences": [""]}, anthropic.BadRequestError, "stop_sequences"),
        ({"messages": []}, anthropic.BadRequestError, "messages"),
        ({"tool_choice": {"type": "any"}}, anthropic.BadRequestError, "tool_choice"),
        ({"tools": [WEATHER, WEATHER]}, anthropic.BadRequestError, "tools"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, anthropic.BadRequestError, "tools"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "x"}}]}
                ]
            },
            anthropic.BadRequestError,
            "messages[0].content",
        ),
    ],
)
def test_refusals(
    client: anthropic.Anthropic, fields: dict[str, Any], error: type[anthropic.APIStatusError], param: str
) -> None:
    with pytest.raises(error) as caught:
        ask(client, **fields)
    assert caught.value.body["error"]["param"] == param
    body = caught.value.body
    assert body["type"] == "error" and body["request_id"] == caught.value.request_id
    assert body["error"]["type"] == ("not_found_error" if param == "model" else "invalid_request_error")
    assert set(body["error"]) == {"message", "type", "param", "code"}


def test_a_body_without_max_tokens(server: ServerProcess) -> None:
    status, answer, _ = call(f"{server.url}/v1/messages", {"model": "tiny", "messages": QUESTION})
    assert status == 400 and answer["error"]["param"] == "max_tokens" and answer["type"] == "error"


def test_answers_have_an_id_where_the_client_looks(
    client: anthropic.Anthropic, server: ServerProcess
) -> None:
    assert ask(client)._request_id
    _, _, headers = call(f"{server.url}/v1/messages", {}, **{"X-Request-Id": "mine"})
    assert headers["request-id"] == headers["X-Request-Id"] == "mine"
    status, answer, _ = call(f"{server.url}/v1/messages", method="GET")
    assert status == 405 and answer["type"] == "error"
    status, answer, headers = call(f"{server.url}/v1/models/nope")
    assert "type" not in answer and "request-id" not in headers
