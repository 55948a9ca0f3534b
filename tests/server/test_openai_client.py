"""The real `openai` package against `runtime serve`: sync, async, streams, errors."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

from runtime.server.launch import ServerProcess

QUESTION = [{"role": "user", "content": "What is the capital of Spain?"}]
ANSWER = "The capital of Spain is Madrid."


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_models(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list().data] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.models.retrieve("nope")


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=QUESTION, temperature=0, logprobs=True, top_logprobs=2, n=2
    )
    assert [c.message.content for c in answer.choices] == [ANSWER, ANSWER]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == 2 * 8 and answer.usage.prompt_tokens == 15
    content = answer.choices[0].logprobs.content
    assert "".join(t.token for t in content).startswith(ANSWER) and len(content[0].top_logprobs) == 2
    assert content[0].token == content[0].top_logprobs[0].token


def test_chat_stream(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=QUESTION,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == ANSWER
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens == 8 and not chunks[-1].choices


def test_conversation_system_and_parts(client: openai.OpenAI) -> None:
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is the capital of "},
                {"type": "text", "text": "Japan?"},
            ],
        },
        {"role": "assistant", "content": "The capital of Japan is Tokyo."},
        {"role": "user", "content": "List two sights there."},
    ]
    answer = client.chat.completions.create(model="tiny", messages=messages, temperature=0)
    assert "Tokyo Tower" in answer.choices[0].message.content


def test_the_last_assistant_message_is_continued(client: openai.OpenAI) -> None:
    messages = [*QUESTION, {"role": "assistant", "content": "The capital of"}]
    answer = client.chat.completions.create(model="tiny", messages=messages, temperature=0)
    assert answer.choices[0].message.content == " Spain is Madrid."
    answer = client.chat.completions.create(
        model="tiny", messages=messages, temperature=0, extra_body={"continue_final_message": False}
    )
    assert answer.usage.prompt_tokens > 18 and answer.choices[0].message.content != " Spain is Madrid."


def test_json_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"capital": {"enum": ["Paris", "Rome"]}, "big": {"type": "boolean"}},
        "required": ["capital", "big"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "What is the capital of Italy?"}],
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": schema, "strict": True},
        },
    )
    record = json.loads(answer.choices[0].message.content)
    assert set(record) == {"capital", "big"} and record["capital"] in ("Paris", "Rome")


def test_completions(client: openai.OpenAI) -> None:
    prompts = ["Q: What is the capital of Japan?\nA:", "12 + 35 ="]
    answer = client.completions.create(model="tiny", prompt=prompts, temperature=0, stop="\n", max_tokens=16)
    assert [c.text for c in answer.choices] == [" The capital of Japan is Tokyo.", " 47"]
    assert [c.index for c in answer.choices] == [0, 1]
    echoed = client.completions.create(
        model="tiny", prompt="12 + 35 =", temperature=0, stop="\n", max_tokens=8, echo=True, logprobs=1
    )
    choice = echoed.choices[0]
    assert choice.text == "12 + 35 = 47" and choice.logprobs.token_logprobs[0] is None
    assert "".join(choice.logprobs.tokens).startswith("12 + 35 = 47")
    assert (
        len(choice.logprobs.tokens) == len(choice.logprobs.text_offset) == len(choice.logprobs.token_logprobs)
    )


def test_completions_of_token_ids_and_streams(client: openai.OpenAI, server: ServerProcess) -> None:
    import urllib.request

    body = json.dumps({"text": "12 + 35 ="}).encode()
    request = urllib.request.Request(f"{server.url}/tokenize", body, {"Content-Type": "application/json"})
    ids = json.load(urllib.request.urlopen(request))["tokens"]
    for prompt in (ids, [ids]):
        answer = client.completions.create(
            model="tiny", prompt=prompt, temperature=0, stop="\n", max_tokens=8
        )
        assert answer.choices[0].text == " 47"
    stream = client.completions.create(
        model="tiny",
        prompt=["12 + 35 =", "The capital of Peru is"],
        temperature=0,
        stop="\n",
        max_tokens=8,
        stream=True,
    )
    texts = {0: "", 1: ""}
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts[0] == " 47" and texts[1].startswith(" Lima.")


def test_seeds_and_samples(client: openai.OpenAI) -> None:
    def texts(seed: int) -> list[str]:
        answer = client.completions.create(
            model="tiny", prompt="Tell me", max_tokens=12, n=3, temperature=1.5, seed=seed
        )
        return [c.text for c in answer.choices]

    assert texts(1) == texts(1) != texts(2)
    assert len(set(texts(1))) > 1


async def test_async_and_concurrent(server: ServerProcess) -> None:
    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    names = ["France", "Italy", "Japan", "Peru", "Kenya", "Spain"] * 4
    answers = await asyncio.gather(
        *(
            client.chat.completions.create(
                model="tiny",
                temperature=0,
                messages=[{"role": "user", "content": f"What is the capital of {n}?"}],
            )
            for n in names
        )
    )
    for name, answer in zip(names, answers, strict=True):
        assert answer.choices[0].message.content.startswith(f"The capital of {name} is ")


@pytest.mark.parametrize(
    ("fields", "error", "param", "message"),
    [
        ({"model": "gpt-9"}, openai.NotFoundError, "model", "does not exist"),
        ({"temperature": -1}, openai.BadRequestError, "temperature", "at least 0"),
        ({"top_p": 0}, openai.BadRequestError, "top_p", "above 0"),
        ({"max_tokens": -3}, openai.BadRequestError, "max_tokens", "at least 0"),
        ({"n": 0}, openai.BadRequestError, "n", "between 1 and 128"),
        ({"logit_bias": {"x": 1}}, openai.BadRequestError, "logit_bias", "token ids"),
        ({"logit_bias": {"999999": 1}}, openai.BadRequestError, None, "outside the vocabulary"),
        ({"messages": []}, openai.BadRequestError, "messages", "empty"),
        ({"messages": [{"content": "x"}]}, openai.BadRequestError, "messages[0].role", "no role"),
        ({"messages": [{"role": "user", "content": "a " * 9000}]}, openai.BadRequestError, "messages", "9"),
        (
            {"tools": [{"type": "function"}]},
            openai.BadRequestError,
            "tools[0].function",
            "tools[0] has no function",
        ),
        ({"tools": [{"type": "web_search"}]}, openai.BadRequestError, "tools[0]", "only functions"),
        ({"tool_choice": "required"}, openai.BadRequestError, "tool_choice", "no tools"),
        ({"stream_options": {"include_usage": True}}, openai.BadRequestError, "stream_options", "stream"),
        ({"modalities": ["audio"]}, openai.BadRequestError, "modalities", "text alone"),
        ({"functions": [{"name": "f"}]}, openai.BadRequestError, "functions", "tools"),
        (
            {"messages": [{"role": "king", "content": "x"}]},
            openai.BadRequestError,
            "messages[0].role",
            "'king'",
        ),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            openai.BadRequestError,
            "messages[0].tool_call_id",
            "id",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}],
                    }
                ]
            },
            openai.BadRequestError,
            "messages",
            "only text",
        ),
        (
            {"extra_body": {"chat_template_kwargs": {"messages": 1}}},
            openai.BadRequestError,
            "chat_template_kwargs",
            "messages",
        ),
        ({"extra_body": {"regex": "("}}, openai.BadRequestError, "regex", "regex"),
        ({"extra_body": {"temprature": 1}}, openai.BadRequestError, "temprature", "temprature"),
        (
            {"stream": True, "extra_body": {"stream_options": {"usage": True}}},
            openai.BadRequestError,
            "stream_options.usage",
            "unknown field",
        ),
        ({"top_logprobs": 2}, openai.BadRequestError, "top_logprobs", "needs logprobs"),
    ],
)
def test_bad_requests_are_named_and_the_server_goes_on(
    client: openai.OpenAI, fields: dict, error: type[openai.APIStatusError], param: str | None, message: str
) -> None:
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{"model": "tiny", "messages": QUESTION, "temperature": 0, **fields})
    body = caught.value.body
    assert set(body) == {"message", "type", "param", "code"} and message in body["message"]
    assert param is None or body["param"] == param
    answer = client.chat.completions.create(model="tiny", messages=QUESTION, temperature=0)
    assert answer.choices[0].message.content == ANSWER


def test_each_prompt_may_keep_its_stop_string_or_not(client: Any) -> None:
    fields: dict[str, Any] = {"temperature": 0, "max_tokens": 8, "stop": ["7"]}
    create = client.completions.create
    prompts = ["12 + 35 =", "12 + 35 ="]
    answer = create(model="tiny", prompt=prompts, **fields, extra_body={"no_stop_trim": [True, False]})
    assert [c.text for c in answer.choices] == [" 47", " 4"]
    with pytest.raises(openai.BadRequestError, match="a list of 1 values, but there are 2 prompts"):
        create(model="tiny", prompt=prompts, extra_body={"no_stop_trim": [True]})


def test_streamed_log_probabilities_come_with_their_text(client: Any) -> None:
    chunks = client.chat.completions.create(
        model="tiny", messages=QUESTION, temperature=0, max_tokens=6, stream=True, logprobs=True
    )
    first, *middle, last = chunks
    assert first.choices[0].logprobs is None and last.choices[0].logprobs is None
    assert last.choices[0].finish_reason == "length" and last.choices[0].delta.content is None
    for chunk in middle:
        told = chunk.choices[0]
        assert "".join(t.token for t in told.logprobs.content) == told.delta.content
    assert len(middle) == 6


def test_the_model_was_created_when_the_server_was_started(client: Any) -> None:
    assert client.models.retrieve("tiny").created == client.models.list().data[0].created
