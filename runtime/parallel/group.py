"""The ranks of one model and what they do together: sums, and columns put side by side.

A group finds its members through a file in a private folder and talks over loopback only (gloo), or over the links between
GPUs (NCCL). It is no global state of torch: a process may have several.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

from runtime.errors import EngineDead

if TYPE_CHECKING:
    from runtime.parallel.peers import Peers

log = logging.getLogger("runtime.parallel")
_END_SECONDS = 5.0
_START_SECONDS = (
    60.0  # at least, for what all do once: imports and weights take one of them longer than another
)
_POLL_SECONDS = 20e-6
_LOOK_SECONDS = 0.01  # between looks whether the other ranks live
# NCCL's own watchdog would end the process by a signal; ranks that are lost are found here.
_NEVER = timedelta(days=1)


class Group:
    """`rank` of `size` processes that hold a part of each layer.

    timeout  seconds after which a collective fails because a member does not answer; at the start they have a minute
             at least to find each other and to load
    look     called while the group waits for the others; raises EngineDead if one is known to be gone
    """

    def __init__(self, rank: int, size: int, folder: Path, device: str, timeout: float) -> None:
        self.rank = rank
        self.size = size
        self.device = device
        self.look: Callable[[], None] = lambda: None
        self._timeout = timeout
        self._meetings = 0
        self._peers: Peers | None = None
        on_cards = device.startswith("cuda")
        limit = _NEVER if on_cards else timedelta(seconds=timeout)
        self._start = timedelta(seconds=max(timeout, _START_SECONDS))
        self._sum: Any = distributed.AllreduceOptions()
        self._gather: Any = distributed.distributed_c10d.AllgatherOptions()
        self._sum.timeout = self._gather.timeout = limit
        store: Any = distributed.FileStore(str(folder / "members"), size)
        store.set_timeout(self._start)
        self._store = store
        if on_cards:
            os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")  # ranks are on one host
            os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
            os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
            os.environ.setdefault("TORCH_NCCL_RETHROW_CUDA_ERRORS", "0")
            torch.cuda.set_device(device)
            options = distributed.ProcessGroupNCCL.Options()
            options._timeout = limit
            self._group: Any = distributed.ProcessGroupNCCL(store, rank, size, options)
        else:
            gloo: Any = distributed.ProcessGroupGloo
            made = gloo._Options()
            made._devices = [gloo.create_device(hostname="127.0.0.1")]
            made._timeout = self._start
            self._group = gloo(store, rank, size, made)

    def close(self) -> None:
        """Leave, without waiting for the others; nor for long for graphs that hold on to what the group has."""
        if self.device.startswith("cuda"):
            leaving = threading.Thread(target=self._group.abort, daemon=True)
            leaving.start()
            leaving.join(_END_SECONDS)

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum over ranks, in place; the result is the same on each."""
        self._group.allreduce([x], self._sum).wait()
        return x

    def gather_columns(self, x: Tensor) -> Tensor:
        """x [rows, columns] of each rank -> [rows, size * columns], in the order of ranks."""
        parts = [torch.empty_like(x) for _ in range(self.size)]
        self._group.allgather([parts], [x.contiguous()], self._gather).wait()
        return torch.cat(parts, dim=1)

    def likeliest(self, best: Tensor, tokens: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Of the maxima float32 [rows] and tokens int64 [rows] that each rank found in its columns, `first` its first: the highest,
        and the lowest of its tokens in the whole vocabulary."""
        if self._peers is not None and len(best) <= self._peers.picks.rows:
            from runtime.kernels.argmax_ranks import argmax_ranks

            return argmax_ranks(best, tokens, first, mail=self._peers.picks)
        pairs = torch.stack((best.double(), (tokens + first).double()), 1)
        values, places = self.gather_columns(pairs).unflatten(1, (self.size, 2)).unbind(2)
        high = values.amax(1)
        lowest = torch.where(values == high[:, None], places, float("inf")).amin(1)
        return high.float(), lowest.long()

    def smallest(self, value: int) -> int:
        """The smallest of the ranks' values, through the store; for the start, when some still load."""
        self._meetings += 1
        keys = [f"meeting {self._meetings} of rank {rank}" for rank in range(self.size)]
        self._store.set(keys[self.rank], str(value))
        self._poll(lambda: self._store.check(keys), self._start.total_seconds(), _LOOK_SECONDS)
        return min(int(self._store.get(key)) for key in keys)

    def until(self, event: Any) -> None:
        """Wait for a CUDA event behind collectives. Raises EngineDead if a rank is gone meanwhile or does not answer in time."""
        self._poll(event.query, self._timeout, _POLL_SECONDS)

    def _poll(self, done: Callable[[], bool], seconds: float, pause: float) -> None:
        now = time.monotonic()
        end, look = now + seconds, now + _LOOK_SECONDS
        while not done():
            now = time.monotonic()
            if now >= look:
                self.look()
                look = now + _LOOK_SECONDS
            if now >= end:
                raise EngineDead(f"a rank of {self.size} did not answer in time; see --dist-timeout")
            time.sleep(pause)

    def connect(self, hidden: int, dtype: torch.dtype) -> Peers | None:
        """Mailboxes for rows of `hidden` numbers between the cards; None where they cannot be, as the log then says."""
        from runtime.parallel.peers import Peers, reachable

        if not self.device.startswith("cuda"):
            return None
        reason = reachable(self.size)
        if self.smallest(int(reason is None)):
            self._peers = Peers(self.rank, self.size, self._store, hidden, dtype, self._timeout)
            self.smallest(1)  # nobody writes before all boxes are empty
        log.info(
            "sums over ranks: %s",
            "written into each other's memory"
            if self._peers
            else f"NCCL, since {reason or 'another rank cannot'}",
        )
        return self._peers

    @property
    def lost(self) -> bool:
        """Whether a rank did not answer within the time-out; waits for the device."""
        return self._peers is not None and self._peers.lost
