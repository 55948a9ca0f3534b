"""Kernels are compiled at the start of an engine, each once for what its caller chose; requests need no others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("shape", ["tiny", "0.5b"])
def test_no_request_waits_for_a_compiler(shape: str) -> None:
    told = subprocess.run(
        [sys.executable, "tests/kernels/launches.py", shape],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    variants = [json.loads(line) for line in told.stdout.splitlines()]
    assert [v for v in variants if v["when"] != "rehearsal"] == []
    alike: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for v in variants:
        types = [kind for kind, _ in json.loads(v["found"]).values() if kind.startswith("*")]
        alike[v["kernel"], v["chosen"], " ".join(types)].append(v["found"])
    assert {k: found for k, found in alike.items() if len(found) > 1} == {}
    assert {k.partition(".")[2] for k, *_ in alike} >= {
        "_begin", "_end", "_tiled", "_decode", "_rms_norm", "_rope_store", "_prefill", "_pick", "_mask", "_mask_bits",
    }  # fmt: skip
