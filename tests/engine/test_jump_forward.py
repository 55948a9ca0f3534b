"""Tokens that a constraint forces are appended without asking the model: same texts, fewer draws, honest counts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

import sglc as sgl
from runtime.api import Constraint, Generate, SamplingParams, TextSegment
from runtime.config import embedded_model_path
from runtime.errors import InvalidRequest
from runtime.tokenizer.tokenizer import Tokenizer

CHARACTER = (
    r"\{\n"
    r'    "name": "[\w ]{1,16}",\n'
    r'    "house": "(Gryffindor|Slytherin|Ravenclaw|Hufflepuff)",\n'
    r'    "blood status": "(Pure-blood|Half-blood|Muggle-born)",\n'
    r'    "occupation": "(student|teacher|auror|ministry of magic|death eater)",\n'
    r'    "wand": \{\n'
    r'        "wood": "[\w ]{1,16}",\n'
    r'        "core": "[\w ]{1,16}",\n'
    r'        "length": [0-9]{1,2}\.[0-9]{0,2}\n'
    r"    \},\n"
    r'    "alive": "(Alive|Deceased)",\n'
    r'    "patronus": "[\w ]{1,16}"\n'
    r"\}"
)
PATTERNS = [
    CHARACTER,
    r"(red|green) apple pie for (one|two)",
    r"The answer is: \d+(, certainly)?\.",
    r'"(é|日本語)+" and nothing else at all',
]


@pytest.fixture(scope="module", params=[0, 8], ids=["forced", "guessed"])
def engines(request: pytest.FixtureRequest) -> Iterator[tuple[sgl.Engine, sgl.Engine]]:
    jumps = {"constrained_guesses": request.param}
    with sgl.Engine(**jumps) as jumping, sgl.Engine(disable_regex_jump_forward=True) as drawing:
        yield jumping, drawing


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(embedded_model_path())


KNOWN = [  # what the embedded model writes by itself, and a constraint that forces part of it
    ("The capital of France is", r" Paris\."),
    ("The capital of France is", r" (Paris|Rome)\."),
    ("The capital of Japan is", r" (Tokyo|Rome|Paris)\."),
]


@pytest.mark.parametrize("pattern", PATTERNS, ids=range(len(PATTERNS)))
def test_forced_answers_are_right_and_counted(engines: tuple[sgl.Engine, sgl.Engine], pattern: str) -> None:
    for k in range(4):
        params = {"regex": pattern, "max_new_tokens": 300, "temperature": k % 2, "seed": k}
        jumped, drawn = (e.generate(f"Question {k}: who is Harry Potter?\n", params) for e in engines)
        assert re.fullmatch(pattern, jumped["text"], re.ASCII)
        told, other = jumped["meta_info"], drawn["meta_info"]
        assert other["completion_tokens_wo_jump_forward"] == other["completion_tokens"]
        assert 0 < told["completion_tokens_wo_jump_forward"] < told["completion_tokens"]


@pytest.mark.parametrize(("prompt", "pattern"), KNOWN)
def test_the_same_greedy_text_where_the_model_writes_as_the_tokenizer(
    engines: tuple[sgl.Engine, sgl.Engine], tokenizer: Tokenizer, prompt: str, pattern: str
) -> None:
    params = {"regex": pattern, "max_new_tokens": 30, "temperature": 0}
    jumped, drawn = (e.generate(prompt, params) for e in engines)
    ids = tokenizer.encode(drawn["text"], first=False)
    assert len(ids) + 1 == drawn["meta_info"]["completion_tokens"], "with its end token"
    assert jumped["text"] == drawn["text"]
    assert jumped["meta_info"]["completion_tokens"] == drawn["meta_info"]["completion_tokens"]
    assert jumped["meta_info"]["completion_tokens_wo_jump_forward"] < len(ids) + 1


def test_most_of_a_template_needs_no_draw(engines: tuple[sgl.Engine, sgl.Engine]) -> None:
    told = engines[0].generate(
        "Harry Potter is ", {"regex": CHARACTER, "max_new_tokens": 400, "temperature": 0}
    )["meta_info"]
    assert told["completion_tokens_wo_jump_forward"] < 0.45 * told["completion_tokens"]


def test_the_same_texts_are_possible(engines: tuple[sgl.Engine, sgl.Engine]) -> None:
    pattern = r"(a|an) (owl|own)s?( ran| rang)"
    seen = []
    for engine in engines:
        params = [
            {"regex": pattern, "max_new_tokens": 40, "temperature": 20.0, "seed": seed} for seed in range(400)
        ]
        seen.append({a["text"] for a in engine.generate(["x"] * 400, params)})
    assert seen[0] == seen[1] and len(seen[0]) == 16


def test_complete_at_every_budget_and_never_longer(engines: tuple[sgl.Engine, sgl.Engine]) -> None:
    schema = json.dumps(
        {"type": "object", "properties": {"colour": {"enum": ["red", "green"]}}, "required": ["colour"]}
    )
    least = next(
        n for n in range(1, 60) if _try(engines[0], {"json_schema": schema, "max_new_tokens": n}) is not None
    )
    for budget in range(least, least + 12):
        for seed in range(6):
            told = _try(
                engines[0],
                {"json_schema": schema, "max_new_tokens": budget, "temperature": 2.0, "seed": seed},
            )
            assert told is not None and json.loads(told["text"])["colour"] in ("red", "green")
            assert told["meta_info"]["completion_tokens"] <= budget


def _try(engine: sgl.Engine, params: dict[str, object]) -> dict[str, object] | None:
    try:
        return engine.generate("A colour:", params)  # type: ignore[no-any-return]
    except InvalidRequest:
        return None


def test_a_stop_string_inside_of_a_forced_run(engines: tuple[sgl.Engine, sgl.Engine]) -> None:
    params = {"regex": PATTERNS[1], "max_new_tokens": 40, "temperature": 0, "stop": ["pie"]}
    jumped, drawn = (e.generate("x", params) for e in engines)
    assert jumped["text"] == drawn["text"] in ("red apple ", "green apple ")
    assert jumped["meta_info"]["finish_reason"] == drawn["meta_info"]["finish_reason"]
    assert jumped["meta_info"]["completion_tokens_wo_jump_forward"] < drawn["meta_info"]["completion_tokens"]


def test_log_probabilities_are_drawn_tokens_only(engines: tuple[sgl.Engine, sgl.Engine]) -> None:
    prompt, params = "x", {"regex": PATTERNS[1], "max_new_tokens": 40, "temperature": 0}
    told = engines[0].generate(prompt, params, return_logprob=True)["meta_info"]
    assert told["completion_tokens_wo_jump_forward"] == told["completion_tokens"]
    assert len(told["output_token_logprobs"]) == told["completion_tokens"]


def test_streams_and_samples(engines: tuple[sgl.Engine, sgl.Engine]) -> None:
    @sgl.function
    def program(s: sgl.ProgramState) -> None:
        s += "Tell me: " + sgl.gen("a", regex=PATTERNS[2], temperature=1.0, seed=3, max_tokens=40)
        s += " " + sgl.gen("b", regex=PATTERNS[1], temperature=2.0, seed=4, max_tokens=40, n=4)

    state = program.run(backend=engines[0], stream=True)
    assert "".join(state.text_iter("a")) == state["a"] and re.fullmatch(PATTERNS[2], state["a"])
    assert all(re.fullmatch(PATTERNS[1], b) for b in state["b"]) and len(state["b"]) == 4


RECORD = json.dumps(
    {
        "type": "object",
        "properties": {
            "kind": {"enum": ["apple", "pear", "plum"]},
            "ripe": {"type": "boolean"},
            "note": {"type": "string", "maxLength": 12},
            "sizes": {"type": "array", "items": {"enum": [10, 20, 30]}, "minItems": 2, "maxItems": 3},
        },
        "required": ["kind", "sizes"],
    }
)


def _drawn(answers: list[dict[str, Any]]) -> int:
    return sum(a["meta_info"]["completion_tokens_wo_jump_forward"] for a in answers)


def test_guesses_save_passes_and_change_no_answer() -> None:
    """What earlier answers went on with is expected of later ones; the model is asked all the same."""
    prompts = [f"Fruit number {k}:" for k in range(6)]
    params = [
        {"json_schema": RECORD, "max_new_tokens": 120, "temperature": k % 2 / 2, "seed": k} for k in range(6)
    ]
    with sgl.Engine(constrained_guesses=8) as guessing, sgl.Engine() as other:
        wanted = other.generate(prompts, params)
        rounds = [guessing.generate(prompts, params) for _ in range(3)]
        for answers in rounds:
            assert [a["text"] for a in answers] == [a["text"] for a in wanted]
            assert [a["meta_info"]["completion_tokens"] for a in answers] == [
                a["meta_info"]["completion_tokens"] for a in wanted
            ]
        assert _drawn(rounds[2]) < 0.7 * _drawn(wanted)
        told = guessing.get_server_info()
        assert 0 < told["verified_tokens"] <= told["guessed_tokens"]
        assert other.get_server_info()["guessed_tokens"] == 0


async def test_who_keeps_apart_neither_teaches_nor_learns() -> None:
    sampling = SamplingParams(constraint=Constraint("json_schema", RECORD), max_new_tokens=120, temperature=0)
    with sgl.Engine(constrained_guesses=8) as engine:

        async def drawn(salt: str) -> int:
            call = Generate(prompt=(TextSegment("Fruit:"),), sampling=sampling, salt=salt)
            usage = [delta.usage async for delta in engine.async_engine.generate([call])][-1]
            assert usage is not None
            return usage.completion_tokens - usage.forced_tokens

        first = await drawn("one")
        assert await drawn("two") == await drawn("one") == first
        assert await drawn("") == first > await drawn("")
        assert await drawn("two") == first
