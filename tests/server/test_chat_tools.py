"""Tools, reasoning and templates of the chat API, with the real `openai` package.

The embedded model was not trained to call tools, so constraints make it: of tool_choice, or of a regex that is a call.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from runtime.server.launch import ServerProcess
from tests.server import calls

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
QUESTION = [{"role": "user", "content": "What is the weather in Rome?"}]
CALL = r"""Well\.\n<tool_call>\n\{"name": "get_weather", "arguments": \{"city": "(Paris|Rome)"\}\}\n</tool_call>"""


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    given = {"model": "tiny", "messages": QUESTION, "temperature": 0, "tools": [WEATHER, CLOCK], **fields}
    return client.chat.completions.create(**given)


def test_a_named_tool_is_called(client: openai.OpenAI) -> None:
    choice = {"type": "function", "function": {"name": "get_weather"}}
    (answer,) = ask(client, tool_choice=choice).choices
    (call,) = answer.message.tool_calls
    assert answer.finish_reason == "tool_calls" and answer.message.content is None
    assert call.function.name == "get_weather" and call.id.startswith("call_")
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")


def test_a_call_can_be_demanded_and_results_come_back(client: openai.OpenAI) -> None:
    (answer,) = ask(client, tool_choice="required", parallel_tool_calls=False, tools=[WEATHER]).choices
    (call,) = answer.message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": "Sunny."}
    later = [*QUESTION, answer.message.model_dump(exclude_none=True), result]
    (last,) = ask(client, messages=later, max_tokens=8).choices
    assert last.message.content and last.message.tool_calls is None


def test_the_choice_can_be_among_some_tools(client: openai.OpenAI) -> None:
    def some(mode: str, *names: str) -> Any:
        tools = [{"type": "function", "function": {"name": n}} for n in names]
        return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}

    for tool in (WEATHER, CLOCK):
        name = tool["function"]["name"]
        fields = {"tool_choice": some("required", name), "parallel_tool_calls": False, "max_tokens": 80}
        (answer,) = ask(client, **fields).choices
        assert [c.function.name for c in answer.message.tool_calls] == [name]
    for choice in (some("required", "nothing"), some("always", "get_weather"), some("auto")):
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, tool_choice=choice)
        assert caught.value.param == "tool_choice"


def test_calls_stream_and_are_those_of_the_whole_answer(client: openai.OpenAI) -> None:
    for fields in (
        {"tool_choice": "required", "tools": [WEATHER], "parallel_tool_calls": False},
        {"tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
        {"extra_body": {"regex": CALL}},
    ):
        (whole,) = ask(client, **fields).choices
        name, arguments, text, reasons = "", "", "", []
        for chunk in ask(client, stream=True, **fields):
            (choice,) = chunk.choices
            text += choice.delta.content or ""
            for call in choice.delta.tool_calls or ():
                name += call.function.name or ""
                arguments += call.function.arguments
            reasons.append(choice.finish_reason)
        (call,) = whole.message.tool_calls
        assert (name, arguments) == (call.function.name, call.function.arguments)
        assert text == (whole.message.content or "")
        assert reasons[-1] == whole.finish_reason == "tool_calls" and set(reasons[:-1]) == {None}


def test_a_call_in_the_models_own_format(client: openai.OpenAI) -> None:
    (answer,) = ask(client, extra_body={"regex": CALL}).choices
    assert answer.message.content == "Well."
    assert [c.function.name for c in answer.message.tool_calls] == ["get_weather"]
    two = CALL + r"\n" + CALL.removeprefix(r"Well\.\n")
    (answer,) = ask(client, extra_body={"regex": two}).choices
    assert len(answer.message.tool_calls) == 2
    assert len({c.id for c in answer.message.tool_calls}) == 2
    (answer,) = ask(client, parallel_tool_calls=False, extra_body={"regex": two}).choices
    assert len(answer.message.tool_calls) == 1 and answer.finish_reason == "tool_calls"
    chunks = ask(client, parallel_tool_calls=False, stream=True, extra_body={"regex": two})
    calls = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or ()]
    assert [c.function.name for c in calls if c.id] == ["get_weather"]
    assert "".join(c.function.arguments for c in calls) == answer.message.tool_calls[0].function.arguments
    (answer,) = ask(client, tool_choice="none", extra_body={"regex": CALL}).choices
    assert answer.message.tool_calls is None and "<tool_call>" in answer.message.content


@pytest.mark.parametrize("strict", [False, True])
def test_an_answer_of_a_schema_or_a_call(client: openai.OpenAI, server: ServerProcess, strict: bool) -> None:
    """Which of them it is, is the model's choice."""
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["Madrid", "Rome"]}}}
    tool = {"type": "function", "function": {**WEATHER["function"], "strict": strict}}
    (answer,) = ask(client, tools=[tool], response_format=form).choices
    assert answer.message.content in ('"Madrid"', '"Rome"') and answer.finish_reason == "stop"
    _, tokens, _ = calls.call(f"{server.url}/tokenize", {"text": "<tool_call>"})
    bias = {str(tokens["tokens"][0]): 100}
    fields = {"tools": [tool], "response_format": form, "logit_bias": bias, "max_tokens": 100}
    (answer,) = ask(client, **fields).choices
    made = answer.message.tool_calls[0].function
    assert answer.message.content is None and made.name == "get_weather"
    if strict:  # else the arguments are any object, which the bias fills
        assert answer.finish_reason == "tool_calls" and json.loads(made.arguments)["city"] in (
            "Paris",
            "Rome",
        )


def test_a_schema_beside_tools_is_named_as_it_was_sent(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "number", "minimum": "x"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(
        openai.BadRequestError, match="json_schema is refused: #/properties/a/minimum"
    ) as caught:
        ask(client, response_format=form)
    assert caught.value.param == "json_schema"


def test_strict_tools_are_constrained_where_they_begin(client: openai.OpenAI) -> None:
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    (answer,) = ask(client, tools=[strict], max_tokens=8).choices  # free text, as the model knows no tools
    assert answer.message.content
    with pytest.raises(openai.BadRequestError, match="cannot be combined"):
        ask(client, tools=[strict], extra_body={"regex": "a"})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]}, None),
        ({"tools": [CLOCK] * 200}, "tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "nope"}}}, "tool_choice"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        (
            {
                "messages": [
                    *QUESTION,
                    {
                        "role": "assistant",
                        "tool_calls": [
                            {"id": "x", "type": "function", "function": {"name": "f", "arguments": "{"}}
                        ],
                    },
                ]
            },
            "messages[1].tool_calls[0].function.arguments",
        ),
    ],
)
def test_bad_tools_are_named(client: openai.OpenAI, fields: dict[str, Any], param: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **fields)
    assert param is None or caught.value.param == param


TEMPLATE = """
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}{{ '<|im_end|>' }}
{% endfor %}
{%- if tools %}Tools: {% for t in tools %}{{ t.function.name }} {% endfor %}{% endif %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think></think>
{% endif %}{% endif %}"""


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    file = tmp_path_factory.mktemp("template") / "own.jinja"
    file.write_text(TEMPLATE)
    server = ServerProcess(chat_template=str(file), reasoning_parser="qwen3", tool_call_parser="pythonic")
    yield openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    server.shutdown()


def test_reasoning_has_its_own_field(thinker: openai.OpenAI) -> None:
    body: dict[str, Any] = {"regex": "<think>Rome is in (Italy|France)\\.</think>\n\nYes\\."}
    (answer,) = ask(thinker, tools=None, extra_body=body).choices
    assert answer.message.content == "Yes." and answer.message.reasoning_content.startswith("Rome is in")
    chunks = list(ask(thinker, tools=None, stream=True, extra_body=body))
    deltas = [c.choices[0].delta for c in chunks]
    assert "".join(d.content or "" for d in deltas) == "Yes."
    reasoning = "".join(getattr(d, "reasoning_content", None) or "" for d in deltas)
    assert reasoning == answer.message.reasoning_content
    (joined,) = ask(thinker, tools=None, extra_body={**body, "separate_reasoning": False}).choices
    assert joined.message.content == f"{reasoning}\n\nYes."
    off = {**body, "chat_template_kwargs": {"enable_thinking": False}}
    (plain,) = ask(thinker, tools=None, extra_body=off).choices
    assert plain.message.content.startswith("<think>")


def test_the_format_of_calls_can_be_chosen(thinker: openai.OpenAI) -> None:
    body = {"regex": r'\[get_weather\(city="(Paris|Rome)"\)\]'}
    (answer,) = ask(thinker, extra_body=body).choices
    (call,) = answer.message.tool_calls
    assert call.function.name == "get_weather" and json.loads(call.function.arguments)["city"]
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    with pytest.raises(openai.BadRequestError, match="format pythonic"):
        ask(thinker, tools=[strict])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chat_template": "nope"}, "--chat-template 'nope' .* chatml"),
        ({"chat_template": "/nowhere/x.jinja"}, "--chat-template"),
        ({"tool_call_parser": "hermess"}, "did you mean 'hermes'"),
        ({"reasoning_parser": "qwen4"}, "did you mean 'qwen3'"),
    ],
)
def test_options_that_name_nothing_stop_the_start(options: dict[str, str], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        ServerProcess(**options)
