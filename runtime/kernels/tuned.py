"""Tiles that were the quickest on an H200, by shape; from benchmarks/gpu/kernels.py.

A matrix [n, k] (gate and up of n rows each, if gated) has rows of (most rows of x, tiles). Shapes that are not here take the
rules of runtime/kernels/tuning.py. Hopper cards differ in memory only, so they share the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from runtime.kernels.tuning import LinearTiles

LIBRARY = LinearTiles("library")
HOPPER = ("NVIDIA H200", "NVIDIA H100 80GB HBM3")
# (n, k, gated)
LINEAR: Mapping[tuple[int, int, bool], tuple[tuple[int, LinearTiles], ...]] = MappingProxyType(
    {
        (896, 896, False): (
            (1, LinearTiles("gemv", 1, 2, 2048, 4, 1, 1)),
            (16, LinearTiles("tiled", 16, 32, 128, 4, 4, 2)),
            (64, LinearTiles("cluster", block_n=64, splits=4)),
            (256, LIBRARY),
        ),
        (896, 4864, False): (
            (16, LinearTiles("tiled", 16, 64, 128, 4, 4, 8)),
            (64, LinearTiles("cluster", block_n=64, splits=8)),
            (256, LIBRARY),
        ),
        (1152, 896, False): (
            (1, LinearTiles("gemv", 1, 4, 1024, 4, 2, 1)),
            (16, LIBRARY),
            (64, LinearTiles("cluster", block_n=48, splits=4)),
            (256, LIBRARY),
        ),
        (3072, 4096, False): (
            (1, LinearTiles("gemv", 1, 4, 512, 2, 2, 1)),
            (16, LinearTiles("tiled", 16, 64, 128, 4, 4, 4)),
            (32, LinearTiles("tiled", 32, 64, 128, 4, 4, 4)),
            (64, LinearTiles("tiled", 64, 64, 128, 4, 3, 4)),
            (256, LIBRARY),
        ),
        (4096, 2048, False): (
            (1, LinearTiles("gemv", 1, 4, 1024, 4, 1, 1)),
            (16, LinearTiles("tiled", 16, 64, 128, 4, 6, 2)),
            (256, LIBRARY),
        ),
        (4096, 4096, False): (
            (1, LinearTiles("gemv", 1, 8, 512, 4, 2, 1)),
            (16, LinearTiles("tiled", 16, 64, 256, 4, 3, 2)),
            (32, LinearTiles("tiled", 32, 64, 128, 4, 5, 2)),
            (256, LIBRARY),
        ),
        (4096, 7168, False): (
            (1, LinearTiles("gemv", 1, 8, 512, 4, 2, 1)),
            (16, LinearTiles("tiled", 16, 64, 128, 4, 6, 2)),
            (32, LinearTiles("tiled", 32, 64, 128, 4, 5, 2)),
            (256, LIBRARY),
        ),
        (4096, 14336, False): (
            (1, LinearTiles("gemv", 1, 2, 2048, 4, 1, 1)),
            (16, LinearTiles("tiled", 16, 64, 128, 4, 4, 4)),
            (32, LinearTiles("tiled", 32, 64, 128, 4, 5, 2)),
            (64, LinearTiles("tiled", 64, 64, 128, 4, 4, 2)),
            (256, LIBRARY),
        ),
        (4864, 896, True): (
            (1, LinearTiles("gemv", 1, 2, 512, 2, 2, 1)),
            (16, LinearTiles("tiled", 16, 64, 64, 4, 3, 4)),
            (64, LinearTiles("cluster", block_n=80)),
            (256, LIBRARY),
        ),
        (6144, 4096, False): (
            (1, LinearTiles("gemv", 1, 16, 512, 8, 1, 1)),
            (2, LIBRARY),
            (4, LinearTiles("tiled", 16, 64, 128, 4, 4, 2)),
            (16, LIBRARY),
            (32, LinearTiles("tiled", 32, 64, 128, 4, 4, 2)),
            (64, LinearTiles("tiled", 64, 64, 128, 4, 3, 2)),
            (256, LIBRARY),
        ),
        (7168, 4096, True): (
            (1, LinearTiles("gemv", 1, 1, 2048, 8, 2, 1)),
            (16, LinearTiles("tiled", 16, 64, 64, 4, 4, 1)),
            (32, LinearTiles("tiled", 32, 64, 128, 4, 4, 1)),
            (64, LinearTiles("tiled", 64, 64, 128, 8, 4, 1)),
            (256, LIBRARY),
        ),
        (14336, 4096, True): (
            (1, LinearTiles("gemv", 1, 8, 256, 4, 2, 1)),
            (16, LinearTiles("tiled", 16, 128, 64, 8, 4, 1)),
            (32, LinearTiles("tiled", 32, 64, 64, 4, 4, 1)),
            (64, LinearTiles("tiled", 64, 64, 64, 4, 4, 1)),
            (128, LinearTiles("tiled", 128, 128, 64, 8, 4, 1)),
            (256, LIBRARY),
        ),
        (64128, 4096, False): (
            (1, LinearTiles("gemv", 1, 2, 2048, 8, 2, 1)),
            (16, LinearTiles("tiled", 16, 128, 128, 8, 4, 1)),
            (32, LinearTiles("tiled", 32, 64, 128, 4, 4, 1)),
            (64, LinearTiles("tiled", 64, 128, 64, 4, 4, 1)),
            (256, LIBRARY),
        ),
        (128256, 4096, False): (
            (1, LinearTiles("gemv", 1, 2, 2048, 4, 1, 1)),
            (16, LinearTiles("tiled", 16, 128, 128, 8, 4, 1)),
            (32, LinearTiles("tiled", 32, 128, 128, 8, 4, 1)),
            (64, LinearTiles("tiled", 64, 128, 64, 4, 4, 1)),
            (256, LIBRARY),
        ),
        (151936, 896, False): (
            (1, LinearTiles("gemv", 1, 4, 1024, 4, 1, 1)),
            (16, LinearTiles("tiled", 16, 64, 128, 4, 3, 1)),
            (256, LIBRARY),
        ),
    }
)
