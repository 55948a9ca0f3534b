"""/v1/responses with the real `openai` package."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from runtime.errors import NotFound
from runtime.server.kept_responses import Kept, Responses
from runtime.server.launch import ServerProcess

ANSWER = "The capital of Spain is Madrid."
QUESTION = "What is the capital of Spain?"
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    return client.responses.create(**{"model": "tiny", "input": QUESTION, "temperature": 0, **fields})


def test_text(client: openai.OpenAI) -> None:
    answer = ask(client, instructions=None, metadata={"a": "b"})
    assert answer.output_text == ANSWER and answer.status == "completed" and answer.metadata == {"a": "b"}
    assert answer.usage.output_tokens == 8 and answer.usage.input_tokens == 15
    assert ask(client).usage.input_tokens_details.cached_tokens == 14
    cut = ask(client, max_output_tokens=2)
    assert cut.status == "incomplete" and cut.incomplete_details.reason == "max_output_tokens"


def test_a_conversation_goes_on_and_is_forgotten(client: openai.OpenAI) -> None:
    first = ask(client, input="What is the capital of Japan?")
    second = ask(client, input="List two sights there.", previous_response_id=first.id)
    whole = ask(
        client,
        input=[
            {"role": "user", "content": "What is the capital of Japan?"},
            {"role": "assistant", "content": [{"type": "output_text", "text": first.output_text}]},
            {"role": "user", "content": [{"type": "input_text", "text": "List two sights there."}]},
        ],
    )
    assert second.output_text == whole.output_text and "Tokyo" in second.output_text
    assert client.responses.retrieve(first.id).output_text == first.output_text
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.NotFoundError):
        ask(client, previous_response_id=first.id)
    third = ask(client, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(third.id)


def test_a_stream_adds_up_to_the_response(client: openai.OpenAI) -> None:
    events = list(ask(client, stream=True))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert [e.type for e in events][:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == ANSWER
    assert events[-1].type == "response.completed" and events[-1].response.output_text == ANSWER
    assert client.responses.retrieve(events[-1].response.id).output_text == ANSWER
    with client.responses.stream(model="tiny", input=QUESTION, temperature=0) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == ANSWER


def test_tools_whole_streamed_and_answered(client: openai.OpenAI) -> None:
    fields = {"tools": [WEATHER], "tool_choice": {"type": "function", "name": "get_weather"}}
    answer = ask(client, **fields)
    (call,) = answer.output
    assert call.type == "function_call" and json.loads(call.arguments)["city"] in ("Paris", "Rome")
    events = list(ask(client, stream=True, **fields))
    deltas = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == call.arguments == events[-1].response.output[0].arguments
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."}
    last = ask(client, input=[result], previous_response_id=answer.id, tools=[WEATHER], max_output_tokens=8)
    assert last.output[0].type == "message"
    both = [{"role": "user", "content": QUESTION}, call.model_dump(exclude_none=True), result]
    assert ask(client, input=both, tools=[WEATHER], max_output_tokens=8).output_text == last.output_text


def told(tokens: Any) -> list[tuple[str, float]]:
    return [(t.token, t.logprob) for t in tokens]


def test_log_probabilities_of_the_text(client: openai.OpenAI) -> None:
    """Those of a chat, without the token that ends it; events tell them piece by piece."""
    asked: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    answer = ask(client, **asked)
    (content,) = answer.output[0].content
    assert answer.top_logprobs == 2 and content.text == ANSWER
    assert b"".join(bytes(t.bytes) for t in content.logprobs).decode() == ANSWER
    chat = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        logprobs=True,
        top_logprobs=2,
    )
    whole = chat.choices[0].logprobs
    assert whole is not None and whole.content is not None
    assert told(content.logprobs) == told(whole.content)[: len(content.logprobs)]
    for mine, other in zip(content.logprobs, whole.content, strict=False):
        assert told(mine.top_logprobs) == told(other.top_logprobs) and len(mine.top_logprobs) == 2
    with client.responses.stream(model="tiny", input=QUESTION, temperature=0, **asked) as stream:
        events = list(stream)
    pieces = [t for e in events if e.type == "response.output_text.delta" for t in e.logprobs]
    (done,) = (e for e in events if e.type == "response.output_text.done")
    assert told(pieces) == told(done.logprobs) == told(content.logprobs)
    assert told(events[-1].response.output[0].content[0].logprobs) == told(content.logprobs)
    assert ask(client, top_logprobs=1).output[0].content[0].logprobs
    assert ask(client).output[0].content[0].logprobs == []


def test_log_probabilities_beside_a_call(client: openai.OpenAI) -> None:
    answer = ask(client, tools=[WEATHER], tool_choice="required", top_logprobs=1)
    assert answer.output[0].type == "function_call"


def test_an_answer_of_a_schema(client: openai.OpenAI) -> None:
    form = {"type": "json_schema", "name": "x", "schema": {"enum": ["Madrid", "Rome"]}, "strict": True}
    assert ask(client, text={"format": form}).output_text in ('"Madrid"', '"Rome"')


async def test_async(server: ServerProcess) -> None:
    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    answer = await client.responses.create(model="tiny", input=QUESTION, temperature=0)
    assert answer.output_text == ANSWER


@pytest.mark.parametrize(
    ("fields", "error", "param"),
    [
        ({"model": "gpt-9"}, openai.NotFoundError, "model"),
        ({"previous_response_id": "resp_x"}, openai.NotFoundError, "previous_response_id"),
        ({"input": []}, openai.BadRequestError, "messages"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, openai.BadRequestError, "input[0].type"),
        ({"input": [{"role": "king", "content": "x"}]}, openai.BadRequestError, "input[0].role"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            openai.BadRequestError,
            "messages",
        ),
        ({"tools": [{"type": "web_search"}]}, openai.BadRequestError, "tools[0]"),
        ({"tool_choice": "required"}, openai.BadRequestError, "tool_choice"),
        ({"background": True}, openai.BadRequestError, "background"),
        ({"include": ["file_search_call.results"]}, openai.BadRequestError, "include"),
        ({"top_logprobs": 21}, openai.BadRequestError, "top_logprobs"),
        ({"max_output_tokens": -1}, openai.BadRequestError, "max_output_tokens"),
        ({"text": {"format": {"type": "xml"}}}, openai.BadRequestError, "response_format"),
    ],
)
def test_refusals(
    client: openai.OpenAI, fields: dict[str, Any], error: type[openai.APIStatusError], param: str
) -> None:
    with pytest.raises(error) as caught:
        ask(client, **fields)
    assert caught.value.param == param


def test_what_it_was_made_from_can_be_read_again(client: openai.OpenAI) -> None:
    talk = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "What is the capital of Spain?"},
    ]
    kept = ask(client, input=talk)
    found = list(client.responses.input_items.list(kept.id, limit=2, order="asc"))  # two pages
    assert [i.role for i in found] == ["user", "assistant", "user"] and len({i.id for i in found}) == 3
    newest = client.responses.input_items.list(kept.id, limit=1)
    assert newest.data[0].id == found[-1].id and newest.has_more
    (only,) = client.responses.input_items.list(ask(client, input="Hello").id).data
    assert only.role == "user" and only.content[0].text == "Hello"
    with pytest.raises(openai.BadRequestError, match="leave stream out"):
        client.responses.retrieve(kept.id, stream=True)
    with pytest.raises(openai.NotFoundError, match="no item"):
        client.responses.input_items.list(kept.id, after="msg_x")
    with pytest.raises(openai.NotFoundError):
        client.responses.input_items.list("resp_x")


def test_tokens_are_counted_before_they_are_sent(client: openai.OpenAI) -> None:
    first = ask(client, input="Hello", instructions="Be brief.")
    counted = client.responses.input_tokens.count(model="tiny", input="Hello", instructions="Be brief.")
    assert counted.object == "response.input_tokens" and counted.input_tokens == first.usage.input_tokens
    then = ask(client, input="And?", previous_response_id=first.id, tools=[WEATHER])
    counted = client.responses.input_tokens.count(
        model="tiny", input="And?", previous_response_id=first.id, tools=[WEATHER]
    )
    assert counted.input_tokens == then.usage.input_tokens


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Responses(3)
    for i in range(5):
        store.put(f"r{i}", Kept({"n": i}, [], []))
    assert [store.get(f"r{i}").response["n"] for i in (2, 3, 4)] == [2, 3, 4]
    monkeypatch.setattr("runtime.server.kept_responses.MAX_KEPT_BYTES", 1000)
    store.put("large", Kept({"text": "x" * 900}, [], []))
    assert store.get("large")
    with pytest.raises(NotFound, match="no longer kept"):
        store.get("r2")
