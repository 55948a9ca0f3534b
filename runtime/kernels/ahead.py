"""Memory that is asked for before it is needed."""

from __future__ import annotations

import triton
import triton.language as tl

_LINE = tl.constexpr(64)  # elements of two bytes in a line of cache


@triton.jit
def fetch_ahead(pointers):
    """Bring these lines of memory into the device's last cache; nothing waits for them."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [pointers.to(tl.int64, bitcast=True)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def fetch_rows_ahead(w, n, first, last, K: tl.constexpr, LINES: tl.constexpr, GATED: tl.constexpr):
    """Bring LINES lines of a matrix [n, K] of two bytes, from row `first` on, but nothing of row `last` and after.

    GATED: half of them of the next n rows.
    """
    if GATED is not None:
        _fetch(w, first * K, last * K, LINES // 2)
        _fetch(w + n * K, first * K, last * K, LINES // 2)
    else:
        _fetch(w, first * K, last * K, LINES)


@triton.jit
def _fetch(w, begin, end, LINES: tl.constexpr):
    if LINES > 0:
        if begin < end:
            fetch_ahead(w + tl.minimum(begin + tl.arange(0, LINES) * _LINE, end - 1))
