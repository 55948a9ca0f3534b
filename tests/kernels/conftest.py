"""Where kernels run: compiled on a GPU if there is one, else in Triton's interpreter on the CPU."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

if importlib.util.find_spec("triton") is None:  # not every platform has it
    collect_ignore = [
        f"test_{name}.py"
        for name in (
            "activation", "argmax", "argmax_ranks", "cluster_linear", "clustered", "compile_ahead", "compiles", "constrained_runner", "decode", "device_runner", "flashinfer_attention", "flashinfer_sampler", "head_linear", "kv_store", "launches",
            "mask",
            "mla_decode", "norm", "paged_decode",
            "prefill", "rope_store", "rows_alike", "sample", "select_attention", "select_sampler", "skinny", "sum_ranks", "triton_attention", "wgmma_linear", "whole_step",
        )
    ]  # fmt: skip


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def interpreted_bfloat16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter multiplies the bit patterns of bfloat16; widen them first."""
    if torch.cuda.is_available():
        return
    import triton.language as tl
    from triton.runtime import interpreter

    plain = interpreter.InterpreterBuilder.create_dot

    def wide(handle: interpreter.TensorHandle) -> interpreter.TensorHandle:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self, a, b, *rest):  # type: ignore[no-untyped-def]
        return plain(self, wide(a), wide(b), *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where emulated kernels are compiled to."""
    return tmp_path_factory.mktemp("emulated")
