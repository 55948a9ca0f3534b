"""Masks of constraints on logits, and the constraints' advance, for the rows of a batch."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor

from grammar.constraint_errors import ConstraintError
from runtime.api import Constraint, LogprobOptions
from runtime.batch import Admission
from runtime.constrain.compiler import ConstraintCompiler
from runtime.constrain.jump import JumpForward
from runtime.constrain.matcher import Matcher
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
        self._jumps: dict[int, tuple[JumpForward, list[int]]] = {}  # with the outputs so far
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
            self._jumps[a.seat] = jump, a.tokens[a.prompt :]

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

    def bits(self, seat: int) -> np.ndarray:
        """uint32: bit t is set if token t may come next. Of a seat that `has` one; read it before the next call."""
        if seat not in self._failed:
            try:
                return self._matchers[seat].mask()
            except ConstraintError as error:
                self._give_up(seat, error)
        return np.zeros(0, np.uint32)

    def allowed(self, seat: int) -> Tensor | None:
        """bool [width]: the tokens that may come next; None if all may."""
        if not self.has(seat):
            return None
        row = np.zeros(self._width, dtype=np.bool_)
        mask = np.unpackbits(self.bits(seat).view(np.uint8), bitorder="little")[: self._width]
        row[: len(mask)] = mask
        return torch.from_numpy(row).to(self._device)

    def advance(self, seat: int, token: int) -> bool:
        """Take the token that was drawn; False if the constraint forbids it (other rules left nothing that it allows)."""
        if seat in self._failed:
            return False
        matcher = self._matchers.get(seat)
        if matcher is None:
            return True
        if matcher.ended:  # it goes on to its budget: the end is not to be the end for it (`ignore_eos`)
            return token in matcher.automaton.vocabulary.eos
        try:
            matcher.advance(token)
        except ValueError:
            return False
        except ConstraintError as error:
            self._give_up(seat, error)
            return False
        if seat in self._jumps:
            self._jumps[seat][1].append(token)
        return True

    def forced(self, seat: int) -> list[int]:
        """The tokens that must follow now; they are taken."""
        if seat not in self._jumps:
            return []
        jump, outputs = self._jumps[seat]
        matcher = self._matchers[seat]
        try:
            found = matcher.forced_tokens(jump, outputs)
            for token in found:
                matcher.advance(token)
        except ConstraintError as error:
            self._give_up(seat, error)
            return []
        outputs += found
        return found
