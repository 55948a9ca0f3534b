"""Text to ids: begin tokens, end tokens, mixed prompts, chat templates and folders that are broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, processors

from runtime.api import ImageSegment, TextSegment, TokenSegment
from runtime.config import embedded_model_path
from runtime.errors import InvalidRequest, ModelError
from runtime.tokenizer.tokenizer import Tokenizer

EMBEDDED = Tokenizer(embedded_model_path())
TRANSFORMERS = transformers.AutoTokenizer.from_pretrained(embedded_model_path())
VOCABULARY = {"<s>": 0, "</s>": 1, "<|eot|>": 2, "<unk>": 3, "a": 4, "b": 5, "c": 6}


def folder(path: Path, **files: Any) -> Path:
    """A model folder with a tokenizer of three letters that puts <s> before a text."""
    hf = tokenizers.Tokenizer(models.BPE(VOCABULARY, [], unk_token="<unk>"))
    hf.add_special_tokens(["<s>", "</s>", "<|eot|>"])
    hf.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    hf.enable_truncation(2)
    hf.enable_padding()
    hf.save(str(path / "tokenizer.json"))
    files.setdefault("tokenizer_config", {"bos_token": {"content": "<s>"}, "eos_token": "</s>"})
    for name, value in files.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    return path


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=40) | st.sampled_from(["<|im_start|>user\nhi<|im_end|>", " 12 + 7", "日本 😀"]))
def test_ids_are_those_of_transformers_and_decode_to_the_text(text: str) -> None:
    ids = EMBEDDED.encode(text)
    assert ids == TRANSFORMERS(text)["input_ids"]
    assert EMBEDDED.decode(ids, skip_special_tokens=False) == text
    table = EMBEDDED.token_bytes
    assert table is not None
    pieces = [table[i] or EMBEDDED.token_text(i).encode() for i in ids]
    assert b"".join(pieces) == text.encode()


def test_a_begin_token_is_there_once_and_only_at_the_beginning(tmp_path: Path) -> None:
    bos = Tokenizer(folder(tmp_path))
    assert bos.encode("abc") == [0, 4, 5, 6]  # whole: what the file says of truncation is for training
    assert bos.encode("<s>ab") == [0, 4, 5]
    assert bos.encode("ab", first=False) == [4, 5]
    assert bos.encode_prompt(()) == [0]
    assert bos.encode_prompt((TextSegment(""), TextSegment("a"), TextSegment("b"))) == [0, 4, 5]
    mixed = (TextSegment("a"), TokenSegment((5, 5), "bb"), TextSegment("c"), TextSegment("a"))
    assert bos.encode_prompt(mixed) == [0, 4, 5, 5, 6, 4]
    assert bos.encode_prompt((TokenSegment((5,), "b"), TextSegment("c"))) == [5, 6]


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(st.tuples(st.booleans(), st.text("the 12+日\n", max_size=8)), max_size=6))
def test_runs_of_text_are_encoded_whole_and_ids_are_left_alone(parts: list[tuple[bool, str]]) -> None:
    prompt: list[TextSegment | TokenSegment] = []
    wanted: list[int] = []
    run = ""
    for as_ids, text in parts:
        if as_ids and text:
            ids = tuple(
                i for c in text for i in EMBEDDED.encode(c, first=False)
            )  # not how the text is encoded
            prompt.append(TokenSegment(ids, text))
            wanted += [*EMBEDDED.encode(run), *ids]
            run = ""
        else:
            prompt.append(TextSegment(text))
            run += text
    assert EMBEDDED.encode_prompt(prompt) == wanted + EMBEDDED.encode(run)


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="half of a surrogate pair at character 2"):
        EMBEDDED.encode("ab\ud800")


def test_images_are_refused_by_a_text_model() -> None:
    with pytest.raises(InvalidRequest, match="holds an image"):
        EMBEDDED.encode_prompt((TextSegment("a"), ImageSegment(b"x")))


@pytest.mark.parametrize(
    ("files", "ends"),
    [
        ({}, (1,)),
        ({"generation_config": {"eos_token_id": [2, 1]}}, (2, 1)),
        ({"config": {"eos_token_id": 2}}, (2, 1)),
        ({"config": {"eos_token_id": None}, "tokenizer_config": {}}, ()),
        ({"tokenizer_config": {"eos_token": "not in the vocabulary"}}, ()),
    ],
)
def test_ends_come_from_every_file_that_names_some(
    tmp_path: Path, files: dict[str, Any], ends: tuple[int, ...]
) -> None:
    assert Tokenizer(folder(tmp_path, **files)).ends == ends


def test_broken_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        Tokenizer(tmp_path)
    folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"tokenizer_config\.json is not valid JSON"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        Tokenizer(tmp_path)


MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi {{ 1 + 1 }} {% x"},
    {"role": "assistant", "content": "Hello \n"},
]


def test_chat_templates_are_those_of_transformers() -> None:
    template = EMBEDDED.chat_template
    assert template is not None
    for count in (1, 2, 3):
        assert template.render(MESSAGES[:count]) == TRANSFORMERS.apply_chat_template(
            MESSAGES[:count], tokenize=False, add_generation_prompt=True
        )
    continued = template.render(MESSAGES, continue_final_message=True)
    assert continued.endswith("assistant\nHello \n") and continued in template.render(MESSAGES)


def test_templates_of_strangers_are_data(tmp_path: Path) -> None:
    sources = {
        "{{ raise_exception('roles must alternate') }}": "roles must alternate",
        "{{ messages.__class__.__mro__ }}": "refuses",
        "{{ messages.append(1) }}": "refuses",
    }
    for source, part in sources.items():
        files = {"tokenizer_config": {"bos_token": "<s>", "chat_template": source}}
        template = Tokenizer(folder(tmp_path, **files)).chat_template
        assert template is not None
        with pytest.raises(InvalidRequest, match=part):
            template.render(MESSAGES)
    (tmp_path / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    found = Tokenizer(tmp_path)
    assert found.chat_template is not None
    assert found.encode(found.chat_template.render([{"role": "user", "content": "ab"}])) == [0, 4, 5]
    plain = tmp_path / "plain"
    plain.mkdir()
    assert Tokenizer(folder(plain)).chat_template is None
