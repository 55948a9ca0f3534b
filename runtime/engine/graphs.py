"""Decode steps as captured CUDA graphs, one for each batch size.

A graph reads the seats and positions of its rows, takes each row's newest token and its page from the device, runs the
model, takes the likeliest token and writes it where the next step reads it, as it does with the positions: a turn of several
steps replays it so often. Rows beyond the batch have position -1: they attend to nothing and store nothing. Several known
tokens of one request are so many rows: all of a layer's keys are stored before any row looks at them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from runtime.attention.base import AttentionImpl, PagedInputs
from runtime.batch import Slice
from runtime.engine.inputs import drawn_rows
from runtime.kernels.sharing import Sharing

# Rows of graphs that are captured once more for runs of one request: at least all that attend in CUDA C++ (`tuning.packed_rows`).
_LARGEST_RUNS = 256
# Rows of a step: of different requests; some successive ones of a request; of different ones, many of which begin alike.
Kind = Literal["apart", "runs", "alike"]


def graph_sizes(largest: int) -> tuple[int, ...]:
    """Batch sizes to capture: close together where padding would cost most."""
    sizes = [1, 2, 4, 8, 16, 24, 32, *range(48, 256, 16), *range(256, 512, 32)]
    sizes += [*range(512, 1024, 64), *range(1024, 4097, 128)]
    return (*(s for s in sizes if s < largest), largest)


def graph_rows(slices: list[Slice]) -> tuple[np.ndarray, np.ndarray]:
    """What a captured step computes, int64 [4, rows] as kernels/decode_step.py takes it; the rows that draw."""
    count = len(slices)
    lengths = np.fromiter((len(s.tokens) + len(s.guesses) or 1 for s in slices), np.int64, count)
    ends = np.cumsum(lengths)
    firsts = np.fromiter((s.start for s in slices), np.int64, count) - (ends - lengths)
    rows = np.zeros((4, ends[-1]), dtype=np.int64)
    rows[0] = np.repeat(np.fromiter((s.seat for s in slices), np.int64, count), lengths)
    rows[1] = np.repeat(firsts, lengths) + np.arange(ends[-1])
    rows[2, ends - 1] = np.fromiter((s.steps if s.sample else 0 for s in slices), np.int64, count)
    rows[3] = np.fromiter((t for s in slices for t in s.ids or (-1,)), np.int64, ends[-1])
    return rows, drawn_rows(slices, ends)


@dataclass(eq=False)
class DecodeGraph:
    """One captured step of `size` rows.

    control  int64 [6, size]: what kernels/decode_step.py reads and moves on, and what attention knows of rows that begin alike
    marked   int64 [size]: the likeliest token of each row, -1 where its logit is not finite
    logits   [size, own part of the vocabulary] in the model's dtype, before scale and cap
    """

    size: int
    graph: Any
    control: Tensor
    marked: Tensor
    logits: Tensor

    def start(self, control: Tensor) -> None:
        """Rows of the turn's first step and their `Sharing`, int64 [6 * size], on the device."""
        self.control.view(-1).copy_(control)

    def replay(self) -> None:
        """One step; queued, not waited for."""
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
        self._graphs: dict[tuple[int, Kind], DecodeGraph] = {}
        self._starts = torch.arange(max(sizes) + 1, dtype=torch.int32, device=table.device)

    def fits(self, count: int, *, runs: bool = False) -> bool:
        """Whether there is a graph for so many rows; `runs`: some are successive tokens of one request."""
        kind: Kind = "runs" if runs else "apart"
        return bool(self._graphs) and count <= self._sizes[-1] and (self._size(count), kind) in self._graphs

    def graph(self, count: int, *, runs: bool = False) -> DecodeGraph:
        """The smallest that holds so many rows."""
        return self._graphs[self._size(count), "runs" if runs else "apart"]

    def alike(self, count: int) -> DecodeGraph | None:
        """The smallest that holds so many rows of different requests, and reads what begins alike."""
        return self._graphs.get((self._size(count), "alike"))

    def bundles(self) -> tuple[int, int]:
        """As `TritonAttention.bundles`."""
        attention: Any = self._attention
        found: tuple[int, int] = attention.bundles()
        return found

    def _size(self, count: int) -> int:
        return next(s for s in self._sizes if s >= count)

    def rehearse(self, spare: int) -> None:
        """Some steps, none captured, that launch what those of all sizes do: tiles change at powers of two."""
        for size in self._sizes:
            if size & (size - 1) == 0 or size == self._sizes[-1]:
                for kind in self._kinds(size):
                    if not (
                        kind == "apart" and self._whole(size)
                    ):  # what makes that kernel needs no rehearsal
                        self._step(self._rows(size, spare), kind)

    def _whole(self, size: int) -> bool:
        """Whether a step of this size is one launch."""
        return bool(getattr(self._model, "in_one_launch", lambda _: False)(size))

    def _kinds(self, size: int) -> tuple[Kind, ...]:
        """What graphs of this size there are. One of runs serves all, unless a launch stores keys and attends: where one does, runs
        of one request have a graph of their own but for large sizes, where they are rare. One that reads what begins alike is
        another one: it would take longer if nothing does."""
        attention: Any = self._attention
        fused = self._whole(size) or any(
            attention.in_one_launch(size, x.attention) for x in set(self._model.spec.layers)
        )
        kinds: list[Kind] = ["apart"] if fused else []
        if not fused or 1 < size <= _LARGEST_RUNS:
            kinds.append("runs")
        if size > 1 and self.bundles()[1] > 1:
            kinds.append("alike")
        return tuple(kinds)

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
            for kind in self._kinds(size):
                control = self._rows(size, spare)
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    # kernels are compiled and scratch is made outside of the graph
                    self._step(control, kind)
                torch.cuda.current_stream().wait_stream(stream)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool, stream=stream):
                    marked, logits = self._step(control, kind)
                self._keep(DecodeGraph(size, graph, control, marked, logits), kind)
        bar.close()

    def _keep(self, graph: DecodeGraph, kind: Kind) -> None:
        self._graphs[graph.size, kind] = graph
        if kind == "runs":
            self._graphs.setdefault((graph.size, "apart"), graph)

    def release(self) -> None:
        """Give the graphs up. What NCCL does in one keeps its communicator from ending."""
        for held in set(self._graphs.values()):
            if held.graph is not None and hasattr(held.graph, "reset"):
                held.graph.reset()
        self._graphs.clear()

    def _rows(self, size: int, spare: int) -> Tensor:
        control = torch.full((6, size), -1, dtype=torch.long, device=self._table.device)
        control[0] = spare
        control[5] = 0
        return control

    def _imitate(self, spare: int) -> None:
        """Steps that are run anew each time, where nothing can be captured."""
        for size in self._sizes:
            for kind in self._kinds(size):
                control = self._rows(size, spare)
                found = DecodeGraph(size, None, control, *self._step(control, kind))
                found.graph = _Rerun(self._step, found, kind)
                self._keep(found, kind)

    def _step(self, control: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
        from runtime.kernels.decode_step import begin_step, end_step

        size = control.shape[1]
        rows = begin_step(control[:4], self._table, self._newest, self._page_size)
        self._attention.plan(
            PagedInputs(
                table=self._table,
                seats=rows.seats,
                lengths=rows.lengths,
                starts=self._starts[: size + 1],
                slots=rows.slots,
                max_new=1,
                max_length=self._table.shape[1] * self._page_size,
                decodes=size,
                apart=kind != "runs",
                sharing=Sharing(control[4], control[5]) if kind == "alike" else None,
            )
        )
        hidden = self._model(rows.ids, rows.positions, self._attention)
        logits, best, tokens = self._model.likeliest_of(hidden)
        return end_step(control[:4], tokens, best, self._newest), logits


@dataclass(eq=False)
class _Rerun:
    step: Any
    owner: DecodeGraph
    kind: Kind

    def replay(self) -> None:
        marked, logits = self.step(self.owner.control, self.kind)
        self.owner.marked.copy_(marked)
        self.owner.logits.copy_(logits)
