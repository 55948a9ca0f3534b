"""OpenAI, Anthropic, Vertex AI and LiteLLM through the vendors' clients, against servers on loopback that answer in their formats."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

import sglc as sgl
from runtime.errors import InvalidRequest
from sglc.errors import RunError


class Provider:
    """Answers with the last words of what it was asked; keeps what it was sent."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.failures = 0
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_post("/v1/completions", self.complete)
        app.router.add_post("/v1/messages", self.messages)
        app.router.add_post("/{path:.*}:generateContent", self.gemini)
        app.router.add_post("/{path:.*}:streamGenerateContent", self.gemini)
        app.router.add_post("/openai/deployments/{name}/chat/completions", self.chat)
        self.loop = asyncio.new_event_loop()
        self.runner = web.AppRunner(app, shutdown_timeout=0.5)
        started = threading.Event()

        async def start() -> None:
            await self.runner.setup()
            site = web.TCPSite(self.runner, "127.0.0.1", 0)
            await site.start()
            self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
            started.set()

        def serve() -> None:
            self.loop.create_task(start())
            self.loop.run_forever()

        self.thread = threading.Thread(target=serve, daemon=True)
        self.thread.start()
        started.wait(10)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.runner.cleanup(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)

    async def body(self, request: web.Request) -> dict[str, Any]:
        found: dict[str, Any] = await request.json()
        self.asked.append(found)
        if self.failures:
            self.failures -= 1
            raise web.HTTPServiceUnavailable(
                text='{"error": {"message": "busy"}}', headers={"retry-after-ms": "1"}
            )
        return found

    async def sse(self, request: web.Request, events: list[tuple[str | None, Any]]) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        for kind, data in events:
            head = f"event: {kind}\n" if kind else ""
            text = data if isinstance(data, str) else json.dumps(data)
            await answer.write(f"{head}data: {text}\n\n".encode())
        return answer

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await self.body(request)
        content = body["messages"][-1]["content"]
        text = f"<{content if isinstance(content, str) else 'image'}>"
        schema = body.get("response_format", {}).get("json_schema", {}).get("schema", {})
        if "answer" in schema.get("properties", {}):  # a choice: the last one that begins as it was asked
            known = schema["properties"]["answer"]["enum"]
            text = json.dumps({"answer": next((c for c in known[::-1] if c.startswith(content)), content)})
        common = {"id": "c", "object": "chat.completion", "created": 1, "model": body["model"]}
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        if body.get("stream"):
            chunk = {**common, "object": "chat.completion.chunk", "usage": None}
            parts = [
                {**chunk, "choices": [{"index": 0, "delta": {"content": c}, "finish_reason": None}]}
                for c in (text[:2], text[2:])
            ]
            end = {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
            last = {**chunk, "choices": [], "usage": usage}
            return await self.sse(request, [(None, p) for p in (*parts, end, last)] + [(None, "[DONE]")])
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": f"{text}{i or ''}"},
                "finish_reason": "stop",
            }
            for i in range(body.get("n", 1))
        ]
        return web.json_response({**common, "choices": choices, "usage": usage})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await self.body(request)
        choice = {"index": 0, "text": f"[{body['prompt'][-5:]}]", "finish_reason": "length", "logprobs": None}
        usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
        return web.json_response(
            {
                "id": "c",
                "object": "text_completion",
                "created": 1,
                "model": body["model"],
                "choices": [choice],
                "usage": usage,
            }
        )

    async def messages(self, request: web.Request) -> web.StreamResponse:
        body = await self.body(request)
        text = f"({body['messages'][-1]['content']})"
        message = {
            "id": "m", "type": "message", "role": "assistant", "model": body["model"], "stop_reason": "end_turn",
            "stop_sequence": None, "content": [{"type": "text", "text": text}],
            "usage": {"input_tokens": 6, "output_tokens": 4},
        }  # fmt: skip
        if not body.get("stream"):
            return web.json_response(message)
        begin = {"type": "message_start", "message": {**message, "content": [], "stop_reason": None}}
        pieces = [
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": t}}
            for t in (text[:2], text[2:])
        ]
        events = [
            begin,
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            *pieces,
            {"type": "content_block_stop", "index": 0},
            {
                "type": "message_delta",
                "delta": {"stop_reason": "end_turn", "stop_sequence": None},
                "usage": {"output_tokens": 4},
            },
            {"type": "message_stop"},
        ]
        return await self.sse(request, [(str(e["type"]), e) for e in events])

    async def gemini(self, request: web.Request) -> web.StreamResponse:
        body = await self.body(request)
        self.paths.append(request.path)
        last = body["contents"][-1]["parts"][-1]
        text = f"{{{last.get('text', 'image')}}}"
        usage = {"promptTokenCount": 5, "candidatesTokenCount": 2, "cachedContentTokenCount": 1}

        def candidates(said: str, reason: str | None) -> list[dict[str, Any]]:
            count = body.get("generationConfig", {}).get("candidateCount", 1)
            end = {"finishReason": reason} if reason else {}
            return [
                {"index": i, "content": {"role": "model", "parts": [{"text": f"{said}{i or ''}"}]}, **end}
                for i in range(count)
            ]

        if "stream" in request.path:
            first = {"candidates": candidates(text[:2], None)}
            rest = {"candidates": candidates(text[2:], "STOP"), "usageMetadata": usage}
            return await self.sse(request, [(None, first), (None, rest)])
        return web.json_response({"candidates": candidates(text, "MAX_TOKENS"), "usageMetadata": usage})


@pytest.fixture
def provider() -> Iterator[Provider]:
    found = Provider()
    yield found
    found.close()


def openai(provider: Provider, name: str = "gpt-4o", **options: Any) -> sgl.OpenAI:
    return sgl.OpenAI(name, base_url=f"http://127.0.0.1:{provider.port}/v1", api_key="key", **options)


def anthropic(provider: Provider) -> sgl.Anthropic:
    return sgl.Anthropic("claude-x", base_url=f"http://127.0.0.1:{provider.port}", api_key="key")


def vertex(provider: Provider, **options: Any) -> sgl.VertexAI:
    from google.oauth2.credentials import Credentials

    return sgl.VertexAI(
        "gemini-x",
        project="p",
        credentials=Credentials(token="t"),
        http_options={"base_url": f"http://127.0.0.1:{provider.port}"},
        **options,
    )


def litellm(provider: Provider) -> sgl.LiteLLM:
    """The real package where it is installed, else a stand-in that hands the call to OpenAI's client."""
    try:
        import litellm  # noqa: F401
    except ImportError:
        import openai as client

        async def acompletion(
            *, api_key: str, base_url: str, timeout: float, max_retries: int, **fields: Any
        ) -> Any:
            made = client.AsyncOpenAI(
                api_key=api_key, base_url=base_url, timeout=timeout, max_retries=max_retries
            )
            return await made.chat.completions.create(**fields)

        module = types.ModuleType("litellm")
        module.acompletion = acompletion  # type: ignore[attr-defined]
        sys.modules["litellm"] = module
    return sgl.LiteLLM("openai/some", base_url=f"http://127.0.0.1:{provider.port}/v1", api_key="key")


@sgl.function
def chat(s, q):  # type: ignore[no-untyped-def]
    s += sgl.system("Be brief.")
    s += sgl.user(q)
    s += sgl.assistant(sgl.gen("a", max_tokens=9, temperature=0.5, stop=["END"]))
    s += sgl.user("And " + s["a"])
    s += sgl.assistant(sgl.gen("b"))


@pytest.mark.parametrize("compiled", [False, True])
def test_openai_gets_the_conversation(provider: Provider, compiled: bool) -> None:
    backend = openai(provider)
    state = (chat.compile() if compiled else chat).run("Hi", backend=backend)
    assert (state["a"], state["b"]) == ("<Hi>", "<And <Hi>>")
    one, two = provider.asked
    assert one["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert (one["max_tokens"], one["temperature"], one["stop"]) == (9, 0.5, ["END"])
    assert [m["role"] for m in two["messages"]] == ["system", "user", "assistant", "user"]
    assert (backend.token_usage.prompt_tokens, backend.token_usage.completion_tokens) == (14, 6)
    meta = state.get_meta_info("a")
    assert meta is not None and meta["prompt_tokens"] == 7
    assert [m["content"] for m in state.messages()][-1] == "<And <Hi>>"


def test_openai_streams(provider: Provider) -> None:
    backend = openai(provider)
    state = chat.run("Hi", backend=backend, stream=True)
    assert list(state.text_iter("a")) == ["<H", "i>"]
    assert "".join(state.text_iter()).endswith("<And <Hi>>\n")
    assert state["b"] == "<And <Hi>>" and backend.token_usage.completion_tokens == 6


def test_openai_samples_schemas_and_images(provider: Provider) -> None:
    @sgl.function
    def asks(s):  # type: ignore[no-untyped-def]
        s += sgl.user("n")
        s += sgl.assistant(sgl.gen("many", n=2))
        s += sgl.user("r")
        s += sgl.assistant(
            sgl.gen("record", json_schema='{"type": "object", "properties": {"a": {"type": "integer"}}}')
        )
        with s.user():
            s += sgl.image(b"\x89PNG\r\n\x1a\n")
            s += "look"
        s += sgl.assistant(sgl.gen("seen"))

    state = asks.run(backend=openai(provider))
    assert state["many"] == ["<n>", "<n>1"] and state["seen"] == "<image>"
    schema = provider.asked[1]["response_format"]["json_schema"]
    assert schema["strict"] is True and schema["schema"]["type"] == "object"
    parts = provider.asked[2]["messages"][-1]["content"]
    assert {p["type"] for p in parts} == {"text", "image_url"}


@sgl.function
def picks(s, q):  # type: ignore[no-untyped-def]
    s += sgl.user(q)
    s += sgl.assistant(sgl.gen("mood", regex="(good|great|bad)[!]?", max_tokens=4, stop="!"))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_openai_keeps_a_regex_with_few_texts(provider: Provider, compiled: bool, stream: bool) -> None:
    program = picks.compile() if compiled else picks
    state = program.run("b", backend=openai(provider), stream=stream)
    assert state["mood"] == "bad" and state.error() is None  # the stop string ends "bad!"
    sent = provider.asked[0]
    assert (
        "stop" not in sent
        and "stream" not in sent
        and sent["max_completion_tokens" if "max_completion_tokens" in sent else "max_tokens"] == 20
    )
    schema = sent["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["answer"]["enum"] == ["bad", "bad!", "good", "good!", "great", "great!"]


def test_an_answer_that_is_no_choice_is_an_error(provider: Provider) -> None:
    state = picks.run("neutral", backend=openai(provider))
    error = str(state.error())
    assert "one of" in error and '{"answer": "neutral"}' in error and "test_api_backends.py" in error


@pytest.mark.parametrize("compiled", [False, True])
def test_a_provider_without_samples_is_asked_for_each(provider: Provider, compiled: bool) -> None:
    @sgl.function
    def draws(s):  # type: ignore[no-untyped-def]
        s += sgl.user("n")
        s += sgl.assistant(sgl.gen("many", n=3))
        s += sgl.user("next")
        s += sgl.assistant(sgl.gen("one"))

    state = (draws.compile() if compiled else draws).run(backend=anthropic(provider))
    assert state["many"] == ["(n)"] * 3 and state["one"] == "(next)"
    assert len(provider.asked) == 4 and "n" not in provider.asked[0]
    assert provider.asked[3]["messages"][1]["content"] == [{"type": "text", "text": "(n)"}] or (
        provider.asked[3]["messages"][1]["content"] == "(n)"
    )


def test_of_samples_that_fail_the_first_error_is_told(provider: Provider) -> None:
    @sgl.function
    def draws(s):  # type: ignore[no-untyped-def]
        s += sgl.user("n")
        s += sgl.assistant(sgl.gen("many", n=3))

    provider.failures = 100
    state = draws.run(backend=anthropic(provider))
    with pytest.raises(RunError, match="busy"):
        state["many"]


def test_a_completion_model_gets_the_text(provider: Provider) -> None:
    @sgl.function
    def plain(s, q):  # type: ignore[no-untyped-def]
        s += "Q: " + q + " A:" + sgl.gen("a", max_tokens=4)

    state = plain.run("why", backend=openai(provider, "gpt-3.5-turbo-instruct"))
    assert state["a"] == "[hy A:]" and provider.asked[0]["prompt"] == "Q: why A:"


@pytest.mark.parametrize("stream", [False, True])
def test_anthropic(provider: Provider, stream: bool) -> None:
    backend = anthropic(provider)
    state = chat.run("Hi", backend=backend, stream=stream)
    assert "(And (Hi))" in "".join(state.text_iter())
    assert (state["a"], state["b"]) == ("(Hi)", "(And (Hi))")
    one = provider.asked[0]
    assert one["system"] == "Be brief." and one["messages"] == [{"role": "user", "content": "Hi"}]
    assert (one["max_tokens"], one["stop_sequences"], one["temperature"]) == (9, ["END"], 0.5)
    second = provider.asked[1]
    assert second["system"] == "Be brief." and len(second["messages"]) == 3
    assert [m["role"] for m in state.messages()] == ["system", "user", "assistant", "user", "assistant"]
    assert backend.token_usage.completion_tokens == 8


@pytest.mark.parametrize("make", [openai, anthropic, vertex, litellm])
@pytest.mark.parametrize(
    ("piece", "told"),
    [
        (lambda: sgl.gen("x", regex="[0-9]+"), "enforces"),
        (lambda: sgl.select("x", ["yes", "no"]), "no log-probabilities"),
        (lambda: sgl.gen("x", min_p=0.2), "has no min_p"),
    ],
    ids=["regex", "select", "min_p"],
)
def test_what_a_provider_cannot_do_is_refused_before_anything_is_sent(
    provider: Provider, make: Any, piece: Any, told: str
) -> None:
    @sgl.function
    def asks(s):  # type: ignore[no-untyped-def]
        s += sgl.user("Hi")
        s += sgl.assistant(piece())

    state = asks.run(backend=make(provider))
    error = state.error()
    assert isinstance(error, RunError) and told in str(error) and "test_api_backends.py" in str(error)
    assert not provider.asked


def test_defaults_of_the_run_are_refused_too(provider: Provider) -> None:
    @sgl.function
    def asks(s):  # type: ignore[no-untyped-def]
        s += sgl.user("Hi")
        s += sgl.assistant(sgl.gen("x"))

    state = asks.run(backend=openai(provider), top_k=5)
    assert "has no top_k" in str(state.error()) and not provider.asked
    state = asks.run(backend=openai(provider), temperature=0.1, max_new_tokens=5)
    assert state.error() is None and provider.asked[0]["temperature"] == 0.1


def test_a_busy_provider_is_asked_again_and_a_refusal_is_told(provider: Provider) -> None:
    provider.failures = 2
    assert chat.run("Hi", backend=openai(provider))["a"] == "<Hi>"
    provider.failures = 99
    with pytest.raises(RunError, match=r"test_api_backends.py:\d+: InternalServerError: .*503"):
        chat.run("Hi", backend=openai(provider, max_retries=0))


def test_rows_of_a_batch_are_asked_together(provider: Provider) -> None:
    states = chat.run_batch([{"q": f"q{k}"} for k in range(8)], backend=openai(provider))
    assert [s["a"] for s in states] == [f"<q{k}>" for k in range(8)]


def test_clients_that_cannot_be_made_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InvalidRequest, match="client of OpenAI cannot be made"):
        sgl.OpenAI("gpt-4o")


@pytest.mark.parametrize("stream", [False, True])
def test_vertex(provider: Provider, stream: bool) -> None:
    backend = vertex(provider, safety_settings=[{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "OFF"}])
    state = chat.run("Hi", backend=backend, stream=stream)
    assert "{And {Hi}}" in "".join(state.text_iter())
    assert (state["a"], state["b"]) == ("{Hi}", "{And {Hi}}")
    one, two = provider.asked
    assert "projects/p/locations/us-central1" in provider.paths[0] and "gemini-x" in provider.paths[0]
    assert one["systemInstruction"]["parts"] == [{"text": "Be brief."}]
    assert one["contents"] == [{"role": "user", "parts": [{"text": "Hi"}]}]
    settings = one["generationConfig"]
    assert (settings["maxOutputTokens"], settings["temperature"], settings["stopSequences"]) == (
        9,
        0.5,
        ["END"],
    )
    assert one["safetySettings"] and [c["role"] for c in two["contents"]] == ["user", "model", "user"]
    usage = backend.token_usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (10, 4)
    meta = state.get_meta_info("a")
    assert meta is not None and meta["finish_reason"]["type"] == ("stop" if stream else "length")


def test_vertex_takes_images_and_gives_samples(provider: Provider) -> None:
    @sgl.function
    def asks(s):  # type: ignore[no-untyped-def]
        with s.user():
            s += "look"
            s += sgl.image(b"\x89PNG\r\n\x1a\n")
        s += sgl.assistant(sgl.gen("seen", n=2, top_k=4))

    state = asks.run(backend=vertex(provider))
    assert state.error() is None and len(state["seen"]) == 2 and state["seen"][1].endswith("1")
    kinds = [set(p) for p in provider.asked[0]["contents"][0]["parts"]]
    assert {"inlineData"} in kinds and provider.asked[0]["generationConfig"]["topK"] == 4


def test_vertex_needs_a_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GCP_PROJECT_ID", raising=False)
    with pytest.raises(InvalidRequest, match="set the environment variable GCP_PROJECT_ID"):
        sgl.VertexAI("gemini-x")


@pytest.mark.parametrize("stream", [False, True])
def test_litellm(provider: Provider, stream: bool) -> None:
    backend = litellm(provider)
    state = chat.run("Hi", backend=backend, stream=stream)
    assert "<And <Hi>>" in "".join(state.text_iter()) and state["b"] == "<And <Hi>>"
    assert provider.asked[0]["temperature"] == 0.5 and backend.token_usage.prompt_tokens == 14


def test_azure_and_other_servers_are_reached_through_their_own_addresses(provider: Provider) -> None:
    backend = sgl.OpenAI(
        "gpt-4o",
        is_azure=True,
        azure_endpoint=f"http://127.0.0.1:{provider.port}",
        api_version="2024-06-01",
        api_key="key",
    )
    assert chat.run("Hi", backend=backend)["a"] == "<Hi>"
    other = openai(provider, "meta/llama", is_chat_model=True)
    assert chat.run("Hi", backend=other)["a"] == "<Hi>" and provider.asked[-1]["model"] == "meta/llama"


@pytest.mark.parametrize(
    ("module", "make", "extra"),
    [
        ("openai", lambda: sgl.OpenAI("m"), "openai"),
        ("anthropic", lambda: sgl.Anthropic("m"), "anthropic"),
        ("google", lambda: sgl.VertexAI("m"), "vertex"),
        ("litellm", lambda: sgl.LiteLLM("m"), "litellm"),
    ],
)
def test_a_package_that_is_not_there_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, module: str, make: Any, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InvalidRequest, match=rf"pip install 'sglc\[{extra}\]'"):
        make()
