"""DeepSeek V2: latent attention, dense layers, then mixtures of experts. Source: arXiv 2405.04434, config.json."""

from __future__ import annotations

from runtime.errors import ModelError
from runtime.models.families import llama
from runtime.models.family import Family
from runtime.models.hf_config import HFConfig, rope_frequencies, rope_parameters, yarn_scale
from runtime.models.spec import ArchSpec, AttnSpec, LayerSpec, MlaSpec, MlpSpec, MoeSpec, NormSpec, RopeSpec

_LATENT_EPS = 1e-6  # no key of config.json says it
_IMPLIED = ("qk_head_dim", "head_dim", "num_key_value_heads")  # by other sizes; some releases write them down


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
    return yarn_scale(float(p.get("factor", 1.0)), float(all_dim)) ** 2


def experts(c: HFConfig) -> MoeSpec:
    """The mixture of the layers that are not dense."""
    c.expect("scoring_func", "softmax")
    c.expect("topk_method", "greedy", "group_limited_greedy")
    count, size = c.need("n_routed_experts"), c.need("moe_intermediate_size")
    grouped = c.get("topk_method") == "group_limited_greedy"
    groups = c.need("n_group") if grouped else 1
    top_groups = c.need("topk_group") if grouped else 1
    c.get("n_group"), c.get("topk_group")  # written down for greedy choices too
    renormalise, scaling = c.get("norm_topk_prob", False), c.get("routed_scaling_factor", 1.0)
    spec = MoeSpec(
        experts=count,
        top_k=c.need("num_experts_per_tok"),
        size=size,
        activation=c.get("hidden_act", "silu"),
        shared=size * c.get("n_shared_experts", 0),
        renormalise=renormalise,
        scaling=1.0 if renormalise else scaling,  # one or the other, as its authors' code has it
        groups=groups,
        top_groups=top_groups,
    )
    if count % groups or not 1 <= top_groups <= groups or not 1 <= spec.top_k <= count // groups * top_groups:
        raise ModelError(
            f"{c.source}: {spec.top_k} of {count} experts from {top_groups} of {groups} groups cannot be chosen; "
            "see num_experts_per_tok, n_routed_experts, topk_group and n_group"
        )
    return spec


def deepseek_v2(c: HFConfig) -> ArchSpec:
    norm, whole = NormSpec(eps=c.need("rms_norm_eps")), attention(c)
    c.expect("mlp_bias", False)
    for name in _IMPLIED:
        c.get(name)
    dense = MlpSpec(c.need("intermediate_size"), c.get("hidden_act", "silu"))
    mixture = experts(c) if c.get("n_routed_experts") else None
    first, every = c.get("first_k_dense_replace", 0), c.get("moe_layer_freq", 1)
    layers = tuple(
        LayerSpec(whole, mixture if mixture and i >= first and i % every == 0 else dense, norm)
        for i in range(c.need("num_hidden_layers"))
    )
    return llama.decoder(c, layers, norm)


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
    "model.layers.N.mlp.gate.weight": "layers.N.mlp.router.weight",
    "model.layers.N.mlp.experts.E.gate_proj.weight": "layers.N.mlp.up.gateE.weight",
    "model.layers.N.mlp.experts.E.up_proj.weight": "layers.N.mlp.up.upE.weight",
    "model.layers.N.mlp.experts.E.down_proj.weight": "layers.N.mlp.down.E.weight",
    "model.layers.N.mlp.shared_experts.gate_proj.weight": "layers.N.mlp.shared.up.gate.weight",
    "model.layers.N.mlp.shared_experts.up_proj.weight": "layers.N.mlp.shared.up.up.weight",
    "model.layers.N.mlp.shared_experts.down_proj.weight": "layers.N.mlp.shared.down.weight",
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
    "first_k_dense_replace": 1,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 2,
    "routed_scaling_factor": 1.5,
}
FAMILY = Family("DeepseekV2ForCausalLM", deepseek_v2, WEIGHTS, TINY)
