"""A model on a GPU: batches are queued without waiting, tokens are read when the next batch is under way.

What a step needs goes over in one transfer of integers; the page table and the newest token of each seat live on the
device, so a decode step can be queued before the host knows the tokens of the one before it. Batches of few rows replay
a captured graph (engine/graphs.py). Where a mask depends on the host, the model's part is queued by `launch` and the draw
by `draw`, once the batch before was collected: the host follows constraints while the model runs. Only log-probabilities
make it wait.
"""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runtime.attention.base import AttentionImpl, PagedInputs
from runtime.batch import Batch, Sampled, Slice, draws
from runtime.constrain.compiler import ConstraintCompiler
from runtime.constrain.device import DeviceSeats
from runtime.engine.bundles import SharedBeginnings
from runtime.engine.compile_ahead import StartKind, compile_ahead, settle_keys
from runtime.engine.first_launches import launch_all, rehearse
from runtime.engine.graphs import DecodeGraphs, graph_rows, graph_sizes
from runtime.engine.inputs import drawn_rows
from runtime.engine.pending import Held, Pending
from runtime.engine.runner import ModelRunner
from runtime.engine.staging import Staging
from runtime.kv.store import KVStore
from runtime.models.decoder import Decoder
from runtime.models.heads import Head
from runtime.parallel.group import Group
from runtime.sampling.random import uniforms
from runtime.sampling.sampler import Sampler, SamplingState, adjust, by_triton, count, fields_of

log = logging.getLogger("runtime.engine")
# Tokens whose keys a captured step reads once more at most, since each row of a request reads all of the request's.
_READ_AGAIN = 1 << 16


class DeviceRunner(ModelRunner):
    """`ModelRunner` for CUDA (or any device, for tests: without graphs it is only slower there).

    seats, context  the largest batch, and the longest sequence
    graph_sizes     batch sizes of decode graphs; none: every step is launched kernel by kernel
    group           of the model's ranks, who are waited for with an eye on them
    """

    def __init__(
        self,
        *args: Any,
        seats: int,
        context: int,
        graph_sizes: tuple[int, ...] = (),
        sampler: Sampler = by_triton,
        group: Group | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, sampler=sampler, **options)
        store = self.store
        self.spare = seats  # the seat of a graph's padding rows
        self._group = group
        width = -(-context // store.page_size) + 1
        self.table = torch.zeros(seats + 1, width, dtype=torch.int32, device=self.device)
        self._newest = torch.zeros(seats + 1, dtype=torch.long, device=self.device)
        self._staging = Staging(self.device)
        self.waited = 0.0  # seconds in which the host had nothing to do but wait for the device
        self._fields = np.zeros((seats + 1, 4))  # how each seat draws: `fields_of` its request
        self._plain = np.zeros(seats + 1, dtype=bool)  # nothing but these fields matters for a seat's draw
        self._seeds = np.zeros(seats + 1, dtype=np.uint64)
        self._prunes = bool(getattr(self.model, "prunes", False))  # it can leave out rows that nobody reads
        spec = self.model.spec
        self._as_is = spec.logit_scale == 1.0 and spec.logit_softcap is None  # raw logits are the logits
        self.tables: DeviceSeats | None = None
        if self._constrained is not None:
            self._constrained = self.tables = DeviceSeats(
                self._constrained.compiler, spec.vocabulary, self.device, seats + 1
            )
        position = 2 * store.k[0, 0].numel() * store.k.element_size()
        self._beginnings = SharedBeginnings(self._rows, position)
        self.graphs = (
            DecodeGraphs(self.model, self.attention, self.table, self._newest, store.page_size, graph_sizes)
            if graph_sizes
            else None
        )

    @torch.inference_mode()
    def capture(self) -> None:
        """Capture the graphs; takes seconds, with a progress bar."""
        if self.graphs is not None:
            self.graphs.capture(self.spare)

    def forget(self) -> None:
        """No seat has a newest token."""
        self._newest.zero_()

    def run(self, batch: Batch) -> Sampled:
        return self.collect(self.launch(batch))

    @torch.inference_mode()
    def launch(self, batch: Batch) -> Pending:
        """Queue one batch. Batches are collected in the order in which they were launched; `draw` comes before the next."""
        captured = self._captured(batch)
        steps = batch.steps
        if steps > 1 and (not captured or any(self._waits(s) for s in batch.slices)):
            return Pending(batch, one_by_one=True)
        self._staging.next_batch()
        self._seat(batch)
        updates = self._updates(batch)
        if captured:
            return self._launch_graph(batch, steps, *updates)
        return self._launch_plain(batch, *updates)

    def queues_turns(self, rows: int) -> bool:
        """Whether several steps of so many rows can be queued at once."""
        return self.graphs is not None and self.graphs.fits(rows)

    def _captured(self, batch: Batch) -> bool:
        """Whether a graph computes the batch. A few known tokens of a request, which a constraint forced or which a cached
        prompt ends with, are so many rows of it."""
        if self.graphs is None or self.head is not None or any(s.scores >= 0 for s in batch.slices):
            return False
        runs = [(s.count - 1, s.start + s.count) for s in batch.slices if s.tokens and s.count > 1]
        more = sum(count for count, _ in runs)
        again = sum(count * length for count, length in runs)
        return again <= _READ_AGAIN and self.graphs.fits(len(batch.slices) + more, runs=more > 0)

    def _seat(self, batch: Batch) -> None:
        super()._seat(batch)
        if batch.admitted:
            self._beginnings.forget()
        for a in batch.admitted:
            self._fields[a.seat] = fields_of(a.sampling)
            self._seeds[a.seat] = a.seed & (2**64 - 1)
            state = self._states[a.seat]
            self._plain[a.seat] = (
                state.penalties is None and state.logprobs is None and a.sampling.constraint is None
            )
        if self.tables is not None:
            self.tables.tell(self._staging.moves)

    # -- the page table -------------------------------------------------------------------------------------

    def _updates(self, batch: Batch) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Append the batch's pages to the rows here; seats, columns and pages that the device's table has to learn."""
        fresh = [a for a in batch.admitted if a.pages]
        added = [s for s in batch.slices if s.pages]
        seats = np.fromiter((s.seat for s in added), np.int64, len(added))
        counts = np.fromiter((len(s.pages) for s in added), np.int64, len(added))
        pages = [page for s in added for page in s.pages]
        rows, columns = self._rows.extend(seats, counts, pages)
        if fresh:  # the seating put these into the rows already
            rows = np.concatenate((rows, *(np.full(len(a.pages), a.seat) for a in fresh)))
            columns = np.concatenate((columns, *(np.arange(len(a.pages)) for a in fresh)))
            pages += [page for a in fresh for page in a.pages]
        return rows, columns, pages

    def _update_table(self, rows: Tensor, columns: Tensor, pages: Tensor) -> None:
        if len(rows):
            self.table.index_put_((rows, columns), pages.to(torch.int32))

    # -- batches of single tokens and short runs ------------------------------------------------------------

    def _launch_graph(
        self, batch: Batch, steps: int, rows: np.ndarray, columns: np.ndarray, pages: list[int]
    ) -> Pending:
        assert self.graphs is not None
        slices = draws(batch.slices)
        lines, ends = graph_rows(batch.slices)
        count = lines.shape[1]
        runs = count > len(batch.slices)
        graph = self.graphs.graph(count, runs=runs)
        alike = None if runs else self.graphs.alike(count)
        shared = None
        if alike is not None:
            shared = self._beginnings.of(lines[0], lines[1], *self.graphs.bundles())
        control = np.full((6, graph.size), -1, dtype=np.int64)
        control[0], control[5] = self.spare, 0
        control[:4, :count] = lines
        if alike is not None and shared is not None:
            graph = alike
            control[4:, :count] = shared
        seats = lines[0, ends]
        plain = bool(self._plain[seats].all())
        likeliest = plain and not self._fields[seats, 0].any()
        packed = () if likeliest else tuple(self._packed(slices, k) for k in range(steps))
        sent = self._staging.send(control.reshape(-1), rows, columns, pages, seats, ends, *packed)
        self._update_table(*sent[1:4])
        graph.start(sent[0])
        there, rest = sent[4], sent[6:]
        model: Any = self.model
        whole = len(ends) == count
        if steps == 1:
            graph.replay()
            if not slices:
                return self._arriving(batch, there)
            if likeliest:
                return self._arriving(batch, graph.marked[:count] if whole else graph.marked[sent[5]])
            logits = graph.logits[:count] if whole else graph.logits[sent[5]]
            return self._draw(batch, slices, model.gathered(logits), there, rest[0], {})
        written = torch.empty(steps, count, dtype=torch.int64, device=self.device)
        states = self._states_of(slices) if not plain else []
        for k in range(steps):
            graph.replay()
            if likeliest:
                written[k].copy_(graph.marked[:count])
            else:
                logits = model.gathered(graph.logits[:count])
                written[k].copy_(self._draws(logits, states, slices, k, there, rest[k]))
        return self._arriving(batch, written.view(-1), counts=lines[2])

    # -- any batch ------------------------------------------------------------------------------------------

    def _launch_plain(self, batch: Batch, rows: np.ndarray, columns: np.ndarray, pages: list[int]) -> Pending:
        slices = batch.slices
        decodes = next((i for i, s in enumerate(slices) if s.tokens), len(slices))
        assert all(s.tokens for s in slices[decodes:]), "single tokens come first in a batch"
        ids: list[int] = [0] * decodes
        positions: list[np.ndarray] = [np.array([s.start for s in slices[:decodes]], dtype=np.int64)]
        slots: list[np.ndarray] = [np.array([self._slot(s) for s in slices[:decodes]], dtype=np.int64)]
        for piece in slices[decodes:]:
            end = piece.start + piece.count
            ids += piece.ids
            positions.append(np.arange(piece.start, end))
            slots.append(self._rows.slots(piece.seat, end)[piece.start :])
        starts = np.cumsum([0, *(s.count for s in slices)])
        seats = [s.seat for s in slices]
        lengths = [s.start + s.count for s in slices]
        pooled = [i for i, s in enumerate(slices) if s.pool] if self.head is not None else []
        chosen = [slices[i] for i in pooled] or draws(slices)
        wanted = starts[1:][pooled] - 1 if pooled else drawn_rows(slices, starts[1:])
        if not len(wanted):  # a prompt's first chunk: some row, so that no kernel meets none
            wanted = starts[1:][-1:] - 1
        sent = self._staging.send(
            ids, np.concatenate(positions), np.concatenate(slots), seats, lengths, starts,
            wanted, rows, columns, pages, [s.seat for s in chosen], self._packed(chosen),
        )  # fmt: skip
        self._update_table(*sent[7:10])
        ids_there = sent[0]
        if decodes:
            ids_there[:decodes] = self._newest[sent[3][:decodes]]
        self.attention.plan(
            PagedInputs(
                table=self.table,
                seats=sent[3].to(torch.int32),
                lengths=sent[4].to(torch.int32),
                starts=sent[5].to(torch.int32),
                slots=sent[2],
                max_new=max(s.count for s in slices),
                max_length=max(lengths),
                decodes=decodes,
                prompts=tuple(
                    (int(first), s.count, s.start)
                    for first, s in zip(starts[decodes:-1], slices[decodes:], strict=True)
                ),
            )
        )
        model: Any = self.model
        few = self._prunes and len(wanted) < len(ids) and not any(s.scores >= 0 for s in slices)
        if few:
            hidden, scores = model(ids_there, sent[1], self.attention, sent[6]), {}
        else:
            hidden = model(ids_there, sent[1], self.attention)
            scores = self._prompt_scores(batch, hidden)
            hidden = hidden[sent[6]]
        if pooled:
            return Pending(batch, done=self._pooled(batch, pooled, hidden))
        if not chosen:  # waited for all the same, or the host would run ahead of its staging buffers
            return self._arriving(batch, sent[0][:0], scores)
        return self._draw(batch, chosen, model.raw_logits(hidden), sent[10], sent[11], scores)

    def _slot(self, piece: Slice) -> int:
        page, offset = divmod(piece.start, self.store.page_size)
        return int(self._rows.table[piece.seat, page]) * self.store.page_size + offset

    # -- tokens ---------------------------------------------------------------------------------------------

    def _waits(self, piece: Slice) -> bool:
        """Whether the host must know this row's token before its next step; not so where its constraint is on the device."""
        return self._constrained is not None and self._constrained.has(piece.seat)

    def _packed(self, slices: list[Slice], step: int = 0) -> np.ndarray:
        """What `sample` has to know of these rows at a step of their turn: the bits of float64 [5, rows], flat."""
        seats = [s.seat for s in slices]
        outputs = np.fromiter((s.output for s in slices), np.uint64, len(slices)) + np.uint64(step)
        u = uniforms(self._seeds[seats], outputs)
        return np.concatenate((self._fields[seats].T.reshape(-1), u)).view(np.int64)

    def _draw(
        self,
        batch: Batch,
        slices: list[Slice],
        raw: Tensor,
        seats: Tensor,
        packed: Tensor,
        scores: dict[int, list[Any]],
    ) -> Pending:
        """`raw` [rows, vocabulary] in the model's dtype, before scale and cap; `seats` and what `_packed` made, on the device."""
        model: Any = self.model
        if any(self._waits(s) for s in slices):
            held = Held(slices, raw, seats, packed)
            return Pending(batch, prompt=scores, held=held, follows=True)
        states = self._states_of(slices)
        if any(s.logprobs is not None for s in states):
            return Pending(batch, done=self._sample(batch, slices, model.finished(raw), scores))
        return self._arriving(batch, self._draws(raw, states, slices, 0, seats, packed), scores)

    @torch.inference_mode()
    def draw(self, pending: Pending) -> None:
        """Queue the draw of a batch, if that waited for the tokens of the batch before: they are collected now."""
        batch = pending.batch
        if pending.one_by_one:
            pending.one_by_one = False
            pending.done = Sampled.of_turn(batch, [self.collect(self.launch(one)) for one in batch.singles()])
        held, pending.held = pending.held, None
        if held is None:
            return
        model: Any = self.model
        states = self._states_of(held.slices)
        if any(s.logprobs is not None for s in states):
            pending.done = self._sample(batch, held.slices, model.finished(held.raw), pending.prompt)
            return
        cut = self._masks_of(held.slices)
        marked = self._draws(held.raw, states, held.slices, 0, held.seats, held.packed, cut)
        drawn = self._arriving(batch, marked)
        pending.arrived, pending.event = drawn.arrived, drawn.event

    def _draws(
        self,
        raw: Tensor,
        states: list[SamplingState],
        slices: list[Slice],
        step: int,
        seats: Tensor,
        packed: Tensor,
        cut: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Tokens of these rows, -1 where the logits were not finite; each is its seat's newest then. `cut`: `_masks_of` them."""
        model: Any = self.model
        as_is = self._as_is and all(s.penalties is None for s in states)
        logits = raw if as_is else model.finished(raw)
        tokens, best = self._pick(logits, states, slices, step, seats, packed, cut)
        self._newest[seats] = tokens
        return torch.where(torch.isfinite(best), tokens, -1)

    def _pick(
        self,
        logits: Tensor,
        states: list[SamplingState],
        slices: list[Slice],
        step: int,
        seats: Tensor,
        packed: Tensor,
        cut: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        """What the sampler says of logits, which are changed in place."""
        if self._void:  # a draw that means nothing is no token of the text
            bare = {i for i, s in enumerate(slices) if self._is_void(s)}
            states = [_bare(s, self._no_ends) if i in bare else s for i, s in enumerate(states)]
        if any(s.penalties is not None for s in states):
            adjust(logits, states, [s.output + step for s in slices])
        if cut is not None:
            from runtime.kernels.mask import mask_bits

            mask_bits(logits, *cut)
        rows = [s.seat for s in slices]
        tables = self.tables if self.tables is not None and self.tables.has_any(rows) else None
        if tables is not None:
            tables.mask(logits, seats)
        tokens, best = self.sampler(logits, packed.view(torch.float64).view(5, -1), self._fields[rows])
        if tables is not None:
            tables.take(tokens, seats)
        count(tokens, states)
        return tokens, best

    def _allow(self, slices: list[Slice], states: list[SamplingState]) -> None:
        """`_drawn` finds them."""

    def _masks_of(self, slices: list[Slice]) -> tuple[Tensor, Tensor] | None:
        """Rows whose masks are the host's, and these. They are found while the model runs, and go over in one transfer."""
        rows = [i for i, s in enumerate(slices) if self._waits(s) and not self._is_void(s)]
        if not rows or self.tables is None:
            return None
        words = -(-self.model.spec.vocabulary // 32)
        size = len(rows) * (words + 1)
        host = self._staging.memory("masks", -(-size // 2)).view(torch.int32)[:size]
        flat = host.numpy()
        flat[: len(rows)] = rows
        bits = flat[len(rows) :].view(np.uint32).reshape(len(rows), words)
        for row, at in zip(bits, rows, strict=True):
            mask = self.tables.bits(slices[at].seat, slices[at].guesses)[:words]
            row[: len(mask)], row[len(mask) :] = mask, 0
        there = host.to(self.device, non_blocking=True)
        return there[: len(rows)], there[len(rows) :].view(len(rows), words)

    def _drawn(self, logits: Tensor, states: list[SamplingState], slices: list[Slice]) -> Tensor:
        cut = self._masks_of(slices)
        packed = torch.from_numpy(self._packed(slices)).to(self.device)
        rows = [s.seat for s in slices]
        seats = torch.tensor(rows, device=self.device)
        tokens, best = self._pick(logits, states, slices, 0, seats, packed, cut)
        if self.tables is not None and self.tables.has_any(rows):
            self.tables.lose(s for s, b in zip(rows, best.tolist(), strict=True) if not math.isfinite(b))
        return tokens

    def _arriving(
        self,
        batch: Batch,
        marked: Tensor,
        scores: dict[int, list[Any]] | None = None,
        *,
        counts: np.ndarray | None = None,
    ) -> Pending:
        """Tokens on their way to the host; -1 where the logits were not finite. `counts`: steps of each row, of a turn."""
        host = self._staging.memory("tokens", len(marked))[: len(marked)]
        host.copy_(marked, non_blocking=True)
        event = None
        if self._staging.pinned:
            event = torch.cuda.Event()
            event.record()
        return Pending(batch, None, host, event, scores or {}, counts)

    def _reached(self) -> None:
        if self._group is not None and self._staging.pinned:
            event = torch.cuda.Event()
            event.record()
            self._group.until(event)

    def _wait(self, event: torch.cuda.Event) -> None:
        if self._group is None:
            event.synchronize()
        else:
            self._group.until(event)

    def collect(self, pending: Pending) -> Sampled:
        """The result of a batch; waits until the device has it."""
        self.draw(pending)
        if pending.done is not None:
            return pending.done
        if pending.event is not None:
            began = time.perf_counter()
            self._wait(pending.event)
            self.waited += time.perf_counter() - began
        assert pending.arrived is not None
        arrived, counts = pending.arrived.numpy(), pending.counts
        if counts is not None:  # [steps, rows]: each row's own, one row after another
            by_row = arrived.reshape(-1, len(counts)).T
            arrived = by_row[np.arange(by_row.shape[1]) < counts[:, None]]
        if pending.follows:
            drawn, bad = arrived.tolist(), (arrived < 0).tolist()
            return self._sampled(pending.batch, draws(pending.batch.slices), drawn, bad, [], pending.prompt)
        failed: list[int] = []
        if len(arrived) and arrived.min() < 0:
            seats = [s.seat for s in pending.batch.slices if s.sample for _ in range(s.steps)]
            failed = sorted({seat for seat, token in zip(seats, arrived.tolist(), strict=True) if token < 0})
            arrived = np.maximum(arrived, 0)
        return Sampled(pending.batch.step, arrived.tolist(), [], pending.prompt, failed)


def _bare(state: SamplingState, no_ends: Tensor) -> SamplingState:
    """The same without what it remembers of the text."""
    return SamplingState(state.sampling, state.seed, no_ends, state.logprobs)


def device_runner(
    model: Decoder,
    store: KVStore,
    attention: AttentionImpl,
    ends: tuple[int, ...],
    constraints: ConstraintCompiler | None,
    head: Head | None = None,
    *,
    seats: int,
    context: int,
    largest_graph: int,
    sampler: Sampler = by_triton,
) -> DeviceRunner:
    """A runner with its graphs captured; says what runs. Only own attention is captured: it plans nothing on the host."""
    from runtime.attention.triton import TritonAttention
    from runtime.models.fused import FusedDecoder, why_not  # triton is not everywhere

    if store.k.device.type == "cuda":
        settle_keys()
    own = isinstance(attention, TritonAttention)
    reason = why_not(model)
    layers = FusedDecoder(model, store) if reason is None else model
    log.info(
        "layers: %s", layers.form if isinstance(layers, FusedDecoder) else f"plain torch, since {reason}"
    )
    runner = DeviceRunner(
        layers,
        store,
        attention,
        ends,
        constraints,
        head,
        seats=seats,
        context=context,
        graph_sizes=graph_sizes(largest_graph) if own and largest_graph and head is None else (),
        sampler=sampler,
        group=model.group,
    )
    device = store.k.device
    on_cuda = device.type == "cuda"
    kind = StartKind(None)
    if on_cuda and model.group is None:  # ranks would have to fail together
        kind = StartKind.of(
            torch.cuda.get_device_name(device), str(model.spec), model.dtype, store.k.dtype, store.page_size,
            runner.table.shape, largest_graph, type(attention).__name__, constraints is None, head is None,
            getattr(sampler, "__name__", type(sampler).__name__),
        )  # fmt: skip
        if not kind.seen():
            compile_ahead(lambda: rehearse(runner), device)
    began = time.perf_counter()
    runner.capture()
    if runner.graphs is not None:
        log.info("decode graphs captured in %.1f s", time.perf_counter() - began)
    if on_cuda:
        began = time.perf_counter()
        launch_all(runner)
        kind.keep()
        log.info("all else was launched once in %.1f s", time.perf_counter() - began)
    return runner
