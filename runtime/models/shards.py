"""A model cut for tensor parallelism: each rank has some heads and some columns of the feed-forward part.

Projections into a layer are cut by rows and those out of it by columns, so that one sum over ranks ends each half of a layer
(Megatron-LM, arXiv:1909.08053); of experts each rank has some columns of all. With fewer KV heads than ranks a head is on several of them; latents are on all. The head of
the model is cut by vocabulary; the embedding is whole everywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from runtime.errors import ModelError
from runtime.models.spec import ArchSpec, LayerSpec, MlpSpec, MoeSpec

_PART = re.compile(r"layers\.(\d+)\.(attention|mlp(?:\.shared)?)\.(\w+)(?:\.(\w+))?\.(weight|bias)")


@dataclass(frozen=True)
class Cut:
    """[start, start + what the parameter holds) of dimension `dim`, which is `full` long in the checkpoint."""

    dim: int
    start: int
    full: int


@dataclass(frozen=True)
class Shards:
    """What `rank` of `size` holds of a model. Raises ModelError if it cannot be cut so."""

    spec: ArchSpec
    rank: int
    size: int

    def __post_init__(self) -> None:
        for layer in self.spec.layers:
            a, m = layer.attention, layer.mlp
            uneven = a.kv_heads % self.size and self.size % a.kv_heads
            experts = isinstance(m, MoeSpec)
            sizes = (m.size, m.shared) if isinstance(m, MoeSpec) else (m.size,)
            if a.heads % self.size or any(s % self.size for s in sizes) or uneven:
                columns = f"{' and '.join(map(str, sizes))} columns in its {'experts' if experts else 'MLP'}"
                raise ModelError(
                    f"{self.spec.name} has {a.heads} heads, {a.kv_heads} KV heads and {columns}, "
                    f"which --tensor-parallel-size {self.size} does not divide; choose another size"
                )
            if a.qk_norm == "all":
                raise ModelError(
                    f"{self.spec.name} normalises q and k over all heads, which tensor parallelism does not compute; "
                    "leave --tensor-parallel-size at 1"
                )

    @property
    def local(self) -> ArchSpec:
        """The architecture of this rank's part; the vocabulary stays that of the model."""
        return replace(self.spec, layers=tuple(self._layer(x) for x in self.spec.layers))

    def _layer(self, layer: LayerSpec) -> LayerSpec:
        a = layer.attention
        attention = replace(a, heads=a.heads // self.size, kv_heads=max(1, a.kv_heads // self.size))
        mlp: MlpSpec | MoeSpec = replace(layer.mlp, size=layer.mlp.size // self.size)
        if isinstance(mlp, MoeSpec):
            mlp = replace(mlp, shared=mlp.shared // self.size)
        return replace(layer, attention=attention, mlp=mlp)

    @property
    def vocabulary(self) -> tuple[int, int]:
        """First row of the model's head that is here, and one past the last."""
        share = self.share
        start = min(self.rank * share, self.spec.vocabulary)
        return start, min(start + share, self.spec.vocabulary)

    @property
    def share(self) -> int:
        """Rows of the head on each rank; the last may have fewer."""
        return -(-self.spec.vocabulary // self.size)

    def cut(self, name: str) -> Cut | None:
        """Which part of a checkpoint's tensor belongs into our parameter `name`; None: all of it."""
        if name == "head.weight":
            return Cut(0, self.vocabulary[0], self.spec.vocabulary)
        match = _PART.fullmatch(name)
        if match is None:
            return None
        number, half, module, part, kind = match.groups()
        layer = self.spec.layers[int(number)]
        a = layer.attention
        if half == "attention" and module == "qkv":
            heads = a.heads if part == "q" else a.kv_heads
            first = self.rank * heads // self.size
            return Cut(0, first * a.head_dim, heads * a.head_dim)
        if half == "attention" and module in ("q", "kv") and a.mla is not None:
            dim = a.mla.nope + (a.mla.rope if module == "q" else a.mla.value)
            return Cut(0, self.rank * a.heads // self.size * dim, a.heads * dim)
        if half == "attention" and module == "out" and kind == "weight":
            width = a.heads * a.value_dim
            return Cut(1, self.rank * width // self.size, width)
        if half != "attention":
            size = layer.mlp.shared if half == "mlp.shared" else layer.mlp.size  # type: ignore[union-attr]
            if module == "up":
                return Cut(0, self.rank * size // self.size, size)
            if module == "down" and kind == "weight":
                return Cut(1, self.rank * size // self.size, size)
        return None
