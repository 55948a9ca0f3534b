"""Sets of bytes as 256-bit masks."""

from __future__ import annotations

CONTINUATION = ((1 << 0x40) - 1) << 0x80  # bytes that begin no character


def byte_mask(low: int, high: int) -> int:
    return ((1 << (high - low + 1)) - 1) << low


def bits(mask: int) -> list[int]:
    """The bits that are set in a mask (of bytes: these bytes), ascending."""
    found = []
    while mask:
        bit = mask & -mask
        found.append(bit.bit_length() - 1)
        mask ^= bit
    return found
