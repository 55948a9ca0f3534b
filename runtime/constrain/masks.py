"""Masks of constraints on logits, and the constraints' advance, for the rows of a batch."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from grammar.constraint_errors import ConstraintError
from runtime.api import Constraint, LogprobOptions
from runtime.batch import Admission, Guesses
from runtime.constrain.compiler import ConstraintCompiler
from runtime.constrain.guess import Jumps
from runtime.constrain.matcher import Matcher
from runtime.constrain.recall import Recall
from runtime.errors import EngineError

log = logging.getLogger("runtime.engine")


class ConstrainedSeats:
    """The matchers of the seats whose requests have a constraint.

    width  of the logits; a model's vocabulary may be padded beyond its tokenizer's
    """

    def __init__(self, compiler: ConstraintCompiler, width: int, device: str) -> None:
        self.compiler = compiler
        self._width = width
        self._device = device
        self._matchers: dict[int, Matcher] = {}
        self._jumps: dict[int, Jumps] = {}
        self._failed: set[int] = set()

    def seat(self, a: Admission) -> None:
        """Take the request's constraint, and the outputs that it kept over a retraction.

        What fails here or later (a limit that states met which are built while texts are) ends this request alone: no token is
        allowed to it any more.
        """
        self.release(a.seat)
        if a.sampling.constraint is None:
            return
        try:
            self._take(a, a.sampling.constraint)
        except (ConstraintError, EngineError, ValueError) as error:
            self._give_up(a.seat, error)

    def _take(self, a: Admission, constraint: Constraint) -> None:
        matcher = self.compiler.matcher(constraint, a.max_new)
        matcher.replay(a.tokens[a.prompt :])
        self._matchers[a.seat] = matcher
        jump = self.compiler.jump(constraint)
        if (
            jump is not None and a.logprobs is None
        ):  # the log-probability of a token that was not drawn is not known
            recall = self.compiler.recall(constraint)
            if a.alone and recall is not None:
                recall = Recall()
            self._jumps[a.seat] = Jumps(jump, a.tokens[a.prompt :], recall)

    def _give_up(self, seat: int, error: Exception) -> None:
        log.warning("a constraint failed while its text was written: %s", error)
        self.release(seat)
        self._failed.add(seat)

    def unforced(self, constraint: Constraint, logprobs: LogprobOptions | None) -> bool:
        """Whether no step of a request has to wait for the token before it."""
        return False

    def release(self, seat: int) -> None:
        self._matchers.pop(seat, None)
        self._jumps.pop(seat, None)
        self._failed.discard(seat)

    def has(self, seat: int) -> bool:
        """Whether the seat's request has a constraint."""
        return seat in self._matchers or seat in self._failed

    def bits(self, seat: int, guesses: Sequence[int] = ()) -> np.ndarray:
        """uint32: bit t is set if token t may come next, behind `guesses`. Of a seat that `has` one; read it before the next call."""
        if seat not in self._failed:
            try:
                place: Matcher | None = self._matchers[seat]
                if guesses:
                    sure = self._jumps[seat].sure.get(len(guesses))
                    if (
                        sure is not None
                    ):  # what follows behind the last guess is forced: as if it were appended
                        return _only(sure, self._width)
                    place = self._matchers[seat].after(guesses)
                if place is not None:
                    return place.mask()
            except ConstraintError as error:
                if not guesses:  # what would fail behind a wrong guess need not fail
                    self._give_up(seat, error)
        return np.zeros(0, np.uint32)

    def allowed(self, seat: int, guesses: Sequence[int] = ()) -> Tensor | None:
        """bool [width]: the tokens that may come next, behind `guesses`; None if all may."""
        if not self.has(seat):
            return None
        row = np.zeros(self._width, dtype=np.bool_)
        mask = np.unpackbits(self.bits(seat, guesses).view(np.uint8), bitorder="little")[: self._width]
        row[: len(mask)] = mask
        return torch.from_numpy(row).to(self._device)

    def advance(self, seat: int, token: int, *, learn: bool = True) -> bool:
        """Take the token that was drawn; False if the constraint forbids it (other rules left nothing that it allows). `learn`:
        other texts may expect it here."""
        if seat in self._failed:
            return False
        matcher = self._matchers.get(seat)
        if matcher is None:
            return True
        if matcher.ended:  # it goes on to its budget: the end is not to be the end for it (`ignore_eos`)
            return token in matcher.automaton.vocabulary.eos
        before = matcher.state
        try:
            matcher.advance(token)
        except ValueError:
            return False
        except ConstraintError as error:
            self._give_up(seat, error)
            return False
        if (jumps := self._jumps.get(seat)) is not None:
            jumps.took(before, token, learn=learn)
        return True

    def forced(self, seat: int) -> list[int]:
        """The tokens that must follow now; they are taken."""
        jumps = self._jumps.get(seat)
        if jumps is None:
            return []
        matcher = self._matchers[seat]
        try:
            return jumps.forced(matcher)
        except ConstraintError as error:
            self._give_up(seat, error)
            return []

    def guesses(self, seat: int) -> Guesses:
        """Tokens that are likely to come now, after what is `forced`: what came here before, else the rest of a forced text. And
        the indices of those that are forced if those before them come."""
        jumps = self._jumps.get(seat)
        if jumps is None or not self.compiler.guesses:
            return (), ()
        matcher = self._matchers[seat]
        try:
            return jumps.likely(matcher, self.compiler.guesses)
        except ConstraintError:  # behind a wrong guess, perhaps
            return (), ()


def _only(token: int, width: int) -> np.ndarray:
    row = np.zeros(-(-width // 32), np.uint32)
    row[token >> 5] = np.uint32(1 << (token & 31))
    return row
