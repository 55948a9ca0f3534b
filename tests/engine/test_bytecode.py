"""Modules are compiled ahead in the order of their imports, and imports take what is kept where nothing lies beside them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from runtime.engine import bytecode

_TREE = {
    "torch/__init__.py": "import os, torch.first\nfrom . import second as other\nfrom .deep import (  # of a folder\n    a,\n    b as c,\n)\n",
    "torch/first.py": "VALUE = 1\ndef later():\n    import torch.never\n",
    "torch/second.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch.never\nfrom torch.first import VALUE\n",
    "torch/never.py": "",
    "torch/deep/__init__.py": "",
    "torch/deep/a.py": "from ..third import VALUE\nif VALUE != 3:\n    import nowhere\n",
    "torch/deep/b.py": "from .. import second\nimport numpy as np, torch.fourth as four\n",
    "torch/third.py": "VALUE = 3\n",
    "torch/fourth.py": "",
    "numpy/__init__.py": "",
}
_ORDER = ("__init__", "first", "second", "deep/__init__", "deep/a", "third", "deep/b")


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    root = tmp_path / "packages"
    for name, text in _TREE.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def _torch(root: Path, names: tuple[str, ...]) -> list[Path]:
    return [root / f"torch/{name}.py" for name in names]


def test_modules_come_in_the_order_of_their_imports(packages: Path) -> None:
    found = list(bytecode.sources([packages], ["torch"]))
    assert found == [*_torch(packages, _ORDER), packages / "numpy/__init__.py", packages / "torch/fourth.py"]


@pytest.mark.parametrize(
    ("line", "names"),
    [
        (b"import a.b, c as d", ["a.b", "c"]),
        (b"from a import b, c as d  # e", ["a", "a.b", "a.c"]),
        (b"from . import b", ["p.q", "p.q.b"]),
        (b"from ..b import *", ["p.b", "p.b.*"]),
        (b"from a import (  # one, two\n    b,  # three\n    c,\n)", ["a", "a.b", "a.c"]),
        (b"    import a\nimportant = 1\nfromage = 2\n", []),
    ],
)
def test_what_a_line_imports(line: bytes, names: list[str]) -> None:
    assert list(bytecode.imported(line, "p.q")) == names


def _compile(root: Path, folder: Path) -> None:
    command = [sys.executable, "-I", "-S", bytecode.__file__, str(folder), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def _import(root: Path, folder: Path) -> str:
    """Import in a process that may not keep byte code; the modules that it had to compile."""
    code = (
        "import builtins, importlib._bootstrap_external as b, pathlib, runtime.engine.bytecode as kept, sys\n"
        "made = b.SourceLoader.source_to_code\n"
        "b.SourceLoader.source_to_code = lambda s, data, path, **k: (print(s.name), made(s, data, path, **k))[1]\n"
        f"sys.path.insert(0, {str(root)!r})\n"
        f"with kept.kept_bytecode(pathlib.Path({str(folder)!r})):\n    import torch.deep.b\n"
        "assert not [h for h in sys.path_hooks if 'Loader' in repr(h) and 'kept' in repr(h)]\n"
        "assert torch.first.VALUE == 1 and torch.first.__file__.endswith('torch/first.py')\n"
    )
    env = dict(os.environ, PYTHONDONTWRITEBYTECODE="1", PYTHONPATH=str(Path(bytecode.__file__).parents[2]))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 0, done.stderr
    return " ".join(line for line in done.stdout.split() if line.startswith(("torch", "numpy")))


def test_imports_take_what_is_kept(packages: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    everything = "torch torch.first torch.second torch.deep torch.deep.a torch.third"
    assert _import(packages, folder) == f"{everything} torch.deep.b numpy torch.fourth"
    _compile(packages, folder)
    assert _import(packages, folder) == ""
    assert not list(packages.rglob("*.pyc")), "nothing is written beside the modules"
    os.utime(packages / "torch/third.py", (1, 1))
    assert _import(packages, folder) == "torch.third"
    _compile(packages, folder)
    assert _import(packages, folder) == ""


def _empty(data: bytes) -> bytes:
    return b""


def _cut(data: bytes) -> bytes:
    return data[:-7]


def _noise(data: bytes) -> bytes:
    return data[:16] + b"\xff" * (len(data) - 16)


@pytest.mark.parametrize("damage", [_empty, _cut, _noise])
def test_damaged_byte_code_is_made_anew(
    packages: Path, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    folder = tmp_path / "kept"
    _compile(packages, folder)
    (file,) = folder.rglob("first.*.pyc")
    file.write_bytes(damage(file.read_bytes()))
    assert _import(packages, folder) == "torch.first"


def test_byte_code_beside_a_module_is_enough(packages: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "compileall", "-q", str(packages)]
    subprocess.run(
        command, check=True, env={k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    )
    folder = tmp_path / "kept"
    _compile(packages, folder)
    assert not list(folder.iterdir())


def test_folders_that_nobody_uses_are_forgotten(tmp_path: Path) -> None:
    folders = {age: tmp_path / f"bytecode/{age}" for age in (0, 29, 31)}
    for days, folder in folders.items():
        (folder / "torch").mkdir(parents=True)
        then = time.time() - days * 86400
        os.utime(folder, (then, then))
    bytecode.forget_others(folders[29])
    assert [folder.exists() for folder in folders.values()] == [True, True, False]
    assert time.time() - folders[29].stat().st_mtime < 60, "it is used now"
    bytecode.forget_others(tmp_path / "bytecode/0/torch/file")
    (tmp_path / "file").write_text("")
    bytecode.forget_others(tmp_path / "file" / "no folder")


def test_a_module_that_cannot_be_compiled_is_left_to_its_importer(packages: Path, tmp_path: Path) -> None:
    (packages / "torch/first.py").write_text("def\n")
    (packages / "torch/third.py").write_bytes(b"VALUE = '\0'\n")
    folder = tmp_path / "kept"
    _compile(packages, folder)
    names = {path.name.partition(".")[0] for path in folder.rglob("*.pyc")}
    assert "second" in names and not names & {"first", "third"}


def test_the_modules_of_a_start_are_found() -> None:
    """Of this installation: nearly all that importing the engine imports."""
    code = (
        "import json, runtime.engine.loop, runtime.attention.triton, sys\n"
        "print(json.dumps([getattr(m, '__file__', None) for m in list(sys.modules.values())]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    packages, own = Path(torch.__file__).parent.parent, Path(bytecode.__file__).parents[2]
    needed = {
        Path(file)
        for file in json.loads(done.stdout)
        if file and file.endswith(".py") and Path(file).is_relative_to(packages / "torch")
    }
    found = set(bytecode.sources([packages, own], bytecode.STARTS))
    assert len(needed) > 300
    assert len(needed & found) > 0.95 * len(needed)
    assert len([p for p in found if p.is_relative_to(packages / "torch")]) < 1.2 * len(needed)
