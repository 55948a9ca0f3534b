"""Model shapes, requests and floors of the serving benchmarks; equal seeds give equal requests on every engine."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A published architecture, with random weights."""

    config: dict[str, Any]

    @property
    def vocabulary(self) -> int:
        return int(self.config["vocab_size"])

    def folder(self, root: Path, name: str) -> Path:
        """A model folder that holds the configuration alone."""
        made = root / name
        made.mkdir(parents=True, exist_ok=True)
        (made / "config.json").write_text(json.dumps(self.config), encoding="utf-8")
        return made

    @property
    def _sizes(self) -> tuple[int, int, int, int, int]:
        c = self.config
        dim = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
        q, kv = c["num_attention_heads"] * dim, c["num_key_value_heads"] * dim
        layer = c["hidden_size"] * (2 * q + 2 * kv + 3 * c["intermediate_size"])
        return c["num_hidden_layers"], layer, q, kv, c["hidden_size"] * c["vocab_size"]

    def decode_floor_ms(self, batch: int, context: int, tb_s: float) -> float:
        """Reading all weights and keys and values once."""
        layers, layer, _, kv, head = self._sizes
        read = 2 * (layers * layer + head) + batch * context * layers * 2 * kv * 2
        return read / tb_s / 1e9

    def prefill_floor_s(self, prompts: int, length: int, tflops: float) -> float:
        """The products of all layers, the attention of each pair, one row of logits."""
        layers, layer, q, _, head = self._sizes
        pairs = length * (length + 1) / 2
        return prompts * (2 * length * layers * layer + 2 * head + 4 * q * layers * pairs) / tflops / 1e12


_COMMON = {"bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16", "hidden_act": "silu"}
SHAPES = {
    "llama8b": Shape(
        {
            **_COMMON,
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 128256,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "tie_word_embeddings": False,
        }
    ),
    "qwen05b": Shape(
        {
            **_COMMON,
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "tie_word_embeddings": True,
        }
    ),
}


def prompt(rng: random.Random, length: int, vocabulary: int) -> list[int]:
    return [rng.randrange(1000, vocabulary) for _ in range(length)]


def mixed(vocabulary: int, count: int = 1000, seed: int = 0) -> list[tuple[list[int], int]]:
    """Prompts and numbers of new tokens, both of 100 to 1,024; all lengths are drawn before any token."""
    rng = random.Random(seed)
    sizes = [(rng.randint(100, 1024), rng.randint(100, 1024)) for _ in range(count)]
    return [(prompt(rng, size, vocabulary), new) for size, new in sizes]


def shared_prefixes(vocabulary: int, seed: int = 0) -> list[list[int]]:
    """16 prefixes of 2,048 tokens, 16 requests with 64 more tokens on each, shuffled."""
    rng = random.Random(seed)
    found: list[list[int]] = []
    for _ in range(16):
        head = prompt(rng, 2048, vocabulary)
        found += [head + prompt(rng, 64, vocabulary) for _ in range(16)]
    rng.shuffle(found)
    return found
