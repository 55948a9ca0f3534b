"""/generate field by field: what one prompt or many may be given, what is refused, names, seeds, errors."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest

from runtime.server import errors
from runtime.server.launch import ServerProcess
from tests.server.calls import call

GREEDY = {"temperature": 0, "max_new_tokens": 4}


def test_every_answer_names_its_seed_and_the_engine(server: ServerProcess) -> None:
    params = {"temperature": 1.5, "max_new_tokens": 12}
    _, one, _ = call(f"{server.url}/generate", {"text": "Tell me", "sampling_params": params})
    seed = one["meta_info"]["seed"]
    again = {"text": "Tell me", "sampling_params": {**params, "seed": seed}}
    _, two, _ = call(f"{server.url}/generate", again)
    assert one["text"] == two["text"] and two["meta_info"]["seed"] == seed
    assert one["meta_info"]["system_fingerprint"] == two["meta_info"]["system_fingerprint"]
    assert one["meta_info"]["system_fingerprint"].startswith("fp_")


def test_lists_give_each_prompt_its_own(server: ServerProcess) -> None:
    body = {
        "text": ["12 + 35 =", "21 + 34 ="],
        "sampling_params": [GREEDY, {**GREEDY, "max_new_tokens": 1}],
        "rid": ["first", "second"],
        "return_logprob": [True, False],
        "top_logprobs_num": [2, 0],
    }
    _, (one, two), _ = call(f"{server.url}/generate", body)
    assert [a["meta_info"]["id"] for a in (one, two)] == ["first", "second"]
    assert [a["meta_info"]["completion_tokens"] for a in (one, two)] == [4, 1]
    assert len(one["meta_info"]["output_top_logprobs"][0]) == 2
    assert "output_token_logprobs" not in two["meta_info"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"sampling_params": [GREEDY]}, "sampling_params"),
        ({"rid": ["a"]}, "rid"),
        ({"rid": ["a", "a"]}, "rid"),
        ({"rid": ["a", ""]}, "rid"),
        ({"return_logprob": [True] * 3}, "return_logprob"),
        ({"image_data": "/etc/passwd"}, "image_data"),
        ({"modalities": ["image", "video"]}, "modalities"),
        ({"lora_path": ["x", None]}, "lora_path"),
        ({"priority": 2**40}, "priority"),
        ({"sampling_params": {"regex": "a", "json_schema": "{}"}}, None),
        ({"sampling_params": {"json_schema": {"enum": ["a"]}}}, "json_schema"),
        ({"sampling_params": {"regex": 3}}, "regex"),
        ({"sampling_params": {"constraint": {"kind": "regex", "source": "a"}}}, "constraint"),
        ({"sampling_params": {"temperature": True}}, "sampling_params"),
        ({"sampling_params": {"stop_token_ids": [-1]}}, None),
        ({"sampling_params": {"stop_token_ids": [2**64]}}, "stop_token_ids"),
        ({"text": None, "input_ids": [[1], [2**64]]}, None),
        ({"text": None, "input_ids": [[1], [-1]]}, None),
        ({"text": None, "input_ids": [[1], []]}, "prompt"),
        ({"text": None, "input_ids": []}, None),
        ({"text": []}, None),
        ({"return_logprob": True, "logprob_start_len": 2**64}, None),
        ({"return_logprob": True, "top_logprobs_num": 2**31}, None),
        ({"sampling_params": {"logit_bias": {str(2**63): 1.0}}}, None),
    ],
)
def test_refusals_name_the_field(server: ServerProcess, fields: dict[str, Any], param: str | None) -> None:
    body = {"text": ["a", "b"], "sampling_params": GREEDY, **fields}
    status, answer, _ = call(f"{server.url}/generate", body)
    assert status == 400 and set(answer["error"]) == {"message", "type", "param", "code"}
    assert param is None or answer["error"]["param"] == param


@pytest.mark.parametrize("body", [b'{"text": "\\ud800"}', b'{"text": "a", "priority": 1e999}'])
def test_json_that_is_not_text_or_not_a_number(server: ServerProcess, body: bytes) -> None:
    assert call(f"{server.url}/generate", body)[0] == 400


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", "9" * 5000, "-1", str(2**64)])
def test_numbers_out_of_range(server: ServerProcess, value: str) -> None:
    for name in ("temperature", "max_new_tokens", "min_new_tokens", "top_p", "top_k", "n"):
        if (name, value) == ("top_k", "-1"):
            continue  # all
        body = f'{{"text": "a", "sampling_params": {{"{name}": {value}}}}}'.encode()
        status, answer, _ = call(f"{server.url}/generate", body)
        if name == "temperature" and value == str(2**64):
            continue  # a very high temperature is one
        assert status == 400, (name, value, answer)


def test_a_running_name_is_taken_and_an_abort_ends_a_request_that_is_not_streamed(
    server: ServerProcess,
) -> None:
    found: list[Any] = []
    body = {
        "text": "Tell me",
        "rid": "mine too",
        "sampling_params": {"max_new_tokens": 3500, "ignore_eos": True},
    }
    thread = threading.Thread(target=lambda: found.append(call(f"{server.url}/generate", body)))
    thread.start()
    end = time.monotonic() + 20
    while call(f"{server.url}/get_server_info")[1]["num_running_reqs"] == 0:
        assert time.monotonic() < end
    status, answer, _ = call(f"{server.url}/generate", body)
    assert status == 400 and "'mine too' is running" in answer["error"]["message"]
    assert call(f"{server.url}/abort_request", {"rid": "mine too"})[0] == 200
    thread.join()
    status, answer, _ = found[0]
    assert status == 200 and answer["meta_info"]["finish_reason"] == {"type": "abort"}
    assert 0 < answer["meta_info"]["completion_tokens"] < 3500
    short = {**body, "sampling_params": GREEDY}
    assert call(f"{server.url}/generate", short)[0] == 200  # the name is free again


def test_other_salts_share_no_prefix(server: ServerProcess) -> None:
    def cached(salt: str | None) -> int:
        body = {"text": "A long prompt about salt. " * 4, "sampling_params": GREEDY, "cache_salt": salt}
        return call(f"{server.url}/generate", body)[1]["meta_info"]["cached_tokens"]

    assert cached("a") == 0 and cached("a") > 0 and cached("b") == 0 and cached(None) == 0


def test_error_bodies_are_small_and_say_nothing_of_the_machine() -> None:
    for text in ("x" * 10**6, "\U0001f600" * 10**5, '"' * 10**5):
        body = errors.body(text, 400, param=text)
        assert len(json.dumps(body)) < 16 << 10
        assert body["error"]["message"].startswith(text[:500])
    body = errors.body("cannot open /home/me/model/x.bin at 0x7ffe1234", 500)
    assert body["error"]["message"] == "cannot open ... at ..."


@pytest.mark.parametrize("priority", [2**31, 2**63, -(2**70)])
def test_numbers_that_nothing_holds_are_refused_everywhere(server: ServerProcess, priority: int) -> None:
    message = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    bodies: dict[str, dict[str, Any]] = {
        "/generate": {"text": "a"},
        "/v1/completions": {"prompt": "a", "max_tokens": 1},
        "/v1/chat/completions": message,
    }
    for route, body in bodies.items():
        status, answer, _ = call(server.url + route, body | {"priority": priority})
        assert status == 400 and answer["error"]["param"] == "priority", (route, answer)
    one = {"prompt": [{"type": "text", "text": "a"}], "id": "x"}
    for fields in ({"priority": priority}, {"logprobs": {"start": abs(priority)}}):
        status, answer, _ = call(f"{server.url}/v1/calls/generate", {"calls": [one | fields]})
        assert status == 200 and answer["finish"]["matched"] == "invalid_request"
    assert call(f"{server.url}/health_generate")[0] == 200
