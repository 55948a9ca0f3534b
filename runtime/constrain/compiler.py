"""The constraints of one engine: compiled for its tokenizer when they are first met, checked against a request's budget.

The loop uses one to enforce them, the text side another for those that a program told ahead: what a compiled
constraint works out while it is used belongs to one thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import cast, get_args

from grammar.automaton import TokenAutomaton
from grammar.compile import CompiledConstraint, Objects, Options
from grammar.constraint_errors import ConstraintError
from grammar.store import ConstraintStore
from grammar.vocabulary import Vocabulary
from grammar.warm import warm_up
from runtime.api import Constraint
from runtime.constrain.cache import ConstraintCache
from runtime.constrain.jump import Cuts, JumpForward
from runtime.constrain.matcher import Matcher
from runtime.constrain.recall import Recall
from runtime.errors import InvalidRequest

KINDS = ("regex", "json_schema", "ebnf", "structural_tag")


class ConstraintCompiler:
    """A ConstraintCache whose vocabulary is read when it is first needed.

    Any thread may ask; while one compiles, the others still get what is compiled already.

    folder      of the tokenizer
    ends        ids that end an answer
    whitespace  in JSON: compact or spaced
    tables      make tables of small JSON schemas too
    objects     in JSON: open, closed or strict (`grammar.compile.Options`)
    store       where tables are found and kept; None: the user's cache folder
    cuts        how the tokenizer cuts texts; None: nothing is ever forced
    capacity    constraints that are kept
    guesses     tokens that are guessed at most where they are likely, for the model to verify in one pass; 0: none
    learns      guess from what earlier texts of a constraint went on with, too
    """

    def __init__(
        self,
        folder: str | Path,
        ends: Iterable[int],
        *,
        whitespace: str = "compact",
        objects: str = "open",
        tables: bool = False,
        store: ConstraintStore | None = None,
        cuts: Cuts | None = None,
        capacity: int = 256,
        guesses: int = 0,
        learns: bool = True,
    ) -> None:
        if guesses < 0:
            raise InvalidRequest(f"constrained_guesses is {guesses}; give 0 (none) or more")
        if whitespace not in ("compact", "spaced"):
            raise InvalidRequest(f"constrained_json_whitespace is {whitespace!r}; choose compact or spaced")
        if objects not in get_args(Objects):
            raise InvalidRequest(
                f"constrained_json_objects is {objects!r}; choose {', '.join(get_args(Objects))}"
            )
        self.options = Options(
            whitespace="compact" if whitespace == "compact" else "spaced",
            objects=cast(Objects, objects),
            tables=tables,
        )
        self.folder = Path(folder)
        self.ends = tuple(ends)
        self.store = ConstraintStore.default() if store is None else store
        self.cuts = cuts
        self.capacity = capacity
        self.guesses = guesses
        self.learns = learns
        self._compiling = threading.Lock()
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._read: ConstraintCache | None = None

    @property
    def _cache(self) -> ConstraintCache:
        with self._reading:
            if self._read is None:
                vocabulary = Vocabulary.from_tokenizer_json(self.folder / "tokenizer.json", self.ends)
                self._read = ConstraintCache(
                    vocabulary,
                    cuts=self.cuts,
                    options=self.options,
                    store=self.store,
                    capacity=self.capacity,
                )
            return self._read

    def warm_up(self) -> threading.Thread:
        """Begin, beside the caller, what all constraints share and the first one would wait for: about a second."""

        def make() -> None:
            with self._compiling:
                warm_up(self._cache.vocabulary)

        thread = threading.Thread(target=make, daemon=True, name="constraints-ahead")
        thread.start()
        return thread

    def _get(self, constraint: Constraint) -> CompiledConstraint:
        cache = self._cache
        with self._lock:
            known = cache.known(constraint)
        if known is None:
            with self._compiling:
                with self._lock:
                    known = cache.known(constraint)  # the thread before may have compiled it
                if known is None:
                    compiled = cache.compile(constraint)
                    with self._lock:
                        known = cache.keep(constraint, compiled)
        if isinstance(known, InvalidRequest):
            raise InvalidRequest(known.message, param=known.param)
        return known

    def get(self, constraint: Constraint) -> TokenAutomaton:
        """The automaton of a constraint. Raises InvalidRequest, which says where and why, if it cannot be enforced exactly."""
        automaton = self._get(constraint).automaton
        assert automaton is not None
        return automaton

    def matcher(self, constraint: Constraint, max_tokens: int | None) -> Matcher:
        """A request's place in its constraint. Raises InvalidRequest also if the budget is too small."""
        return Matcher(self.get(constraint), max_tokens)

    def jump(self, constraint: Constraint) -> JumpForward | None:
        """What forces tokens under a constraint; None if nothing may be forced."""
        compiled = self._get(constraint)
        with self._lock:
            return self._cache.jump(constraint, compiled)

    def recall(self, constraint: Constraint) -> Recall | None:
        """What texts of a constraint went on with; None if nothing is learnt from them."""
        if not self.learns or not self.guesses:
            return None
        with self._lock:
            return self._cache.recall(constraint)

    def begin(self, constraint: Constraint, max_tokens: int) -> list[int]:
        """The tokens that every answer begins with, at most `max_tokens`. Raises InvalidRequest like `matcher`."""
        matcher, jump = self.matcher(constraint, max_tokens), self.jump(constraint)
        return [] if jump is None else matcher.forced_tokens(jump)[:max_tokens]

    def prepare(self, constraints: Iterable[Constraint]) -> None:
        """Compile these; one that is refused is refused again where it is used, which is where the caller hears of it."""
        for constraint in constraints:
            try:
                self.get(constraint)
            except (InvalidRequest, ConstraintError):
                continue

    def check(self, constraint: Constraint, max_tokens: int | None) -> None:
        """Raise InvalidRequest if the constraint cannot be enforced, or not within the budget (0 asks for nothing)."""
        self.matcher(constraint, max_tokens or None)
