"""One request's place in its constraint.

A matcher says which tokens may come next, is told which one came, and gives the tokens that need no model:
where only one continuation exists they can be appended at once. It holds a number for its place, so
several requests share one compiled constraint, and forks cost nothing. No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from grammar.automaton import TokenAutomaton
from runtime.constrain.jump import NOTHING, JumpForward, Run
from runtime.errors import InvalidRequest


@dataclass(slots=True)
class Matcher:
    """
    automaton   shared by all requests with this constraint
    max_tokens  the request's budget; near its end only ways that still end in time are left. None: no budget
    """

    automaton: TokenAutomaton
    max_tokens: int | None = None
    state: int = 0
    used: int = 0
    ended: bool = False
    _history: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.used:
            check_budget(self.automaton.min_tokens, self.max_tokens)

    @property
    def left(self) -> int | None:
        """Tokens of the budget that are left."""
        return None if self.max_tokens is None else self.max_tokens - self.used

    def mask(self) -> np.ndarray:
        """uint32 [words], read only: bit t is set if token t may come next.

        Valid until the next call of this matcher's automaton; copy it (`fill`) to keep it.
        """
        if self.ended:
            return self._ends()
        if self.max_tokens is None:
            return self.automaton.allowed(self.state)
        left = self.max_tokens - self.used
        if left <= 0:
            return self._ends()
        return self.automaton.allowed_within(self.state, left)

    def _ends(self) -> np.ndarray:
        row = np.zeros(self.automaton.vocabulary.words, np.uint32)
        for end in self.automaton.vocabulary.eos:
            row[end >> 5] |= np.uint32(1 << (end & 31))
        return row

    def fill(self, out: np.ndarray) -> None:
        """Write the mask to `out`, uint32 [words]."""
        out[:] = self.mask()

    def mask_bool(self) -> np.ndarray:
        """bool [tokens]: the mask, one entry a token."""
        return np.unpackbits(self.mask().view(np.uint8), bitorder="little")[
            : len(self.automaton.vocabulary)
        ].view(np.bool_)

    def allows(self, token: int) -> bool:
        return bool(self.mask()[token >> 5] >> np.uint32(token & 31) & 1)

    def advance(self, token: int) -> None:
        """Take `token`. Raises ValueError if the constraint forbids it; the place is then unchanged."""
        if self.ended:
            raise ValueError(f"token {token} comes after the end of the constrained text")
        if token in self.automaton.vocabulary.eos:
            if not self.automaton.can_end(self.state):
                raise ValueError(f"the end token {token} came before the constrained text was complete")
            self._history.append(self.state)
            self.ended = True
            self.used += 1
            return
        after = self.automaton.step(self.state, token)
        if after < 0:
            raise ValueError(f"token {token} is not allowed at position {self.used} of the constrained text")
        self._history.append(self.state)
        self.state = after
        self.used += 1

    def replay(self, tokens: Sequence[int]) -> None:
        """Take tokens that were written before; those behind the end are of a request that goes on to its budget."""
        for token in tokens:
            if self.ended:
                return
            self.advance(token)

    def rollback(self, tokens: int) -> None:
        """Take back the last `tokens` tokens."""
        if not 0 <= tokens <= len(self._history):
            raise ValueError(f"rollback of {tokens} tokens, but {len(self._history)} were taken")
        if tokens:
            self.state = self._history[-tokens]
            del self._history[-tokens:]
            self.used -= tokens
            self.ended = False

    def fork(self) -> Matcher:
        """A second matcher at the same place."""
        return Matcher(
            self.automaton, self.max_tokens, self.state, self.used, self.ended, list(self._history)
        )

    @property
    def can_end(self) -> bool:
        """Is the text complete as it stands?"""
        return self.ended or self.automaton.can_end(self.state)

    @property
    def must_end(self) -> bool:
        """May nothing but the end follow?"""
        return self.ended or self.automaton.must_end(self.state)

    def after(self, tokens: Sequence[int]) -> Matcher | None:
        """The place after `tokens` more; None if the constraint forbids one of them, or ends with it."""
        state = self.state
        for token in tokens:
            if self.ended or token in self.automaton.vocabulary.eos:
                return None
            state = self.automaton.step(state, token)
            if state < 0:
                return None
        return Matcher(self.automaton, self.max_tokens, state, self.used + len(tokens), self.ended)

    def forced_tokens(self, jump: JumpForward, before: Sequence[int] = ()) -> list[int]:
        """Tokens that can be appended without asking the model, within the budget; `advance` over them.

        jump     of this matcher's automaton
        before   the tokens of the constrained text so far
        """
        return list(self.forced_run(jump, before).tokens)

    def forced_run(self, jump: JumpForward, before: Sequence[int] = ()) -> Run:
        """`forced_tokens`, with what is likely behind them."""
        if self.ended:
            return NOTHING
        run = jump.run(self.state, before)
        return run if self.left is None or len(run.tokens) <= self.left else Run(run.tokens[: self.left], ())


def check_budget(least: int, max_tokens: int | None) -> None:
    """Raise InvalidRequest if `least` tokens, those of a constraint's shortest text, are more than the budget."""
    if max_tokens is not None and max_tokens < least:
        raise InvalidRequest(
            f"max_new_tokens is {max_tokens} but the shortest text of the constraint takes {least} tokens; "
            f"raise max_new_tokens to at least {least}",
            param="max_new_tokens",
        )
