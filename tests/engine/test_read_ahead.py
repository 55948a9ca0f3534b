"""Libraries are read ahead in order, through links no further than files, and not from a slow disk."""

from __future__ import annotations

import threading
from itertools import count
from pathlib import Path

import pytest

from runtime.engine import read_ahead


def _tree(root: Path) -> list[Path]:
    names = (
        "torch/lib/libtorch_cpu.so",
        "torch/lib/libtorch_cuda.so",
        "nvidia/cu13/lib/libnvrtc.so.13",
        "nvidia/cu13/lib/libcublasLt.so.13",
    )
    for i, name in enumerate(reversed(names)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(bytes(1000 + i))
    (root / "nvidia/cu13/lib/libcufft.so.12").write_bytes(b"not needed")
    (root / "torch/lib/libtorch_python.so").mkdir()
    return [root / name for name in names]


def test_libraries_come_in_the_order_of_their_use(tmp_path: Path) -> None:
    assert read_ahead.libraries(tmp_path) == _tree(tmp_path)


def test_libraries_of_this_torch_are_found() -> None:
    assert "libtorch_cpu.so" in [path.name for path in read_ahead.libraries()]


def test_all_files_are_read_but_those_that_cannot_be(tmp_path: Path) -> None:
    files = _tree(tmp_path)
    assert read_ahead.read([files[0], tmp_path / "gone", *files[1:]]) == sum(f.stat().st_size for f in files)


@pytest.mark.parametrize(("seconds", "whole"), [(0.01, True), (1.0, False)])
def test_a_slow_disk_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, whole: bool
) -> None:
    monkeypatch.setattr(read_ahead, "_WINDOW", 1 << 20)
    monkeypatch.setattr(read_ahead, "_BLOCK", 1 << 18)
    file = tmp_path / "library"
    file.write_bytes(bytes(3 << 20))
    ticks = count()
    got = read_ahead.read([file], lambda: next(ticks) * seconds * (1 << 20) / 200e6 * 20)
    assert got == (3 << 20 if whole else 1 << 20)


@pytest.mark.parametrize(("device", "driver", "begins"), [("auto", True, 1), ("cpu", True, 0), ("auto", False, 0)])
def test_reading_begins_once_and_only_for_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, driver: bool, begins: int
) -> None:
    begun: list[list[Path]] = []
    done = threading.Event()

    def read(paths: list[Path]) -> None:
        begun.append(paths)
        done.set()

    monkeypatch.setattr(read_ahead, "_began", threading.Event())
    monkeypatch.setattr(read_ahead, "_DRIVER", tmp_path if driver else tmp_path / "none")
    monkeypatch.setattr(read_ahead, "libraries", lambda: [tmp_path])
    monkeypatch.setattr(read_ahead, "read", read)
    for _ in range(2):
        read_ahead.read_libraries_ahead(device)
    assert done.wait(10) == bool(begins) if begins else not done.wait(0.2)
    assert begun == [[tmp_path]] * begins
