"""When a provider is asked again, on loopback, through the vendors' clients: the same for all four."""

from __future__ import annotations

import email.utils
import time
from typing import Any

import pytest

import sglc as sgl
from runtime.backends import retries
from runtime.backends.retries import LONGEST_WAIT
from runtime.errors import InvalidRequest
from sglc.errors import RunError
from tests.backends.provider import Provider, anthropic, litellm, openai, vertex

BACKENDS = pytest.mark.parametrize("make", [openai, anthropic, vertex, litellm])
STREAM = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
SOON = {"retry-after-ms": "1"}


@sgl.function
def asks(s, q):  # type: ignore[no-untyped-def]
    s += sgl.user(q)
    s += sgl.assistant(sgl.gen("a", max_tokens=9))


def text(state: Any) -> str:
    """Without the brackets that tell the vendor."""
    return str(state["a"])[1:-1]


@BACKENDS
@STREAM
def test_a_call_is_sent_again_up_to_a_number_of_times(provider: Provider, make: Any, stream: bool) -> None:
    provider.refusals = [(s, SOON) for s in (408, 409, 429)]
    assert text(asks.run("Hi", backend=make(provider), stream=stream)) == "Hi" and len(provider.asked) == 4
    provider.refusals = [(s, SOON) for s in (500, 503, 529, 504, 502)]
    assert text(asks.run("Hi", backend=make(provider, max_retries=5), stream=stream)) == "Hi"
    assert len(provider.asked) == 4 + 6
    provider.refusals = [(503, SOON)] * 9
    for most, tries in ((0, 1), (2, 3)):
        provider.asked.clear()
        error = asks.run("Hi", backend=make(provider, max_retries=most), stream=stream).error()
        assert isinstance(error, RunError) and "503" in str(error) and len(provider.asked) == tries


@BACKENDS
@STREAM
def test_what_is_wrong_is_not_sent_again(provider: Provider, make: Any, stream: bool) -> None:
    for status in (400, 401, 403, 404, 422):
        provider.asked.clear()
        provider.refusals = [(status, SOON)]
        error = asks.run("Hi", backend=make(provider), stream=stream).error()
        assert isinstance(error, RunError) and str(status) in str(error) and len(provider.asked) == 1


@BACKENDS
def test_the_provider_overrules_the_status(provider: Provider, make: Any) -> None:
    provider.refusals = [(400, {**SOON, "x-should-retry": "true"}), (503, {"x-should-retry": "false"})]
    error = asks.run("Hi", backend=make(provider)).error()
    assert isinstance(error, RunError) and "503" in str(error) and len(provider.asked) == 2


@BACKENDS
@STREAM
def test_a_connection_without_an_answer_is_tried_again(
    provider: Provider, make: Any, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "_FIRST_PAUSE", 0.01)
    provider.refusals = [(0, {}), (0, {})]
    assert text(asks.run("Hi", backend=make(provider), stream=stream)) == "Hi" and len(provider.asked) == 3


def in_an_hour() -> str:
    return email.utils.formatdate(time.time() + 3600, usegmt=True)


@BACKENDS
@pytest.mark.parametrize(
    "headers",
    [
        {"retry-after": "3600"},
        {"retry-after-ms": "3600000"},
        {"retry-after": "1e999"},
        {"retry-after": "in_an_hour"},
    ],
    ids=["seconds", "milliseconds", "for ever", "date"],
)
def test_an_hour_is_not_waited(provider: Provider, make: Any, headers: dict[str, str]) -> None:
    if headers.get("retry-after") == "in_an_hour":
        headers = {"retry-after": in_an_hour()}
    provider.refusals = [(429, headers)]
    error = str(asks.run("Hi", backend=make(provider)).error())
    assert "asks to wait" in error and f"at most {LONGEST_WAIT:.0f} s" in error and "test_retries.py" in error
    assert len(provider.asked) == 1


@BACKENDS
@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [
        ({"retry-after": "0.25"}, 0.25, 0.25),
        ({"retry-after-ms": "250", "retry-after": "50"}, 0.25, 0.25),
        ({"retry-after": "60"}, 60, 60),
        ({"retry-after": "soon"}, 0.375, 0.5),
        ({"retry-after": "nan"}, 0.375, 0.5),
        ({"retry-after": "-5"}, 0.375, 0.5),
        ({}, 0.375, 0.5),
    ],
)
def test_pauses_are_those_asked_for_or_grow(
    provider: Provider,
    make: Any,
    headers: dict[str, str],
    least: float,
    most: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(retries, "sleep", sleep)
    provider.refusals = [(429, headers)] * 3
    assert text(asks.run("Hi", backend=make(provider))) == "Hi"
    assert len(slept) == 3 and least <= slept[0] <= most
    if least == most:
        assert slept == [least] * 3
    else:
        assert 0.75 <= slept[1] <= 1 and 1.5 <= slept[2] <= 2 and slept[1] != 2 * slept[0]


@BACKENDS
def test_a_stream_that_breaks_is_an_error_and_no_text_comes_twice(provider: Provider, make: Any) -> None:
    provider.cut = True
    state = asks.run("Hello", backend=make(provider), stream=True)
    heard = []
    with pytest.raises(RunError):
        for piece in state.text_iter("a"):
            heard.append(piece)
    said = "".join(heard)
    assert len(said) >= 2 and "Hello".startswith(said[1:].rstrip(">)}"))  # something came, and came once
    with pytest.raises(RunError):
        state["a"]
    assert len(provider.asked) == 1


@BACKENDS
def test_a_row_that_fails_moves_no_other(provider: Provider, make: Any) -> None:
    provider.refusals = [(503, SOON)] * 4  # of whichever rows come first
    rows = [{"q": "refuse me" if k == 3 else f"q{k}"} for k in range(8)]
    states = asks.run_batch(rows, backend=make(provider), num_threads=4)
    assert [k for k, s in enumerate(states) if s.error() is not None] == [3]
    assert [text(s) for k, s in enumerate(states) if k != 3] == [f"q{k}" for k in range(8) if k != 3]
    assert "400" in str(states[3].error()) and len(provider.asked) == 12


@BACKENDS
@pytest.mark.parametrize("most", [-1, 2.5, "3", True, 101])
def test_numbers_of_retries_are_checked(provider: Provider, make: Any, most: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"max_retries is .*give a whole number from 0 to 100"):
        make(provider, max_retries=most)


def test_one_rule_is_not_two(provider: Provider) -> None:
    with pytest.raises(InvalidRequest, match="max_retries instead of retry_options"):
        sgl.VertexAI("gemini-x", project="p", http_options={"retry_options": {"attempts": 2}})
