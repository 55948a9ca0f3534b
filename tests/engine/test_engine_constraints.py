"""Constraints in the engine: every answer is one of the language's texts, at any budget, in any batch."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

import sglc as sgl
from grammar.constraint_errors import TooLarge
from grammar.token_pushdown import TokenPushdown
from runtime.constrain.matcher import Matcher
from runtime.errors import InvalidRequest

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 24},
        "age": {"type": "integer", "minimum": 18, "maximum": 80},
        "city": {"enum": ["Paris", "Rome", "Tokyo"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}
PATTERNS = [r"[0-9]{3}-[0-9]{4}", r"(yes|no|maybe)( \w{1,5}){0,3}", r"[A-Z][a-z]+ is \d+", r"(é|ü|日本){2,4}"]


@pytest.fixture(scope="module")
def engine() -> Iterator[sgl.Engine]:
    with sgl.Engine(constrained_json_whitespace="spaced") as engine:
        yield engine


def test_regexes_hold_greedy_and_random_in_one_batch(engine: sgl.Engine) -> None:
    prompts = [f"Q: {i}?\nA:" for i in range(len(PATTERNS) * 4)]
    params = [
        {"regex": PATTERNS[i % len(PATTERNS)], "temperature": float(i % 3), "seed": i, "max_new_tokens": 40}
        for i in range(len(prompts))
    ]
    for answer, p in zip(engine.generate(prompts, params), params, strict=True):
        assert re.fullmatch(p["regex"], answer["text"], re.ASCII), (p["regex"], answer["text"])


def test_json_is_complete_and_valid_at_every_budget(engine: sgl.Engine) -> None:
    least = None
    for budget in range(1, 80, 3):
        params = {
            "json_schema": json.dumps(SCHEMA),
            "max_new_tokens": budget,
            "temperature": 1.0,
            "seed": budget,
        }
        try:
            answer = engine.generate("Fill in a JSON record about the person Anna Carter.\n", params)
        except InvalidRequest as error:
            assert least is None and "the shortest text of the constraint takes" in str(error)
            continue
        least = least or budget
        jsonschema.validate(json.loads(answer["text"]), SCHEMA)
    assert least is not None and least < 40


def test_a_constrained_answer_does_not_depend_on_the_batch(engine: sgl.Engine) -> None:
    params = {"json_schema": json.dumps(SCHEMA), "max_new_tokens": 60, "temperature": 0}
    prompt = "Fill in a JSON record about the person Anna Carter.\n"
    alone = engine.generate(prompt, params)["text"]
    together = engine.generate([prompt] * 3 + ["x"] * 3, [params] * 3 + [{"max_new_tokens": 20}] * 3)
    assert {a["text"] for a in together[:3]} == {alone}


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"regex": "(?=a)b"}, "lookahead"),
        ({"regex": "["}, "regex"),
        ({"json_schema": "{"}, "json_schema"),
        ({"regex": "a", "json_schema": "{}"}, "cannot be given together"),
        ({"ebnf": "root ::= a"}, "no rule 'a'"),
        ({"regex": "a{30}", "max_new_tokens": 2}, "shortest text of the constraint"),
    ],
)
def test_what_cannot_be_enforced_is_refused(
    engine: sgl.Engine, params: dict[str, object], reason: str
) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        engine.generate("x", params)
    assert (
        engine.generate("The capital of France is", {"temperature": 0, "max_new_tokens": 2})["text"]
        == " Paris."
    )


def test_programs_can_constrain(engine: sgl.Engine) -> None:
    @sgl.function
    def program(s):
        s += "12 + 35 =" + sgl.gen("n", regex=r" [0-9]{2}", temperature=0)
        s += "\n9 + 3 = " + sgl.gen("i", dtype=int, temperature=0, max_tokens=6)

    state = program.run(backend=engine)
    assert state["n"] == " 47"
    assert re.fullmatch(r"[-+]?[0-9]+[ \n]*", state["i"])


def test_a_request_without_room_for_its_constraint_ends_alone(engine: sgl.Engine) -> None:
    """Nothing to write, or no room beside the prompt: others in the same batch are answered."""
    long = [5] * (engine.get_server_info()["context_length"] - 4)
    asked = {"json_schema": json.dumps(SCHEMA), "max_new_tokens": 40}

    async def both() -> list[Any]:
        calls = [
            engine.async_generate("Q: 1?\nA:", {"regex": PATTERNS[0], "max_new_tokens": 20}),
            engine.async_generate("Q: 2?\nA:", {"json_schema": json.dumps(SCHEMA), "max_new_tokens": 0}),
            engine.async_generate(input_ids=long, sampling_params=asked),
            engine.async_generate(input_ids=long, sampling_params=asked, return_logprob=True),
        ]
        return await asyncio.gather(*calls, return_exceptions=True)

    answer, nothing, *refused = asyncio.run(both())
    assert re.fullmatch(PATTERNS[0], answer["text"])
    assert nothing["text"] == "" and nothing["meta_info"]["completion_tokens"] == 0
    for error in refused:
        assert isinstance(error, InvalidRequest)
        assert "leaves room for 4, but the shortest text of the constraint takes" in str(error)


def test_an_answer_that_must_end_does_so_before_its_least_length(engine: sgl.Engine) -> None:
    params = {"regex": "ab|abc", "min_new_tokens": 8, "max_new_tokens": 20}
    for temperature in (0, 1.5):
        answer = engine.generate("Spell:", {**params, "temperature": temperature})
        assert answer["text"] == "abc" and answer["meta_info"]["finish_reason"]["type"] == "stop"


@pytest.mark.parametrize("fails", ["mask", "advance", "forced_tokens", "__post_init__"])
def test_a_constraint_that_fails_while_its_text_is_written_ends_its_request_alone(
    engine: sgl.Engine, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """As at the limit of states, which recursion builds while texts are written."""
    usual = getattr(Matcher, fails)
    loop = threading.current_thread()

    def failing(self: Matcher, *given: Any) -> Any:
        if (
            isinstance(self.automaton, TokenPushdown)
            and self.max_tokens == 41
            and (fails != "advance" or self.used > 3)
        ):
            if fails != "__post_init__" or threading.current_thread() is not loop:
                raise TooLarge("the constraint needs more than 9 states")
        return usual(self, *given)

    async def both() -> list[Any]:
        calls = [
            engine.async_generate("Q: 1?\nA:", {"regex": PATTERNS[0], "max_new_tokens": 20, "seed": 1}),
            engine.async_generate(
                "Q: 2?\nA:", {"json_schema": json.dumps(SCHEMA), "max_new_tokens": 41, "seed": 1}
            ),
            engine.async_generate(
                "Q: 3?\nA:", {"json_schema": json.dumps(SCHEMA), "max_new_tokens": 40, "seed": 1}
            ),
        ]
        return await asyncio.gather(*calls, return_exceptions=True)

    monkeypatch.setattr(Matcher, fails, failing)
    answer, error, other = asyncio.run(both())
    assert isinstance(error, Exception)
    assert re.fullmatch(PATTERNS[0], answer["text"])
    jsonschema.validate(json.loads(other["text"]), SCHEMA)
