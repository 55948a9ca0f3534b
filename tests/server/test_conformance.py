"""Every cell of the table in runtime/server/README.md, with the clients that people use."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from runtime.server.bodies import ChatBody, CompletionBody
from runtime.server.launch import ServerProcess
from runtime.server.messages import MessagesBody
from runtime.server.responses import ResponsesBody
from tests.server.calls import call

README = Path(__file__).parents[2] / "runtime" / "server" / "README.md"
QUESTION = "What is the capital of Spain?"
ANSWER = "The capital of Spain is Madrid."
OBJECTS = ["/v1/embeddings", "/v1/files", "/v1/batches", "/v1/models"]
APIS = ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"]
SCHEMA = {"enum": ["Madrid", "Rome"]}
PARAMETERS = {
    "type": "object",
    "properties": {"city": SCHEMA},
    "required": ["city"],
    "additionalProperties": False,
}


def cells(apis: list[str]) -> list[tuple[str, str, str, str]]:
    """(option, API, field, note) of each cell of a table; a field is empty where there is none."""
    rows: list[list[str]] = []
    here = False
    for line in README.read_text().splitlines():
        row = [c.strip() for c in line.strip("|").split("|")]
        here = line.startswith("| ") and (here or row[1:] == apis)
        rows += [row] if here else []
    (_, *header), _, *rows = rows
    assert header == apis
    out = []
    for option, *fields in rows:
        for api, cell in zip(apis, fields, strict=True):
            found = re.fullmatch(r"`(\w+)`(?: \((refused|no effect)\))?|—", cell)
            assert found, f"{option}, {api}: {cell!r}"
            out.append((option, api, found.group(1) or "", found.group(2) or ""))
    return out


class Clients:
    """One way to ask each API: fields go as they are, answers come back typed."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        self.anthropic = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)

    def ask(self, api: str, **fields: Any) -> Any:
        given = {"temperature": 0, **fields}
        model = given.pop("model", "tiny")
        stream = given.pop("stream", False)
        user = [{"role": "user", "content": QUESTION}]
        if api == "/v1/completions":
            given = {"stop": "\n", **given}
            prompt = given.pop("prompt", f"Q: {QUESTION}\nA:")
            create: Any = self.openai.completions.create
            return create(model=model, prompt=prompt, stream=stream, extra_body=given)
        if api == "/v1/chat/completions":
            create = self.openai.chat.completions.create
            messages = given.pop("messages", user)
            return create(model=model, messages=messages, stream=stream, extra_body=given)
        if api == "/v1/responses":
            create = self.openai.responses.create
            return create(model=model, input=given.pop("input", QUESTION), stream=stream, extra_body=given)
        limit = given.pop("max_tokens", 32)
        create = self.anthropic.messages.create
        return create(model=model, messages=user, max_tokens=limit, stream=stream, extra_body=given)

    def text(self, api: str, **fields: Any) -> str:
        return text_of(self.ask(api, **fields))


def text_of(answer: Any) -> str:
    if hasattr(answer, "output"):
        return str(answer.output_text)
    if hasattr(answer, "choices"):
        choice = answer.choices[0]
        return str(choice.text if hasattr(choice, "text") else choice.message.content).strip()
    return "".join(b.text for b in answer.content if b.type == "text")


def tokens_of(answer: Any) -> int:
    usage = answer.usage
    return int(usage.completion_tokens if hasattr(usage, "completion_tokens") else usage.output_tokens)


def cached_of(answer: Any) -> int:
    usage = answer.usage
    for name in ("prompt_tokens_details", "input_tokens_details"):
        if hasattr(usage, name):
            return int(getattr(usage, name).cached_tokens)
    return int(usage.cache_read_input_tokens)


@pytest.fixture(scope="module")
def clients(server: ServerProcess) -> Clients:
    return Clients(server.url)


ERRORS = (openai.BadRequestError, anthropic.BadRequestError)
Check = Callable[[Clients, str, str], None]


def between(good: Any, *bad: Any) -> Check:
    """A greedy answer stays with a good value; bad ones are refused by name."""

    def check(c: Clients, api: str, field: str) -> None:
        assert c.text(api, **{field: good}) == ANSWER
        for value in bad:
            with pytest.raises(ERRORS) as caught:
                c.ask(api, **{field: value})
            assert field in str(caught.value)

    return check


def model(c: Clients, api: str, field: str) -> None:
    with pytest.raises((openai.NotFoundError, anthropic.NotFoundError)):
        c.ask(api, **{field: "nope"})


def stream(c: Clients, api: str, field: str) -> None:
    texts = []
    for event in c.ask(api, **{field: True}):
        if api == "/v1/completions":
            texts.append(event.choices[0].text)
        elif api == "/v1/chat/completions":
            texts.append(event.choices[0].delta.content or "")
        elif api == "/v1/responses":
            texts.append(event.delta if event.type == "response.output_text.delta" else "")
        else:
            texts.append(event.delta.text if event.type == "content_block_delta" else "")
    assert "".join(texts).strip() == ANSWER and sum(map(bool, texts)) > 2


def stream_options(c: Clients, api: str, field: str) -> None:
    *_, last = c.ask(api, stream=True, **{field: {"include_usage": True}})
    assert not last.choices and last.usage.completion_tokens >= 8


def limit(c: Clients, api: str, field: str) -> None:
    assert tokens_of(c.ask(api, **{field: 2})) == 2


def bias(c: Clients, api: str, field: str) -> None:
    _, tokens, _ = call(f"{c.url}/tokenize", {"text": " Rome"})
    fields = {field: {str(tokens["tokens"][0]): 1000}}
    key = "max_tokens" if api == "/v1/completions" else "max_completion_tokens"
    assert "Rome" in c.text(api, **fields, **{key: 1}) and "Rome" not in ANSWER


def seed(c: Clients, api: str, field: str) -> None:
    limit = {"/v1/chat/completions": "max_completion_tokens", "/v1/responses": "max_output_tokens"}
    hot = {"temperature": 50, limit.get(api, "max_tokens"): 8}
    answers = [c.ask(api, **hot, **{field: s}) for s in (7, 7, 8, 9)]
    texts = [text_of(a) for a in answers]
    assert texts[0] == texts[1] and len(set(texts)) > 1
    assert answers[0].seed == 7 and len({a.system_fingerprint for a in answers}) == 1


def samples(c: Clients, api: str, field: str) -> None:
    assert [x.index for x in c.ask(api, **{field: 3}).choices] == [0, 1, 2]


def best_of(c: Clients, api: str, field: str) -> None:
    fields = {"temperature": 1.0, "seed": 1, "max_tokens": 8, "stop": None, "logprobs": 0}

    def mean(choice: Any) -> float:
        return sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)

    every = c.ask(api, n=4, **fields).choices
    best = c.ask(api, n=1, **{field: 4}, **fields).choices
    assert [b.text for b in best] == [max(every, key=mean).text]
    with pytest.raises(ERRORS, match="best_of is 1 but n is 2"):
        c.ask(api, n=2, **{field: 1})


def stops(c: Clients, api: str, field: str) -> None:
    assert c.text(api, **{field: [" Madrid"]}) == "The capital of Spain is"


def stop_ids(c: Clients, api: str, field: str) -> None:
    _, tokens, _ = call(f"{c.url}/tokenize", {"text": " Madrid"})
    assert c.text(api, **{field: tokens["tokens"]}) == "The capital of Spain is"


def kept_stops(c: Clients, api: str, field: str) -> None:
    assert c.text(api, stop=[" Madrid"], **{field: True}) == "The capital of Spain is Madrid"


def no_end(c: Clients, api: str, field: str) -> None:
    assert tokens_of(c.ask(api, max_tokens=20, stop=None, **{field: True})) == 20


def least(c: Clients, api: str, field: str) -> None:
    assert tokens_of(c.ask(api, max_tokens=20, stop=None, **{field: 20})) == 20


def specials(c: Clients, api: str, field: str) -> None:
    fields: dict[str, Any] = {"stop": None, "max_tokens": 20, "ignore_eos": True}
    assert "<|im_end|>" not in c.text(api, **fields)
    prompt = {"prompt": "<|im_start|>user\nWhat is the capital of Spain?<|im_end|>\n<|im_start|>assistant\n"}
    given = fields | (prompt if api == "/v1/completions" else {})
    assert "<|im_end|>" in c.text(api, **given, **{field: False})


def logprobs(c: Clients, api: str, field: str) -> None:
    if api == "/v1/responses":
        (message,) = c.ask(api, **{field: ["message.output_text.logprobs"]}).output
        assert "".join(t.token for t in message.content[0].logprobs) == ANSWER
        with pytest.raises(ERRORS, match=field):
            c.ask(api, **{field: ["file_search_call.results"]})
        return
    chat = api == "/v1/chat/completions"
    found = c.ask(api, **{field: True if chat else 2}).choices[0].logprobs
    values = [t.logprob for t in found.content] if chat else found.token_logprobs
    assert len(values) >= 8 and all(v <= 0 for v in values)


def likeliest(c: Clients, api: str, field: str) -> None:
    if api == "/v1/responses":
        first = c.ask(api, **{field: 3}).output[0].content[0].logprobs[0]
    else:
        first = c.ask(api, logprobs=True, **{field: 3}).choices[0].logprobs.content[0]
    assert len(first.top_logprobs) == 3 and first.top_logprobs[0].token == first.token


def echo(c: Clients, api: str, field: str) -> None:
    assert c.text(api, **{field: True}) == f"Q: {QUESTION}\nA: {ANSWER}"


def regex(c: Clients, api: str, field: str) -> None:
    assert re.fullmatch("It is (Madrid|Rome)!", c.text(api, **{field: "It is (Madrid|Rome)!"}))


def grammar(c: Clients, api: str, field: str) -> None:
    assert c.text(api, **{field: 'root ::= "It is " ("Madrid" | "Rome")'}) in ("It is Madrid", "It is Rome")


def schema(c: Clients, api: str, field: str) -> None:
    form = {"type": "json_schema", "schema": SCHEMA}
    value: Any = {
        "json_schema": '{"enum": ["Madrid", "Rome"]}',
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
        "text": {"format": {**form, "name": "x"}},
        "output_config": {"format": form},
    }[field]
    assert c.text(api, **{field: value}) in ('"Madrid"', '"Rome"')


def system(c: Clients, api: str, field: str) -> None:
    plain, told = c.ask(api), c.ask(api, **{field: "You are a helpful assistant."})
    assert text_of(told) == ANSWER

    def prompt(answer: Any) -> int:
        return int(answer.usage.input_tokens) + (cached_of(answer) if api == "/v1/messages" else 0)

    assert prompt(told) > prompt(plain)


def continued(c: Clients, api: str, field: str) -> None:
    messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "The capital of"}]
    assert c.text(api, messages=messages, **{field: True}) == "Spain is Madrid."


def tools_for(api: str) -> list[dict[str, Any]]:
    if api == "/v1/chat/completions":
        return [{"type": "function", "function": {"name": "f", "parameters": PARAMETERS}}]
    if api == "/v1/responses":
        return [{"type": "function", "name": "f", "parameters": PARAMETERS}]
    return [{"name": "f", "input_schema": PARAMETERS}]


def called(answer: Any) -> list[str]:
    if hasattr(answer, "output"):
        return [i.name for i in answer.output if i.type == "function_call"]
    if hasattr(answer, "choices"):
        return [t.function.name for t in answer.choices[0].message.tool_calls or ()]
    return [b.name for b in answer.content if b.type == "tool_use"]


def tools(c: Clients, api: str, field: str) -> None:
    demand: Any = {"type": "any", "disable_parallel_tool_use": True} if api == "/v1/messages" else "required"
    fields = {} if api == "/v1/messages" else {"parallel_tool_calls": False}
    assert called(c.ask(api, **{field: tools_for(api)}, tool_choice=demand, **fields)) == ["f"]
    with pytest.raises(ERRORS):
        c.ask(api, **{field: [{"type": "web_search", "name": "web_search"}]})


def tool_choice(c: Clients, api: str, field: str) -> None:
    named: Any = {
        "/v1/chat/completions": {"type": "function", "function": {"name": "f"}},
        "/v1/responses": {"type": "function", "name": "f"},
        "/v1/messages": {"type": "tool", "name": "f"},
    }[api]
    none: Any = {"type": "none"} if api == "/v1/messages" else "none"
    assert called(c.ask(api, tools=tools_for(api), **{field: named})) == ["f"]
    assert c.text(api, tools=tools_for(api), **{field: none}) == ANSWER
    with pytest.raises(ERRORS):
        c.ask(api, **{field: named})


def parallel(c: Clients, api: str, field: str) -> None:
    for _ in range(2):
        answer = c.ask(api, tools=tools_for(api), tool_choice="required", temperature=1.0, **{field: False})
        assert called(answer) == ["f"]


def apart(c: Clients, api: str, field: str) -> None:
    assert c.text(api, **{field: False}) == ANSWER  # with a reasoning model: tests/server/test_chat_tools.py


def earlier(c: Clients, api: str, field: str) -> None:
    first = c.ask(api, input="What is the capital of Japan?")
    assert "Tokyo" in c.text(api, input="List two sights there.", **{field: first.id})


def stored(c: Clients, api: str, field: str) -> None:
    assert c.openai.responses.retrieve(c.ask(api, **{field: True}).id).output_text == ANSWER
    with pytest.raises(openai.NotFoundError):
        c.openai.responses.retrieve(c.ask(api, **{field: False}).id)


def salted(c: Clients, api: str, field: str) -> None:
    cached = [cached_of(c.ask(api, **{field: f"{api} {salt}"})) for salt in ("a", "a", "b")]
    assert cached[0] == 0 and cached[1] > 0 and cached[2] == 0


def metadata(c: Clients, api: str, field: str) -> None:
    assert c.ask(api, **{field: {"a": "b"}}).metadata == {"a": "b"}


CHECKS: dict[str, Check] = {
    "model": model,
    "stream": stream,
    "usage in streams": stream_options,
    "token limit": limit,
    "older token limit": limit,
    "temperature": between(0, -1),
    "top_p": between(0.5, 0, 1.5),
    "top_k": between(5, 0, -2),
    "min_p": between(0.1, -0.1, 2),
    "frequency penalty": between(0.01, -3, 3),
    "presence penalty": between(0.01, -3, 3),
    "repetition penalty": between(1.0, 0, 3),
    "bias": bias,
    "seed": seed,
    "samples": samples,
    "best of": best_of,
    "stop strings": stops,
    "stop ids": stop_ids,
    "kept stop strings": kept_stops,
    "no end token": no_end,
    "least tokens": least,
    "special tokens": specials,
    "log-probabilities": logprobs,
    "likeliest tokens": likeliest,
    "echo": echo,
    "regex": regex,
    "grammar": grammar,
    "JSON schema": schema,
    "JSON schema as text": schema,
    "system text": system,
    "continued answer": continued,
    "tools": tools,
    "tool choice": tool_choice,
    "parallel calls": parallel,
    "reasoning apart": apart,
    "earlier answer": earlier,
    "kept answer": stored,
    "cache by user": salted,
    "metadata": metadata,
}
VALUES: dict[str, Any] = {
    "suffix": "x",
    "functions": [{"name": "f"}],
    "background": True,
    "function_call": "auto",
    "store": True,
    "safety_identifier": "x",
    "verbosity": "low",
    "truncation": "disabled",
    "spaces_between_special_tokens": False,
    "modalities": ["audio"],
    "container": "x",
    "reasoning_effort": "low",
    "reasoning": {"effort": "low"},
    "thinking": {"type": "disabled"},
    "chat_template_kwargs": {"enable_thinking": False},
    "prediction": {"type": "content", "content": ANSWER},
    "prompt_cache_key": "x",
    "prompt_cache_retention": "24h",
    "stream_options": {"include_obfuscation": True},
    "max_tool_calls": 3,
    "cache_control": {"type": "ephemeral"},
    "priority": 3,
    "user": "somebody",
    "metadata": {"user_id": "x"},
    "service_tier": "auto",
}


@pytest.mark.parametrize(("option", "api", "field", "note"), cells(APIS))
def test_cell(clients: Clients, option: str, api: str, field: str, note: str) -> None:
    if not field:
        with pytest.raises(ERRORS, match="unknown field"):
            clients.ask(api, **{f"no_{option.replace(' ', '_')}": 1})
    elif note == "refused":
        with pytest.raises(ERRORS, match=field):
            clients.ask(api, **{field: VALUES[field]})
    elif note == "no effect":
        assert clients.text(api, **{field: VALUES[field]}) == ANSWER
    else:
        CHECKS[option](clients, api, field)


def test_every_field_is_in_the_table() -> None:
    own = {"prompt", "messages", "input"}
    bodies_of = zip(APIS, (CompletionBody, ChatBody, ResponsesBody, MessagesBody), strict=True)
    for api, body in bodies_of:
        assert set(body.__struct_fields__) - own == {f for _, a, f, _ in cells(APIS) if a == api} - {
            "",
            "container",
        }


def test_a_dash_means_that_no_other_api_s_field_is_taken(clients: Clients) -> None:
    taken = {api: {f for _, a, f, _ in cells(APIS) if a == api} for api in APIS}
    every = set().union(*taken.values()) - {""}
    for api in APIS:
        for field in sorted(every - taken[api]):
            status, answer, _ = call(f"{clients.url}{api}", {field: None})
            known = "unknown field" not in answer["error"]["message"]
            assert status == 400 and not known, (api, field)
