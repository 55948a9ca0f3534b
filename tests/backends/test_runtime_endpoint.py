"""The same programs on an engine in this process and on a server in another: equal texts, equal tokens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import sglc as sgl
from runtime.errors import BackendError


@pytest.fixture(scope="module")
def server() -> Iterator[sgl.Runtime]:
    with sgl.Runtime() as server:
        yield server


@sgl.function
def conversation(s, country):
    s += sgl.system("You are a helpful assistant.")
    s += sgl.user("What is the capital of " + country + "?")
    s += sgl.assistant(sgl.gen("capital", max_tokens=32, temperature=0))
    forks = s.fork(2)
    forks += sgl.user("List two sights there.") + sgl.assistant(sgl.gen("more", max_tokens=32, temperature=0))
    forks.join()
    s += sgl.user("Is it big?") + sgl.assistant(sgl.select("size", ["yes", "no"]))


def test_a_server_gives_what_an_engine_gives(server: sgl.Runtime) -> None:
    endpoint = sgl.RuntimeEndpoint(server.url)
    with sgl.Engine() as engine:
        for backend in (server, endpoint):
            for country in ("France", "Japan"):
                here, there = (
                    conversation.run(country, backend=engine),
                    conversation.run(country, backend=backend),
                )
                assert there.error() is None
                assert here.text() == there.text() and here.messages() == there.messages()
                assert here["more"] == there["more"] and here["size"] == there["size"]
    assert endpoint.get_chat_template().name == "chatml"
    assert endpoint.get_model_name().endswith("weights")


def test_streams_batches_and_server_facts(server: sgl.Runtime) -> None:
    state = conversation.run("Italy", backend=server, stream=True)
    assert "".join(state.text_iter("capital")) == "The capital of Italy is Rome."
    states = conversation.run_batch([{"country": c} for c in ("Peru", "Kenya", "Spain")], backend=server)
    assert [s["capital"].split()[-1] for s in states] == ["Lima.", "Nairobi.", "Madrid."]
    info = sgl.get_server_info(server)
    assert info is not None and info["kv_cache"]["used_tokens"] == 0 and info["context_length"] == 4096
    assert sgl.flush_cache(server) is True


def test_errors_of_the_server_reach_the_program(server: sgl.Runtime) -> None:
    @sgl.function
    def program(s):
        s += "a " * 5000 + sgl.gen("x")

    error = program.run(backend=server).error()
    assert error is not None and "longer than the model's context length (4096 tokens)" in str(error)
    with pytest.raises(BackendError, match="no server answers at"):
        sgl.RuntimeEndpoint("http://127.0.0.1:9")
    with pytest.raises(KeyError, match="'nope' is not known"):
        sgl.RuntimeEndpoint(server.url, chat_template_name="nope")


def test_a_server_that_cannot_start_says_why() -> None:
    with pytest.raises(
        RuntimeError, match=r"Initialization failed: .*model folder '/nowhere' does not exist"
    ):
        sgl.Runtime("/nowhere")
