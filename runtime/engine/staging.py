"""Host memory through which a batch's integers go to the device, and its tokens come back.

Nothing here waits for a copy: each batch in flight has memory of its own, which is free once its tokens were read. On a GPU it
is pinned, so that copies are queued like everything else.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

IN_FLIGHT = 4  # batches; one's memory is free once its tokens were read
Use = Literal["inputs", "tokens", "moves", "masks"]  # what a batch may have on its way at the same time


class Staging:
    """The memory of up to IN_FLIGHT batches, by what it is for; it grows as batches ask for more."""

    def __init__(self, device: str | torch.device) -> None:
        self._device = device
        self.pinned = torch.device(device).type == "cuda"
        self._rings: dict[Use, list[Tensor]] = {}
        self._turn = 0

    def next_batch(self) -> None:
        self._turn += 1

    def memory(self, use: Use, size: int) -> Tensor:
        """int64, `size` numbers at least, which no copy still reads or writes."""
        ring = self._rings.setdefault(use, [torch.empty(0, dtype=torch.int64)] * IN_FLIGHT)
        place = self._turn % IN_FLIGHT
        if len(ring[place]) < size:
            ring[place] = torch.empty(max(1024, 2 * size), dtype=torch.int64, pin_memory=self.pinned)
        return ring[place]

    def send(self, *parts: Any) -> list[Tensor]:
        """int64 arrays to the device in one transfer; their views there, each from a multiple of 16 bytes: for others
        kernels would be compiled once more."""
        arrays = [np.asarray(p, dtype=np.int64) for p in parts]
        begins = [0]
        for array in arrays:
            begins.append(begins[-1] + len(array) + len(array) % 2)
        host = self.memory("inputs", begins[-1])
        flat = host.numpy()
        for at, array in zip(begins, arrays, strict=False):
            flat[at : at + len(array)] = array
        there = host[: begins[-1]].to(self._device, non_blocking=True)
        return [there[at : at + len(a)] for at, a in zip(begins, arrays, strict=False)]

    def moves(self, values: np.ndarray) -> Tensor:
        """int64 [n], what a batch tells about its seats, on the device."""
        host = self.memory("moves", len(values))[: len(values)]
        host.numpy()[:] = values
        return host.to(self._device, non_blocking=True)
