"""Uniform numbers that depend on (seed, index) alone, so that a request's draws are the same in any batch.

Source: the finaliser of SplitMix64 (Steele, Lea, Flood, 2014).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_MASK = (1 << 64) - 1


def mix(value: int) -> int:
    """A 64-bit hash of a 64-bit integer."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def uniform(seed: int, index: int) -> float:
    """In [0, 1), with 53 random bits."""
    return (mix(mix(seed & _MASK) ^ (index & _MASK)) >> 11) * 2.0**-53


def _mix(value: np.ndarray) -> np.ndarray:
    """`mix` of each element, uint64; arithmetic wraps."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def uniforms(seeds: Sequence[int] | np.ndarray, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """`uniform` of each pair: float64 [n]. Arrays must be of uint64."""
    first, second = (
        v if isinstance(v, np.ndarray) else np.array([x & _MASK for x in v], dtype=np.uint64)
        for v in (seeds, indices)
    )
    return (_mix(_mix(first) ^ second) >> np.uint64(11)) * 2.0**-53


def child_seed(seed: int, sample: int) -> int:
    """The seed of one of several samples of a prompt; the first has the seed itself."""
    return seed if sample == 0 else mix(seed & _MASK ^ mix(sample)) >> 1
