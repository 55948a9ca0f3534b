"""Constraints of requests to automata over this model's tokens, compiled once and kept while they are used.

Used on the text side to refuse what cannot be enforced, and beside the runner to enforce it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

from grammar.automaton import TokenAutomaton
from grammar.compile import Kind, Options, compile_constraint
from grammar.constraint_errors import ConstraintError
from grammar.vocabulary import Vocabulary
from runtime.api import Constraint
from runtime.errors import InvalidRequest, Unsupported

KINDS = ("regex", "json_schema")


class ConstraintCompiler:
    """A bounded cache of compiled constraints; safe to use from several threads.

    folder  of the tokenizer
    ends    ids that end an answer
    whitespace  in JSON: compact or spaced
    keep    constraints kept; the least recently used are dropped
    """

    def __init__(
        self, folder: str | Path, ends: Iterable[int], *, whitespace: str = "compact", keep: int = 256
    ) -> None:
        if whitespace not in ("compact", "spaced"):
            raise InvalidRequest(f"constrained_json_whitespace is {whitespace!r}; choose compact or spaced")
        self.options = Options(whitespace="compact" if whitespace == "compact" else "spaced")
        self.folder = Path(folder)
        self.ends = tuple(ends)
        self.keep = keep
        self._vocabulary: Vocabulary | None = None
        self._compiled: OrderedDict[Constraint, TokenAutomaton] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, constraint: Constraint) -> TokenAutomaton:
        """The automaton of a constraint. Raises InvalidRequest, which says where and why, if it cannot be enforced exactly."""
        if constraint.kind not in KINDS:
            kinds = " and ".join(KINDS)
            raise Unsupported(
                f"constraints of kind {constraint.kind} are not enforced; {kinds} are", param=constraint.kind
            )
        with self._lock:
            if constraint in self._compiled:
                self._compiled.move_to_end(constraint)
                return self._compiled[constraint]
            if self._vocabulary is None:
                self._vocabulary = Vocabulary.from_tokenizer_json(self.folder / "tokenizer.json", self.ends)
        kind: Kind = "regex" if constraint.kind == "regex" else "json_schema"
        try:
            automaton = compile_constraint(
                kind, constraint.source, self._vocabulary, options=self.options
            ).automaton
        except ConstraintError as error:
            raise InvalidRequest(f"{constraint.kind}: {error}", param=constraint.kind) from None
        assert automaton is not None
        with self._lock:
            self._compiled[constraint] = automaton
            while len(self._compiled) > self.keep:
                self._compiled.popitem(last=False)
        return automaton

    def check(self, constraint: Constraint, max_tokens: int | None) -> None:
        """Raise InvalidRequest if the constraint cannot be enforced, or not within the budget."""
        least = self.get(constraint).min_tokens
        if max_tokens is not None and 0 < max_tokens < least:
            raise InvalidRequest(
                f"max_tokens is {max_tokens} but the shortest text of the constraint takes {least} tokens; "
                f"raise max_tokens to at least {least}",
                param="max_tokens",
            )
