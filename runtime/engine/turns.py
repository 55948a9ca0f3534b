"""How many decode steps the host hands out at once.

A device must not wait for the host: planning a batch, queueing it and reading its tokens take the host a time that hardly
depends on how many steps the batch holds. So turns get longer while the host has no time left over, and shorter again when it
waits most of the time, because new requests and streams wait for a turn to end.
"""

from __future__ import annotations

_SPARE = 0.25  # share of a turn that the host should be left waiting for the device
_IDLE = 0.75
_LONGEST_S = 0.03  # of a turn, as far as that is up to us
_SMOOTH = 0.3  # weight of the newest turn
_PATIENCE = 4  # turns between two changes


class TurnLength:
    """Steps per turn, `fixed` or chosen from what turns took: `most` at most."""

    def __init__(self, fixed: int | None, most: int = 16) -> None:
        self.steps = fixed or 1
        self._most = self.steps if fixed else most
        self._chosen = fixed is None
        self._took = 0.0
        self._waited = 0.0
        self._since = 0

    def observe(self, steps: int, took: float, waited: float) -> None:
        """A turn of `steps` took so many seconds, `waited` of which the host waited for the device."""
        if not self._chosen or steps != self.steps:
            return
        self._since += 1
        first = self._since == 1
        self._took += (took - self._took) * (1.0 if first else _SMOOTH)
        self._waited += (waited - self._waited) * (1.0 if first else _SMOOTH)
        if self._since < _PATIENCE:
            return
        spare = self._waited / self._took if self._took > 0 else 1.0
        if spare < _SPARE and self.steps < self._most and self._took < _LONGEST_S:
            self._change(min(self._most, self.steps * 2))
        elif self.steps > 1 and (spare > _IDLE or self._took > 2 * _LONGEST_S):
            self._change(max(1, self.steps // 2))

    def _change(self, steps: int) -> None:
        self.steps = steps
        self._since = 0
