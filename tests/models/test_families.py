"""Every family's tiny model against transformers, and through the paged runner in every way of cutting the work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from runtime.api import LogprobOptions, SamplingParams
from runtime.attention.plain import PlainAttention
from runtime.engine.runner import ModelRunner
from runtime.errors import ModelError
from runtime.kv.store import KVStore
from runtime.models.families import FAMILIES
from runtime.models.load import load_model
from runtime.request import Request
from runtime.scheduler.scheduler import Scheduler

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in FAMILIES} | {
    "llama3 rope": (
        "LlamaForCausalLM",
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "yarn": (
        "LlamaForCausalLM",
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
    ),
    "linear": ("LlamaForCausalLM", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "biases": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "experts in groups": (
        "DeepseekV2ForCausalLM",
        {
            "num_hidden_layers": 2,
            "n_routed_experts": 8,
            "num_experts_per_tok": 3,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
        },
    ),
    "latents, stretched": (
        "DeepseekV2ForCausalLM",
        {
            "first_k_dense_replace": 3,
            "q_lora_rank": None,
            "attention_bias": True,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 8.0,
                "mscale": 0.9,
                "mscale_all_dim": 0.7,
                "original_max_position_embeddings": 64,
            },
        },
    ),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two for products of this size wait for each other on a busy machine, for seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def save_tiny(folder: Path, architecture: str, **changes: Any) -> Any:
    """A random model with norms and biases away from 1 and 0, saved by transformers."""
    data = {**FAMILIES[architecture].tiny, **changes}
    config = transformers.AutoConfig.for_model(**data)
    torch.manual_seed(5)
    model = getattr(transformers, architecture)(config).float().eval()
    for _, p in model.named_parameters():
        p.data = p.data + 0.3 * torch.randn_like(p) if p.dim() == 1 else torch.randn_like(p) * 0.15
    model.save_pretrained(folder)
    return model


@pytest.fixture(params=list(VARIANTS))
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Path]:
    architecture, changes = VARIANTS[request.param]
    return save_tiny(tmp_path, architecture, **changes), tmp_path


def greedy(reference: Any, prompt: list[int], count: int) -> list[int]:
    ids = torch.tensor([prompt])
    for _ in range(count):  # generate() would mask tokens that look like padding
        with torch.inference_mode():
            ids = torch.cat((ids, reference(ids).logits[:, -1:].argmax(-1)), dim=1)
    out = ids
    return out[0, len(prompt) :].tolist()


def run_all(
    folder: Path, prompts: list[list[int]], count: int, page_size: int = 1, **options: Any
) -> tuple[list[list[int]], Scheduler]:
    model = load_model(folder)
    scheduler = Scheduler(page_size=page_size, context=512, **options)
    store = KVStore(model.spec, scheduler.cache.pool.total, page_size, torch.float32, "cpu")
    runner = ModelRunner(model, store, PlainAttention(store))
    for i, prompt in enumerate(prompts):
        scheduler.add(Request(str(i), prompt, SamplingParams(temperature=0), max_new=count))
    out: dict[str, list[int]] = {str(i): [] for i in range(len(prompts))}
    while not scheduler.idle:
        batch = scheduler.next_batch()
        assert batch is not None
        for event in scheduler.commit(runner.run(batch)):
            out[event.request.id] += event.tokens
    scheduler.check()
    return list(out.values()), scheduler


def test_logits_equal_transformers(pair: tuple[Any, Path]) -> None:
    reference, folder = pair
    ids = torch.randint(0, 160, (60,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = reference(ids[None]).logits[0]
        model = load_model(folder)
        store = KVStore(model.spec, 64, 1, torch.float32, "cpu")
        runner = ModelRunner(model, store, PlainAttention(store))
        scheduler = Scheduler(pages=64, chunk=17)
        scheduler.add(
            Request("r", ids.tolist(), SamplingParams(), max_new=0, logprobs=LogprobOptions(start=0, top=3))
        )
        scores = None
        while not scheduler.idle:
            batch = scheduler.next_batch()
            assert batch is not None
            for event in scheduler.commit(runner.run(batch)):
                scores = event.prompt_scores or scores
    logs = expected.log_softmax(-1)
    assert scores is not None and len(scores) == 59
    for p, (own, top) in enumerate(scores):
        assert own.id == ids[p + 1]
        assert own.logprob == pytest.approx(logs[p, own.id].item(), abs=2e-4)
        assert top[0].logprob == pytest.approx(logs[p].max().item(), abs=2e-4)


def test_greedy_tokens_equal_transformers(pair: tuple[Any, Path]) -> None:
    """Batched, chunked, with cache hits, paged, and with a pool so small that requests are retracted."""
    reference, folder = pair
    generator = torch.Generator().manual_seed(2)
    shared = torch.randint(0, 160, (40,), generator=generator).tolist()
    prompts = [torch.randint(0, 160, (n,), generator=generator).tolist() for n in (1, 5, 33)]
    prompts += [[*shared, *torch.randint(0, 160, (n,), generator=generator).tolist()] for n in (1, 3, 8)]
    expected = [greedy(reference, p, 20) for p in prompts]
    for options in (
        {"pages": 1000},
        {"pages": 1000, "chunk": 7, "max_running": 3},
        {"pages": 25, "page_size": 16, "chunk": 32},
        {"pages": 1000, "reuse": False},
    ):
        assert run_all(folder, prompts, 20, **options)[0] == expected, options
    out, scheduler = run_all(folder, prompts, 20, pages=90, conservativeness=0.0)
    assert out == expected and scheduler.retractions > 0


def test_unknown_folder_names_a_near_miss(tmp_path: Path) -> None:
    (tmp_path / "llama-8b").mkdir()
    with pytest.raises(
        ModelError, match=r"model folder '.*lama-8b' does not exist; did you mean '.*llama-8b'\?"
    ):
        load_model(tmp_path / "lama-8b")


def test_truncated_weights_are_named(tmp_path: Path) -> None:
    save_tiny(tmp_path, "LlamaForCausalLM")
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(
        ModelError, match=r"model\.safetensors cannot be read as safetensors .* it may be truncated"
    ):
        load_model(tmp_path)


def test_a_key_that_changes_the_arithmetic_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path, "LlamaForCausalLM")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "logits_scaling": 8.0}))
    with pytest.raises(ModelError, match=r"has 'logits_scaling' = 8\.0, which this version does not know"):
        load_model(tmp_path)


def test_tensors_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    save_tiny(tmp_path, "LlamaForCausalLM")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    with pytest.raises(ModelError, match=r"do not fit config\.json; not known: model\.layers\.2\."):
        load_model(tmp_path)


def test_unknown_architecture_names_a_near_miss(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalML"]}')
    with pytest.raises(
        ModelError, match=r"'LlamaForCausalML' is not supported; did you mean LlamaForCausalLM\?"
    ):
        load_model(tmp_path)
