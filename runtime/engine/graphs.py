"""Decode steps as captured CUDA graphs, one for each batch size.

A graph reads the seats and positions of its rows, takes each row's newest token and its page from the device, runs the
model, takes the likeliest token and writes it where the next step reads it. Rows beyond the batch have position -1:
they attend to nothing and store nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from runtime.attention.base import AttentionImpl, PagedInputs


def graph_sizes(largest: int) -> tuple[int, ...]:
    """Batch sizes to capture: close together where padding would cost most."""
    sizes = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, *range(256, 512, 64), *range(512, 4097, 128)]
    return (*(s for s in sizes if s < largest), largest)


@dataclass(eq=False)
class DecodeGraph:
    """One captured step of `size` rows.

    tokens  int64 [size]: the likeliest of each row; best: its logit, as the model computes it
    logits  [size, vocabulary] in the model's dtype, before scale and cap
    """

    size: int
    graph: Any
    seats: Tensor
    positions: Tensor
    tokens: Tensor
    best: Tensor
    logits: Tensor

    def replay(self, seats: Tensor, positions: Tensor) -> None:
        """int64 [size] each; queued, not waited for."""
        self.seats.copy_(seats)
        self.positions.copy_(positions)
        self.graph.replay()


class DecodeGraphs:
    """The graphs of a model by size. The tensors that they read and write never move."""

    def __init__(
        self,
        model: Any,
        attention: AttentionImpl,
        table: Tensor,
        newest: Tensor,
        page_size: int,
        sizes: tuple[int, ...],
    ) -> None:
        self._model = model
        self._attention = attention
        self._table = table
        self._newest = newest
        self._page_size = page_size
        self._sizes = sizes
        self._graphs: dict[int, DecodeGraph] = {}

    def fits(self, count: int) -> bool:
        return bool(self._graphs) and count <= self._sizes[-1]

    def graph(self, count: int) -> DecodeGraph:
        """The smallest that holds so many rows."""
        return self._graphs[next(s for s in self._sizes if s >= count)]

    def capture(self, spare: int) -> None:
        """Capture all sizes, the largest first, so that the others find their memory made. `spare` is a seat nobody has."""
        from tqdm import tqdm

        device = self._table.device
        if device.type != "cuda":
            self._imitate(spare)
            return
        pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream()
        bar = tqdm(sorted(self._sizes, reverse=True), desc="decode graphs", unit="size", disable=None)
        for size in bar:
            seats = torch.full((size,), spare, dtype=torch.long, device=device)
            positions = torch.full((size,), -1, dtype=torch.long, device=device)
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._step(seats, positions)  # kernels are compiled and scratch is made outside of the graph
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                tokens, best, logits = self._step(seats, positions)
            self._graphs[size] = DecodeGraph(size, graph, seats, positions, tokens, best, logits)
        bar.close()

    def _imitate(self, spare: int) -> None:
        """Steps that are run anew each time, where nothing can be captured."""
        for size in self._sizes:
            seats, positions = torch.full((size,), spare), torch.full((size,), -1)
            tokens, best, logits = self._step(seats, positions)
            found = DecodeGraph(size, None, seats, positions, tokens, best, logits)
            found.graph = _Rerun(self._step, found)
            self._graphs[size] = found

    def _step(self, seats: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        from runtime.kernels.argmax import argmax

        size = len(seats)
        at = positions.clamp(min=0)
        pages = self._table[seats, at // self._page_size].to(torch.long)
        slots = torch.where(positions >= 0, pages * self._page_size + at % self._page_size, -1)
        self._attention.plan(
            PagedInputs(
                table=self._table,
                seats=seats.to(torch.int32),
                lengths=(positions + 1).to(torch.int32),
                starts=torch.arange(size + 1, dtype=torch.int32, device=seats.device),
                slots=slots,
                max_new=1,
                max_length=self._table.shape[1] * self._page_size,
                decodes=size,
            )
        )
        hidden = self._model(self._newest[seats], at, self._attention)
        logits = self._model.raw_logits(hidden)
        best, tokens = argmax(logits)
        self._newest[seats] = tokens
        return tokens, best, logits


@dataclass(eq=False)
class _Rerun:
    step: Any
    owner: DecodeGraph

    def replay(self) -> None:
        own = self.owner
        tokens, best, logits = self.step(own.seats, own.positions)
        own.tokens.copy_(tokens)
        own.best.copy_(best)
        own.logits.copy_(logits)
