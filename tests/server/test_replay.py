"""A request is run again under the id of its answer, and has the same tokens."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from runtime.backends.replay import run_again
from runtime.errors import EngineError
from runtime.server.launch import ServerProcess
from tests.server.calls import call

USER = [{"role": "user", "content": "Tell me a story"}]
HOT = {"temperature": 30}


@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        ("/v1/completions", {"prompt": "Tell me", "max_tokens": 8, "n": 2, **HOT}, "choices"),
        ("/v1/chat/completions", {"messages": USER, "max_tokens": 8, **HOT}, "choices"),
        ("/v1/messages", {"model": "tiny", "messages": USER, "max_tokens": 8, **HOT}, "content"),
        ("/generate", {"text": "Tell me", "sampling_params": {"max_new_tokens": 8, **HOT}}, "text"),
    ],
)
def test_the_same_tokens_again(server: ServerProcess, path: str, body: dict[str, Any], text: str) -> None:
    answers = [call(server.url + path, body)[1] for _ in range(2)]
    assert answers[0][text] != answers[1][text]
    for answer in answers:
        id = answer["id"] if "id" in answer else answer["meta_info"]["id"]
        assert json.loads(run_again(server.url, id))[text] == answer[text]


def test_items_of_responses_again(server: ServerProcess) -> None:
    _, answer, _ = call(f"{server.url}/v1/responses", {"input": "Hi", "max_output_tokens": 8, **HOT})
    again = json.loads(run_again(server.url, answer["id"]))
    assert again["output"][0]["content"] == answer["output"][0]["content"]


def test_only_ids_that_the_server_made(server: ServerProcess) -> None:
    params = {"max_new_tokens": 1}
    call(f"{server.url}/generate", {"text": "secret", "rid": "guessable", "sampling_params": params})
    for id in ("guessable", "../v1/models", "nope"):
        with pytest.raises(EngineError, match="there is no request"):
            run_again(server.url, id)


def test_the_command(server: ServerProcess) -> None:
    _, answer, _ = call(f"{server.url}/v1/completions", {"prompt": "Tell me", "max_tokens": 4, **HOT})
    command = [sys.executable, "-m", "runtime.cli", "replay", answer["id"], "--url", server.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)["choices"] == answer["choices"]
    command[-1] = "http://127.0.0.1:9"
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "no server answers" in done.stderr
