"""Random paged caches for tests of attention kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# The largest relative error that rounding explains. The interpreter truncates to bfloat16 where a GPU rounds.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Cache:
    table: Tensor
    seats: Tensor
    lengths: Tensor
    k: Tensor
    v: Tensor


def cache(
    lengths: list[int], page_size: int, kv_heads: int, dim: int, dtype: torch.dtype, device: torch.device
) -> Cache:
    """Requests of these lengths in scattered pages; entries past their ends and pages of nobody are poison."""
    pages = [-(-n // page_size) for n in lengths]
    seats = torch.randperm(len(lengths) + 3)[: len(lengths)].int()
    table = torch.full((len(lengths) + 3, max(pages) + 2), 1 << 24, dtype=torch.int32)
    order = torch.randperm(sum(pages) + 3).int()
    at = 0
    for seat, count in zip(seats.tolist(), pages, strict=True):
        table[seat, :count] = order[at : at + count]
        at += count
    shape = ((sum(pages) + 3) * page_size, kv_heads, dim)
    k, v = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    for page in order[at:].tolist():
        k[page * page_size : (page + 1) * page_size] = float("nan")
        v[page * page_size : (page + 1) * page_size] = float("nan")
    for seat, length, count in zip(seats.tolist(), lengths, pages, strict=True):
        if count:  # what lies behind the last token of its page
            last = int(table[seat, count - 1]) * page_size
            rest = slice(last + length - (count - 1) * page_size, last + page_size)
            k[rest], v[rest] = float("nan"), float("nan")
    return Cache(
        table.to(device),
        seats.to(device),
        torch.tensor(lengths, dtype=torch.int32, device=device),
        k.to(device),
        v.to(device),
    )


def share(c: Cache, page_size: int, rows: list[int], positions: int) -> None:
    """Have these rows begin with the first one's pages, as many as hold so many positions; nobody has theirs any more."""
    pages = positions // page_size
    first, *others = c.seats[rows].long().tolist()
    before = set(c.table[others, :pages].flatten().tolist())
    c.table[others, :pages] = c.table[first, :pages].clone()
    for page in before - set(c.table.flatten().tolist()):
        c.k[page * page_size : (page + 1) * page_size] = float("nan")
        c.v[page * page_size : (page + 1) * page_size] = float("nan")


def error(got: Tensor, wanted: Tensor) -> float:
    """|got - wanted| / |wanted|; infinite where something is not a number."""
    difference = float((got.double() - wanted.double()).norm() / wanted.double().norm())
    return difference if difference == difference else float("inf")
