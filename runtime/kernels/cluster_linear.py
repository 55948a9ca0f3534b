"""Linear layers of 17 to 64 rows on Hopper whose matrices are small (cuda/cluster_linear.cu).

Weights are on their way before the launch before has ended, and clusters of programs share the inner dimension. The RMS norm between
two of them can be theirs: who adds to the residual scales it and sums its squares by parts, who reads that takes the root.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from runtime.kernels import nvrtc
from runtime.kernels.activation import ACTIVATIONS
from runtime.kernels.hopper_linear import Build, HopperLinear, why_not
from runtime.kernels.tensor_map import TensorMap, takes

ROWS = 64  # of x, at most
_DEEP = 64
_THREADS = 192
_ALIGNED = 1024
COLUMNS = (32, 48, 64, 80, 96, 128)
SPLITS = (1, 2, 4, 8)
ADDING = (32, 64, 128)  # columns of those that add to a residual: a row's are a warp's or a part of it


@dataclass(frozen=True)
class ClusterForm:
    """A matrix [n, k] (n of each factor if `gated` names an activation), and how it is cut.

    columns  matrix rows that a program takes, of both factors together
    split    programs of a cluster, each with a share of k; 2 at least if it adds
    adds     the product is added to a residual, whose norm follows
    normed   0, or of how many parts (`parts`) of another product rows are, that adds to a residual
    """

    n: int
    k: int
    gated: str | None
    columns: int
    split: int
    adds: bool = False
    normed: int = 0

    def __post_init__(self) -> None:
        if self.adds and (self.gated or self.split == 1 or self.columns not in ADDING):
            raise ValueError(
                f"a product that adds has no gate, 2 programs at least and {ADDING} columns, not {self}"
            )

    @property
    def parts(self) -> int:
        """Sums of squares of a row that it leaves if it adds."""
        return -(-self.n // self.columns)

    @property
    def programs(self) -> int:
        wide = self.columns // 2 if self.gated else self.columns
        return -(-self.n // wide) * self.split

    def defines(self) -> dict[str, int]:
        """Macros of cuda/cluster_linear.cu: as many weights at once as there is room for, three stages of x at least."""
        deep = -(-self.k // _DEEP)
        steps = -(-deep // self.split)
        x, w = ROWS * _DEEP * 2 + 16, self.columns * _DEEP * 2 + 16
        beside = _ALIGNED + (16 + ROWS * 4 if self.normed else 0)
        room = nvrtc.MOST_SHARED - beside
        weights = max(1, min(steps, (room - min(steps, 3) * x) // w))
        inputs = max(1, min(steps, (room - weights * w) // x))
        rings = weights * (w - 16) + inputs * (x - 16)
        sums = ROWS * (self.columns + 4) * 4 if self.split > 1 else 0
        return {
            "GATE": -1 if self.gated is None else ACTIVATIONS.index(self.gated),
            "COLUMNS": self.columns,
            "SPLIT": self.split,
            "ADDS": int(self.adds),
            "NORMED": self.normed,
            "W_STAGES": weights,
            "X_STAGES": inputs,
            "SHARED_BYTES": max(rings, sums) + 16 * (weights + inputs) + beside,
        }


class _Arguments(ctypes.Structure):
    """`Args` of cuda/cluster_linear.cu, whose maps make it a multiple of 64 bytes."""

    _fields_ = (
        *((name, TensorMap) for name in ("x", "w")),
        *((name, ctypes.c_void_p) for name in ("bias", "out", "residual", "weight", "squares")),
        *((name, ctypes.c_float) for name in ("eps", "offset")),
        *((name, ctypes.c_int64) for name in ("rows", "n", "k", *(f"unused_{i}" for i in range(7)))),
    )


@dataclass(frozen=True)
class Half:
    """Half a norm: what a product that adds is given, or one whose x comes from such a product.

    squares   float32 [parts of the product that adds, ROWS], written by it and read by the next one
    residual  [rows, n], changed in place; None where it is read
    weight    [n] of the norm, and what is added to it
    """

    squares: Tensor
    eps: float = 0.0
    residual: Tensor | None = None
    weight: Tensor | None = None
    offset: float = 0.0

    def misfit(self, form: ClusterForm, rows: int, dtype: torch.dtype) -> str | None:
        """What does not fit a product of so many rows."""
        parts = form.parts if form.adds else form.normed
        if self.squares.shape != (parts, ROWS) or self.squares.dtype != torch.float32:
            return (
                f"squares {tuple(self.squares.shape)} {self.squares.dtype}, not {(parts, ROWS)} torch.float32"
            )
        if not self.squares.is_contiguous():
            return "squares are not contiguous"
        if not form.adds:
            return None
        for tensor, shape in ((self.residual, (rows, form.n)), (self.weight, (form.n,))):
            given = None if tensor is None else (tuple(tensor.shape), tensor.dtype)
            fits = tensor is not None and tensor.is_contiguous() and tensor.data_ptr() % 8 == 0
            if not fits or given != (shape, dtype):
                return f"residual or weight {given}, not contiguous {shape} {dtype} at a multiple of 8 bytes"
        return None


class ClusterLinear(HopperLinear):
    """Products with matrices of one form on one device."""

    def __init__(self, device: torch.device, form: ClusterForm, *, build: Build | None = None) -> None:
        self.form = form
        super().__init__(device, "cluster_linear", form.defines(), form.programs, _THREADS, build)

    def __call__(
        self,
        x: Tensor,
        w: Tensor,
        *,
        bias: Tensor | None = None,
        out: Tensor | None = None,
        early: bool = False,
        half: Half | None = None,
    ) -> Tensor:
        """x [rows, k] times w [n, k], or [2 n, k] if gated, plus bias [n] or [2 n]: [rows, n] in bfloat16, sums run in float32.

        out    contiguous [rows, n], for the result
        early  it may begin while the launch before it ends, for which it waits before it reads x
        half   of a norm, if the form adds (returned is the residual after it times the norm's weight) or is normed (x is that)

        Raises ValueError if shapes do not fit.
        """
        form, (rows, k) = self.form, x.shape
        tall = form.n * (2 if form.gated else 1)
        if (k, *w.shape) != (form.k, tall, k) or rows > ROWS or x.stride(1) != 1 or w.stride(1) != 1:
            raise ValueError(f"ClusterLinear: x {tuple(x.shape)} and w {tuple(w.shape)} do not fit {form}")
        for dtype in (x.dtype, w.dtype, x.dtype if bias is None else bias.dtype):
            if (reason := why_not(form.n, k, dtype)) is not None:
                raise ValueError(f"ClusterLinear: {reason}")
        if (half is not None) != (form.adds or form.normed > 0):
            raise ValueError(
                f"ClusterLinear: half a norm belongs to a product that adds or is normed, not {form}"
            )
        if half is not None and (wrong := half.misfit(form, rows, x.dtype)) is not None:
            raise ValueError(f"ClusterLinear: {wrong}")
        if bias is not None and bias.shape != (tall,):
            raise ValueError(f"ClusterLinear: bias {tuple(bias.shape)} does not fit {form}")
        if out is None:
            out = torch.empty(rows, form.n, dtype=x.dtype, device=x.device)
        if rows:
            launch, maps = self.loaded()
            tiles = maps(x, ROWS, _DEEP), maps(w, form.columns // 2, _DEEP)
            norm: tuple[float | None, ...] = (None, None, None, 0.0, 0.0)
            if half is not None:
                norm = *map(_address, (half.residual, half.weight, half.squares)), half.eps, half.offset
            launch(_Arguments(*tiles, _address(bias), out.data_ptr(), *norm, rows, form.n, k), early)
        return out


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@lru_cache(maxsize=64)
def product_of(device: torch.device, form: ClusterForm) -> ClusterLinear | None:
    """What multiplies by this form, being compiled; None where nobody can compile it."""
    return None if nvrtc.why_not(device) is not None else ClusterLinear(device, form)


def prepare(device: torch.device, forms: Iterable[ClusterForm]) -> None:
    """Have their kernels compiled, by threads, where they can be."""
    for form in forms:
        product_of(device, form)


def linear_of(x: Tensor, w: Tensor, gated: str | None, columns: int, split: int) -> ClusterLinear | None:
    """What multiplies these, cut so; None if nothing can. The rest as in `ClusterForm`."""
    n = w.shape[0] // 2 if gated else w.shape[0]
    if why_not(n, w.shape[1], x.dtype) is not None or len(x) > ROWS or not (takes(x) and takes(w)):
        return None
    return product_of(x.device, ClusterForm(n, w.shape[1], gated, columns, split))
