"""CUDA C++ (cuda/), compiled for the device that is here by the compiler that comes with torch (NVRTC).

What was compiled once is kept in Triton's cache. `cuda/device.h` has all that the sources need of the device, so that
tests can give them another one.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger("runtime.kernels")
MOST_SHARED = 232448  # bytes of shared memory that a Hopper multiprocessor gives to a program
_FOLDER = Path(__file__).parent / "cuda"


class CudaError(RuntimeError):
    """CUDA or its compiler refused something."""


@contextmanager
def named_remedy() -> Iterator[None]:
    """A refusal within says what a user can do."""
    try:
        yield
    except CudaError as error:
        raise CudaError(f"{error}; --attention-backend torch does without own kernels") from error


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

        ask(nvrtc.nvrtcVersion(), "finding NVRTC")
    except ImportError:
        return "the package cuda-bindings is not installed"
    except RuntimeError as error:
        return str(error)
    return None


def compiled(source: str, defines: Mapping[str, int], architecture: str = "sm_90a") -> bytes:
    """The machine code of a source with these macros. Raises CudaError with the compiler's words."""
    from cuda.bindings import nvrtc

    version = ask(nvrtc.nvrtcVersion(), "finding NVRTC")
    options = [f"--gpu-architecture={architecture}", "--std=c++17", "-default-device"]
    options += [f"-D{name}={value}" for name, value in sorted(defines.items())]
    headers = sorted(_FOLDER.glob("*.h"))
    texts = [path.read_bytes() for path in (_FOLDER / source, *headers)]
    digest = hashlib.sha256(repr((version, options)).encode())
    for text in texts:
        digest.update(hashlib.sha256(text).digest())
    key, name = digest.hexdigest(), f"{Path(source).stem}.cubin"
    kept = _kept(key, name)
    if kept is not None:
        return kept
    names = [path.name.encode() for path in headers]
    doing = f"compiling {source}"
    program = ask(nvrtc.nvrtcCreateProgram(texts[0], source.encode(), len(names), texts[1:], names), doing)
    try:
        words = [option.encode() for option in options]
        code = nvrtc.nvrtcCompileProgram(program, len(words), words)[0]
        if code != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            told = bytearray(ask(nvrtc.nvrtcGetProgramLogSize(program), doing))
            nvrtc.nvrtcGetProgramLog(program, told)
            complaint = told.decode(errors="replace").strip("\0")
            raise CudaError(f"{doing}: {code.name}: {complaint[:2000]}")
        image = bytearray(ask(nvrtc.nvrtcGetCUBINSize(program), doing))
        ask(nvrtc.nvrtcGetCUBIN(program, image), doing)
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    _keep(key, name, bytes(image))
    return bytes(image)


def compiling(source: str, defines: Mapping[str, int]) -> Future[bytes]:
    """`compiled`, by a thread of its own from now on."""
    thread = ThreadPoolExecutor(1, Path(source).stem)
    image = thread.submit(compiled, source, defines)
    thread.shutdown(wait=False)
    return image


def shared_size(parts: Iterable[int]) -> int:
    """Bytes of shared memory that hold parts of so many, each at a multiple of 16 (`take` in cuda/heads.h)."""
    return sum(-(-size // 16) * 16 for size in parts)


class CudaKernel:
    """A kernel that takes one struct, a ctypes structure as the kernel declares it; launched on torch's current stream.

    image    machine code; name: of the kernel in it
    shared   bytes of shared memory a program
    """

    def __init__(
        self, image: bytes, name: str, device: torch.device, programs: int, threads: int, shared: int
    ) -> None:
        from cuda.bindings import driver

        self._driver = driver
        self._early = driver.CUlaunchAttribute()
        self._early.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        self._early.value.programmaticStreamSerializationAllowed = 1
        self._sizes = programs, threads, shared
        self._launching = f"launching {programs} programs of {name}"
        loading = f"loading {name}"
        with torch.cuda.device(device):
            torch.cuda.current_stream()  # there is a context then
            module = ask(driver.cuModuleLoadData(image), loading)
            self._function = ask(driver.cuModuleGetFunction(module, name.encode()), loading)
            limit = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            ask(driver.cuFuncSetAttribute(self._function, limit, shared), loading)

    def at_once(self, arguments: ctypes.Structure) -> None:
        """All programs run at the same time; CudaError if the device cannot do that."""
        programs, threads, shared = self._sizes
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        stream = torch.cuda.current_stream().cuda_stream
        ask(
            self._driver.cuLaunchCooperativeKernel(
                self._function, programs, 1, 1, threads, 1, 1, shared, stream, ctypes.addressof(pointers)
            ),
            f"{self._launching} at once",
        )

    def after(self, arguments: ctypes.Structure, early: bool) -> None:
        """`early`: it may begin while the launch before it ends, and waits for that by itself where it must."""
        driver = self._driver
        config = driver.CUlaunchConfig()
        config.gridDimX, config.blockDimX, config.sharedMemBytes = self._sizes
        config.gridDimY = config.gridDimZ = config.blockDimY = config.blockDimZ = 1
        config.hStream = driver.CUstream(torch.cuda.current_stream().cuda_stream)
        if early:
            config.attrs = [self._early]
            config.numAttrs = 1
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        ask(
            driver.cuLaunchKernelEx(config, self._function, ctypes.addressof(pointers), 0),
            self._launching,
        )


def ask(answer: tuple[Any, ...], doing: str) -> Any:
    """What a function of cuda-bindings answered behind its code. Raises CudaError if the code is not success."""
    code, *values = answer
    if int(code) != 0:
        raise CudaError(f"{doing}: CUDA answered {code.name}")
    return values[0] if len(values) == 1 else tuple(values) or None


def _kept(key: str, name: str) -> bytes | None:
    from triton.runtime.cache import get_cache_manager

    try:
        path = get_cache_manager(key).get_file(name)
        return None if path is None else Path(path).read_bytes()
    except OSError:
        log.debug("the kernel cache cannot be read", exc_info=True)
        return None


def _keep(key: str, name: str, image: bytes) -> None:
    from triton.runtime.cache import get_cache_manager

    try:
        get_cache_manager(key).put(image, name)
    except OSError:
        log.debug("the kernel cache cannot be written", exc_info=True)
