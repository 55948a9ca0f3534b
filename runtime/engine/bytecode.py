"""Byte code of the modules that a start on a GPU imports, where it is not kept beside them.

Python compiles a module when it is imported first, and keeps the result if it may. In containers it often may not
(PYTHONDONTWRITEBYTECODE, packages installed without byte code and read-only), and each start compiles some 1,000 modules, one
after another. Here processes of their own compile them side by side, in the order in which the imports come to them, into the
user's cache folder; the importer takes what is there and compiles the rest itself.
"""

from __future__ import annotations

import os
import py_compile
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from importlib.util import MAGIC_NUMBER, cache_from_source
from pathlib import Path
from types import CodeType

# What a start imports. Imports are followed where a line begins with one; what is imported within a block has its own place here.
STARTS = (
    "torch", "torch._meta_registrations", "torch.distributed.device_mesh", "torch.distributed.distributed_c10d",
    "torch.distributed.autograd", "torch.distributed.rpc.backend_registry", "torch.distributed.rpc.functions",
    "torch.autograd.profiler_legacy", "numpy", "numpy.lib", "numpy.linalg", "numpy.matrixlib", "numpy.fft", "numpy.ma",
    "numpy.random", "numpy.polynomial", "numpy.dtypes", "tqdm", "yaml.cyaml", "triton", "triton.backends.nvidia.compiler",
    "triton.backends.nvidia.driver", "triton.backends.amd.compiler", "triton.backends.amd.driver",
    "triton.language.extra.cuda", "triton.language.extra.hip", "cuda.bindings.runtime", "cuda.bindings.nvrtc",
    "cuda.pathfinder", "numba", "tokenizers", "runtime.engine.loop", "runtime.attention.triton",
)  # fmt: skip
_MOST_PROCESSES = 8
_FORGOTTEN = 30 * 86400.0  # seconds
_IMPORT = re.compile(
    rb"^(?:from[ \t]+(\.*[\w.]*)[ \t]+import[ \t]+(\([^)]*\)|[^\n#;]+)|import[ \t]+([\w., \t]+))", re.M
)
_COMMENT = re.compile(rb"#[^\n]*")


def imported(source: bytes, package: str) -> Iterator[str]:
    """Names of modules that the lines of `source`, a module in `package`, may import when it is imported, in order."""
    for match in _IMPORT.finditer(source):
        base, names, plain = match.groups()
        if plain is not None:
            yield from (part.split()[0] for part in plain.decode().split(",") if part.strip())
            continue
        module = base.decode().lstrip(".")
        above = len(base) - len(module)
        if above:
            parts = package.split(".")
            module = ".".join((*parts[: len(parts) - above + 1], *([module] if module else [])))
        yield module
        for part in _COMMENT.sub(b"", names).strip(b"()").split(b","):
            if words := part.decode().split():
                yield f"{module}.{words[0]}"


def sources(roots: Iterable[Path], starts: Iterable[str]) -> Iterator[Path]:
    """The modules under `roots` that importing `starts` imports, each before those that it imports."""
    places = [str(root) for root in roots]
    seen: set[str] = set()
    stack = list(starts)[::-1]
    while stack:
        name = stack.pop()
        parent = name.rpartition(".")[0]
        if name in seen:
            continue
        if parent and parent not in seen:
            stack += (name, parent)
            continue
        seen.add(name)
        for place in places:
            stem = os.path.join(place, *name.split("."))
            path = next((p for p in (f"{stem}/__init__.py", f"{stem}.py") if os.path.isfile(p)), None)
            if path is not None:
                yield Path(path)
                package = name if path.endswith("/__init__.py") else parent
                stack += list(imported(Path(path).read_bytes(), package))[::-1]
                break


def _kept(folder: str, beside: str) -> str:
    """Where `folder` keeps byte code whose place would be `beside`."""
    return folder + os.path.abspath(beside)


def wanting(source: Path, folder: str) -> str | None:
    """Where byte code of a module is to be kept; None if there is some already, here or beside it."""
    beside = cache_from_source(str(source))
    target = _kept(folder, beside)
    if os.path.exists(beside):
        return None
    try:
        with open(target, "rb") as file:
            head = file.read(16)
    except OSError:
        return target
    status = source.stat()
    age = (int(status.st_mtime) & 0xFFFFFFFF).to_bytes(4, "little")
    size = (status.st_size & 0xFFFFFFFF).to_bytes(4, "little")
    return None if head == MAGIC_NUMBER + bytes(4) + age + size else target


def compile_module(source: str, target: str) -> None:
    """Compile a module; one that cannot be compiled or kept is left to its importer."""
    mode = py_compile.PycInvalidationMode.TIMESTAMP
    try:
        py_compile.compile(source, target, doraise=True, quiet=2, invalidation_mode=mode)
    except (py_compile.PyCompileError, OSError, ValueError):
        return


class _Loader(SourceFileLoader):
    """Looks for byte code in `folder` where there is none beside the module."""

    folder = ""

    def get_data(self, path: str) -> bytes:
        try:
            return super().get_data(path)
        except OSError:
            if not (self.folder and path.endswith(".pyc")):
                raise
            return super().get_data(_kept(self.folder, path))

    def get_code(self, fullname: str) -> CodeType | None:
        try:
            return super().get_code(fullname)
        except (EOFError, ValueError, TypeError):  # what is kept is damaged
            self.folder = ""
            return super().get_code(fullname)


@contextmanager
def kept_bytecode(folder: Path | None) -> Iterator[None]:
    """Imports of this process take byte code from `folder` as well; from nowhere else if it is None."""
    if folder is None:
        yield
        return
    loader = type("Loader", (_Loader,), {"folder": str(folder)})
    hook = FileFinder.path_hook(
        (ExtensionFileLoader, EXTENSION_SUFFIXES),
        (loader, SOURCE_SUFFIXES),
        (SourcelessFileLoader, BYTECODE_SUFFIXES),
    )
    sys.path_hooks.insert(0, hook)
    sys.path_importer_cache.clear()
    try:
        yield
    finally:
        sys.path_hooks.remove(hook)
        sys.path_importer_cache.clear()


def forget_others(folder: Path) -> None:
    """Remove the folders beside it that no start has used for a month; it is used now."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        for other in folder.parent.iterdir():
            if time.time() - other.stat().st_mtime > _FORGOTTEN:
                shutil.rmtree(other)
    except OSError:  # another start does the same, or the folder is not ours
        return


def _main(folder: str, *roots: str) -> None:
    from multiprocessing import get_context

    forget_others(Path(folder))
    pool = None
    for source in sources(map(Path, roots), STARTS):
        target = wanting(source, folder)
        if target is None:
            continue
        if pool is None:
            pool = get_context("fork").Pool(max(1, min(_MOST_PROCESSES, (os.cpu_count() or 1) // 2)))
        pool.apply_async(compile_module, (str(source), target))
    if pool is not None:
        pool.close()
        pool.join()


if __name__ == "__main__":
    _main(*sys.argv[1:])
