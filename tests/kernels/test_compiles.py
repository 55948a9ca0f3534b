"""Kernels compile for a real card, also where there is none: the interpreter takes what the compiler may not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
