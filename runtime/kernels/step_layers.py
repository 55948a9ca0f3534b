"""The layers of a model as kernels/whole_step.py reads them: tensors of each, numbers that all of them share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

FOREVER = (1 << 31) - 1  # a window that no context fills
MOST_GROUP = 16  # query heads of a key's


@dataclass(frozen=True)
class StepLayer:
    """Tensors of one layer; all layers have the same ones. The kernel reads fields by their place (`Field` in cuda/step_shapes.h).

    attn_norm, mlp_norm  [hidden]
    qkv                  [(heads + 2 * kv_heads) * dim, hidden], and its bias; out [hidden, heads * dim], and its bias
    up                   [2 * inner, hidden], gate first; down [hidden, inner]
    q_norm, k_norm       [dim] or None
    cos, sin             float32 [context, turned / 2]
    pool_k, pool_v       [slots, kv_heads, dim]
    window               of attention; None for all
    """

    attn_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    cos: Tensor
    sin: Tensor
    pool_k: Tensor
    pool_v: Tensor
    out: Tensor
    out_bias: Tensor | None
    mlp_norm: Tensor
    up: Tensor
    down: Tensor
    window: int | None

    def tensors(self) -> list[Tensor | None]:
        return [getattr(self, f.name) for f in fields(self)[:-1]]


FIELDS = len(fields(StepLayer))


@dataclass(frozen=True)
class StepSpec:
    """What all layers share. `eps` and `offset` are of their norms and the last, `qk_eps` and `qk_offset` of the heads'."""

    heads: int
    kv_heads: int
    dim: int
    hidden: int
    inner: int
    gate: str
    scale: float
    softcap: float | None
    interleaved: bool
    eps: float
    offset: float
    qk_eps: float
    qk_offset: float
    page_size: int

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def wide(self) -> int:
        """Of the packed projection."""
        return (self.heads + 2 * self.kv_heads) * self.dim


@dataclass(frozen=True)
class StepRanks:
    """Memory through which the ranks of a step exchange sums.

    boxes  int64 [ranks]: where each rank's box lies, as seen from here; `box_bytes` of it, zero at first
    state  int32 [2]: launches, a rank is lost
    looks  how often a thread looks before it gives a rank up
    """

    rank: int
    boxes: Tensor
    state: Tensor
    looks: int


def box_bytes(hidden: int, rows: int, programs: int, ranks: int) -> int:
    """Of a rank's box: two exchanges by turns, a word of 8 bytes for each two numbers that a program has of a rank."""
    own = -(-hidden // programs // 16) * 16
    return 2 * ranks * programs * own * rows // 2 * 8


def address_table(layers: Sequence[StepLayer], device: torch.device) -> Tensor:
    """int64 [layers, FIELDS]: addresses (0: no such tensor), and windows."""
    rows = [
        [0 if t is None else t.data_ptr() for t in layer.tensors()] + [layer.window or FOREVER]
        for layer in layers
    ]
    return torch.tensor(rows, dtype=torch.int64, device=device)


def finite_window(layers: Sequence[StepLayer]) -> int:
    """The window of those layers that have one."""
    return next((layer.window for layer in layers if layer.window), FOREVER)


def why_not(spec: StepSpec, layers: Sequence[StepLayer], dtype: torch.dtype) -> str | None:
    """What the kernel does not compute of these layers; None if it can run them."""
    first = layers[0]
    shapes = [[None if t is None else t.shape for t in layer.tensors()] for layer in layers]
    tensors = [t for layer in layers for t in layer.tensors() if t is not None]
    widths = (spec.hidden, spec.inner)
    checks = (
        (dtype == torch.bfloat16, f"its type is {dtype}, not torch.bfloat16"),
        (first.pool_k.dtype == dtype, f"its keys and values are stored as {first.pool_k.dtype}"),
        (all(row == shapes[0] for row in shapes), "its layers differ in their shapes"),
        (len({layer.window for layer in layers} - {None}) < 2, "its layers have several windows"),
        (
            all(t.data_ptr() % 16 == 0 and t.is_contiguous() for t in tensors),
            "its tensors are not contiguous or not aligned to 16 bytes",
        ),
        (all(t.device == first.qkv.device for t in tensors), "its tensors lie on several devices"),
        (all(k % 32 == 0 for k in widths), f"its widths {widths} are no multiples of 32"),
        (spec.dim % 32 == 0 and spec.dim <= 128, f"its heads have {spec.dim} numbers, not 32, 64, 96 or 128"),
        (spec.group <= MOST_GROUP, f"{spec.group} of its heads share a key"),
        (first.pool_k.shape[0] < 1 << 31, f"its cache has {first.pool_k.shape[0]} places"),
    )
    return next((reason for good, reason in checks if not good), None)
