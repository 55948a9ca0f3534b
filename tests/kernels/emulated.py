"""CUDA sources as libraries for a CPU, so that they are tested without a GPU (emulator/device.h)."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from runtime.kernels import nvrtc
from runtime.kernels.tensor_map import TensorMap

HERE = Path(__file__).parent / "emulator"
COMPILER = shutil.which("g++") or shutil.which("clang++")


def skip_without_compiler(device: torch.device | None = None) -> None:
    """Skip a test whose kernels nobody can compile for this device; None: for the CPU."""
    if device is not None and device.type == "cuda":
        if (reason := nvrtc.why_not(device)) is not None:
            pytest.skip(reason)
    elif COMPILER is None:
        pytest.skip("there is no C++ compiler")


def library(folder: Path, macros: Mapping[str, int], source: str = "whole_step") -> Any:
    """emulator/{source}.cpp with these macros, compiled into `folder` unless it is there."""
    assert COMPILER is not None
    options = [f"-D{name}={value}" for name, value in sorted(macros.items())]
    path = folder / f"{hashlib.sha256(repr((source, options)).encode()).hexdigest()[:16]}.so"
    if not path.exists():
        sources = HERE.parents[2] / "runtime" / "kernels" / "cuda"
        command = [
            COMPILER,
            "-std=c++17",
            "-O1",
            "-w",
            "-shared",
            "-fPIC",
            f"-I{HERE}",
            f"-I{sources}",
            *options,
        ]
        subprocess.run([*command, "-o", str(path), str(HERE / f"{source}.cpp")], check=True)
    found = ctypes.CDLL(str(path))
    assert found.shared_bytes() == macros["SHARED_BYTES"], "host and source count shared memory differently"
    return found


def run(library: Any, arguments: list[ctypes.Structure], seed: int, kernel: str = "run") -> None:
    """Launch on as many devices as there are arguments. Raises RuntimeError if the threads wait for each other for ever, or
    copies are not aligned or fenced."""
    all_of_them = (type(arguments[0]) * len(arguments))(*arguments)
    if not getattr(library, kernel)(ctypes.byref(all_of_them), len(arguments), ctypes.c_uint(seed)):
        raise RuntimeError("the kernel's threads wait for each other, or its copies are not fenced")


def described(matrix: Tensor, high: int, wide: int) -> ctypes.Array[ctypes.c_uint64]:
    """`TensorMap` of emulator/device.h."""
    numbers = matrix.data_ptr(), *matrix.shape, matrix.stride(0) * 2, high, wide
    return TensorMap.from_buffer_copy(struct.pack("6q", *numbers).ljust(128, b"\0"))
