"""The ranks of one model and what they do together: sums, and columns put side by side.

A group finds its members through a file in a private folder and talks over loopback only (gloo), or over the links between
GPUs (NCCL). It is no global state of torch: a process may have several.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed


class Group:
    """`rank` of `size` processes that hold a part of each layer.

    timeout  seconds after which a collective fails because a member does not answer
    """

    def __init__(self, rank: int, size: int, folder: Path, device: str, timeout: float) -> None:
        self.rank = rank
        self.size = size
        self.device = device
        limit = timedelta(seconds=timeout)
        self._sum: Any = distributed.AllreduceOptions()
        self._sum.timeout = limit
        store: Any = distributed.FileStore(str(folder / "members"), size)
        store.set_timeout(limit)
        if device.startswith("cuda"):
            os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")  # ranks are on one host
            os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
            torch.cuda.set_device(device)
            options = distributed.ProcessGroupNCCL.Options()
            options._timeout = limit
            self._group: Any = distributed.ProcessGroupNCCL(store, rank, size, options)
        else:
            gloo: Any = distributed.ProcessGroupGloo
            made = gloo._Options()
            made._devices = [gloo.create_device(hostname="127.0.0.1")]
            made._timeout = limit
            self._group = gloo(store, rank, size, made)

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum over ranks, in place; the result is the same on each."""
        self._group.allreduce([x], self._sum).wait()
        return x

    def gather_columns(self, x: Tensor) -> Tensor:
        """x [rows, columns] of each rank -> [rows, size * columns], in the order of ranks."""
        parts = [torch.empty_like(x) for _ in range(self.size)]
        self._group.allgather([parts], [x.contiguous()]).wait()
        return torch.cat(parts, dim=1)

    def smallest(self, value: int) -> int:
        """The smallest of the ranks' values."""
        there = torch.tensor([-value], dtype=torch.int64, device=self.device)
        options: Any = distributed.AllreduceOptions()
        options.timeout = self._sum.timeout
        options.reduceOp = distributed.ReduceOp.MAX
        self._group.allreduce([there], options).wait()
        return -int(there.item())
