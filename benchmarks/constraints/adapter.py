"""This project's constraints in the comparison harness for constrained-decoding engines (`cdbench`).

    python -m cdbench.run regex --adapters outlines,llg,xgr,benchmarks.constraints.adapter:Sglc --vocab tekken ...

A matcher's mask is the compiled row itself: rows are kept by the automaton and read in place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from cdbench.adapters import Adapter, Matcher

from grammar.automaton import TokenAutomaton
from grammar.compile import CompiledConstraint, Options, compile_constraint
from grammar.store import ConstraintStore
from grammar.vocabulary import Vocabulary
from runtime.constrain.jump import Cuts, JumpForward


class SglcMatcher(Matcher):
    def __init__(self, adapter: Sglc, compiled: CompiledConstraint) -> None:
        self.adapter = adapter
        assert compiled.automaton is not None
        self.automaton = compiled.automaton
        self.allowed = compiled.automaton.allowed
        self.follow = compiled.automaton.step
        self.state = 0
        self.path: list[int] = []

    def fill_mask(self) -> None:
        self.adapter.row = self.allowed(self.state)
        if self.adapter.copy:
            self.adapter.mask[0] = self.adapter.row.view(np.int32)

    def advance(self, token: int) -> bool:
        if token in self.adapter.vocabulary.eos:
            return self.automaton.can_end(self.state)
        self.state = self.follow(self.state, token)
        self.path.append(token)
        return self.state >= 0

    def forced_bytes(self) -> bytes:
        return self.automaton.forced(self.state)

    def advance_bytes(self, data: bytes) -> bool:
        self.state = self.automaton.advance_bytes(self.state, data)
        return self.state >= 0

    def forced_tokens(self) -> list[int]:
        return list(self.adapter.jump(self.automaton).tokens(self.state, self.path))


class Sglc(Adapter):
    separators = (",", ":")

    def __init__(
        self,
        formats: str = "refuse",
        order: str = "declared",
        objects: str = "open",
        copy: str = "0",
        store: str = "",
    ) -> None:
        self.options = Options(
            any_order=order == "any",
            ignore_unknown_formats=formats == "ignore",
            objects=objects,  # type: ignore[arg-type]
        )
        self.copy = copy == "1"  # also write the harness's own bit row: for its cross-check
        self.store = ConstraintStore(store) if store else None

    def setup(self, vocab: Any) -> None:
        super().setup(vocab)
        self.vocabulary = Vocabulary.of(vocab.tokens, [vocab.eos], vocab.specials)
        warm_up(self.vocabulary)
        self.cuts = Cuts(vocab.encode)
        self.row = np.zeros(self.vocabulary.words, np.uint32)
        self._jump: JumpForward | None = None

    def version(self) -> str:
        return "in the tree"

    def compile(self, kind: str, source: Any) -> CompiledConstraint:
        return compile_constraint(kind, source, self.vocabulary, options=self.options, store=self.store)  # type: ignore[arg-type]

    def memory_bytes(self, compiled: CompiledConstraint) -> int | None:
        return compiled.automaton.nbytes if compiled.automaton is not None else None

    def info(self, compiled: CompiledConstraint) -> dict:
        report = compiled.report()
        return {"states": report.states, "classes": report.classes, "engine": report.engine}

    def matcher(self, compiled: CompiledConstraint) -> SglcMatcher:
        return SglcMatcher(self, compiled)

    def jump(self, automaton: TokenAutomaton) -> JumpForward:
        if self._jump is None or self._jump.automaton is not automaton:
            self._jump = JumpForward(automaton, self.cuts)
        return self._jump

    def allowed(self, token: int) -> bool:
        return bool(int(self.row[token >> 5]) >> (token & 31) & 1)


def warm_up(vocabulary: Vocabulary) -> None:
    """Load the compiled loops and make what one vocabulary needs once."""
    from grammar.warm import warm_up as prepare

    prepare(vocabulary)
