"""Llama 1 to 3 and what is built like it. Source: arXiv 2302.13971, 2407.21783, config.json."""

from __future__ import annotations

from runtime.models.family import Family
from runtime.models.hf_config import HFConfig, rope_frequencies
from runtime.models.spec import ArchSpec, AttnSpec, LayerSpec, MlpSpec, NormSpec, RopeSpec

WEIGHTS = {
    "model.embed_tokens.weight": "embedding.weight",
    "model.norm.*": "norm.*",
    "lm_head.weight": "head.weight",
    "model.layers.N.input_layernorm.*": "layers.N.attn_norm.*",
    "model.layers.N.post_attention_layernorm.*": "layers.N.mlp_norm.*",
    "model.layers.N.self_attn.q_proj.*": "layers.N.attention.qkv.q.*",
    "model.layers.N.self_attn.k_proj.*": "layers.N.attention.qkv.k.*",
    "model.layers.N.self_attn.v_proj.*": "layers.N.attention.qkv.v.*",
    "model.layers.N.self_attn.o_proj.*": "layers.N.attention.out.*",
    "model.layers.N.mlp.gate_proj.*": "layers.N.mlp.up.gate.*",
    "model.layers.N.mlp.up_proj.*": "layers.N.mlp.up.up.*",
    "model.layers.N.mlp.down_proj.*": "layers.N.mlp.down.*",
    "model.layers.N.self_attn.rotary_emb.inv_freq": "",
}

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 160,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
}


def attention(c: HFConfig, *, qkv_bias: bool, out_bias: bool, window: int | None = None) -> AttnSpec:
    """Grouped-query attention with a full rotary embedding, as most families have it."""
    heads = c.need("num_attention_heads")
    dim = c.get("head_dim", c.need("hidden_size") // heads)
    frequencies, mscale = rope_frequencies(c, dim)
    return AttnSpec(
        heads=heads,
        kv_heads=c.get("num_key_value_heads", heads),
        head_dim=dim,
        scale=dim**-0.5,
        rope=RopeSpec(dim, frequencies, mscale=mscale),
        qkv_bias=qkv_bias,
        out_bias=out_bias,
        window=window,
    )


def decoder(c: HFConfig, layers: tuple[LayerSpec, ...], norm: NormSpec) -> ArchSpec:
    """The parts that most families share around their layers."""
    eos = c.get("eos_token_id", ())
    return ArchSpec(
        name=c.architecture,
        vocabulary=c.need("vocab_size"),
        hidden=c.need("hidden_size"),
        context=c.need("max_position_embeddings"),
        layers=layers,
        norm=norm,
        tied=c.get("tie_word_embeddings", False),
        eos=tuple(eos) if isinstance(eos, (list, tuple)) else (eos,),
    )


def llama(c: HFConfig) -> ArchSpec:
    norm = NormSpec(eps=c.need("rms_norm_eps"))
    bias = c.get("attention_bias", False)
    mlp = MlpSpec(c.need("intermediate_size"), c.get("hidden_act", "silu"), bias=c.get("mlp_bias", False))
    layer = LayerSpec(attention(c, qkv_bias=bias, out_bias=bias), mlp, norm)
    return decoder(c, (layer,) * c.need("num_hidden_layers"), norm)


FAMILY = Family("LlamaForCausalLM", llama, WEIGHTS, TINY)
