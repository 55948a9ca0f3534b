"""A batch that a device runner has queued, until its tokens are known."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runtime.batch import Batch, Sampled, Slice


@dataclass
class Held:
    """A draw that is not queued yet: its rows as `DeviceRunner._draw` has them."""

    slices: list[Slice]
    raw: Tensor
    seats: Tensor
    packed: Tensor


@dataclass
class Pending:
    """A batch that was queued: `done` if its result is known, else where its tokens arrive when `event` has passed.

    counts      int64 [rows], of a turn of several steps: steps of each row; `arrived` is then [steps * rows]
    held        what `draw` has to queue still
    one_by_one  all of it is left to `draw`: a turn of which no graph is captured, or whose masks the host finds step by step
    follows     constraints that live on the host have to be told of its tokens
    """

    batch: Batch
    done: Sampled | None = None
    arrived: Tensor | None = None
    event: torch.cuda.Event | None = None
    prompt: dict[int, list[Any]] = field(default_factory=dict)
    counts: np.ndarray | None = None
    held: Held | None = None
    one_by_one: bool = False
    follows: bool = False

    @property
    def ready(self) -> bool:
        """Whether collecting it would not wait."""
        return self.event is None or bool(self.event.query())
