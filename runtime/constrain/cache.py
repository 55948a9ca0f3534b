"""Compiled constraints of a running engine, by what callers wrote.

At most `capacity` are kept, and at most `max_bytes` of what they hold; the least recently used go first. Refusals are kept too, so
that a client that repeats a bad schema costs nothing. A constraint that cannot be enforced is the caller's error.
"""

from __future__ import annotations

from collections import OrderedDict

from grammar.compile import DEFAULT_OPTIONS, CompiledConstraint, Options, compile_constraint
from grammar.constraint_errors import ConstraintError
from grammar.store import ConstraintStore
from grammar.vocabulary import Vocabulary
from runtime.api import Constraint
from runtime.constrain.jump import Cuts, JumpForward
from runtime.constrain.matcher import Matcher
from runtime.constrain.recall import Recall
from runtime.errors import InvalidRequest


class ConstraintCache:
    """
    encode    text to token ids, nothing added; None: nothing is ever forced
    store     where tables are kept between runs; None: nowhere
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        cuts: Cuts | None = None,
        store: ConstraintStore | None = None,
        options: Options = DEFAULT_OPTIONS,
        capacity: int = 256,
        max_bytes: int = 256 << 20,
    ) -> None:
        self.vocabulary = vocabulary
        self.cuts = cuts
        self.store = store
        self.options = options
        self.capacity = capacity
        self.max_bytes = max_bytes
        self._known: OrderedDict[Constraint, CompiledConstraint | InvalidRequest] = OrderedDict()
        self._jumps: dict[Constraint, JumpForward] = {}
        self._recalls: dict[Constraint, Recall] = {}

    def __len__(self) -> int:
        return len(self._known)

    def known(self, constraint: Constraint) -> CompiledConstraint | InvalidRequest | None:
        """What became of it, if that is still here."""
        found = self._known.get(constraint)
        if found is not None:
            self._known.move_to_end(constraint)
        return found

    def keep(
        self, constraint: Constraint, found: CompiledConstraint | InvalidRequest
    ) -> CompiledConstraint | InvalidRequest:
        """Remember what became of a constraint; the oldest others may go."""
        self._known[constraint] = found
        self._known.move_to_end(constraint)
        while len(self._known) > 1 and (len(self._known) > self.capacity or self.held_bytes > self.max_bytes):
            gone, _ = self._known.popitem(last=False)
            self._jumps.pop(gone, None)
            self._recalls.pop(gone, None)
        return found

    @property
    def held_bytes(self) -> int:
        """By all of them; machines grow while they are used."""
        machines = (
            found.automaton.held_bytes
            for found in self._known.values()
            if not isinstance(found, InvalidRequest) and found.automaton is not None
        )
        return sum(machines) + sum(recall.held_bytes for recall in self._recalls.values())

    def get(self, constraint: Constraint) -> CompiledConstraint:
        """Compile `constraint`, or give it as it was compiled. Raises InvalidRequest if it is refused."""
        found = self.known(constraint) or self.keep(constraint, self.compile(constraint))
        if isinstance(found, InvalidRequest):
            raise InvalidRequest(found.message, param=found.param)
        return found

    def matcher(self, constraint: Constraint, max_tokens: int | None = None) -> Matcher:
        """A new request's place in `constraint`. Raises InvalidRequest also if the budget is too small."""
        automaton = self.get(constraint).automaton
        assert automaton is not None
        return Matcher(automaton, max_tokens)

    def jump(self, constraint: Constraint, compiled: CompiledConstraint | None = None) -> JumpForward | None:
        """What forces tokens under `constraint`; None without a tokenizer."""
        if self.cuts is None:
            return None
        automaton = (compiled or self.get(constraint)).automaton
        assert automaton is not None
        if constraint not in self._jumps or self._jumps[constraint].automaton is not automaton:
            self._jumps[constraint] = JumpForward(automaton, self.cuts)
        return self._jumps[constraint]

    def recall(self, constraint: Constraint) -> Recall:
        """What texts of `constraint` went on with."""
        found = self._recalls.get(constraint)
        if found is None:
            found = Recall()
            if constraint in self._known:  # else nothing would make it go
                self._recalls[constraint] = found
        return found

    def compile(self, constraint: Constraint) -> CompiledConstraint | InvalidRequest:
        """Compile it anew; a refusal is a value here."""
        try:
            return compile_constraint(
                constraint.kind, constraint.source, self.vocabulary, options=self.options, store=self.store
            )
        except ConstraintError as error:
            return InvalidRequest(f"{constraint.kind} is refused: {error}", param=constraint.kind)
