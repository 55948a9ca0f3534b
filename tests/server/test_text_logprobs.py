"""Tokens of an answer's text among those of its reasoning, its calls and what was held back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.api import Delta, TokenLogprob
from runtime.server.parts import CallPart, Part, ReasoningPart, TextPart
from runtime.server.text_logprobs import TextLogprobs, without_bytes
from runtime.server.token_text import TokenTexts


def delta(*tokens: str) -> Delta:
    return Delta(id="0", output_logprobs=tuple(TokenLogprob(-1.0, 0, t) for t in tokens))


def fed(*steps: tuple[list[str], list[Part]]) -> list[list[str]]:
    found = TextLogprobs(TokenTexts(None))
    return [[t["token"] for t in found.feed(delta(*tokens), parts)] for tokens, parts in steps]


def test_reasoning_and_marks_are_left_out() -> None:
    steps: list[tuple[list[str], list[Part]]] = [
        (["<think>"], []),
        (["so", " it"], [ReasoningPart("so it")]),
        (["</think>"], []),
        (["\n\n"], []),
        (["Mad"], [TextPart("Mad")]),
        (["rid", "<|im_end|>"], [TextPart("rid")]),
        ([], []),
    ]
    assert fed(*steps) == [[], [], [], [], ["Mad"], ["rid"], []]
    together = [t for tokens, _ in steps for t in tokens]
    assert fed((together, [ReasoningPart("so it"), TextPart("Madrid")])) == [["Mad", "rid"]]


def test_what_was_held_back_comes_with_its_text() -> None:
    assert fed((["a"], [TextPart("a")]), (["<", "b"], []), (["c"], [TextPart("<bc")])) == [
        ["a"],
        [],
        ["<", "b", "c"],
    ]
    assert fed((["ab"], [TextPart("a")]), ([" c"], [TextPart("b c")])) == [["ab"], [" c"]]
    assert fed((["<tool>"], []), (["f"], [CallPart(0, "1", "f", "")]), (["x"], [TextPart("x")])) == [
        [],
        [],
        ["x"],
    ]


@given(st.lists(st.tuples(st.text("ab😀<", min_size=1, max_size=3), st.booleans()), max_size=12))
def test_a_text_has_all_of_its_tokens(tokens: list[tuple[str, bool]]) -> None:
    """However many are held back before some are shown."""
    found, held, given_ = TextLogprobs(TokenTexts(None)), "", []
    for text, shown in [*tokens, ("end", True)]:
        held += text
        given_ += [t["token"] for t in found.feed(delta(text), [TextPart(held)] if shown else [])]
        held = "" if shown else held
    assert given_ == [*(t for t, _ in tokens), "end"]


def test_events_have_no_bytes() -> None:
    (token,) = TextLogprobs(TokenTexts(None)).feed(delta("a"), [TextPart("a")])
    assert token["bytes"] == [97]
    assert without_bytes([{**token, "top_logprobs": [token]}]) == [
        {"token": "a", "logprob": -1.0, "top_logprobs": [{"token": "a", "logprob": -1.0}]}
    ]
