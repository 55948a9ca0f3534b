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
class AttnSpec:
    """Grouped-query attention. `window`: the last so many tokens only; `softcap`: scores become c * tanh(s / c).

    qk_norm: "head" normalises each head with one weight of head_dim, "all" the whole projection.
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


@dataclass(frozen=True)
class MlpSpec:
    size: int
    activation: str = "silu"
    bias: bool = False
    gated: bool = True


@dataclass(frozen=True)
class LayerSpec:
    """One decoder layer. "pre": x + f(norm(x)) twice; "sandwich": x + norm(f(norm(x)));
    "parallel": x + attention(norm(x)) + mlp(norm(x))."""

    attention: AttnSpec
    mlp: MlpSpec
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
