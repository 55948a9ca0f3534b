"""The interface of attention implementations: `plan` once a batch, `run` once a layer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from torch import Tensor

from runtime.kernels.sharing import Sharing
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


@dataclass(frozen=True)
class PagedInputs:
    """The same for kernels on a device, which find a request's slots in the page table themselves.

    table       int32 [seats, width]: page of each seat's k-th page
    seats       int32 [requests]
    lengths     int32 [requests]: tokens attended to, the new ones included; 0 marks a padding row
    starts      int32 [requests + 1]: rows of the batch that hold each request's new tokens
    slots       int64 [tokens]: where the new tokens' k and v go; -1 stores nothing
    max_new     bound of the new tokens of one request, max_length bound of `lengths`
    decodes     requests [0, decodes) have one new token each, row i for request i; prompts follow
    prompts     (first row, tokens, tokens before them) of every prompt
    apart       no two of the decodes are of one request, so each may store and attend without waiting for the others
    sharing     which of the decodes begin alike, where there are nothing but decodes and somebody looked
    """

    table: Tensor
    seats: Tensor
    lengths: Tensor
    starts: Tensor
    slots: Tensor
    max_new: int
    max_length: int
    decodes: int
    prompts: tuple[tuple[int, int, int], ...] = ()
    apart: bool = True
    sharing: Sharing | None = None

    @cached_property
    def fresh(self) -> tuple[tuple[int, int], ...]:
        """(first row, tokens) of every prompt, if none of them has anything before it; else empty."""
        if any(start for _, _, start in self.prompts):
            return ()
        return tuple((first, count) for first, count, _ in self.prompts)


class AttentionImpl(Protocol):
    """Attend new tokens to everything before them, their own k and v stored first."""

    def plan(self, inputs: Any) -> None:
        """`inputs` is what this implementation reads: AttentionInputs or PagedInputs."""
        ...

    def run(self, q: Tensor, k: Tensor, v: Tensor, layer: int, spec: AttnSpec) -> Tensor:
        """q [tokens, heads, head_dim]; k, v [tokens, kv_heads, head_dim]; returns [tokens, heads, head_dim]."""
        ...

    def run_latent(self, q: Tensor, rows: Tensor, up: Tensor, layer: int, spec: AttnSpec) -> Tensor:
        """The same for `spec.mla`: what is kept of a token serves all heads.

        q     [tokens, heads, nope + rope]
        rows  [tokens, 1, kv_rank + rope]: latents and rotated keys, to be stored
        up    [heads, nope + value, kv_rank]: a latent times it is a head's key and value

        Returns [tokens, heads, value].
        """
        ...
