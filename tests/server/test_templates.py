"""Conversations by name, and files of separators, as Jinja templates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runtime.config import embedded_model_path
from runtime.errors import InvalidRequest, ModelError
from runtime.server.templates import CONVERSATIONS, read_template
from runtime.tokenizer.tokenizer import Tokenizer

TALK = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "U"},
    {"role": "assistant", "content": "A"},
    {"role": "user", "content": "V"},
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(embedded_model_path())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama-2", "[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST] A </s><s>[INST] V [/INST]"),
        ("vicuna_v1.1", "S USER: U ASSISTANT: A</s>USER: V ASSISTANT:"),
        (
            "chatml",
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
            "<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "llava_llama_3",
            "<|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
            "V<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
    ],
)
def test_conversations_by_name(tokenizer: Tokenizer, name: str, expected: str) -> None:
    template, _ = read_template(name, tokenizer)
    assert template.render(TALK) == expected
    assert template.render(TALK[:3], continue_final_message=True) == expected[
        : expected.index("A", 30) + 1
    ] or (name == "vicuna_v1.1")


def test_a_system_message_of_its_own_where_there_is_none(tokenizer: Tokenizer) -> None:
    for name, conversation in CONVERSATIONS.items():
        text = read_template(name, tokenizer)[0].render(TALK[1:2])
        assert conversation.default_system in text
        assert conversation.default_system == "" or conversation.default_system not in read_template(
            name, tokenizer
        )[0].render(TALK)
    with pytest.raises(InvalidRequest, match="no role king"):
        read_template("chatml", tokenizer)[0].render([{"role": "king", "content": "x"}])


def test_a_json_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "own.json"
    keys = {"name": "own", "system": "S:", "user": "U", "assistant": "A", "sep_style": "ADD_COLON_SINGLE"}
    file.write_text(json.dumps({**keys, "sep": "\n", "stop_str": ["\nU:"], "system_message": "Hi"}))
    template, stop = read_template(str(file), tokenizer)
    assert template.render(TALK[1:2]) == "S:Hi\nU: U\nA:" and stop == ("\nU:",)
    file.write_text("{}")
    with pytest.raises(ModelError, match="sep_style"):
        read_template(str(file), tokenizer)
    file.write_text(json.dumps({**keys, "sep_style": "RWKV"}))
    with pytest.raises(ModelError, match="'RWKV' is none of"):
        read_template(str(file), tokenizer)
