"""DeepSeek V2: latent attention, dense layers, then mixtures of experts. Source: arXiv 2405.04434, config.json."""

from __future__ import annotations

from runtime.errors import ModelError
from runtime.models.families import llama
from runtime.models.family import Family
from runtime.models.hf_config import HFConfig, rope_frequencies, rope_parameters, yarn_scale
from runtime.models.spec import ArchSpec, AttnSpec, LayerSpec, MlaSpec, MlpSpec, NormSpec, RopeSpec

_LATENT_EPS = 1e-6  # no key of config.json says it
_IMPLIED = ("qk_head_dim", "head_dim", "num_key_value_heads")  # by other sizes; some releases write them down
_OF_EXPERTS = (
    "moe_intermediate_size", "n_shared_experts", "num_experts_per_tok", "routed_scaling_factor", "topk_method",
    "n_group", "topk_group", "norm_topk_prob", "scoring_func", "moe_layer_freq",
)  # fmt: skip


def attention(c: HFConfig) -> AttnSpec:
    """Latent attention as config.json describes it; its rotation is of neighbours."""
    mla = MlaSpec(
        q_rank=c.get("q_lora_rank"),
        kv_rank=c.need("kv_lora_rank"),
        nope=c.need("qk_nope_head_dim"),
        rope=c.need("qk_rope_head_dim"),
        value=c.need("v_head_dim"),
    )
    frequencies, mscale = rope_frequencies(c, mla.rope)
    heads, bias = c.need("num_attention_heads"), c.get("attention_bias", False)
    return AttnSpec(
        heads=heads,
        kv_heads=1,
        head_dim=mla.kv_rank + mla.rope,
        scale=(mla.nope + mla.rope) ** -0.5 * _stretched(c),
        rope=RopeSpec(mla.rope, frequencies, interleaved=True, mscale=mscale),
        qkv_bias=bias,
        out_bias=bias,
        norm=NormSpec(eps=_LATENT_EPS),
        mla=mla,
    )


def _stretched(c: HFConfig) -> float:
    """What the softmax is scaled by on top, where positions are stretched."""
    p = rope_parameters(c)
    all_dim = p.get("mscale_all_dim")
    if p.get("rope_type", p.get("type", "default")) == "default" or not all_dim:
        return 1.0
    return yarn_scale(float(p["factor"]), float(all_dim)) ** 2


def deepseek_v2(c: HFConfig) -> ArchSpec:
    norm = NormSpec(eps=c.need("rms_norm_eps"))
    for name in _IMPLIED:
        c.get(name)
    count = c.need("num_hidden_layers")
    if c.get("n_routed_experts") and c.get("first_k_dense_replace", 0) < count:
        raise ModelError(
            f"{c.source}: layers of experts are not supported yet; {c.architecture} runs where first_k_dense_replace is "
            f"{count}, the number of its layers"
        )
    for name in _OF_EXPERTS:
        c.get(name)
    mlp = MlpSpec(c.need("intermediate_size"), c.get("hidden_act", "silu"), bias=c.get("mlp_bias", False))
    layer = LayerSpec(attention(c), mlp, norm)
    return llama.decoder(c, (layer,) * count, norm)


WEIGHTS = {
    **{name: ours for name, ours in llama.WEIGHTS.items() if ".self_attn." not in name},
    "model.layers.N.self_attn.q_proj.*": "layers.N.attention.q.*",
    "model.layers.N.self_attn.q_a_proj.*": "layers.N.attention.down.q.*",
    "model.layers.N.self_attn.q_a_layernorm.*": "layers.N.attention.q_norm.*",
    "model.layers.N.self_attn.q_b_proj.*": "layers.N.attention.q.*",
    "model.layers.N.self_attn.kv_a_proj_with_mqa.*": "layers.N.attention.down.kv.*",
    "model.layers.N.self_attn.kv_a_layernorm.*": "layers.N.attention.kv_norm.*",
    "model.layers.N.self_attn.kv_b_proj.*": "layers.N.attention.kv.*",
    "model.layers.N.self_attn.o_proj.*": "layers.N.attention.out.*",
    "model.layers.N.self_attn.rotary_emb.inv_freq": "",
}

TINY = {
    **llama.TINY,
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "first_k_dense_replace": 3,
}
FAMILY = Family("DeepseekV2ForCausalLM", deepseek_v2, WEIGHTS, TINY)
