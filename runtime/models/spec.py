"""A model's architecture as concrete numbers.

A family turns config.json into an `ArchSpec` once; after that nobody looks at the configuration again. A
field that exists is honoured by the layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class NormSpec:
    """`rms` or `layer` norm. The scale applied is weight + offset; `affine=False` has no weight."""

    eps: float
    kind: Literal["rms", "layer"] = "rms"
    affine: bool = True
    bias: bool = False
    offset: float = 0.0


@dataclass(frozen=True)
class RopeSpec:
    """Rotary embedding of the first `dim` coordinates of a head.

    frequencies  one angle per position and pair, radians; dim / 2 of them
    interleaved  pairs are neighbours instead of halves
    mscale       multiplies cos and sin (yarn, longrope)
    """

    dim: int
    frequencies: tuple[float, ...]
    interleaved: bool = False
    mscale: float = 1.0


@dataclass(frozen=True)
class MlaSpec:
    """Multi-head latent attention: of a token, a latent and one rotated key are kept, and each head's key and value made of them.

    q_rank   size of the vector that queries are made of; None: they are made of the hidden state
    kv_rank  size of the latent that keys and values are made of
    nope     coordinates of a head's query and key that no position turns; they come first
    rope     coordinates that positions turn, of one key for all heads
    value    size of a head's value
    """

    q_rank: int | None
    kv_rank: int
    nope: int
    rope: int
    value: int


@dataclass(frozen=True)
class AttnSpec:
    """Grouped-query attention. `window`: the last so many tokens only; `softcap`: scores become c * tanh(s / c).

    qk_norm: "head" normalises each head with one weight of head_dim, "all" the whole projection.

    With `mla` the fields are those of the heads after absorption: one KV head for all, whose key is a latent and a rotated
    key (head_dim = kv_rank + rope) and whose value is the latent; `norm` is that of the latents.
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: RopeSpec | None
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: Literal["head", "all"] | None = None
    norm: NormSpec | None = None
    window: int | None = None
    softcap: float | None = None
    mla: MlaSpec | None = None

    @property
    def kept(self) -> int:
        """Numbers that the KV store keeps of a token: keys and values, or one row that is both."""
        return self.kv_heads * self.head_dim * (1 if self.mla else 2)

    @property
    def value_dim(self) -> int:
        """Size of what each head gives to the output projection."""
        return self.mla.value if self.mla else self.head_dim


@dataclass(frozen=True)
class MlpSpec:
    size: int
    activation: str = "silu"
    bias: bool = False
    gated: bool = True


@dataclass(frozen=True)
class MoeSpec:
    """A mixture of experts: each token passes `top_k` of the gated MLPs of `size` that a softmax over all scores highest,
    and one of `shared` columns (0: none) beside them.

    renormalise  the scores of a token's experts are made to sum to 1
    scaling      multiplies them
    groups       experts in equal groups, of which a token takes the `top_groups` with the highest expert
    """

    experts: int
    top_k: int
    size: int
    activation: str = "silu"
    shared: int = 0
    renormalise: bool = False
    scaling: float = 1.0
    groups: int = 1
    top_groups: int = 1


@dataclass(frozen=True)
class LayerSpec:
    """One decoder layer. "pre": x + f(norm(x)) twice; "sandwich": x + norm(f(norm(x)));
    "parallel": x + attention(norm(x)) + mlp(norm(x))."""

    attention: AttnSpec
    mlp: MlpSpec | MoeSpec
    norm: NormSpec
    form: Literal["pre", "sandwich", "parallel"] = "pre"
    residual_scale: float = 1.0


@dataclass(frozen=True)
class ArchSpec:
    """A decoder. `context` is the longest sequence that the positions support.

    task    what its last hidden state becomes: logits of the next token, an embedding, or scores of a reward model
    labels  scores of a reward model
    sizes   what an embedding may be cut to; True: any size, empty: none, since it was not trained for that
    """

    name: str
    vocabulary: int
    hidden: int
    context: int
    layers: tuple[LayerSpec, ...]
    norm: NormSpec
    tied: bool = False
    embed_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    eos: tuple[int, ...] = field(default=())
    task: Literal["generate", "embed", "reward"] = "generate"
    labels: int = 0
    sizes: tuple[int, ...] | Literal[True] = ()
