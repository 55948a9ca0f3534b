"""The tokens of one text that need no pass of the model's own: forced ones, and likely ones that the model verifies.

Guesses are what earlier texts of the constraint went on with, or the rest of a forced text where the tokenizer might cut otherwise. Behind a
guess tokens may be forced again; these are appended as they would be without guessing, so what is written stays the same.
Source: a draft that is verified in one pass, as in speculative decoding, arXiv:2211.17192; here draws are compared
token by token, so a text does not depend on what was guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from runtime.batch import Guesses
from runtime.constrain.jump import CONTEXT, JumpForward
from runtime.constrain.matcher import Matcher
from runtime.constrain.recall import CONTESTED, UNKNOWN, Recall


@dataclass(slots=True)
class Jumps:
    """
    outputs  tokens of the text so far
    recall   what earlier texts went on with; None: nothing is learnt
    rest     likely tokens behind the newest output: what is left of a forced text
    sure     of what was guessed last: tokens that are forced if those before them come true, by index
    """

    jump: JumpForward
    outputs: list[int]
    recall: Recall | None
    rest: Sequence[int] = ()
    sure: dict[int, int] = field(default_factory=dict)

    def took(self, state: int, token: int, *, learn: bool = True) -> None:
        """`token` came in `state`."""
        if learn and self.recall is not None:
            self.recall.learn(state, self.outputs, token)
        self.outputs.append(token)

    def forced(self, matcher: Matcher) -> list[int]:
        """The tokens that must follow now; `matcher`, which is at this place of the text, takes them."""
        found, self.rest = matcher.forced_run(self.jump, self.outputs)
        for token in found:
            matcher.advance(token)
        self.outputs += found
        return list(found)

    def likely(self, matcher: Matcher, most: int) -> Guesses:
        """At most `most` tokens that are likely to come at the matcher's place, after what is `forced`; and the indices of those that
        are forced if those before them come. What is forced behind the last is in `sure` alone."""
        found: list[int] = []
        self.sure = {}
        if matcher.left is not None:
            most = min(most, matcher.left - 1)
        if most <= 0 or matcher.ended:
            return (), ()
        automaton, state = matcher.automaton, matcher.state
        rest, forced = list(self.rest), 0
        while True:
            before = [*self.outputs[-CONTEXT:], *found]
            if found and not forced:
                run = self.jump.run(state, before)
                if run.tokens:
                    rest, forced = [*run.tokens, *run.guesses], len(run.tokens)
                elif not rest:
                    rest = list(run.guesses)
            expected = rest.pop(0) if rest else UNKNOWN
            token = expected
            if forced:
                forced -= 1
                self.sure[len(found)] = expected
            elif self.recall is not None and (known := self.recall.next(state, before)) != UNKNOWN:
                token = known
            if token != expected:  # what follows there does not follow here
                rest = []
            if len(found) == most or token in (UNKNOWN, CONTESTED) or token in automaton.vocabulary.eos:
                break
            state = automaton.step(state, token)
            if state < 0:
                break
            found.append(token)
        return tuple(found), tuple(k for k in self.sure if k < len(found))
