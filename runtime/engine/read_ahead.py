"""Libraries of a start on a GPU, read from the disk before they are needed.

Loading a library maps it, and what is used of it comes page by page, each page when it is missed: a disk that reads 600 MB/s in a row
gives a third of that. A thread that reads the files in the order of their use leaves them in the system's page cache, which all
processes share.
"""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

# In the order in which a start comes to them; those of which it uses a third or more.
_LIBRARIES = (
    "torch/lib/libtorch_cpu.so",
    "torch/lib/libtorch_cuda.so",
    "torch/lib/libtorch_python.so",
    "nvidia/*/lib/libcusparseLt.so.*",
    "nvidia/*/lib/libnvJitLink.so.*",
    "llvmlite/binding/libllvmlite.so",
    "triton/_C/libtriton.so",
    "triton/backends/nvidia/bin/ptxas",
    "nvidia/*/lib/libnvrtc.so.*",
    "nvidia/*/lib/libcublasLt.so.*",
)
_BLOCK = 4 << 20
_WINDOW = 64 << 20
_LEAST_RATE = 200e6  # bytes a second; a slower disk is left to what is missed
_DRIVER = Path("/proc/driver/nvidia/version")
_began = threading.Event()


def read_libraries_ahead(device: str = "auto") -> None:
    """Begin to read them, once a process, where there is an NVIDIA driver and `device` is not the CPU; returns at once."""
    if device == "cpu" or _began.is_set() or not _DRIVER.exists():
        return
    _began.set()
    threading.Thread(target=lambda: read(libraries()), name="read-ahead", daemon=True).start()


def libraries(root: Path | None = None) -> list[Path]:
    """Those that are installed under `root` (None: where torch is), in order."""
    if root is None:
        found = importlib.util.find_spec("torch")
        if found is None or found.origin is None:
            return []
        root = Path(found.origin).parent.parent
    return [path for pattern in _LIBRARIES for path in sorted(root.glob(pattern)) if path.is_file()]


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
