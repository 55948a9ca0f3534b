"""Linear layers of 17 to 64 rows on Hopper whose matrices are small (cuda/cluster_linear.cu).

Weights are on their way before the launch before has ended, and clusters of programs share the inner dimension.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from runtime.kernels import nvrtc
from runtime.kernels.activation import ACTIVATIONS
from runtime.kernels.tensor_map import Maps, TensorMap, described, takes
from runtime.kernels.wgmma_linear import Launch, why_not

ROWS = 64  # of x, at most
_DEEP = 64
_THREADS = 192
_ALIGNED = 1024
COLUMNS = (32, 48, 64, 80, 96, 128)
SPLITS = (1, 2, 4, 8)


@dataclass(frozen=True)
class ClusterForm:
    """A matrix [n, k] (n of each factor if `gated` names an activation), and how it is cut.

    columns  matrix rows that a program takes, of both factors together
    split    programs of a cluster, each with a share of k
    """

    n: int
    k: int
    gated: str | None
    columns: int
    split: int

    @property
    def programs(self) -> int:
        wide = self.columns // 2 if self.gated else self.columns
        return -(-self.n // wide) * self.split

    def defines(self) -> dict[str, int]:
        """Macros of cuda/cluster_linear.cu: as many weights at once as there is room for, three stages of x at least."""
        deep = -(-self.k // _DEEP)
        steps = -(-deep // self.split)
        x, w = ROWS * _DEEP * 2 + 16, self.columns * _DEEP * 2 + 16
        room = nvrtc.MOST_SHARED - _ALIGNED
        weights = max(1, min(steps, (room - min(steps, 3) * x) // w))
        inputs = max(1, min(steps, (room - weights * w) // x))
        rings = weights * (w - 16) + inputs * (x - 16)
        sums = ROWS * (self.columns + 4) * 4 if self.split > 1 else 0
        return {
            "GATE": -1 if self.gated is None else ACTIVATIONS.index(self.gated),
            "COLUMNS": self.columns,
            "SPLIT": self.split,
            "W_STAGES": weights,
            "X_STAGES": inputs,
            "SHARED_BYTES": max(rings, sums) + 16 * (weights + inputs) + _ALIGNED,
        }


class _Arguments(ctypes.Structure):
    """`Args` of cuda/cluster_linear.cu, whose maps make it a multiple of 64 bytes."""

    _fields_ = (
        *((name, TensorMap) for name in ("x", "w")),
        *((name, ctypes.c_void_p) for name in ("bias", "out")),
        *((name, ctypes.c_int64) for name in ("rows", "n", "k", *(f"unused_{i}" for i in range(3)))),
    )


class ClusterLinear:
    """Products with matrices of one form on one device."""

    def __init__(
        self,
        device: torch.device,
        form: ClusterForm,
        *,
        build: Callable[[Mapping[str, int]], tuple[Launch, Maps]] | None = None,
    ) -> None:
        """The kernel is compiled by a thread from now on; the first product waits for it.

        build  how the kernel and maps of matrices are made where there is no GPU
        """
        self.form, self.device = form, device
        self._macros = form.defines()
        self._build = build
        self._made: tuple[Launch, Maps] | None = None
        self._image: Future[bytes] | None = None
        if build is None:
            self._image = nvrtc.compiling("cluster_linear.cu", self._macros)

    def __call__(
        self,
        x: Tensor,
        w: Tensor,
        *,
        bias: Tensor | None = None,
        out: Tensor | None = None,
        early: bool = False,
    ) -> Tensor:
        """x [rows, k] times w [n, k], or [2 n, k] if gated, plus bias [n] or [2 n]: [rows, n] in bfloat16, sums run in float32.

        out    contiguous [rows, n], for the result
        early  it may begin while the launch before it ends, for which it waits before it reads x

        Raises ValueError if shapes do not fit.
        """
        form, (rows, k) = self.form, x.shape
        tall = form.n * (2 if form.gated else 1)
        if (k, *w.shape) != (form.k, tall, k) or rows > ROWS or x.stride(1) != 1 or w.stride(1) != 1:
            raise ValueError(f"ClusterLinear: x {tuple(x.shape)} and w {tuple(w.shape)} do not fit {form}")
        for dtype in (x.dtype, w.dtype, x.dtype if bias is None else bias.dtype):
            if (reason := why_not(form.n, k, dtype)) is not None:
                raise ValueError(f"ClusterLinear: {reason}")
        if bias is not None and bias.shape != (tall,):
            raise ValueError(f"ClusterLinear: bias {tuple(bias.shape)} does not fit {form}")
        if out is None:
            out = torch.empty(rows, form.n, dtype=x.dtype, device=x.device)
        if rows:
            launch, maps = self._loaded()
            half = form.columns // 2
            tiles = maps(x, ROWS, _DEEP), maps(w, half, _DEEP)
            given = None if bias is None else bias.data_ptr()
            launch(_Arguments(*tiles, given, out.data_ptr(), rows, form.n, k), early)
        return out

    def _loaded(self) -> tuple[Launch, Maps]:
        if self._made is None:
            self._made = self._load() if self._build is None else self._build(self._macros)
        return self._made

    def _load(self) -> tuple[Launch, Maps]:
        assert self._image is not None
        with nvrtc.named_remedy():
            sizes = self.form.programs, _THREADS, self._macros["SHARED_BYTES"]
            kernel = nvrtc.CudaKernel(self._image.result(), "cluster_linear", self.device, *sizes)
        return kernel.after, described


@lru_cache(maxsize=64)
def _linear(device: torch.device, form: ClusterForm) -> ClusterLinear | None:
    """None where nobody can compile it."""
    return None if nvrtc.why_not(device) is not None else ClusterLinear(device, form)


def prepare(device: torch.device, forms: Iterable[ClusterForm]) -> None:
    """Have their kernels compiled, by threads, where they can be."""
    for form in forms:
        _linear(device, form)


def linear_of(x: Tensor, w: Tensor, gated: str | None, columns: int, split: int) -> ClusterLinear | None:
    """What multiplies these, cut so; None if nothing can."""
    n = w.shape[0] // 2 if gated else w.shape[0]
    if why_not(n, w.shape[1], x.dtype) is not None or len(x) > ROWS or not (takes(x) and takes(w)):
        return None
    return _linear(x.device, ClusterForm(n, w.shape[1], gated, columns, split))
