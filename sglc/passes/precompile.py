"""`precompile-constraints`: regexes and schemas become automata before the program runs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sglc.errors import PassError
from sglc.ir.core import Module
from sglc.ir.ops import Gen
from sglc.passes.base import Pass, Report

if TYPE_CHECKING:
    from grammar import Vocabulary


@dataclass(frozen=True)
class PrecompileConstraints(Pass, name="precompile-constraints"):
    """Compile each constraint once, and keep its table in the store on disk; its size is printed beside it.

    Licence: changes nothing that runs. A constraint that cannot be enforced exactly is an error with the place of the gen.
    `tokenizer` is the folder of a model, or `tiny` for the one that comes with sglc; without one, only the automaton over
    bytes is made. An engine that runs this model reads the table from the store: it stands there under what decides it, the
    constraint and the bytes and end tokens of the vocabulary. What becomes no table, as a JSON schema, is checked and
    measured here, and its rows are made where a run visits them.
    """

    tokenizer: str = ""

    def run_module(self, module: Module, report: Report) -> Module:
        if not module.constraints:
            return module
        from grammar import ConstraintError, ConstraintStore, compile_constraint

        vocabulary = self._vocabulary()
        store = ConstraintStore.default() if vocabulary is not None else None
        facts: dict[str, dict[str, int]] = {}
        for name, constraint in module.constraints.items():
            try:
                made = compile_constraint(constraint.kind, constraint.source, vocabulary, store=store)  # type: ignore[arg-type]
            except ConstraintError as error:
                raise PassError(
                    f"the {constraint.kind} of @{name} cannot be enforced: {error.message}",
                    _place(module, name),
                ) from error
            told = made.report()
            known = {"states": told.states, "classes": told.classes, "min_tokens": told.min_tokens}
            facts[name] = {key: value for key, value in known.items() if value is not None}
            report.add("constraints compiled")
            report.add("states", told.states)
        return dataclasses.replace(module, facts=facts)

    def _vocabulary(self) -> Vocabulary | None:
        if not self.tokenizer:
            return None
        from grammar import Vocabulary
        from runtime.config import embedded_model_path

        folder = Path(embedded_model_path()) if self.tokenizer == "tiny" else Path(self.tokenizer)
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise PassError(f"precompile-constraints{{tokenizer={self.tokenizer}}}: there is no {file}")
        from runtime.tokenizer.tokenizer import Tokenizer

        return Vocabulary.from_tokenizer_json(file, eos=Tokenizer(folder).ends)


def _place(module: Module, name: str) -> object:
    gens = (n for g in module.graphs.values() for n in g.nodes_of(Gen))
    return next((n.at for n in gens if n.constraint is not None and n.constraint.name == name), None)
