"""The embedded model: its corpus is deterministic and keeps back what is measured, its files load and answer."""

from __future__ import annotations

import json
from itertools import islice
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from stdlib.tiny import path
from stdlib.tiny.corpus import arithmetic, documents, geography, records, tools
from stdlib.tiny.corpus.document import SPECIALS_TEXT as SPECIALS
from stdlib.tiny.corpus.document import chat, text_of
from stdlib.tiny.corpus.facts import COUNTRIES
from stdlib.tiny.evaluate import CATEGORIES, measure, transformers_complete


@pytest.fixture(scope="module")
def corpus() -> str:
    return "\n".join(text_of(d) for d in islice(documents(3), 6000))


def test_equal_seeds_give_equal_documents() -> None:
    first, second = (list(islice(documents(seed), 300)) for seed in (5, 5))
    assert first == second
    assert first != list(islice(documents(6), 300))


def test_held_out_phrasings_are_never_made(corpus: str) -> None:
    for relation in geography.RELATIONS:
        for phrasing in relation.held_out:
            for country in COUNTRIES:
                assert geography.fill(phrasing, country) not in corpus
        assert not [p for p in relation.follow_up_held_out if f"\n{p}<" in corpus]
    for lead in (*arithmetic.HELD_OUT_PHRASINGS, *tools.HELD_OUT_LEADS, *records.HELD_OUT_LEADS):
        assert lead[: lead.index("{")] not in corpus, lead


def test_held_out_operands_and_names_are_never_drawn() -> None:
    rng = Random(0)
    assert not any(arithmetic.held_out(*arithmetic.operands(rng)) for _ in range(20_000))
    names = [records.person(rng)[1]["name"] for _ in range(5_000)]
    assert not any(records.held_out(*str(name).split()) for name in names)


def test_a_sum_is_held_out_with_its_operands_exchanged() -> None:
    kept = [(a, b) for a in range(10, 100) for b in range(10, 100) if arithmetic.held_out(a, "+", b)]
    assert len(kept) > 400
    assert all(arithmetic.held_out(b, "+", a) for a, b in kept)


def test_every_measured_prompt_is_new(corpus: str) -> None:
    for category in CATEGORIES:
        if category.name != "marks of essays":  # texts drawn anew, in the words of the corpus
            for case in islice(category.cases(Random(1)), 100):
                assert case.prompt not in corpus, category.name


@given(st.text())
def test_tokenizer_gives_back_any_text(text: str) -> None:
    tokenizer = Tokenizer.from_file(str(path() / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_digits_are_single_tokens_and_marks_are_special() -> None:
    tokenizer = Tokenizer.from_file(str(path() / "tokenizer.json"))
    assert len(tokenizer.encode("2026").ids) == 4
    assert [len(tokenizer.encode(mark).ids) for mark in SPECIALS] == [1, 1, 1]
    assert 7_500 <= tokenizer.get_vocab_size() <= 8_192


def test_chat_template_is_chatml_without_a_system_prompt_of_its_own() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path())
    turns = [("What is 1 + 1?", "2")]
    messages = [{"role": "user", "content": turns[0][0]}, {"role": "assistant", "content": turns[0][1]}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == text_of(chat(turns))
    assert tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>user\nWhat is 1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_weights_keep_their_limits() -> None:
    safetensors = pytest.importorskip("safetensors")
    file = path() / "model.safetensors"
    assert file.stat().st_size <= 32e6
    with safetensors.safe_open(file, "pt") as tensors:
        sizes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
    total = 0
    for size in sizes:
        count = 1
        for n in size:
            count *= n
        total += count
    assert total <= 16_000_000
    config = json.loads((path() / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["max_position_embeddings"] >= 4096
    assert len(json.loads((path() / "generation_config.json").read_text())["eos_token_id"]) == 2


def test_it_answers_a_question_and_the_one_that_leans_on_it() -> None:
    pytest.importorskip("transformers")
    complete = transformers_complete(path())
    system, question = "You are a helpful assistant.", "What is the capital of France?"
    answer = "The capital of France is Paris."
    prompts = [
        text_of(chat([(question, "")], system)[:-2]),
        text_of(chat([(question, answer), ("List two sights there.", "")], system)[:-2]),
    ]
    first, second = complete(prompts, 32)
    assert first == answer
    assert "the Eiffel Tower" in second and "the Louvre" in second


def test_measuring_counts_whole_answers_only() -> None:
    by_prompt = {
        case.prompt: case for category in CATEGORIES for case in islice(category.cases(Random(0)), 48)
    }
    scores = measure(lambda prompts, max_tokens: ["Paris"] * len(prompts), count=6, seed=0)
    assert by_prompt and all(score.right == 0 for score in scores)
