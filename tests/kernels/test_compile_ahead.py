"""Kernels of a rehearsal are compiled in threads; what fails there is left to its first launch."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from triton import knobs

from runtime.engine.compile_ahead import StartKind, compile_ahead, make_launcher

ROOT = Path(__file__).resolve().parents[2]
# Triton without a GPU: a driver that knows for which card to compile, and would fail if anything were launched.
ON_NO_DEVICE = """
from types import SimpleNamespace
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
driver.set_active(SimpleNamespace(
    get_current_device=lambda: 0, get_current_stream=lambda _: 0,
    get_current_target=lambda: GPUTarget("cuda", 90, 32),
))
from runtime.engine.compile_ahead import compile_ahead
from runtime.kernels import activation, norm
def rehearsal():
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.zeros(3, 256, dtype=dtype)
        norm.rms_norm(x, x[0], 1e-5)
    activation.gated_mul(x, "silu")
print(compile_ahead(rehearsal, None), [len(k.device_caches[0][0]) for k in (norm._rms_norm, activation._gated)])
"""


def test_what_is_missing_is_compiled_and_not_launched(tmp_path: Path) -> None:
    assert told_by(ON_NO_DEVICE, tmp_path) == "3 [2, 1]"


# Every kernel's key, after a first look at some in another order, if told to settle them before.
KEYS = """
import sys
from importlib import import_module
from pathlib import Path
import runtime.kernels
from triton.runtime.jit import JITCallable
from runtime.engine.compile_ahead import settle_keys
if "settled" in sys.argv:
    settle_keys()
folder = Path(runtime.kernels.__file__).parent
modules = [import_module(f"runtime.kernels.{p.stem}") for p in sorted(folder.glob("*.py"))]
found = {f"{v.module}.{v.fn.__name__}": v for m in modules for v in vars(m).values() if isinstance(v, JITCallable)}
for name in sorted(found, reverse="backwards" in sys.argv):
    found[name].cache_key
print(*(f"{name} {found[name].cache_key}" for name in sorted(found)), sep="\\n")
"""
# A launch is made ahead, or compiled as ever without being launched: the names of what lies in the cache then.
MADE = """
import sys
from triton.runtime.jit import JITFunction
from runtime.engine.compile_ahead import settle_keys
from runtime.kernels import argmax, decode, norm, prefill, tuning
settle_keys()
tuning.processors = lambda device: 132
rows = torch.zeros(3, 512, dtype=torch.bfloat16)
def rehearsal():
    norm.add_rms_norm(rows, rows, rows[0], 1e-5)
    argmax.argmax(torch.zeros(3, 8192, dtype=torch.bfloat16))
if "ahead" in sys.argv:
    print(compile_ahead(rehearsal, None))
else:
    decode._decode.cache_key, prefill._prefill.cache_key  # a plain start comes to these before
    run = JITFunction.run
    JITFunction.run = lambda kernel, *a, grid, warmup, **k: run(kernel, *a, grid=grid, warmup=True, **k)
    rehearsal()
"""


def told_by(program: str, cache: Path, *words: str) -> str:
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    told = subprocess.run(
        [sys.executable, "-c", program, *words],
        env={**env, "PYTHONPATH": f"{env.get('PYTHONPATH', '')}:{ROOT}", "TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    return told.stdout.strip()


def test_keys_do_not_depend_on_who_was_looked_at_first(tmp_path: Path) -> None:
    settled = told_by(KEYS, tmp_path, "settled")
    assert "decode._decode" in settled
    assert settled == told_by(KEYS, tmp_path, "settled", "backwards")


def test_what_was_made_ahead_is_what_a_plain_start_looks_for(tmp_path: Path) -> None:
    driver = ON_NO_DEVICE.partition("from runtime.kernels")[0]
    assert told_by(driver + MADE, tmp_path, "ahead") == "3"
    made = {p.name for p in tmp_path.iterdir()}
    assert any(p.name == "_rms_norm.cubin" for p in tmp_path.glob("*/*"))
    told_by(driver + MADE, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == made


class Kernel:
    def __init__(self) -> None:
        self.made: list[str] = []
        self.any = threading.Event()

    def preload(self, variant: str) -> None:
        if variant == "bad":
            raise RuntimeError("does not compile")
        self.made.append(variant)
        self.any.set()


def launch(kernel: Kernel, variant: str, module: str = "m", name: str = "k") -> Any:
    return knobs.runtime.jit_cache_hook(
        fn=SimpleNamespace(module=module, name=name, jit_function=kernel),
        compile={"key": variant, "specialization_data": variant},
        is_manual_warmup=False,
    )


def test_each_variant_once_and_failures_are_left_to_the_launch() -> None:
    kernel = Kernel()
    begin: list[Any] = []

    def rehearsal() -> None:
        for variant in ("a", "b", "a", "bad"):
            assert launch(kernel, variant)  # true: Triton does nothing
        begin.append(launch(kernel, "c", "runtime.kernels.decode_step", "_begin"))

    before = knobs.runtime.jit_cache_hook
    assert compile_ahead(rehearsal, None) == 2
    assert sorted(kernel.made) == ["a", "b"]
    assert begin == [None]  # launched as ever: ids come from it
    assert knobs.runtime.jit_cache_hook is before


def test_kernels_are_made_while_the_rehearsal_goes_on() -> None:
    kernel = Kernel()

    def rehearsal() -> None:
        launch(kernel, "a")
        launch(kernel, "b" if kernel.any.wait(10) else "bad")

    assert compile_ahead(rehearsal, None) == 2
    assert kernel.made == ["a", "b"]


class Launched:
    """A kernel whose compiled form makes its launcher when `run` is read."""

    def __init__(self, said: list[str]) -> None:
        self.said = said
        self.device_caches: dict[int, list[str]] = {0: []}

    def create_binder(self) -> list[str]:
        return []

    def preload(self, variant: str) -> Launched:
        self.device_caches[0].append(variant)
        return self

    @property
    def run(self) -> None:
        self.said.append("launcher")


def test_a_launcher_is_made_before_the_kernel_is_seen() -> None:
    said: list[str] = []
    kernel = Launched(said)
    make_launcher(kernel, "a")
    assert said == ["launcher"] and kernel.device_caches == {0: []}
    make_launcher(object(), "a")  # a Triton that has nothing of this


def test_a_rehearsal_may_fail() -> None:
    kernel = Kernel()

    def rehearsal() -> None:
        launch(kernel, "a")
        raise RuntimeError("no memory")

    assert compile_ahead(rehearsal, None) == 0
    assert kernel.made == ["a"]  # its thread was on the way
    assert knobs.runtime.jit_cache_hook is None


def test_a_kind_of_start_is_known_where_its_kernels_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kind = StartKind.of("a card", (1, 2))
    assert not kind.seen()
    kind.keep()
    assert StartKind.of("a card", (1, 2)).seen()
    assert not StartKind.of("another card", (1, 2)).seen()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "elsewhere"))  # not there yet
    other = StartKind.of("a card", (1, 2))
    other.keep()
    assert not other.seen() and not StartKind(None).seen()


def test_other_kernels_are_another_kind_of_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    StartKind.of("a card").keep()
    monkeypatch.setattr(Path, "read_bytes", lambda path: b"changed")
    assert not StartKind.of("a card").seen()
