"""Embeddings and scores of reward models against transformers, in every way of cutting the work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from runtime.engine.engine import Engine
from runtime.errors import InvalidRequest, ModelError
from runtime.models.families import FAMILIES
from runtime.models.load import load_model, read_spec

ARCHITECTURES = {
    "a model that generates": ("LlamaForCausalLM", {}),
    "its layers alone": ("LlamaModel", {}),
    "Mistral": ("MistralModel", {}),
    "Qwen 2": ("Qwen2Model", {}),
    "a reward model": ("LlamaForSequenceClassification", {"num_labels": 3}),
    "a reward model of one score": ("Qwen2ForSequenceClassification", {"num_labels": 1}),
}
PROMPTS = [[5, 9, 31, 7], [11], list(range(2, 60)), [*range(2, 40), 77, 3], list(range(2, 60))]


def save(folder: Path, architecture: str, changes: dict[str, Any]) -> Any:
    base = (
        architecture.removesuffix("Model")
        .removesuffix("ForSequenceClassification")
        .removesuffix("ForCausalLM")
    )
    data = {**FAMILIES[f"{base}ForCausalLM"].tiny, **changes, "architectures": [architecture]}
    torch.manual_seed(5)
    model = getattr(transformers, architecture)(transformers.AutoConfig.for_model(**data)).float().eval()
    for p in model.parameters():
        p.data = p.data + 0.3 * torch.randn_like(p) if p.dim() == 1 else torch.randn_like(p) * 0.15
    model.save_pretrained(folder)
    return model


def reference(model: Any, ids: list[int]) -> list[float]:
    with torch.inference_mode():
        if hasattr(model, "score"):
            model.config.pad_token_id = None
            return model(torch.tensor([ids])).logits[0].tolist()
        inner = getattr(model, "model", model)
        last = inner(torch.tensor([ids])).last_hidden_state[0, -1]
        return torch.nn.functional.normalize(last, dim=0).tolist()


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_vectors_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    architecture, changes = ARCHITECTURES[kind]
    wanted = [reference(save(tmp_path, architecture, changes), ids) for ids in PROMPTS]
    options = {
        "skip_tokenizer_init": True,
        "is_embedding": architecture.endswith("CausalLM"),
        "dtype": "float32",
        "max_total_tokens": 256,
    }
    for more in ({}, {"chunked_prefill_size": 7, "page_size": 4, "max_running_requests": 2}):
        with Engine(str(tmp_path), **options, **more) as engine:
            found = engine.encode(input_ids=PROMPTS)
            assert isinstance(found, list) and [f["index"] for f in found] == list(range(len(PROMPTS)))
            for one, vector, ids in zip(found, wanted, PROMPTS, strict=True):
                assert one["embedding"] == pytest.approx(vector, abs=2e-5)
                assert one["meta_info"]["prompt_tokens"] == len(ids)
            assert found[4]["meta_info"]["cached_tokens"] >= 56  # all but its last token, in whole pages
            alone = engine.encode(input_ids=PROMPTS[2])
            assert isinstance(alone, dict)
            assert alone["embedding"] == pytest.approx(wanted[2], abs=2e-5)
            with pytest.raises(InvalidRequest, match="no text"):
                engine.generate(input_ids=[1, 2, 3])


def test_a_model_that_generates_says_what_to_do(tmp_path: Path) -> None:
    save(tmp_path, "LlamaForCausalLM", {})
    with (
        Engine(str(tmp_path), skip_tokenizer_init=True) as engine,
        pytest.raises(InvalidRequest, match="--is-embedding"),
    ):
        engine.encode(input_ids=[1, 2, 3])


def test_what_embeddings_need_no_head_for_and_what_they_do_not_take(tmp_path: Path) -> None:
    save(tmp_path, "LlamaForCausalLM", {})
    assert load_model(tmp_path).head is not None
    assert load_model(tmp_path, is_embedding=True).head is None
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "is_causal": False}))
    with pytest.raises(ModelError, match="'is_causal' to False"):
        read_spec(tmp_path, is_embedding=True)
    file.write_text(json.dumps({**config, "matryoshka_dimensions": [8, 65]}))
    with pytest.raises(
        ModelError, match=r"matryoshka_dimensions is \[8, 65\], but must be a list of sizes from 1 to 64"
    ):
        read_spec(tmp_path, is_embedding=True)
    file.write_text(json.dumps({**config, "matryoshka_dimensions": [8, 32]}))
    assert read_spec(tmp_path, is_embedding=True)[0].sizes == (8, 32)
