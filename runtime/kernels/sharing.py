"""How attention of single tokens is told which of them follow the same positions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

Array = np.ndarray[tuple[int], np.dtype[np.int64]]
MOST_ROWS = 1 << 16  # of a batch; words have room for no more


class Sharing(NamedTuple):
    """Which single tokens of a batch follow the same positions, in pages that they share. Both int64 [rows].

    order   rows of bundles, bundle after bundle; what follows is not read
    shares  each row's `share_words`; 0: it shares nothing
    """

    order: Tensor
    shares: Tensor


def share_words(positions: Array, index: Array, member: Array, count: Array) -> Array:
    """int64, as `Share` of cuda/decode_shapes.h reads them: rows share their first `positions` with others.

    index   of the row in `Sharing.order`; it is the `member`-th of the `count` rows of its bundle, all of which share as much
    """
    return positions << 32 | index << 16 | member << 8 | count
