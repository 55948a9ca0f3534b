"""Lark grammars of this package, loaded once."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lark import Lark


@cache
def load(name: str) -> Lark:
    """The LALR parser of `<name>.lark`. Raises FileNotFoundError, naming the grammars that there are."""
    from lark import Lark

    folder = files("grammar")
    source = folder / f"{name}.lark"
    if not source.is_file():
        known = ", ".join(
            sorted(f.name.removesuffix(".lark") for f in folder.iterdir() if f.name.endswith(".lark"))
        )
        raise FileNotFoundError(f"there is no grammar {name!r}; there are {known}")
    return Lark(
        source.read_text(encoding="utf-8"), parser="lalr", maybe_placeholders=True, propagate_positions=True
    )
