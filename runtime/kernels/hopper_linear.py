"""What the products in CUDA C++ on Hopper have in common: matrices that the copy engine brings, kernels compiled by threads."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from concurrent.futures import Future

import torch

from runtime.kernels import nvrtc
from runtime.kernels.tensor_map import Maps, described

# Takes arguments, and whether it may begin before the launch before has ended.
Launch = Callable[[ctypes.Structure, bool], None]
# How a kernel with these macros and maps of matrices are made where there is no GPU.
Build = Callable[[Mapping[str, int]], tuple[Launch, Maps]]


def why_not(n: int, k: int, dtype: torch.dtype) -> str | None:
    """What the kernels do not multiply of a matrix [n, k] (n of each factor if gated); None if they can."""
    if dtype != torch.bfloat16:
        return f"it is {dtype}, not torch.bfloat16"
    return f"its sizes {(n, k)} are not multiples of 8" if n % 8 or k % 8 else None


class HopperLinear:
    """A kernel of cuda/ on one device; a thread compiles it from now on, and the first launch waits for it."""

    def __init__(
        self,
        device: torch.device,
        name: str,
        macros: Mapping[str, int],
        programs: int,
        threads: int,
        build: Build | None = None,
    ) -> None:
        """name: of the kernel and of its source; macros: SHARED_BYTES is one; threads: of a program"""
        self.device, self.programs = device, programs
        self._name, self._macros, self._threads = name, macros, threads
        self._build = build
        self._made: tuple[Launch, Maps] | None = None
        self._image: Future[bytes] | None = None
        if build is None:
            self._image = nvrtc.compiling(f"{name}.cu", macros)

    def loaded(self) -> tuple[Launch, Maps]:
        """What launches it and describes matrices to it."""
        if self._made is None:
            self._made = self._load() if self._build is None else self._build(self._macros)
        return self._made

    def _load(self) -> tuple[Launch, Maps]:
        assert self._image is not None
        with nvrtc.named_remedy():
            sizes = self.programs, self._threads, self._macros["SHARED_BYTES"]
            kernel = nvrtc.CudaKernel(self._image.result(), self._name, self.device, *sizes)
        return kernel.after, described
