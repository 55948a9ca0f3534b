"""Engines of tiny random models, driven step by step: what tests of devices, ranks and paths compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from runtime.api import SamplingParams
from runtime.config import EngineConfig
from runtime.engine.loop import EngineLoop
from runtime.engine.messages import Add, End, Output

SMALL = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "eos_token_id": 1,
    "bos_token_id": None,
    "pad_token_id": None,
}
KINDS = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {"num_key_value_heads": 2}),
    "llama, one KV head": (
        "LlamaConfig",
        "LlamaForCausalLM",
        {"num_key_value_heads": 1, "attention_bias": True},
    ),
    "qwen2, tied": (
        "Qwen2Config",
        "Qwen2ForCausalLM",
        {"num_key_value_heads": 4, "tie_word_embeddings": True},
    ),
    "deepseek v2": (
        "DeepseekV2Config",
        "DeepseekV2ForCausalLM",
        {
            "q_lora_rank": 24,
            "kv_lora_rank": 32,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 12,
            "first_k_dense_replace": 1,
            "n_routed_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "n_shared_experts": 1,
        },
    ),
}


def folder(place: Path, kind: str) -> str:
    import transformers

    config, model, more = KINDS[kind]
    torch.manual_seed(5)
    made = getattr(transformers, model)(getattr(transformers, config)(**SMALL, **more))
    for p in made.parameters():
        p.data = torch.randn_like(p) * 0.2
    made.save_pretrained(place)
    return str(place)


def options(path: str, device: str = "cpu", **more: Any) -> EngineConfig:
    return EngineConfig.of(
        {
            "model_path": path,
            "device": device,
            "dtype": "float32",
            "skip_tokenizer_init": True,
            "max_total_tokens": 400,
            "chunked_prefill_size": 16,
            "threads": 1,
            **more,
        }
    )


def answers(loop: EngineLoop) -> dict[str, list[int]]:
    """Prompts of many lengths, some with a shared beginning, one aborted on the way."""
    generator = torch.Generator().manual_seed(1)
    out: dict[str, list[int]] = {}
    for i, n in enumerate((3, 40, 17, 40, 1)):
        tokens = torch.randint(2, 97, (n,), generator=generator).tolist()
        tokens = [7] * 20 + tokens if i % 2 else tokens
        sampling = SamplingParams(
            temperature=0.0 if i % 2 else 0.9,
            top_k=20,
            max_new_tokens=9,
            repetition_penalty=1.2 if i == 4 else 1.0,
        )
        assert not loop.handle(Add(str(i), tokens, sampling, seed=i))
        out[str(i)] = []
    left = set(out)
    while left:
        for message in loop.step():
            assert isinstance(message, Output), message
            out[message.id] += message.tokens
            if message.finish is not None:
                left.discard(message.id)
        if "2" in left and len(out["2"]) >= 3:
            loop.handle(End("2"))
            left.discard("2")
    out["2"] = out["2"][:3]
    return out
