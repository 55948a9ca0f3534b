"""Files of a start are read ahead in order, by a process of its own, and not from a slow disk."""

from __future__ import annotations

import subprocess
import sys
import threading
from itertools import count
from pathlib import Path

import pytest
import torch

import runtime
from runtime.engine import read_ahead


@pytest.fixture
def tree(tmp_path: Path) -> list[Path]:
    """Libraries in the order of their use, beside others."""
    names = (
        "torch/lib/libtorch_cpu.so",
        "torch/lib/libtorch_cuda.so",
        "nvidia/cu13/lib/libnvrtc.so.13",
        "nvidia/cu13/lib/libcublasLt.so.13",
    )
    for i, name in enumerate(reversed(names)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(1000 + i))
    (tmp_path / "nvidia/cu13/lib/libcufft.so.12").write_bytes(b"not needed")
    (tmp_path / "torch/lib/libtorch_python.so").mkdir()
    return [tmp_path / name for name in names]


def test_libraries_come_in_the_order_of_their_use(tmp_path: Path, tree: list[Path]) -> None:
    assert read_ahead.libraries(tmp_path) == tree


def test_files_of_this_installation_are_found() -> None:
    root = Path(torch.__file__).parent.parent
    assert "libtorch_cpu.so" in [path.name for path in read_ahead.libraries(root)]
    found = {
        path.name.partition(".")[0]
        for path in read_ahead.modules(root)
        if path.parent.parent == root / "torch"
    }
    assert {"__init__", "_tensor", "serialization"} <= found


def test_sources_are_read_where_nobody_has_compiled_them(tmp_path: Path) -> None:
    names = (
        "torch/a.py",
        "torch/__pycache__/a.cpython-312.pyc",
        "torch/nn/b.py",
        "torch/testing/c.py",
        "other/d.py",
    )
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert sorted(read_ahead.modules(tmp_path)) == [tmp_path / names[1], tmp_path / names[2]]


def test_all_files_are_read_but_those_that_cannot_be(tmp_path: Path, tree: list[Path]) -> None:
    sizes = sum(f.stat().st_size for f in tree)
    assert read_ahead.read([tree[0], tmp_path / "gone", *tree[1:]]) == sizes


@pytest.mark.parametrize(("rate", "whole"), [(400e6, True), (100e6, False)])
def test_a_slow_disk_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: float, whole: bool
) -> None:
    window = 1 << 20
    monkeypatch.setattr(read_ahead, "_WINDOW", window)
    monkeypatch.setattr(read_ahead, "_BLOCK", window // 4)
    file = tmp_path / "library"
    file.write_bytes(bytes(3 * window))
    ticks = count()
    got = read_ahead.read([file], lambda: next(ticks) * window / rate)
    assert got == (3 * window if whole else window)


@pytest.mark.parametrize(
    ("device", "driver", "begins"), [("auto", True, True), ("cpu", True, False), ("auto", False, False)]
)
def test_reading_begins_once_and_only_for_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, driver: bool, begins: bool
) -> None:
    begun: dict[str, list[str]] = {}
    monkeypatch.setattr(read_ahead, "_began", threading.Event())
    monkeypatch.setattr(read_ahead, "_DRIVER", tmp_path if driver else tmp_path / "none")
    monkeypatch.setattr(read_ahead, "_run", lambda words: begun.update({Path(words[3]).name: words[4:]}))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(2):
        read_ahead.read_ahead(device)
    for thread in threading.enumerate():
        if thread.name in {"read-ahead", "compile-modules"}:
            thread.join()
    packages, own = str(Path(torch.__file__).parent.parent), str(Path(runtime.__file__).parent.parent)
    kept = str(read_ahead.bytecode_folder())
    wanted = {"read_ahead.py": [packages], "bytecode.py": [kept, packages, own]}
    assert begun == (wanted if begins else {})


def test_byte_code_is_kept_apart_for_each_set_of_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of two versions may have one size and one age."""
    packages = tmp_path / "packages"
    (packages / "torch-2.11.0.dist-info").mkdir(parents=True)
    monkeypatch.setattr(read_ahead, "_DRIVER", tmp_path)
    monkeypatch.setattr(read_ahead, "_packages", lambda: packages)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = read_ahead.bytecode_folder()
    assert first is not None and first.parent == tmp_path / "sglc" / "bytecode"
    assert read_ahead.bytecode_folder() == first
    (packages / "torch-2.11.0.dist-info").rename(packages / "torch-2.12.0.dist-info")
    assert read_ahead.bytecode_folder() != first
    assert read_ahead.bytecode_folder("cpu") is None


def test_the_process_needs_no_package(tmp_path: Path, tree: list[Path]) -> None:
    (tmp_path / "torch/nn/__pycache__").mkdir(parents=True)
    (tmp_path / "torch/nn/__pycache__/init.cpython-312.pyc").write_bytes(b"no source beside it")
    command = [sys.executable, "-I", "-S", read_ahead.__file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
