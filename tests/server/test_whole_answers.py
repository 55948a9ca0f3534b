"""Answers are whole: under memory pressure, in pieces, cut at stop strings, and under a name that was used before."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any

import pytest

from benchmarks.traffic import settled
from runtime.server.launch import ServerProcess
from tests.server.calls import call, events

POOL, TOKENS = 300, 45


@pytest.fixture(scope="module")
def crowded() -> Iterator[ServerProcess]:
    server = ServerProcess(max_total_tokens=POOL, schedule_conservativeness=0.1, threads=1)
    yield server
    server.shutdown()


def body(k: int) -> dict[str, Any]:
    params = {"max_new_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    return {"text": f"Count to {k}:", "sampling_params": params, "return_logprob": True}


def retractions(server: ServerProcess) -> float:
    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(x.split()[-1]) for x in lines if "num_preemptions" in x and not x.startswith("#"))


def test_three_times_the_memory_is_answered_whole(crowded: ServerProcess) -> None:
    count = 3 * POOL // TOKENS + 1
    alone = [call(f"{crowded.url}/generate", body(k))[1] for k in range(count)]
    call(f"{crowded.url}/flush_cache", method="POST")
    with ThreadPoolExecutor(count) as pool:
        together = list(pool.map(lambda k: call(f"{crowded.url}/generate", body(k))[1], range(count)))
    for one, other in zip(alone, together, strict=True):
        meta = other["meta_info"]
        assert other["text"] == one["text"]
        assert meta["completion_tokens"] == len(meta["output_token_logprobs"]) == TOKENS
        assert [t[1] for t in meta["output_token_logprobs"]] == [
            t[1] for t in one["meta_info"]["output_token_logprobs"]
        ]
    found = settled(crowded.url)
    assert found["problem"] is None and found["kv_cache"]["used_tokens"] == 0
    end = time.monotonic() + 5
    while not retractions(crowded):  # told with the engine's heartbeat
        assert time.monotonic() < end, "there was no pressure"
        time.sleep(0.1)


@pytest.mark.parametrize(
    "fields",
    [
        {"input_ids": [5] * (POOL + 1)},
        {"input_ids": [5] * 4096},
        {"text": "a", "sampling_params": {"max_new_tokens": POOL * 2, "ignore_eos": True}},
    ],
    ids=["prompt beyond the pool", "prompt beyond the context", "answer beyond the pool"],
)
def test_what_can_never_fit_is_refused_or_ends_and_the_next_is_served(
    crowded: ServerProcess, fields: dict[str, Any]
) -> None:
    began = time.monotonic()
    status, answer, _ = call(f"{crowded.url}/generate", fields)
    assert status == 400 or answer["meta_info"]["completion_tokens"] < POOL
    assert time.monotonic() - began < 10 or status == 200
    assert call(f"{crowded.url}/generate", body(1))[0] == 200


def pieces(server: ServerProcess, path: str, fields: dict[str, Any]) -> tuple[list[str], Any]:
    """The new text of each event of a stream, and how it ended."""
    texts, reason = [], None
    for _, event in events(server.url + path, {**fields, "stream": True}):
        if event == "[DONE]":
            continue
        if path == "/generate":
            texts.append(event["text"][len("".join(texts)) :])
            reason = event["meta_info"]["finish_reason"]
        else:
            choice = event["choices"][0]
            texts.append(choice.get("text") or choice.get("delta", {}).get("content") or "")
            reason = choice["finish_reason"] or reason
    return texts, reason


WIDE = "(😀|日本|é|👩‍👩‍👧|ñ|𝄞|中文){12}"


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/v1/chat/completions"])
def test_no_character_is_cut(server: ServerProcess, path: str, seed: int) -> None:
    common = {"regex": WIDE, "temperature": 3.0, "seed": seed}
    fields: dict[str, Any] = {
        "/generate": {"text": "x", "sampling_params": {**common, "max_new_tokens": 900}},
        "/v1/completions": {"prompt": "x", **common, "max_tokens": 900},
        "/v1/chat/completions": {
            "messages": [{"role": "user", "content": "x"}],
            **common,
            "max_tokens": 900,
        },
    }[path]
    texts, reason = pieces(server, path, fields)
    assert not any("\ufffd" in text for text in texts) and len(texts) > 5
    status, whole, _ = call(server.url + path, fields)
    choice = whole if path == "/generate" else whole["choices"][0]
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    assert status == 200 and "".join(texts) == text
    assert (reason["type"] if path == "/generate" else reason) == "stop"


FORCED = "abcdef ghij\nklé日本mn"
STOPS: list[tuple[Any, str, Any]] = [
    ("def", "abc", "def"),
    ("a", "", "a"),
    ("mn", FORCED[:-2], "mn"),
    ("n", FORCED[:-1], "n"),
    ("xyz", FORCED, None),
    ("defx", FORCED, None),  # begins like the text and is not in it
    (FORCED, "", FORCED),
    (["ghi", "de"], "abc", "de"),
    (["f g", "ef"], "abcd", "ef"),
    ("\n", "abcdef ghij", "\n"),
    ("é", "abcdef ghij\nkl", "é"),
    ("日本m", "abcdef ghij\nklé", "日本m"),
    ([" ghij\nkl", "never"], "abcdef", " ghij\nkl"),
]


@pytest.mark.parametrize(("stop", "text", "matched"), STOPS)
def test_stop_strings_cut_where_they_begin_and_nowhere_else(
    server: ServerProcess, stop: Any, text: str, matched: str | None
) -> None:
    params = {"regex": FORCED + ".{3}", "stop": stop, "max_new_tokens": 60, "temperature": 0}
    if matched is None:  # nothing cuts it: the whole forced text, and what follows
        params["regex"] = FORCED
    fields = {"text": "x", "sampling_params": params}
    _, whole, _ = call(f"{server.url}/generate", fields)
    assert whole["text"] == text
    if matched is not None:
        assert whole["meta_info"]["finish_reason"] == {"type": "stop", "matched": matched}
    texts, reason = pieces(server, "/generate", fields)
    assert "".join(texts) == text and reason == whole["meta_info"]["finish_reason"]
    assert all(text.startswith(so_far) for so_far in accumulate(texts))
    openai_fields = {
        "prompt": "x",
        "max_tokens": 60,
        **{k: params[k] for k in ("regex", "stop", "temperature")},
    }
    assert "".join(pieces(server, "/v1/completions", openai_fields)[0]) == text
    kept = {"text": "x", "sampling_params": {**params, "no_stop_trim": True}}
    assert call(f"{server.url}/generate", kept)[1]["text"] == text + (matched or "")


def test_a_name_may_be_used_again_and_answers_for_itself(server: ServerProcess) -> None:
    texts = []
    for prompt in ("12 + 35 =", "The capital of Peru is", "12 + 35 ="):
        params = {"temperature": 0, "max_new_tokens": 6}
        _, answer, _ = call(
            f"{server.url}/generate", {"text": prompt, "rid": "again", "sampling_params": params}
        )
        assert answer["meta_info"]["id"] == "again"
        texts.append(answer["text"])
    assert texts[0] == texts[2] != texts[1] and json.dumps(texts[0]).startswith('" 47')
