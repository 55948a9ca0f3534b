"""Who may import whom. A folder is a layer; imports go down (the table below, read top to bottom).

An import inside a function counts like any other, except where LATE names it: those are the few places where
a layer opens the one above it on purpose, when it is asked to.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Inside a package, top to bottom. A module may import its own line and the lines below it.
RUNTIME = [
    ["runtime.cli"],
    ["runtime.bench"],
    ["runtime.server", "runtime.programs"],
    ["runtime.backends", "runtime.environment"],
    ["runtime.engine", "runtime.parallel.ranks", "runtime.parallel.rank"],
    ["runtime.scheduler"],
    ["runtime.models", "runtime.sampling", "runtime.constrain", "runtime.kernels.cpu.path"],
    ["runtime.layers", "runtime.tokenizer"],
    ["runtime.attention"],
    ["runtime.kernels", "runtime.kv", "runtime.parallel"],
    [
        "runtime.batch",
        "runtime.request",
        "runtime.log",
        "runtime.metrics",
        "runtime.parent",
        "runtime.chrome_trace",
    ],
    ["runtime.flags"],
    ["runtime.config", "runtime.foreign_flags"],
    ["runtime.models.spec", "runtime.backends.base"],  # contracts: data and a protocol
    [
        "runtime.api",
        "runtime.plan",
        "runtime.plan_bounds",
        "runtime.plan_verify",
        "runtime.compute",
        "runtime.errors",
        "runtime.reasoning",
        "runtime.folders",
    ],
]
SGLC = [
    ["sglc.cli"],
    ["sglc.check", "sglc.artifact", "sglc.test", "sglc.lang.backend"],
    ["sglc.backends", "sglc.utils"],
    ["sglc.exec"],
    ["sglc.plan"],
    ["sglc.passes"],
    ["sglc.lang"],
    ["sglc.ir"],
    ["sglc.errors", "sglc.config"],
]
# Between packages: what each may import.
PACKAGES = {
    "runtime": ["grammar", "stdlib.tiny"],
    "sglc": [
        "grammar",
        "runtime.api",
        "runtime.plan",
        "runtime.plan_bounds",
        "runtime.plan_verify",
        "runtime.compute",
        "runtime.errors",
        "runtime.reasoning",
        "runtime.backends",
        "runtime.config",
        "runtime.engine.native",  # names of fields, plain Python
        "runtime.tokenizer.chat",  # Jinja templates, plain Python
    ],
    "stdlib": ["sglc", "runtime", "grammar"],
    "grammar": [],
}
# (file, what it imports inside a function): a default that is opened only when nothing else was named.
LATE = {
    ("sglc.backends", "runtime.server.launch"),
    ("sglc.backends", "runtime.tokenizer"),
    ("sglc.passes.precompile", "runtime.tokenizer"),  # which tokens end an answer
    ("sglc.lang.program", "sglc.exec"),
    ("sglc.lang.program", "sglc.plan"),
    ("sglc.lang.program", "sglc.passes"),
}
TORCHLESS = [
    "sglc", "grammar", "runtime.api", "runtime.plan", "runtime.compute", "runtime.errors", "runtime.scheduler",
    "runtime.kv.pages", "runtime.kv.radix", "runtime.kv.cache", "runtime.backends.base", "runtime.backends.http",
    "runtime.backends.scripted", "runtime.backends.cassette", "runtime.backends.timeline", "runtime.backends.targets",
    "runtime.batch",
]  # fmt: skip


def modules() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(path: Path, module: str) -> Iterator[tuple[str, bool, int]]:
    """Modules that a file imports, whether inside a function, and the line. Imports for types only are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))

    def visit(node: ast.AST, late: bool) -> Iterator[tuple[str, bool, int]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                for name in child.names:
                    yield name.name, late, child.lineno
            elif isinstance(child, ast.ImportFrom):
                assert not child.level, f"{path}:{child.lineno}: relative import"
                for name in child.names:
                    full = f"{child.module}.{name.name}"
                    is_module = (ROOT / full.replace(".", "/")).with_suffix(".py").exists() or (
                        ROOT / full.replace(".", "/")
                    ).is_dir()
                    yield full if is_module else str(child.module), late, child.lineno
            else:
                yield from visit(child, late or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)))

    yield from visit(tree, False)


def within(module: str, layer: str) -> bool:
    return module == layer or module.startswith(layer + ".")


def line_of(module: str, table: list[list[str]]) -> int | None:
    found = [(len(layer), k) for k, layers in enumerate(table) for layer in layers if within(module, layer)]
    return max(found)[1] if found else None


ALL = list(modules())


@pytest.mark.parametrize(("module", "path"), ALL, ids=[m for m, _ in ALL])
def test_imports_go_down(module: str, path: Path) -> None:
    package = module.split(".")[0]
    table = {"runtime": RUNTIME, "sglc": SGLC}.get(package, [])
    here = line_of(module, table)
    wrong: list[str] = []
    for target, late, line in imports(path, module):
        other = target.split(".")[0]
        if other not in PACKAGES or within(target, module):
            continue
        if late and any(within(module, a) and within(target, b) for a, b in LATE):
            continue
        if other != package:
            if module != package and not any(within(target, allowed) for allowed in PACKAGES[package]):
                wrong.append(f"{path}:{line}: {package} may not import {target}")
            continue
        there = line_of(target, table)
        if here is not None and there is not None and there < here:
            wrong.append(f"{path}:{line}: {module} imports {target}, which is above it")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("module", "path"), ALL, ids=[m for m, _ in ALL])
def test_no_torch_where_it_is_not_wanted(module: str, path: Path) -> None:
    if any(within(module, name) for name in TORCHLESS):
        found = [f"{path}:{line}" for name, _, line in imports(path, module) if within(name, "torch")]
        assert not found


def test_every_module_has_a_layer() -> None:
    lost = [
        m
        for m, _ in ALL
        for package, table in (("runtime", RUNTIME), ("sglc", SGLC))
        if m.startswith(package + ".") and line_of(m, table) is None
    ]
    assert not lost, f"not in the table of layers: {lost}"


@pytest.mark.parametrize(
    "names", ["sglc, runtime.api", *TORCHLESS[1:], "sglc.cli", "runtime.server.app, runtime.cli"]
)
def test_a_fresh_import_loads_no_torch(names: str) -> None:
    code = f"import sys, {names}; assert 'torch' not in sys.modules; assert 'transformers' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
