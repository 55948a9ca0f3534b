"""The network as it is trained: a Llama in plain torch, exported under Hugging Face's names."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    """Sizes of the network. `head_dim` is `hidden / heads`."""

    hidden: int = 192
    layers: int = 6
    heads: int = 6
    kv_heads: int = 2
    inner: int = 512
    vocabulary: int = 8192
    context: int = 4096
    theta: float = 10_000.0

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


CPU_SHAPE = Shape()
GPU_SHAPE = Shape(hidden=256, layers=8, heads=8, kv_heads=2, inner=704)  # 7.7 M parameters


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [batch, heads, length, head_dim], halves convention."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Layer(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.shape = s
        self.input_layernorm = nn.RMSNorm(s.hidden, eps=1e-5)
        self.post_attention_layernorm = nn.RMSNorm(s.hidden, eps=1e-5)
        self.q_proj = nn.Linear(s.hidden, s.heads * s.head_dim, bias=False)
        self.k_proj = nn.Linear(s.hidden, s.kv_heads * s.head_dim, bias=False)
        self.v_proj = nn.Linear(s.hidden, s.kv_heads * s.head_dim, bias=False)
        self.o_proj = nn.Linear(s.heads * s.head_dim, s.hidden, bias=False)
        self.gate_proj = nn.Linear(s.hidden, s.inner, bias=False)
        self.up_proj = nn.Linear(s.hidden, s.inner, bias=False)
        self.down_proj = nn.Linear(s.inner, s.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        h = self.input_layernorm(x)

        def heads(y: Tensor) -> Tensor:
            return y.view(batch, length, -1, self.shape.head_dim).transpose(1, 2)

        q = rotate(heads(self.q_proj(h)), cos, sin)
        k = rotate(heads(self.k_proj(h)), cos, sin)
        y = F.scaled_dot_product_attention(q, k, heads(self.v_proj(h)), is_causal=True, enable_gqa=True)
        x = x + self.o_proj(y.transpose(1, 2).reshape(batch, length, -1))
        h = self.post_attention_layernorm(x)
        return x + self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))


class Network(nn.Module):
    """ids [batch, length] -> hidden states; `logits` maps the wanted ones to the vocabulary (tied)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, eps=1e-5)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                scale = 0.02 if "embed" in name else p.shape[1] ** -0.5
                nn.init.normal_(
                    p,
                    std=scale / (2 * shape.layers) ** 0.5
                    if name.endswith(("o_proj.weight", "down_proj.weight"))
                    else scale,
                )

    def forward(self, ids: Tensor) -> Tensor:
        positions = torch.arange(ids.shape[1], device=ids.device, dtype=torch.float32)
        half = self.shape.head_dim // 2
        frequencies = self.shape.theta ** (-torch.arange(half, device=ids.device, dtype=torch.float32) / half)
        angles = positions[:, None] * frequencies
        cos, sin = angles.cos(), angles.sin()
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.embed_tokens.weight.T


def export(network: Network, folder: Path, *, eos: tuple[int, ...]) -> None:
    """Write config.json, generation_config.json and model.safetensors (bfloat16) as transformers reads them."""
    s = network.shape
    inner = ("gate_proj", "up_proj", "down_proj")
    weights = {}
    for name, tensor in network.state_dict().items():
        parts = name.split(".")
        if parts[0] == "layers" and parts[2].endswith("_proj"):
            parts.insert(2, "mlp" if parts[2] in inner else "self_attn")
        weights["model." + ".".join(parts)] = tensor.detach().to(torch.bfloat16).contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": s.hidden,
        "intermediate_size": s.inner,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads,
        "head_dim": s.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": s.theta,
        "max_position_embeddings": s.context,
        "vocab_size": s.vocabulary,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": None,
        "eos_token_id": list(eos),
        "pad_token_id": eos[-1],
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {"eos_token_id": list(eos), "pad_token_id": eos[-1], "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
