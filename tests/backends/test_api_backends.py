"""OpenAI, Anthropic, Vertex AI and LiteLLM through the vendors' clients, against servers on loopback that answer in their formats."""

from __future__ import annotations

import sys
from typing import Any

import pytest

import sglc as sgl
from runtime.errors import InvalidRequest
from sglc.errors import RunError
from tests.backends.provider import Provider, anthropic, chat, litellm, openai, vertex


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
    with pytest.raises(RunError, match=r"provider.py:\d+: InternalServerError: .*503"):
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
