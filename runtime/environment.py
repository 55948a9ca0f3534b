"""What a machine has for the runtime: what a bug report should say, and what stands in the way."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = (
    "sglc",
    "torch",
    "triton",
    "flashinfer-python",
    "numba",
    "numpy",
    "transformers",
    "tokenizers",
    "safetensors",
    "aiohttp",
    "uvloop",
    "msgspec",
    "pyzmq",
    "openai",
    "anthropic",
)


def own_version() -> str:
    """Of this package; "source" where its folders are run without an installation."""
    return _version("sglc") or "source"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def environment() -> dict[str, str]:
    """Facts by name, in the order in which they are shown."""
    facts = {
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
        "cpu": f"{_processor()}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB",
        "file descriptors": _descriptors(),
    }
    for name in _PACKAGES:
        facts[name] = _version(name) or "not installed"
    if importlib.util.find_spec("torch") is not None:
        facts |= _cuda()
    return facts


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _descriptors() -> str:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return f"{soft} (at most {hard})"


def _cuda() -> dict[str, str]:
    import torch

    if not torch.cuda.is_available():
        return {"gpu": "none that torch can use"}
    facts = {
        "cuda": str(torch.version.cuda),
        "driver": _smi("--query-gpu=driver_version", "--format=csv,noheader"),
    }
    for i in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(i)
        facts[f"gpu {i}"] = f"{p.name}, {p.total_memory / 2**30:.1f} GiB, sm_{p.major}{p.minor}"
    if torch.cuda.device_count() > 1:
        facts["topology"] = "\n" + _smi("topo", "-m")
    return facts


def _smi(*arguments: str) -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return "nvidia-smi is not installed"
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60)
    return done.stdout.strip() if done.returncode == 0 else done.stderr.strip()


def problems(run: bool) -> list[str]:
    """What does not work, and what to do; with `run` the embedded model is loaded and answers."""
    found = []
    for name in ("torch", "aiohttp", "zmq", "tokenizers", "safetensors"):
        if importlib.util.find_spec(name) is None:
            found.append(f"the package {name} is not installed; install sglc with its dependencies")
    if found or not run:
        return found
    from runtime.engine.engine import Engine

    try:
        with Engine(log_level="error", max_total_tokens=1024) as engine:
            text = engine.generate("12 + 35 =", {"temperature": 0, "max_new_tokens": 4})["text"]
    except Exception as error:
        return [f"the embedded model does not run: {type(error).__name__}: {error}"]
    if text.strip() != "47":
        found.append(
            f"the embedded model answers {text!r} where ' 47' is right; the kernels may be wrong here"
        )
    return found
