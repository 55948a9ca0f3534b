"""Passes in order, with a text form: `canonicalize,hoist-prefix{min-chars=16}`.

Around every pass the IR can be verified and printed; an error names the pass that made it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lark.exceptions import UnexpectedInput

from grammar.loader import load
from sglc.errors import IRError, PassError
from sglc.ir.core import Module
from sglc.ir.verify import verify_module
from sglc.passes.base import Pass, Report, passes

DEFAULT = "canonicalize,inline,drop-dead,cse,merge-forks,hoist-prefix,canonicalize"
BEFORE_BREAK = "canonicalize,inline"  # what comes before a break is sent as the function sends it


@dataclass(frozen=True)
class Pipeline:
    passes: tuple[Pass, ...]

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        """Raises PassError for text that is not a pipeline, or names a pass or an option that does not exist."""
        try:
            tree = load("pipeline").parse(text)
        except UnexpectedInput as error:
            raise PassError(
                f"{text!r} is not a pipeline (column {error.column}); write it as a,b{{option=1}}"
            ) from None
        return cls(tuple(_pass(item) for item in tree.children if item is not None))

    def run(
        self,
        module: Module,
        *,
        verify: bool = False,
        after: Callable[[Pass, Module, Report], None] | None = None,
    ) -> Module:
        """The module after all passes. `after` is told about each one; `verify` checks before and after each."""
        if verify:
            verify_module(module)
        for item in self.passes:
            report = Report()
            module = item.run_module(module, report)
            if verify:
                try:
                    verify_module(module)
                except IRError as error:
                    raise PassError(f"after the pass {item}: {error}") from error
            if after is not None:
                after(item, module, report)
        return module

    def __str__(self) -> str:
        return ",".join(str(item) for item in self.passes)


def _pass(tree: Any) -> Pass:
    name, options = str(tree.children[0]), tree.children[1]
    known = passes()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
        raise PassError(f"there is no pass {name!r}{hint}")
    given: dict[str, Any] = {}
    for option in options.children if options is not None else ():
        if option is not None:
            given[str(option.children[0])] = _value(option.children[1])
    return known[name].make(given)


def _value(tree: Any) -> Any:
    if tree.data in ("true", "false"):
        return tree.data == "true"
    text = str(tree.children[0])
    if tree.data == "string":
        return text[1:-1]
    return int(text) if tree.data == "int" else float(text)
