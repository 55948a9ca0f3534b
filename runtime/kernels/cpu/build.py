"""Machine code of the kernels, kept on disk. Compiling takes about fifteen seconds, loading a fraction of one.

A mark beside numba's cache says that a variant is complete, so that an engine can tell without compiling; it names
all that numba's own index looks at, and vectors.py, which that does not see. `python -m runtime.kernels.cpu.build uint16 32` builds one.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import llvmlite.binding
import numba
import numpy as np

from runtime.kernels.cpu import decode, vectors

log = logging.getLogger("runtime.kernels")
WEIGHTS = {"uint16": np.uint16, "float32": np.float32}  # bfloat16 bits, or whole


class Variant:
    """The kernels for one kind of weights and one head size."""

    def __init__(self, weights: str, head_dim: int) -> None:
        self.weights = weights
        self.head_dim = head_dim
        sources = [Path(str(module.__file__)).stat() for module in (decode, vectors)]
        facts = (
            f"{[(s.st_mtime_ns, s.st_size) for s in sources]} {numba.__version__} "
            f"{llvmlite.binding.get_host_cpu_name()} {llvmlite.binding.get_host_cpu_features().flatten()}"
        )
        self.code = hashlib.sha256(facts.encode()).hexdigest()[:16]
        self.mark = (
            Path(str(decode.run_layers.stats.cache_path)) / f"cpu-{self.code}-{weights}-{head_dim}.built"
        )

    @property
    def built(self) -> bool:
        return self.mark.exists() and any(self.mark.parent.glob("decode.run_head-*.nbc"))

    def _complete(self) -> list[Path]:
        """Marks of variants made from the same sources."""
        return list(self.mark.parent.glob(f"cpu-{self.code}-*.built"))

    def load(self) -> None:
        """Make the kernels ready in this process; compiles what the disk does not have. They run once, on zeros."""
        kind, dim = WEIGHTS[self.weights], self.head_dim
        one = np.zeros(1, np.int64)
        vector, table = np.ones(dim, np.float32), np.zeros((1, dim // 2), np.float32)
        store = np.zeros((1, 1, 1, dim), np.float32)
        lanes = (0,) * dim
        scale = np.float32(1)
        hidden = decode.run_layers(
            one,
            one,
            one,
            one,
            one,
            np.zeros((1, dim), kind),
            np.zeros((1, 3 * dim, dim), kind),
            np.zeros((1, dim, dim), kind),
            np.zeros((1, 2 * dim, dim), kind),
            np.zeros((1, dim, dim), kind),
            vector[None].copy(),
            vector[None].copy(),
            vector,
            scale,
            table,
            table,
            scale,
            store,
            store,
            lanes,
            2,
        )
        decode.run_head(hidden, np.zeros((1, dim), kind), 2)

    def build(self) -> None:
        """Compile to disk, unless somebody else has done or is doing it; then wait for them."""
        self.mark.parent.mkdir(parents=True, exist_ok=True)
        # One lock for all variants: they share an index file, and the last to write it would drop the others.
        with (self.mark.parent / "cpu.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.built:
                if not self._complete():  # then what is there may come from an older vectors.py
                    for old in [
                        *self.mark.parent.glob("decode.run_*"),
                        *self.mark.parent.glob("cpu-*.built"),
                    ]:
                        old.unlink(missing_ok=True)
                self.load()
                self.mark.touch()

    def build_elsewhere(self) -> subprocess.Popen[bytes]:
        """`build` in a process of its own, which survives this one: whoever comes next has use of it."""
        return subprocess.Popen(
            [sys.executable, "-m", "runtime.kernels.cpu.build", self.weights, str(self.head_dim)],
            cwd=Path(__file__).parents[3],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


if __name__ == "__main__":
    os.nice(5)
    Variant(sys.argv[1], int(sys.argv[2])).build()
