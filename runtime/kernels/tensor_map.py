"""Matrices as the copy engine of Hopper sees them: it brings and stores whole tiles."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache

from torch import Tensor

from runtime.kernels import nvrtc

SWIZZLED = 64  # columns of a tile whose rows of 128 bytes are swizzled
TensorMap = ctypes.c_uint64 * 16
Maps = Callable[[Tensor, int, int], ctypes.Array[ctypes.c_uint64]]


def takes(matrix: Tensor) -> bool:
    """Whether the copy engine can read it as it lies."""
    return matrix.stride(1) == 1 and matrix.stride(0) % 8 == 0 and matrix.data_ptr() % 16 == 0


def described(matrix: Tensor, high: int, wide: int) -> ctypes.Array[ctypes.c_uint64]:
    """A bfloat16 matrix whose tiles have so many rows and columns; swizzled if the latter are SWIZZLED.

    Raises CudaError for one that it does not take.
    """
    return _encoded(matrix.data_ptr(), *matrix.shape, matrix.stride(0), high, wide)


@lru_cache(maxsize=4096)
def _encoded(
    address: int, rows: int, columns: int, stride: int, high: int, wide: int
) -> ctypes.Array[ctypes.c_uint64]:
    from cuda.bindings import driver

    swizzles = driver.CUtensorMapSwizzle
    answer = driver.cuTensorMapEncodeTiled(
        driver.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        2,
        address,
        [driver.cuuint64_t(columns), driver.cuuint64_t(rows)],
        [driver.cuuint64_t(2 * stride)],
        [driver.cuuint32_t(wide), driver.cuuint32_t(high)],
        [driver.cuuint32_t(1)] * 2,
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        swizzles.CU_TENSOR_MAP_SWIZZLE_128B if wide == SWIZZLED else swizzles.CU_TENSOR_MAP_SWIZZLE_NONE,
        driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )
    found = nvrtc.ask(answer, f"describing a matrix of {rows} by {columns} to the copy engine")
    return TensorMap.from_buffer_copy(ctypes.string_at(found.getPtr(), ctypes.sizeof(TensorMap)))
