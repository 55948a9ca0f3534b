"""What a project says once for all its checks: `[tool.sglc.check]` of the nearest pyproject.toml.

    [tool.sglc.check]
    backend = "openai"
    context = 8192
    max-calls = 20
    max-cost = 0.05
    prices = "prices.toml"
    ignore = ["SGL207"]

The keys are the options of `sglc check`, and what the command line says comes first. Paths are relative to that file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sglc.cli.common import Mistake, near

KINDS: Mapping[str, tuple[type, ...]] = {
    "backend": (str,), "tokenizer": (str,), "template": (str,), "prices": (str,),
    "context": (int,), "argument-tokens": (int,), "max-calls": (int,), "max-tokens": (int,),
    "max-cost": (int, float), "select": (list,), "ignore": (list,),
}  # fmt: skip
_WORDS = {str: "a text", int: "an integer", float: "a number", list: "a list"}
_PATHS = ("tokenizer", "prices")


def settings_for(folder: Path) -> dict[str, Any]:
    """By option; empty if no pyproject.toml above `folder` has them. Raises Mistake."""
    for place in (folder, *folder.parents):
        file = place / "pyproject.toml"
        if not file.is_file():
            continue
        try:
            table = tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise Mistake(f"{file}: {error}") from None
        found = table.get("tool", {}).get("sglc", {}).get("check")
        if found is not None:
            return _checked(found, file)
    return {}


def _checked(table: Any, file: Path) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise Mistake(f"{file}: tool.sglc.check is {table!r}; make it a table")
    found: dict[str, Any] = {}
    for key, value in table.items():
        if key not in KINDS:
            raise Mistake(
                f"{file}: [tool.sglc.check] has no option {key!r}, only {', '.join(KINDS)}{near(key, KINDS)}"
            )
        if not isinstance(value, KINDS[key]) or isinstance(value, bool):
            raise Mistake(f"{file}: [tool.sglc.check] {key} = {value!r}; give {_WORDS[KINDS[key][-1]]}")
        path = key in _PATHS and value != "tiny"
        found[key] = str(file.parent / str(value)) if path else value
    return found
