"""Qwen 2 and 2.5: Llama with biases on q, k and v. Source: arXiv 2407.10671, config.json."""

from __future__ import annotations

from dataclasses import replace

from runtime.models.families import llama
from runtime.models.family import Family
from runtime.models.hf_config import HFConfig
from runtime.models.spec import ArchSpec, LayerSpec, MlpSpec, NormSpec


def qwen2(c: HFConfig) -> ArchSpec:
    norm = NormSpec(eps=c.need("rms_norm_eps"))
    mlp = MlpSpec(c.need("intermediate_size"), c.get("hidden_act", "silu"))
    full = llama.attention(c, qkv_bias=True, out_bias=False)
    count = c.need("num_hidden_layers")
    window = c.get("sliding_window") if c.get("use_sliding_window", False) else None
    first = c.get("max_window_layers", count)  # layers below it see everything
    kinds = c.get(
        "layer_types", ["full_attention" if i < first else "sliding_attention" for i in range(count)]
    )
    layers = tuple(
        LayerSpec(replace(full, window=window if kind == "sliding_attention" else None), mlp, norm)
        for kind in kinds
    )
    return llama.decoder(c, layers, norm)


TINY = {
    **llama.TINY,
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "tie_word_embeddings": True,
    "use_sliding_window": True,
    "sliding_window": 20,
    "max_window_layers": 1,
}
FAMILY = Family("Qwen2ForCausalLM", qwen2, llama.WEIGHTS, TINY)
