"""Joins attention over parts of a context.

A part gives the weighted mean of its values and the base-2 logarithm of its sum of exponentials; both are in
float32. The kernels that split a context leave the join to whichever program finishes last, so that no second
launch is needed: `arrive` tells it that it is the last.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


def merge_reference(partial: Tensor, weights: Tensor) -> Tensor:
    """partial [..., parts, dim], weights [..., parts] in base 2 (-inf: an empty part); returns [..., dim]."""
    share = torch.softmax(weights * torch.log(torch.tensor(2.0, dtype=weights.dtype)), dim=-1)
    return (share.unsqueeze(-1) * torch.nan_to_num(partial)).sum(-2)


@dataclass(frozen=True)
class SplitScratch:
    """Where parts wait to be joined: one scratch serves every layer, since launches of a stream follow each other.

    partial  float32 [requests, groups, splits, rows, dim]
    weights  float32 [requests, groups, splits, rows]
    arrived  int32 [requests, groups], zero between launches
    """

    partial: Tensor
    weights: Tensor
    arrived: Tensor


def split_scratch(
    requests: int, groups: int, splits: int, rows: int, dim: int, device: torch.device
) -> SplitScratch:
    """Scratch for up to so many requests; `groups` x `rows` are the query heads."""
    return SplitScratch(
        torch.empty(requests, groups, splits, rows, dim, dtype=torch.float32, device=device),
        torch.empty(requests, groups, splits, rows, dtype=torch.float32, device=device),
        torch.zeros(requests, groups, dtype=torch.int32, device=device),
    )


def check_scratch(
    scratch: SplitScratch, requests: int, groups: int, splits: int, rows: int, dim: int
) -> None:
    """Raise ValueError unless the scratch is at least as large as the launch needs."""
    have = scratch.partial.shape
    if have[0] < requests or tuple(have[1:]) != (groups, splits, rows, dim):
        raise ValueError(
            f"scratch is {tuple(have)} but this launch needs {(requests, groups, splits, rows, dim)}; "
            "make it with split_scratch() for the largest batch"
        )


@triton.jit
def arrive(arrived):
    """How many programs came before; what they stored is visible from here on."""
    tl.debug_barrier()  # every thread's stores come before the one thread that counts
    return tl.atomic_add(arrived, 1, sem="acq_rel")


@triton.jit
def join_parts(
    partial,
    weights,
    used,
    out,
    count,
    v_scale,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
    COLS: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """out [count, DIM] from partial [used, ROWS, DIM] and weights [used, ROWS], COLS numbers and AT_ONCE parts a time."""
    for begin in range(0, count * DIM, COLS):
        col = begin + tl.arange(0, COLS)
        live = col < count * DIM
        top = tl.full((COLS,), float("-inf"), tl.float32)
        total = tl.zeros((COLS,), tl.float32)
        acc = tl.zeros((COLS,), tl.float32)
        for first in range(0, used, AT_ONCE):
            part = first + tl.arange(0, AT_ONCE)
            mask = (part < used)[:, None] & live[None, :]
            # .cg: other multiprocessors wrote these, so the nearest cache may be stale
            w = tl.load(
                weights + part[:, None] * ROWS + (col // DIM)[None, :],
                mask=mask,
                other=float("-inf"),
                cache_modifier=".cg",
            )
            x = tl.load(
                partial + part[:, None] * (ROWS * DIM) + col[None, :],
                mask=mask,
                other=0.0,
                cache_modifier=".cg",
            )
            higher = tl.maximum(top, tl.max(w, 0))
            higher = tl.where(live, higher, 0.0)
            keep = tl.exp2(top - higher)
            share = tl.exp2(w - higher[None, :])
            acc = acc * keep + tl.sum(share * x, 0)
            total = total * keep + tl.sum(share, 0)
            top = higher
        total = tl.where(live, total, 1.0)
        tl.store(out + col, (acc / total * v_scale).to(out.dtype.element_ty), mask=live)
