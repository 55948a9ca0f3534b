"""Mailboxes of ranks that are all in this process, for tests without a second device."""

from __future__ import annotations

import torch

from runtime.kernels.sum_ranks import TURNS, Mailboxes, empty_word


def mailboxes(
    size: int, rows: int, words: int, dtype: torch.dtype, device: torch.device, looks: int
) -> list[Mailboxes]:
    """Of every rank: `rows` rows of so many words, all empty."""
    shape = (TURNS, size, rows, words)
    boxes = [torch.full(shape, empty_word(dtype), dtype=torch.int32, device=device) for _ in range(size)]
    places = torch.tensor([box.data_ptr() for box in boxes], dtype=torch.int64, device=device)
    made = [
        Mailboxes(r, places, torch.zeros(4 + TURNS, dtype=torch.int32, device=device), rows, words, looks)
        for r in range(size)
    ]
    for mail, box in zip(made, boxes, strict=True):
        object.__setattr__(mail, "_memory", box)  # lives as long as its owner
    return made
