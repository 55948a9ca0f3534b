"""What answers say of the tokens they took."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.server.launch import ServerProcess
from tests.server.calls import call, events

USER = {"messages": [{"role": "user", "content": "What is the capital of Spain?"}]}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": ["The capital of Spain is", "The capital of Italy is"]},
    "/v1/chat/completions": USER,
}


@pytest.mark.parametrize("path", BODIES)
def test_samples_share_their_prompt_and_what_was_cached_of_it(server: ServerProcess, path: str) -> None:
    body = {**BODIES[path], "n": 4, "max_tokens": 3}
    call(server.url + path, body)  # from now on the prompts are cached
    whole = call(server.url + path, body)[1]["usage"]
    *_, (_, last), _ = events(
        server.url + path, {**body, "stream": True, "stream_options": {"include_usage": True}}
    )
    for usage in (whole, last["usage"]):
        assert 0 < usage["prompt_tokens_details"]["cached_tokens"] <= usage["prompt_tokens"]
        assert usage["completion_tokens"] == 12 * (2 if path == "/v1/completions" else 1)


@pytest.mark.parametrize("path", BODIES)
def test_a_stream_tells_its_usage_all_along_if_asked(server: ServerProcess, path: str) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {**BODIES[path], "max_tokens": 4, "temperature": 0, "stream": True, "stream_options": options}
    found = [data["usage"] for _, data in events(server.url + path, body) if data != "[DONE]"]
    counts = [u["completion_tokens"] for u in found]
    assert counts == sorted(counts) and len(set(counts)) >= 4
    assert all(u["prompt_tokens"] == found[0]["prompt_tokens"] > 0 for u in found)
    assert all(u["total_tokens"] == u["prompt_tokens"] + u["completion_tokens"] for u in found)


def test_every_event_of_a_native_stream_counts_tokens(server: ServerProcess) -> None:
    sampling = {"max_new_tokens": 5, "temperature": 0, "ignore_eos": True}
    body = {"text": "The capital of Spain", "sampling_params": sampling, "stream": True}
    found = [data["meta_info"] for _, data in events(f"{server.url}/generate", body) if data != "[DONE]"]
    counts = [m["completion_tokens"] for m in found]
    assert counts == sorted(set(counts)) and counts[0] == 1 and counts[-1] == 5
    assert {m["prompt_tokens"] for m in found} == {4}
    assert len({m["cached_tokens"] for m in found}) == 1
