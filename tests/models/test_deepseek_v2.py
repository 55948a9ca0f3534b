"""What DeepSeek V2 has that other families lack: latents in the KV memory, mixtures of experts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from runtime.errors import ModelError
from runtime.kv.store import KVStore, bytes_per_token
from runtime.layers.moe import Moe
from runtime.models.families import FAMILIES
from runtime.models.hf_config import HFConfig
from runtime.models.shards import Shards
from runtime.models.spec import ArchSpec, MlaSpec, MlpSpec, MoeSpec

LITE = {  # as it is published
    "architectures": ["DeepseekV2ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV2Config"},
    "aux_loss_alpha": 0.001,
    "bos_token_id": 100000,
    "eos_token_id": 100001,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 10944,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v2",
    "moe_intermediate_size": 1408,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "pretraining_tp": 1,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "greedy",
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 102400,
}


def read(**changes: Any) -> ArchSpec:
    config = HFConfig({**LITE, **changes})
    spec = FAMILIES["DeepseekV2ForCausalLM"].spec(config)
    config.check_all_read()
    return spec


def test_the_published_lite_model() -> None:
    spec = read()
    a = spec.layers[0].attention
    assert a.mla == MlaSpec(None, 512, 128, 64, 128) and (a.heads, a.kv_heads, a.head_dim) == (16, 1, 576)
    assert a.scale == pytest.approx(0.114721386)  # 192 ** -0.5 * (0.0707 * ln(40) + 1) ** 2
    assert a.rope is not None and a.rope.interleaved and a.rope.mscale == 1.0
    assert spec.layers[0].mlp == MlpSpec(10944)
    assert all(layer.mlp == MoeSpec(64, 6, 1408, shared=2816) for layer in spec.layers[1:])
    assert (
        bytes_per_token(spec, torch.bfloat16) == 27 * (512 + 64) * 2
    )  # keys and values of 16 heads: 276,480


def test_other_releases() -> None:
    spec = read(
        topk_method="group_limited_greedy",
        n_group=8,
        topk_group=3,
        routed_scaling_factor=16.0,
        q_lora_rank=1536,
        moe_layer_freq=2,
        first_k_dense_replace=3,
    )
    mixture = spec.layers[4].mlp
    assert isinstance(mixture, MoeSpec)
    assert (mixture.groups, mixture.top_groups, mixture.scaling) == (8, 3, 16.0)
    assert [i for i, layer in enumerate(spec.layers) if isinstance(layer.mlp, MoeSpec)] == list(
        range(4, 27, 2)
    )
    renormalised = read(norm_topk_prob=True, routed_scaling_factor=16.0).layers[1].mlp
    assert isinstance(renormalised, MoeSpec) and (renormalised.renormalise, renormalised.scaling) == (
        True,
        1.0,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"topk_method": "noaux_tc"}, "sets 'topk_method' to 'noaux_tc'"),
        ({"scoring_func": "sigmoid"}, "sets 'scoring_func' to 'sigmoid'"),
        (
            {"topk_method": "group_limited_greedy", "n_group": 7, "topk_group": 3},
            "6 of 64 experts from 3 of 7 groups cannot be chosen",
        ),
        ({"kv_lora_rank": None}, "lacks 'kv_lora_rank'"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read(**changes)


def test_ranks_must_divide_heads_and_experts() -> None:
    assert Shards(read(), 1, 8).local.layers[1].mlp == MoeSpec(64, 6, 176, shared=352)
    with pytest.raises(ModelError, match="has 16 heads, 1 KV heads and 1400 and 2800 columns in its experts"):
        Shards(read(moe_intermediate_size=1400), 0, 16)


def test_values_are_the_latents() -> None:
    spec = read(num_hidden_layers=1, kv_lora_rank=8, qk_rope_head_dim=4)
    store = KVStore(spec, 4, 1, torch.float32, "cpu")
    store.write(0, torch.tensor([2]), torch.arange(12.0).reshape(1, 1, 12), None)
    assert store.v[0, 2, 0].tolist() == list(range(8))


@pytest.mark.parametrize(
    "spec",
    [
        MoeSpec(5, 2, 12),
        MoeSpec(5, 5, 12, shared=7, renormalise=True),
        MoeSpec(8, 3, 12, scaling=2.5, groups=4, top_groups=2),
    ],
)
def test_each_token_passes_its_experts(spec: MoeSpec) -> None:
    """Against one expert after another for one token after another, in float64; no token depends on the others."""
    torch.manual_seed(spec.top_k)
    moe = Moe(16, spec, torch.float32).requires_grad_(False)
    for p in moe.parameters():
        p.normal_(0, 0.3)
    x = torch.randn(9, 16)
    ups = moe.up.weight.double().unflatten(0, (spec.experts, 2, spec.size))
    downs = moe.down.weight.double().unflatten(0, (spec.experts, 16))
    wanted = torch.zeros(9, 16, dtype=torch.float64)
    for token, row in enumerate(x.double()):
        scores = (moe.router.weight.double() @ row).softmax(0)
        size = spec.experts // spec.groups
        groups = sorted(range(spec.groups), key=lambda g: -max(scores[g * size : (g + 1) * size]))
        allowed = [e for e in range(spec.experts) if e // size in groups[: spec.top_groups]]
        chosen = sorted(allowed, key=lambda e: -scores[e])[: spec.top_k]
        total = sum(scores[e] for e in chosen) if spec.renormalise else 1.0
        for e in chosen:
            part = downs[e] @ (F.silu(ups[e, 0] @ row) * (ups[e, 1] @ row))
            wanted[token] += part * scores[e] / total * spec.scaling
    if moe.shared is not None:
        wanted += moe.shared(x).double()
    found, chosen = moe(x), moe.route(x)[1]
    assert (moe.at_once(x, chosen) - moe.one_by_one(x, chosen)).abs().max() < 1e-6
    assert (found - wanted).abs().max() < 1e-5
    assert all((moe(x[i : i + 1]) - found[i]).abs().max() < 1e-6 for i in range(9))


@pytest.mark.parametrize("spec", [MoeSpec(5, 2, 12), MoeSpec(8, 3, 12, groups=4, top_groups=2)])
def test_a_captured_step_reads_no_value(spec: MoeSpec) -> None:
    """Tensors without data: what asks for a number on the host fails."""
    moe, x = Moe(16, spec, torch.float32).to("meta"), torch.empty(9, 16, device="meta")
    chosen = moe.route(x)[1]
    assert moe.at_once(x, chosen).shape == (9, spec.top_k, 16)
    with pytest.raises(NotImplementedError, match="Meta tensors"):
        moe.one_by_one(x, chosen)
