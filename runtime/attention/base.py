"""The interface of attention implementations: `plan` once a batch, `run` once a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from runtime.models.spec import AttnSpec


@dataclass(frozen=True)
class Span:
    """New tokens [first, first + count) of the batch belong to one request and stand at positions
    [start, start + count); `slots` int64 [start + count] are the places of all its positions."""

    first: int
    count: int
    start: int
    slots: Tensor


@dataclass(frozen=True)
class AttentionInputs:
    """What attention needs to know of a batch. `slots` int64 [tokens]: where the new tokens' k and v go."""

    spans: list[Span]
    slots: Tensor


class AttentionImpl(Protocol):
    """Attend new tokens to everything before them, their own k and v stored first."""

    def plan(self, inputs: AttentionInputs) -> None: ...

    def run(self, q: Tensor, k: Tensor, v: Tensor, layer: int, spec: AttnSpec) -> Tensor:
        """q [tokens, heads, head_dim]; k, v [tokens, kv_heads, head_dim]; returns [tokens, heads, head_dim]."""
        ...
