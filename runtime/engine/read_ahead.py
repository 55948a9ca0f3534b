"""Files of a start on a GPU, read from the disk before they are needed.

Loading a library maps it, and what is used of it comes page by page, each when it is missed; modules come one after another, some
1,500 of them. A disk that reads 600 MB/s in a row gives a fraction of that. A process of its own (whose threads do not compete for
the interpreter) reads the files in the order of their use and leaves them in the system's page cache. Others compile modules
(engine/bytecode.py).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# In the order in which a start comes to them; those of which it uses a third or more.
_LIBRARIES = (
    "torch/lib/libtorch_cpu.so",
    "torch/lib/libtorch_cuda.so",
    "torch/lib/libtorch_python.so",
    "nvidia/*/lib/libnvJitLink.so.*",
    "llvmlite/binding/libllvmlite.so",
    "triton/_C/libtriton.so",
    "triton/backends/nvidia/bin/ptxas",
    "nvidia/*/lib/libnvrtc.so.*",
    "nvidia/*/lib/libcublasLt.so.*",
)
_PACKAGES = ("torch", "numpy", "numba", "llvmlite", "triton", "cuda", "tokenizers")
_NO_MODULES = frozenset({"include", "lib", "share", "bin", "testing", "tests", "test", "onnx"})
_READERS = 8  # of modules: many little files, each a few waits for the disk
_BLOCK = 4 << 20
_WINDOW = 64 << 20
_LEAST_RATE = 200e6  # bytes a second; a slower disk is left to what is missed
_DRIVER = Path("/proc/driver/nvidia/version")
_began = threading.Event()


def read_ahead(device: str = "auto") -> None:
    """Begin to read them, and to compile modules (`bytecode`), once a process, where there is an NVIDIA driver and `device` is
    not the CPU; returns at once."""
    packages = None if _began.is_set() or not _wanted(device) else _packages()
    folder = bytecode_folder(device)
    if packages is None or folder is None:
        return
    _began.set()
    own = Path(__file__).parents[2]
    script = Path(__file__).with_name("bytecode.py")
    for name, *command in (
        ("read-ahead", __file__, packages),
        ("compile-modules", script, folder, packages, own),
    ):
        words = [sys.executable, "-I", "-S", *map(str, command)]
        threading.Thread(target=_run, args=(words,), name=name, daemon=True).start()


def _wanted(device: str) -> bool:
    return device != "cpu" and _DRIVER.exists()


def _packages() -> Path | None:
    """Where torch is installed."""
    found = importlib.util.find_spec("torch")
    return None if found is None or found.origin is None else Path(found.origin).parent.parent


def bytecode_folder(device: str = "auto") -> Path | None:
    """Where byte code is kept that `read_ahead` has made; None where it makes none.

    There is one for each set of installed packages: files of two versions may have the same size and, in images that are built to
    be reproduced, the same age, which is all that Python compares.
    """
    packages = _packages() if _wanted(device) else None
    if packages is None:
        return None
    from grammar.cache_folder import cache_folder  # not there for the process that reads

    installed = sorted(name for name in os.listdir(packages) if name.endswith("-info"))
    digest = hashlib.sha256(repr((sys.implementation.cache_tag, str(packages), installed)).encode())
    return cache_folder("bytecode") / digest.hexdigest()[:16]


def _run(command: list[str]) -> None:
    try:
        subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    except OSError:
        return  # no process more may be started: files come when they are missed


def libraries(root: Path) -> list[Path]:
    """Those that are installed under `root`, in order."""
    return [path for pattern in _LIBRARIES for path in sorted(root.glob(pattern)) if path.is_file()]


def modules(root: Path) -> Iterator[Path]:
    """Of the packages under `root` that a start imports: compiled modules, or sources where nobody has compiled them yet."""
    for package in _PACKAGES:
        for folder, folders, files in os.walk(root / package):
            compiled = folder.endswith("__pycache__")
            if compiled or "__pycache__" not in folders:
                ending = ".pyc" if compiled else ".py"
                yield from (Path(folder, name) for name in files if name.endswith(ending))
            folders[:] = [name for name in folders if name not in _NO_MODULES]


def read(paths: Iterable[Path], clock: Callable[[], float] = time.perf_counter) -> int:
    """Read files through until the disk turns out to be slow; bytes that were read. A file that cannot be read is left out."""
    block = bytearray(_BLOCK)
    total = window = 0
    began = clock()
    for path in paths:
        try:
            with path.open("rb", buffering=0) as file:
                while count := file.readinto(block):
                    total += count
                    window += count
                    if window >= _WINDOW:
                        now = clock()
                        if window < _LEAST_RATE * (now - began):
                            return total
                        window, began = 0, now
        except OSError:
            continue
    return total


def _look_at(module: Path) -> None:
    """Read it, and find its source, whose age an import compares."""
    module.read_bytes()
    if module.suffix == ".pyc":
        module.parent.parent.joinpath(module.name.partition(".")[0] + ".py").exists()


def _main(root: Path) -> None:
    with ThreadPoolExecutor(_READERS + 1) as pool:
        pool.submit(read, libraries(root))
        for path in modules(root):
            pool.submit(_look_at, path)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
