"""What a pass is: a frozen dataclass whose fields are its options, and `run`: graph in, new graph out.

A pass may change what is computed and when only as far as the licences of the nodes allow (ir/core.py): a gen that
is sampled runs exactly as often as the program says, on the same prompt. It counts what it did in a Report.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

from sglc.errors import PassError
from sglc.ir.core import Graph, Module


@dataclass
class Report:
    """What passes did, in numbers."""

    counts: dict[str, int] = field(default_factory=dict)

    def add(self, what: str, count: int = 1) -> None:
        if count:
            self.counts[what] = self.counts.get(what, 0) + count

    def __str__(self) -> str:
        return ", ".join(f"{what}: {count}" for what, count in self.counts.items()) or "nothing to do"


@dataclass(frozen=True)
class Pass:
    """Root of the passes. `name` is how a pipeline calls it."""

    name: ClassVar[str] = ""

    def __init_subclass__(cls, name: str = "", **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.name = name

    def run(self, graph: Graph, report: Report) -> Graph:
        raise TypeError(f"the pass {self.name!r} does not say what it does")

    def run_module(self, module: Module, report: Report) -> Module:
        """`run` on each graph; a pass that looks at several at once has its own."""
        return module.map(lambda graph: self.run(graph, report))

    @classmethod
    def options(cls) -> Mapping[str, dataclasses.Field[Any]]:
        """The options by the names that a pipeline gives them."""
        return {f.name.replace("_", "-"): f for f in dataclasses.fields(cls)}

    @classmethod
    def make(cls, given: Mapping[str, Any]) -> Pass:
        """A pass with these options. Raises PassError for one that it does not have, or of the wrong type."""
        known = cls.options()
        values: dict[str, Any] = {}
        for key, value in given.items():
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(known) or 'none'}"
                raise PassError(f"the pass {cls.name!r} has no option {key!r}{hint}")
            default = known[key].default
            if type(value) is not type(default):
                raise PassError(
                    f"{cls.name}{{{key}={value}}}: the value is {type(value).__name__}, not {type(default).__name__}"
                )
            values[known[key].name] = value
        return cls(**values)

    def __str__(self) -> str:
        changed = [
            f"{key}={_shown(getattr(self, f.name))}"
            for key, f in self.options().items()
            if getattr(self, f.name) != f.default
        ]
        return self.name + (f"{{{','.join(changed)}}}" if changed else "")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else str(value)


def passes() -> Mapping[str, type[Pass]]:
    """Every pass by name."""
    from sglc.passes.canonicalize import Canonicalize
    from sglc.passes.cse import Cse
    from sglc.passes.drop_dead import DropDead
    from sglc.passes.hoist_prefix import HoistPrefix
    from sglc.passes.inline import Inline
    from sglc.passes.legalize import Legalize
    from sglc.passes.merge_forks import MergeForks
    from sglc.passes.precompile import PrecompileConstraints

    found = (Canonicalize, Inline, DropDead, Cse, MergeForks, HoistPrefix, PrecompileConstraints, Legalize)
    return MappingProxyType({cls.name: cls for cls in found})
