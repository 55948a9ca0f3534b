"""Memory of a rank that the other ranks of the same host write into directly.

The handles of CUDA's inter-process memory go through the group's store. Where cards cannot reach each other so, or CUDA's
Python bindings are not installed, there are no mailboxes, and sums go through NCCL.
"""

from __future__ import annotations

from typing import Any

import torch

from runtime.kernels.argmax_ranks import WORDS
from runtime.kernels.nvrtc import ask
from runtime.kernels.step_layers import StepRanks, box_bytes
from runtime.kernels.sum_ranks import TURNS, Mailboxes, empty_word

_BYTES = (
    8 << 20
)  # of one turn's rows from the others: more is quicker through NCCL, which sends each byte once
_LOOKS = 1_000_000  # about so many a second
_MOST_PICKS = 4096  # rows of a captured step


class Peers:
    """The boxes of a rank, and those of the others as they are seen from here. They live as long as the process."""

    def __init__(
        self, rank: int, size: int, store: Any, hidden: int, dtype: torch.dtype, timeout: float
    ) -> None:
        from cuda.bindings import runtime as cuda

        self._cuda = cuda
        self._rank, self._size, self._store = rank, size, store
        self._device = torch.device("cuda", torch.cuda.current_device())
        self._looks = int(timeout * _LOOKS)
        self._step: StepRanks | None = None
        words = hidden * dtype.itemsize // 4
        self.mail = self._mailboxes("box", max(1, _BYTES // (size - 1) // (4 * words)), words, dtype)
        self.picks = self._mailboxes("pick", _MOST_PICKS, WORDS, torch.float32)

    def _mailboxes(self, name: str, rows: int, words: int, dtype: torch.dtype) -> Mailboxes:
        boxes = self._boxes(name, TURNS * self._size * rows * words, empty_word(dtype))
        state = torch.zeros(4 + TURNS, dtype=torch.int32, device=self._device)
        return Mailboxes(self._rank, boxes, state, rows, words, self._looks)

    def step(self, hidden: int, rows: int, programs: int) -> StepRanks:
        """What steps of up to `rows` rows in one launch exchange sums through; the same on every rank."""
        if self._step is None:
            words = box_bytes(hidden, rows, programs, self._size) // 4
            state = torch.zeros(2, dtype=torch.int32, device=self._device)
            self._step = StepRanks(self._rank, self._boxes("step", words, 0), state, self._looks)
        return self._step

    def _boxes(self, name: str, words: int, value: int) -> torch.Tensor:
        """int64 [ranks]: where a box of each rank lies, of so many int32 `value`."""
        cuda = self._cuda
        own = int(_shared(cuda.cudaMalloc(4 * words)))
        handle = _shared(cuda.cudaIpcGetMemHandle(own))
        self._store.set(f"{name}{self._rank}", bytes(handle.reserved).hex())
        places = []
        for other in range(self._size):
            if other == self._rank:
                places.append(own)
                continue
            given = cuda.cudaIpcMemHandle_t()
            given.reserved = bytes.fromhex(self._store.get(f"{name}{other}").decode())
            places.append(int(_shared(cuda.cudaIpcOpenMemHandle(given, cuda.cudaIpcMemLazyEnablePeerAccess))))
        fresh = torch.full((min(words, 1 << 20),), value, dtype=torch.int32, device=self._device)
        for at in range(0, words, len(fresh)):
            length = 4 * min(len(fresh), words - at)
            kind = cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
            _shared(cuda.cudaMemcpy(own + 4 * at, fresh.data_ptr(), length, kind))
        torch.cuda.synchronize()
        return torch.tensor(places, dtype=torch.int64, device=self._device)

    @property
    def lost(self) -> bool:
        """Whether a launch has given a rank up; waits for the device."""
        states = [self.mail.state[2], self.picks.state[2]] + (
            [] if self._step is None else [self._step.state[1]]
        )
        return any(bool(state.item()) for state in states)


def reachable(size: int) -> str | None:
    """Why the first `size` cards cannot write into each other's memory; None if they can."""
    try:
        from cuda.bindings import runtime  # noqa: F401
    except ImportError:
        return "the package cuda-bindings is not installed"
    apart = [
        (a, b)
        for a in range(size)
        for b in range(size)
        if a != b and not torch.cuda.can_device_access_peer(a, b)
    ]
    return f"cards {apart[0][0]} and {apart[0][1]} do not reach each other's memory" if apart else None


def _shared(answer: tuple[Any, ...]) -> Any:
    return ask(answer, "sharing memory between ranks")
