"""Memory of a rank that the other ranks of the same host write into directly.

The handles of CUDA's inter-process memory go through the group's store. Where cards cannot reach each other so, or CUDA's
Python bindings are not installed, there are no mailboxes, and sums go through NCCL.
"""

from __future__ import annotations

from typing import Any

import torch

from runtime.kernels.sum_ranks import TURNS, Mailboxes, empty_word

_BYTES = (
    8 << 20
)  # of one turn's rows from the others: more is quicker through NCCL, which sends each byte once
_LOOKS = 1_000_000  # about so many a second


class Peers:
    """The boxes of a rank, and those of the others as they are seen from here. They live as long as the process."""

    def __init__(
        self, rank: int, size: int, store: Any, hidden: int, dtype: torch.dtype, timeout: float
    ) -> None:
        from cuda.bindings import runtime as cuda

        self._cuda = cuda
        device = torch.device("cuda", torch.cuda.current_device())
        words = hidden * dtype.itemsize // 4
        rows = max(1, _BYTES // (size - 1) // (4 * words))
        count = TURNS * size * rows * words
        own = int(self._ask(cuda.cudaMalloc(4 * count)))
        handle = self._ask(cuda.cudaIpcGetMemHandle(own))
        store.set(f"box{rank}", bytes(handle.reserved).hex())
        places = []
        for other in range(size):
            if other == rank:
                places.append(own)
                continue
            given = cuda.cudaIpcMemHandle_t()
            given.reserved = bytes.fromhex(store.get(f"box{other}").decode())
            places.append(
                int(self._ask(cuda.cudaIpcOpenMemHandle(given, cuda.cudaIpcMemLazyEnablePeerAccess)))
            )
        fresh = torch.full((min(count, 1 << 20),), empty_word(dtype), dtype=torch.int32, device=device)
        for at in range(0, count, len(fresh)):
            length = 4 * min(len(fresh), count - at)
            kind = cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
            self._ask(cuda.cudaMemcpy(own + 4 * at, fresh.data_ptr(), length, kind))
        torch.cuda.synchronize()
        self.mail = Mailboxes(
            rank,
            torch.tensor(places, dtype=torch.int64, device=device),
            torch.zeros(4 + TURNS, dtype=torch.int32, device=device),
            rows,
            words,
            int(timeout * _LOOKS),
        )

    def _ask(self, answer: tuple[Any, ...]) -> Any:
        code, *values = answer
        if code != self._cuda.cudaError_t.cudaSuccess:
            raise RuntimeError(f"CUDA answered {code.name}")
        return values[0] if values else None

    @property
    def lost(self) -> bool:
        """Whether a launch has given a rank up; waits for the device."""
        return bool(self.mail.state[2].item())


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
