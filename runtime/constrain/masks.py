"""Masks of constraints on logits, and the constraints' advance, for the rows of a batch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from runtime.batch import Admission
from runtime.constrain.compiler import ConstraintCompiler
from runtime.constrain.matcher import Matcher


class ConstrainedSeats:
    """The matchers of the seats whose requests have a constraint.

    width  of the logits; a model's vocabulary may be padded beyond its tokenizer's
    """

    def __init__(self, compiler: ConstraintCompiler, width: int, device: str) -> None:
        self._compiler = compiler
        self._width = width
        self._device = device
        self._matchers: dict[int, Matcher] = {}

    def seat(self, a: Admission) -> None:
        """Take the request's constraint, and the outputs that it kept over a retraction."""
        self._matchers.pop(a.seat, None)
        if a.sampling.constraint is None:
            return
        matcher = self._compiler.matcher(a.sampling.constraint, a.max_new)
        for token in a.tokens[a.prompt :]:
            matcher.advance(token)
        self._matchers[a.seat] = matcher

    def release(self, seat: int) -> None:
        self._matchers.pop(seat, None)

    def has(self, seat: int) -> bool:
        """Whether the seat's request has a constraint."""
        return seat in self._matchers

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
        try:
            matcher.advance(token)
        except ValueError:
            return False
        return True
