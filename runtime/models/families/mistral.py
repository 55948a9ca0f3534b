"""Mistral: Llama with a sliding window in its first version. Source: arXiv 2310.06825, config.json."""

from __future__ import annotations

from runtime.models.families import llama
from runtime.models.family import Family
from runtime.models.hf_config import HFConfig
from runtime.models.spec import ArchSpec, LayerSpec, MlpSpec, NormSpec


def mistral(c: HFConfig) -> ArchSpec:
    norm = NormSpec(eps=c.need("rms_norm_eps"))
    mlp = MlpSpec(c.need("intermediate_size"), c.get("hidden_act", "silu"))
    attention = llama.attention(c, qkv_bias=False, out_bias=False, window=c.get("sliding_window"))
    return llama.decoder(c, (LayerSpec(attention, mlp, norm),) * c.need("num_hidden_layers"), norm)


TINY = {
    **llama.TINY,
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "sliding_window": 24,
    "head_dim": 32,
}
FAMILY = Family("MistralForCausalLM", mistral, llama.WEIGHTS, TINY)
