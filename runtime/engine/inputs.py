"""A Batch to tensors: ids, positions, and where keys and values lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from runtime.attention.base import AttentionInputs, Span
from runtime.batch import Batch, Slice


class PageRows:
    """The pages of each seat, in order: a table that grows as seats and lengths do."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.table = np.zeros((8, 64), dtype=np.int64)
        self.lengths = np.zeros(8, dtype=np.int64)

    def seat(self, seat: int, pages: list[int]) -> None:
        if seat >= len(self.lengths):
            more = max(len(self.lengths) * 2, seat + 1)
            self.table = np.pad(self.table, ((0, more - len(self.lengths)), (0, 0)))
            self.lengths = np.pad(self.lengths, (0, more - len(self.lengths)))
        self.lengths[seat] = 0
        self.append(seat, pages)

    def append(self, seat: int, pages: list[int]) -> None:
        if not pages:
            return
        start = int(self.lengths[seat])
        end = start + len(pages)
        if end > self.table.shape[1]:
            self.table = np.pad(
                self.table, ((0, 0), (0, max(self.table.shape[1], end - self.table.shape[1])))
            )
        self.table[seat, start:end] = pages
        self.lengths[seat] = end

    def extend(
        self, seats: np.ndarray, counts: np.ndarray, pages: list[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Append `counts` pages to these different seats' rows: the rows and columns (int64 [pages]) where they are now."""
        rows = np.repeat(seats, counts)
        ends = np.cumsum(counts)
        columns = self.lengths[rows] + np.arange(len(rows)) - np.repeat(ends - counts, counts)
        if len(rows):
            most = int(columns.max()) + 1
            if most > self.table.shape[1]:
                more = max(self.table.shape[1], most - self.table.shape[1])
                self.table = np.pad(self.table, ((0, 0), (0, more)))
            self.table[rows, columns] = pages
            self.lengths[seats] += counts
        return rows, columns

    def slots(self, seat: int, length: int) -> np.ndarray:
        """int64 [length]: the slots of positions 0 .. length - 1."""
        if self.page_size == 1:
            return self.table[seat, :length]
        pages = -(-length // self.page_size)
        slots = self.table[seat, :pages, None] * self.page_size + np.arange(self.page_size)
        return slots.reshape(-1)[:length]


def drawn_rows(slices: list[Slice], ends: np.ndarray) -> np.ndarray:
    """int64: rows from which tokens are drawn, as `runtime.batch.draws` has them; `ends` [slices] are the rows behind each slice."""
    if any(s.guesses for s in slices):
        firsts = ((s, end - len(s.guesses) - 1) for s, end in zip(slices, ends.tolist(), strict=True))
        return np.array([first + k for s, first in firsts if s.sample for k in s.draws], dtype=np.int64)
    drawn: np.ndarray = ends[np.fromiter((s.sample for s in slices), bool, len(slices))] - 1
    return drawn


@dataclass(frozen=True)
class ForwardInputs:
    """ids int64 [tokens] and positions int64 [tokens]; `last` int64 [slices]: row of each slice's last position."""

    ids: Tensor
    positions: Tensor
    last: Tensor
    attention: AttentionInputs

    @classmethod
    def from_batch(cls, batch: Batch, rows: PageRows, newest: Tensor, device: str) -> ForwardInputs:
        """`newest` int64 [seats] is the token sampled last for each seat: what a decode slice feeds."""
        total = batch.tokens
        ids = np.empty(total, dtype=np.int64)
        positions = np.empty(total, dtype=np.int64)
        slots = np.empty(total, dtype=np.int64)
        spans, last, decodes, seats = [], [], [], []
        at = 0
        for piece in batch.slices:
            count, end = piece.count, piece.start + piece.count
            row = rows.slots(piece.seat, end)
            if piece.tokens:
                ids[at : at + count] = piece.ids
            else:
                ids[at] = 0
                decodes.append(at)
                seats.append(piece.seat)
            positions[at : at + count] = np.arange(piece.start, end)
            slots[at : at + count] = row[piece.start :]
            spans.append(Span(at, count, piece.start, torch.from_numpy(row).to(device)))
            at += count
            last.append(at - 1)
        ids_tensor = torch.from_numpy(ids).to(device)
        if decodes:
            ids_tensor[torch.tensor(decodes, device=device)] = newest[torch.tensor(seats, device=device)]
        return cls(
            ids_tensor,
            torch.from_numpy(positions).to(device),
            torch.tensor(last, device=device),
            AttentionInputs(spans, torch.from_numpy(slots).to(device)),
        )
