"""Compiled constraints of a running engine, by what callers wrote.

At most `capacity` are kept, the least recently used go first; refusals are kept too, so that a client that
repeats a bad schema costs nothing. A constraint that cannot be enforced is the caller's error.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from grammar.compile import DEFAULT_OPTIONS, CompiledConstraint, Options, compile_constraint
from grammar.constraint_errors import ConstraintError
from grammar.store import ConstraintStore
from grammar.vocabulary import Vocabulary
from runtime.api import Constraint
from runtime.constrain.jump import JumpForward
from runtime.constrain.matcher import Matcher
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
        encode: Callable[[str], Sequence[int]] | None = None,
        store: ConstraintStore | None = None,
        options: Options = DEFAULT_OPTIONS,
        capacity: int = 256,
    ) -> None:
        self.vocabulary = vocabulary
        self.encode = encode
        self.store = store
        self.options = options
        self.capacity = capacity
        self._known: OrderedDict[Constraint, CompiledConstraint | InvalidRequest] = OrderedDict()
        self._jumps: dict[Constraint, JumpForward] = {}

    def __len__(self) -> int:
        return len(self._known)

    def get(self, constraint: Constraint) -> CompiledConstraint:
        """Compile `constraint`, or give it as it was compiled. Raises InvalidRequest if it is refused."""
        found = self._known.get(constraint)
        if found is None:
            found = self._known[constraint] = self._compile(constraint)
            while len(self._known) > self.capacity:
                gone, _ = self._known.popitem(last=False)
                self._jumps.pop(gone, None)
        else:
            self._known.move_to_end(constraint)
        if isinstance(found, InvalidRequest):
            raise InvalidRequest(found.message, param=found.param)
        return found

    def matcher(self, constraint: Constraint, max_tokens: int | None = None) -> Matcher:
        """A new request's place in `constraint`. Raises InvalidRequest also if the budget is too small."""
        automaton = self.get(constraint).automaton
        assert automaton is not None
        return Matcher(automaton, max_tokens)

    def jump(self, constraint: Constraint) -> JumpForward | None:
        """What forces tokens under `constraint`; None without a tokenizer."""
        if self.encode is None:
            return None
        automaton = self.get(constraint).automaton
        assert automaton is not None
        if constraint not in self._jumps:
            self._jumps[constraint] = JumpForward(automaton, self.encode)
        return self._jumps[constraint]

    def _compile(self, constraint: Constraint) -> CompiledConstraint | InvalidRequest:
        if constraint.kind == "ebnf":
            return InvalidRequest(
                "EBNF grammars are not enforced by this engine; use a regular expression or a JSON schema",
                param="ebnf",
            )
        try:
            return compile_constraint(
                constraint.kind, constraint.source, self.vocabulary, options=self.options, store=self.store
            )
        except ConstraintError as error:
            return InvalidRequest(f"{constraint.kind} is refused: {error}", param=constraint.kind)
