"""Files as modules: examples, programs that a test writes, and tests that others draw on."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def module_of(path: Path, name: str | None = None) -> ModuleType:
    """What a file defines, run anew; `name` (that of the file) is the module's in `sys.modules`."""
    spec = importlib.util.spec_from_file_location(name or path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
