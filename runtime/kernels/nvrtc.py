"""CUDA C++ (cuda/), compiled for the device that is here by the compiler that comes with torch (NVRTC).

What was compiled once is kept beside Triton's kernels. `cuda/device.h` has all that the sources need of the device, so that
tests can give them another one.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger("runtime.kernels")
_FOLDER = Path(__file__).parent / "cuda"


class CudaError(RuntimeError):
    """CUDA or its compiler refused something."""


def why_not(device: torch.device) -> str | None:
    """Why sources cannot be compiled for this device; None if they can."""
    if device.type != "cuda":
        return f"it is on {device.type}"
    if torch.cuda.get_device_capability(device)[0] != 9:
        return "the card is no Hopper"
    return compiler_missing()


def compiler_missing() -> str | None:
    """Why there is no compiler; None if there is one."""
    try:
        from cuda.bindings import driver, nvrtc  # noqa: F401

        _ask(nvrtc.nvrtcVersion())
    except ImportError:
        return "the package cuda-bindings is not installed"
    except RuntimeError as error:
        return f"NVRTC cannot be used: {error}"
    return None


def compiled(source: str, defines: Mapping[str, int], architecture: str = "sm_90a") -> bytes:
    """The machine code of a source with these macros. Raises CudaError with the compiler's words."""
    from cuda.bindings import nvrtc

    version = _ask(nvrtc.nvrtcVersion())
    options = [f"--gpu-architecture={architecture}", "--std=c++17", "-default-device"]
    options += [f"-D{name}={value}" for name, value in sorted(defines.items())]
    headers = sorted(_FOLDER.glob("*.h"))
    texts = [path.read_bytes() for path in (_FOLDER / source, *headers)]
    digest = hashlib.sha256(repr((version, options)).encode())
    for text in texts:
        digest.update(hashlib.sha256(text).digest())
    kept = _cache() / f"{Path(source).stem}-{digest.hexdigest()[:32]}.cubin"
    try:
        return kept.read_bytes()
    except OSError:
        pass
    names = [path.name.encode() for path in headers]
    program = _ask(nvrtc.nvrtcCreateProgram(texts[0], source.encode(), len(names), texts[1:], names))
    words = [option.encode() for option in options]
    code = nvrtc.nvrtcCompileProgram(program, len(words), words)[0]
    if code != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        told = bytearray(_ask(nvrtc.nvrtcGetProgramLogSize(program)))
        nvrtc.nvrtcGetProgramLog(program, told)
        raise CudaError(f"{source}: {code.name}: {told.decode(errors='replace').strip(chr(0))[:2000]}")
    image = bytearray(_ask(nvrtc.nvrtcGetCUBINSize(program)))
    _ask(nvrtc.nvrtcGetCUBIN(program, image))
    nvrtc.nvrtcDestroyProgram(program)
    _keep(kept, bytes(image))
    return bytes(image)


class CudaKernel:
    """A kernel that takes one struct, launched so that all of its programs run at once.

    image    machine code; name: of the kernel in it
    shared   bytes of shared memory a program
    """

    def __init__(
        self, image: bytes, name: str, device: torch.device, programs: int, threads: int, shared: int
    ) -> None:
        from cuda.bindings import driver

        self._driver = driver
        self._sizes = programs, threads, shared
        with torch.cuda.device(device):
            torch.cuda.current_stream()  # there is a context then
            module = _ask(driver.cuModuleLoadData(image))
            self._function = _ask(driver.cuModuleGetFunction(module, name.encode()))
            limit = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            _ask(driver.cuFuncSetAttribute(self._function, limit, shared))

    def __call__(self, arguments: Any) -> None:
        """`arguments`: a ctypes structure as the kernel declares it; on torch's current stream."""
        import ctypes

        programs, threads, shared = self._sizes
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        stream = torch.cuda.current_stream().cuda_stream
        _ask(
            self._driver.cuLaunchCooperativeKernel(
                self._function, programs, 1, 1, threads, 1, 1, shared, stream, ctypes.addressof(pointers)
            )
        )


def _ask(answer: tuple[Any, ...]) -> Any:
    code, *values = answer
    if int(code) != 0:
        raise CudaError(f"CUDA answered {code.name}")
    return values[0] if len(values) == 1 else tuple(values) or None


def _cache() -> Path:
    from triton import knobs

    return Path(knobs.cache.dir)


def _keep(path: Path, image: bytes) -> None:
    """Whole or not at all, and not at all where nothing can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem)
        with os.fdopen(handle, "wb") as file:
            file.write(image)
        os.replace(name, path)
    except OSError:
        log.debug("%s cannot be written", path, exc_info=True)
