"""Kernels compile for a real card, also where there is none: the interpreter takes what the compiler may not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from runtime.kernels import nvrtc
from runtime.kernels.cluster_linear import ClusterForm
from runtime.kernels.head_linear import defines as head_defines
from runtime.kernels.paged_decode import DecodeShape
from runtime.kernels.paged_decode import defines as paged_defines
from runtime.kernels.step_layers import StepLayer, StepSpec
from runtime.kernels.wgmma_linear import TILES, PairTiles
from runtime.kernels.wgmma_linear import defines as wgmma_defines
from runtime.kernels.whole_step import defines

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(300)
def test_every_launch_of_a_step_compiles_for_hopper() -> None:
    command = [sys.executable, "benchmarks/gpu/registers.py", "--models", "0.5b,v2-lite", "--rows", "2"]
    told = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    for kernel in (
        "_tiled", "_decode", "_prefill", "_rms_norm", "_rope_store", "_sum_ranks", "_parts", "_store_kv", "_mla_decode",
    ):  # fmt: skip
        assert f"│ {kernel}" in told.stdout


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("rows", "ranks"), [(8, 1), (16, 2)])
def test_the_whole_step_compiles_for_hopper(rows: int, ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    reason = nvrtc.compiler_missing()
    if reason is not None:
        pytest.skip(reason)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    spec = StepSpec(14, 2, 64, 896, 4864, "silu", 0.1, 30.0, False, 1e-5, 1.0, 1e-6, 1.0, 16)
    x = torch.zeros(1, 32)
    layer = StepLayer(x, x, x, x, x, x, x, x, x, x, x, x, x, x, None)
    macros = defines(spec, layer, rows, 132, ranks)
    image = nvrtc.compiled("whole_step.cu", macros)
    assert image[:4] == b"\x7fELF" and b"whole_step" in image
    (kept,) = tmp_path.glob("*/whole_step.cubin")
    kept.write_bytes(b"kept")
    assert nvrtc.compiled("whole_step.cu", macros) == b"kept", "what was compiled once is not compiled again"
    with pytest.raises(nvrtc.CudaError, match="less shared memory"):
        nvrtc.compiled("whole_step.cu", macros | {"SHARED_BYTES": 1000})


@pytest.mark.timeout(300)
@pytest.mark.parametrize("gated", [None, "silu"])
@pytest.mark.parametrize("tiles", TILES)
def test_products_of_many_rows_compile_for_hopper(
    tiles: PairTiles, gated: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = nvrtc.compiler_missing()
    if reason is not None:
        pytest.skip(reason)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    macros = wgmma_defines(tiles, gated)
    assert b"wgmma_linear" in nvrtc.compiled("wgmma_linear.cu", macros)
    with pytest.raises(nvrtc.CudaError, match="less shared memory"):
        nvrtc.compiled("wgmma_linear.cu", macros | {"SHARED_BYTES": 1000})


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "form",
    [
        ClusterForm(4864, 896, "silu", 80, 1),
        ClusterForm(896, 4864, None, 64, 8),
        ClusterForm(136, 328, "gelu", 96, 4),
        ClusterForm(896, 896, None, 64, 4, adds=True),
        ClusterForm(4864, 896, "silu", 80, 1, normed=14),
        ClusterForm(1152, 896, None, 48, 4, normed=14),
    ],
)
def test_products_of_clusters_compile_for_hopper(
    form: ClusterForm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = nvrtc.compiler_missing()
    if reason is not None:
        pytest.skip(reason)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    macros = form.defines()
    assert b"cluster_linear" in nvrtc.compiled("cluster_linear.cu", macros)
    with pytest.raises(nvrtc.CudaError, match="less shared memory"):
        nvrtc.compiled("cluster_linear.cu", macros | {"SHARED_BYTES": 1000})


@pytest.mark.timeout(300)
def test_heads_compile_for_hopper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = nvrtc.compiler_missing()
    if reason is not None:
        pytest.skip(reason)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    macros = head_defines(896)
    assert b"head_linear" in nvrtc.compiled("head_linear.cu", macros)
    with pytest.raises(nvrtc.CudaError, match="less shared memory"):
        nvrtc.compiled("head_linear.cu", macros | {"SHARED_BYTES": 1000})


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "shape", [DecodeShape(32, 8, 128, 1, 128), DecodeShape(16, 4, 128, 16, 64, True, True, True, True)]
)
def test_paged_decode_compiles_for_hopper(
    shape: DecodeShape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = nvrtc.compiler_missing()
    if reason is not None:
        pytest.skip(reason)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    macros = paged_defines(shape, 132)
    image = nvrtc.compiled("paged_decode.cu", macros)
    assert b"paged_decode" in image and b"cut_contexts" in image
    assert b"bundle_decode" in nvrtc.compiled("bundle_decode.cu", macros)
    with pytest.raises(nvrtc.CudaError, match="less shared memory"):
        nvrtc.compiled("paged_decode.cu", macros | {"SHARED_BYTES": 1000})
