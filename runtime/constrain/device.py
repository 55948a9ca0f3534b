"""Constraints that live on the device: one table each, one place a seat, no turn of the host between two tokens.

Only what is one table can live there, and only if no long run is forced after its first choice: what is forced is known to
the host alone, which must then see each token before the next step. What cannot is a host's seat (`ConstrainedSeats`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from grammar.automaton import TokenAutomaton
from grammar.token_fsm import TokenFsm
from runtime.api import Constraint, LogprobOptions
from runtime.batch import Admission
from runtime.constrain.compiler import ConstraintCompiler
from runtime.constrain.masks import ConstrainedSeats

_LARGEST = 16 << 20  # bytes of one table
_FIELDS = 6  # of a place: see runtime/kernels/mask.py
_RUN = 8  # bytes of a forced run that are worth more than steps that are queued ahead, which one waiting row takes from all


def packed(fsm: TokenFsm) -> np.ndarray:
    """int16: next [states + 1, classes + 1], tokens to the end [states + 1], class of each token.

    The end is a state and end tokens are a class of their own: taken where the text may end, and after it.
    """
    states, classes = fsm.next.shape
    steps = np.full((states + 1, classes + 1), -1, np.int16)
    steps[:states, :classes] = fsm.next
    steps[:states, classes] = np.where(fsm.fsm.accepting, states, -1)
    steps[states, classes] = states
    class_of = fsm.class_of.astype(np.int16)
    class_of[list(fsm.vocabulary.eos)] = classes
    return np.concatenate((steps.reshape(-1), np.append(fsm.distance, 0).astype(np.int16), class_of))


def fits(automaton: TokenAutomaton) -> bool:
    """Whether it is one table of numbers that are small enough."""
    if not isinstance(automaton, TokenFsm):
        return False
    states, classes = automaton.next.shape
    most = np.iinfo(np.int16).max
    size = 2 * ((states + 1) * (classes + 2) + len(automaton.class_of))
    return states < most and classes < most and size <= _LARGEST


class DeviceTables:
    """Tables by automaton. Those that no seat uses go, the oldest first, when all are more than `max_bytes` or than `most`:
    each keeps its automaton in the host's memory, too."""

    def __init__(self, device: str | torch.device, max_bytes: int = 256 << 20, most: int = 256) -> None:
        self.device = device
        self.max_bytes = max_bytes
        self.most = most
        self.nbytes = 0
        self._tables: OrderedDict[int, tuple[TokenFsm, Tensor]] = (
            OrderedDict()
        )  # by id, which the entry keeps alive
        self._users: dict[int, int] = {}

    def take(self, fsm: TokenFsm) -> Tensor | None:
        """The automaton's table, for one more seat; None if there is no room."""
        key = id(fsm)
        found = self._tables.get(key)
        if found is None:
            data = packed(fsm)
            if not self._room_for(data.nbytes):
                return None
            found = fsm, self._sent(torch.from_numpy(data))
            self.nbytes += data.nbytes
            self._tables[key] = found
        self._tables.move_to_end(key)
        self._users[key] = self._users.get(key, 0) + 1
        return found[1]

    def _sent(self, table: Tensor) -> Tensor:
        if torch.device(self.device).type != "cuda":
            return table
        return table.pin_memory().to(self.device, non_blocking=True)  # from other memory the host would wait

    def leave(self, fsm: TokenFsm) -> None:
        """One seat less uses it."""
        self._users[id(fsm)] -= 1

    def _room_for(self, size: int) -> bool:
        for key in list(self._tables):
            if self.nbytes + size <= self.max_bytes and len(self._tables) < self.most:
                break
            if not self._users.get(key):
                self.nbytes -= self._tables.pop(key)[1].nbytes
                self._users.pop(key, None)
        return self.nbytes + size <= self.max_bytes


class DeviceSeats(ConstrainedSeats):
    """`ConstrainedSeats` whose finite constraints are looked up by kernels; the others are the host's as before.

    seats  places on the device
    """

    def __init__(
        self,
        compiler: ConstraintCompiler,
        width: int,
        device: str,
        seats: int,
        tables: DeviceTables | None = None,
    ) -> None:
        super().__init__(compiler, width, device)
        self.tables = tables or DeviceTables(device)
        self.places = torch.zeros(seats, _FIELDS, dtype=torch.int64, device=device)
        self._here: dict[int, TokenFsm] = {}  # by seat
        self._stale: dict[int, list[int]] = {}  # places that the device has to be told
        self._lost: set[int] = set()

    def unforced(self, constraint: Constraint, logprobs: LogprobOptions | None) -> bool:
        """See `ConstrainedSeats`."""
        automaton = self.compiler.get(constraint)
        if logprobs is not None or not fits(automaton):
            return False
        assert isinstance(automaton, TokenFsm)
        return self.compiler.jump(constraint) is None or automaton.fsm.longest_forced < _RUN

    def _take(self, a: Admission, constraint: Constraint) -> None:
        if not self.unforced(constraint, a.logprobs):
            return super()._take(a, constraint)
        fsm = self.compiler.get(constraint)
        assert isinstance(fsm, TokenFsm)
        table = self.tables.take(fsm)
        if table is None:  # the host's, but nothing is forced: steps may be queued as if it were here
            super()._take(a, constraint)
            self._jumps.pop(a.seat, None)  # nor guessed
            return None
        self._here[a.seat] = fsm
        matcher = self.compiler.matcher(constraint, a.max_new)
        matcher.replay(a.tokens[a.prompt :])
        states, classes = fsm.next.shape
        state = states if matcher.ended else matcher.state
        left = a.max_new - matcher.used
        self._stale[a.seat] = [
            table.data_ptr(),
            classes + 1,
            states + 1,
            len(fsm.class_of),
            state,
            left,
        ]
        return None

    def release(self, seat: int) -> None:
        super().release(seat)
        fsm = self._here.pop(seat, None)
        if fsm is not None:
            self.tables.leave(fsm)
            self._stale[seat] = [0] * _FIELDS

    def has_any(self, seats: Sequence[int]) -> bool:
        """Whether a constraint of one of these seats lives here."""
        return any(seat in self._here for seat in seats)

    def lose(self, seats: Iterable[int]) -> None:
        """Nothing was left to draw for these: other rules forbid what the constraint allows. `advance` tells of them."""
        self._lost.update(seats)

    def advance(self, seat: int, token: int, *, learn: bool = True) -> bool:
        if seat in self._lost:
            self._lost.discard(seat)
            return False
        return super().advance(seat, token, learn=learn)

    def tell(self, send: Callable[[np.ndarray], Tensor]) -> None:
        """Bring the places up to date. `send`: an int64 array to the device."""
        if self._stale:
            count = len(self._stale)
            values = np.array([list(self._stale), *zip(*self._stale.values(), strict=True)], dtype=np.int64)
            there = send(values.reshape(-1)).view(1 + _FIELDS, count)
            self.places.index_put_((there[0],), there[1:].T)
            self._stale = {}

    def mask(self, logits: Tensor, seats: Tensor) -> None:
        """Cut away what the constraints of these rows' seats forbid; seats that are not here are left alone."""
        from runtime.kernels.mask import mask

        mask(logits, seats, self.places)

    def take(self, tokens: Tensor, seats: Tensor) -> None:
        """The tokens that were drawn for these seats."""
        from runtime.kernels.mask import advance

        advance(tokens, seats, self.places)
