"""Masks of constraints on logits, and the constraints' advance, for the rows of a batch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from runtime.api import Constraint, LogprobOptions
from runtime.batch import Admission
from runtime.constrain.compiler import ConstraintCompiler
from runtime.constrain.jump import JumpForward
from runtime.constrain.matcher import Matcher


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

    def seat(self, a: Admission) -> None:
        """Take the request's constraint, and the outputs that it kept over a retraction."""
        self.release(a.seat)
        if a.sampling.constraint is None:
            return
        matcher = self.compiler.matcher(a.sampling.constraint, a.max_new)
        for token in a.tokens[a.prompt :]:
            matcher.advance(token)
        self._matchers[a.seat] = matcher
        jump = self.compiler.jump(a.sampling.constraint)
        if (
            jump is not None and a.logprobs is None
        ):  # the log-probability of a token that was not drawn is not known
            self._jumps[a.seat] = jump, a.tokens[a.prompt :]

    def unforced(self, constraint: Constraint, logprobs: LogprobOptions | None) -> bool:
        """Whether no step of a request has to wait for the token before it."""
        return False

    def release(self, seat: int) -> None:
        self._matchers.pop(seat, None)
        self._jumps.pop(seat, None)

    def has(self, seat: int) -> bool:
        """Whether the seat's request has a constraint."""
        return seat in self._matchers

    def bits(self, seat: int) -> np.ndarray:
        """uint32: bit t is set if token t may come next. Of a seat that `has` one; read it before the next call."""
        return self._matchers[seat].mask()

    def allowed(self, seat: int) -> Tensor | None:
        """bool [width]: the tokens that may come next; None if all may."""
        matcher = self._matchers.get(seat)
        if matcher is None:
            return None
        row = np.zeros(self._width, dtype=np.bool_)
        mask = matcher.mask_bool()[: self._width]
        row[: len(mask)] = mask
        return torch.from_numpy(row).to(self._device)

    def advance(self, seat: int, token: int) -> bool:
        """Take the token that was drawn; False if the constraint forbids it (other rules left nothing that it allows)."""
        matcher = self._matchers.get(seat)
        if matcher is None:
            return True
        if matcher.ended:  # it goes on to its budget: the end is not to be the end for it (`ignore_eos`)
            return token in matcher.automaton.vocabulary.eos
        try:
            matcher.advance(token)
        except ValueError:
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
        found = matcher.forced_tokens(jump, outputs)
        for token in found:
            matcher.advance(token)
        outputs += found
        return found
