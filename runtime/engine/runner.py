"""Inputs, forward, sample: one rank's model."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from runtime.api import LogprobOptions, SamplingParams, TokenLogprob
from runtime.attention.base import AttentionImpl
from runtime.batch import Admission, Batch, Guesses, Sampled, Slice, draws, verified
from runtime.constrain.compiler import ConstraintCompiler
from runtime.constrain.masks import ConstrainedSeats
from runtime.engine.inputs import ForwardInputs, PageRows, drawn_rows
from runtime.kernels.cpu.path import FastDecoder, choose
from runtime.kv.store import KVStore
from runtime.models.decoder import Decoder
from runtime.models.heads import Head, vectors
from runtime.sampling.penalties import Penalties
from runtime.sampling.sampler import Sampler, SamplingState, by_torch, logprobs_of, sample

_SCORE_ROWS = 256  # positions whose whole distribution is in memory at once


class ModelRunner:
    """Runs batches in the order in which they were made, keeping what it needs of each seat.

    `ends` are the ids that end any request of this model; with a `head` it makes vectors of prompts, and generates nothing.
    """

    def __init__(
        self,
        model: Decoder | FastDecoder,
        store: KVStore,
        attention: AttentionImpl,
        ends: tuple[int, ...] = (),
        constraints: ConstraintCompiler | None = None,
        head: Head | None = None,
        *,
        sampler: Sampler = by_torch,
    ) -> None:
        self.model = model
        self.sampler = sampler
        self.head = head
        self.store = store
        self.attention = attention
        self.device = str(store.k.device)
        self.ends = ends
        self._rows = PageRows(store.page_size)
        self._states: dict[int, SamplingState] = {}
        self._constrained: ConstrainedSeats | None = (
            ConstrainedSeats(constraints, model.spec.vocabulary, self.device) if constraints else None
        )
        self._prompts: dict[int, list[int]] = {}
        self._void: set[int] = set()  # seats for which tokens were forced, until these were computed
        self._no_ends = torch.zeros(0, dtype=torch.long, device=self.device)
        self._newest = torch.zeros(8, dtype=torch.long, device=self.device)

    def steady(self, sampling: SamplingParams, logprobs: LogprobOptions | None) -> bool:
        """Whether a request's next step may be queued before its newest token is known."""
        c = sampling.constraint
        return c is None or (self._constrained is not None and self._constrained.unforced(c, logprobs))

    def reload(self, model: Decoder) -> None:
        """The weights of the model have changed in their places: make anew what holds copies of them."""
        if isinstance(self.model, FastDecoder):
            self.model, self.attention = choose(model, self.store)

    def slots(self, seat: int, length: int) -> np.ndarray:
        """int64 [length]: where the keys and values of a seat's positions 0 .. length - 1 lie."""
        return self._rows.slots(seat, length)

    @torch.inference_mode()
    def run(self, batch: Batch) -> Sampled:
        """One forward pass (or a turn of them) and one draw for each slice that asks for it."""
        if batch.steps > 1:
            return Sampled.of_turn(batch, [self.run(one) for one in batch.singles()])
        self._seat(batch)
        self._append_pages(batch)
        inputs = ForwardInputs.from_batch(batch, self._rows, self._newest, self.device)
        hidden = self.forward(inputs)
        if self.head is not None:
            ends = [i for i, s in enumerate(batch.slices) if s.pool]
            return self._pooled(batch, ends, hidden[inputs.last[ends]])
        prompt = self._prompt_scores(batch, hidden)
        slices = draws(batch.slices)
        if not slices:
            return Sampled(batch.step, [], prompt=prompt)
        rows = inputs.last
        if slices != batch.slices:
            behind = np.cumsum([s.count for s in batch.slices])
            rows = torch.from_numpy(drawn_rows(batch.slices, behind)).to(self.device)
        logits = self.model.logits(hidden[rows])
        return self._sample(batch, slices, logits, prompt)

    def forward(self, inputs: ForwardInputs) -> Tensor:
        """Hidden states [tokens, hidden]."""
        self.attention.plan(inputs.attention)
        return self.model(inputs.ids, inputs.positions, self.attention)

    def _reached(self) -> None:
        """Called before the host reads what is behind a model's collectives; it may wait for them."""

    def _pooled(self, batch: Batch, ends: list[int], hidden: Tensor) -> Sampled:
        """The vectors of the slices `ends`, whose last hidden states are [ends, hidden]."""
        if self.head is None or not ends:
            return Sampled(batch.step, [])
        self._reached()
        seats = [batch.slices[i].seat for i in ends]
        found = dict(zip(seats, vectors(self.head, hidden), strict=True))
        failed = [seat for seat, vector in found.items() if vector is None]
        return Sampled(
            batch.step, [], failed=failed, pooled={s: v for s, v in found.items() if v is not None}
        )

    def _seat(self, batch: Batch) -> None:
        for seat in batch.released:
            self._states.pop(seat, None)
            self._prompts.pop(seat, None)
            self._void.discard(seat)
            if self._constrained is not None:
                self._constrained.release(seat)
        for a in batch.admitted:
            self._rows.seat(a.seat, a.pages)
            self._states[a.seat] = self._state(a)
            if self._constrained is not None:
                self._constrained.seat(a)
            if a.logprobs is not None and a.logprobs.start >= 0:
                self._prompts[a.seat] = a.tokens
            if a.seat >= len(self._newest):
                self._newest = torch.cat(
                    (self._newest, self._newest.new_zeros(max(len(self._newest), a.seat)))
                )

    def _append_pages(self, batch: Batch) -> None:
        for piece in batch.slices:
            self._rows.append(piece.seat, piece.pages)

    def _state(self, a: Admission) -> SamplingState:
        s = a.sampling
        if not Penalties.needed(s):  # most requests: nothing to send to the device
            return SamplingState(s, a.seed, self._no_ends, a.logprobs)
        ends = torch.tensor([*self.ends, *s.stop_token_ids], dtype=torch.long, device=self.device)
        penalties = Penalties(s, a.tokens, a.prompt, self.model.spec.vocabulary, self.device)
        return SamplingState(s, a.seed, ends, a.logprobs, penalties)

    def _states_of(self, slices: list[Slice]) -> list[SamplingState]:
        """Of the slices' seats; a state of its own for each draw behind a guess."""
        states = [self._states[s.seat] for s in slices]
        for i, piece in enumerate(slices):
            if piece.guesses:
                states[i] = SamplingState(states[i].sampling, states[i].seed, self._no_ends)
        return states

    def _sample(self, batch: Batch, slices: list[Slice], logits: Tensor, prompt: dict[int, list]) -> Sampled:  # type: ignore[type-arg]
        """Draw for `slices`, the batch's `draws`."""
        self._reached()
        states = self._states_of(slices)
        self._allow(slices, states)
        scored = [i for i, state in enumerate(states) if state.logprobs is not None]
        raw = logits[scored].clone() if scored else None
        broken = ~torch.isfinite(logits.sum(dim=-1))  # one that is not makes the sum so
        tokens = self._drawn(logits, states, slices)
        self._newest[torch.tensor([s.seat for s in slices], device=self.device)] = tokens
        logprobs: list[tuple[TokenLogprob, list[TokenLogprob]] | None] = []
        if raw is not None:
            logprobs = [None] * len(slices)
            tops = [states[i].logprobs.top for i in scored]  # type: ignore[union-attr]
            for i, value in zip(scored, logprobs_of(raw, tokens[scored], tops), strict=True):
                logprobs[i] = value
        drawn, bad = torch.stack((tokens, broken.long())).tolist()  # the only wait for the device
        return self._sampled(batch, slices, drawn, bad, logprobs, prompt)

    def _sampled(
        self,
        batch: Batch,
        slices: list[Slice],
        drawn: list[int],
        bad: list[int],
        logprobs: list[tuple[TokenLogprob, list[TokenLogprob]] | None],
        prompt: dict[int, list],  # type: ignore[type-arg]
    ) -> Sampled:
        """Of the batch's `draws`, those that stand; constraints are told of them. `bad` ones may be negative."""
        right: dict[int, int] = {}
        if any(s.guesses for s in batch.slices):
            outputs, right = verified(batch.slices, drawn)
            slices, drawn = [s for s, _, _ in outputs], [token for _, token, _ in outputs]
            bad = [bad[i] if i >= 0 else 0 for _, _, i in outputs]
            if logprobs:
                logprobs = [logprobs[i] if i >= 0 else None for _, _, i in outputs]
        failed: list[int] = []
        if any(bad):
            failed = sorted({s.seat for s, b in zip(slices, bad, strict=True) if b})
            drawn = [max(token, 0) for token in drawn]
        forced, guesses = self._follow(slices, drawn, failed, ahead=batch.ahead)
        return Sampled(batch.step, drawn, logprobs, prompt, failed, forced, verified=right, guesses=guesses)

    def _is_void(self, piece: Slice) -> bool:
        """Whether a draw means nothing: it was asked for before it was known that its place is that of a forced token."""
        return piece.seat in self._void and not piece.tokens

    def _follow(
        self, slices: list[Slice], drawn: list[int], failed: list[int], *, ahead: bool
    ) -> tuple[dict[int, list[int]], dict[int, Guesses]]:
        """Tell constraints what was drawn. Returns what they force behind it and what is likely behind that, by seat; `failed`
        grows by the seats whose constraint forbids their token."""
        forced: dict[int, list[int]] = {}
        guesses: dict[int, Guesses] = {}
        if self._constrained is None:
            return forced, guesses
        newest = {s.seat: i for i, s in enumerate(slices)}
        for i, (piece, token) in enumerate(zip(slices, drawn, strict=True)):
            seat = piece.seat
            if self._is_void(piece):
                continue
            self._void.discard(seat)
            if seat in failed:
                continue
            if not self._constrained.advance(seat, token, learn=not ahead):
                failed.append(seat)
            elif newest[seat] == i:
                penalties = self._states[seat].penalties
                if found := self._constrained.forced(seat):
                    forced[seat] = found
                    self._void.add(seat)
                    for following in found if penalties is not None else ():
                        penalties.add(following)  # type: ignore[union-attr]
                if penalties is None and not ahead and (likely := self._constrained.guesses(seat))[0]:
                    guesses[seat] = likely
                    self._void.add(seat)
        return forced, guesses

    def _allow(self, slices: list[Slice], states: list[SamplingState]) -> None:
        """Find what the constraints allow these rows; nothing of the model's is waited for."""
        if self._constrained is not None:
            for piece, state in zip(slices, states, strict=True):
                state.allowed = self._constrained.allowed(piece.seat, piece.guesses)

    def _drawn(self, logits: Tensor, states: list[SamplingState], slices: list[Slice]) -> Tensor:
        """Draw for rows whose masks are in their states: int64 [rows]; the logits are changed in place."""
        return sample(logits, states, [s.output for s in slices], self.sampler)

    def _prompt_scores(
        self, batch: Batch, hidden: Tensor
    ) -> dict[int, list[tuple[TokenLogprob, list[TokenLogprob]]]]:
        out: dict[int, list[tuple[TokenLogprob, list[TokenLogprob]]]] = {}
        at = 0
        for piece in batch.slices:
            first = at
            at += piece.count
            if piece.scores < 0:
                continue
            tokens, state = self._prompts[piece.seat], self._states[piece.seat]
            end = min(piece.start + piece.count, len(tokens) - 1)
            found: list[tuple[TokenLogprob, list[TokenLogprob]]] = []
            for p in range(piece.scores, end, _SCORE_ROWS):
                q = min(p + _SCORE_ROWS, end)
                logits = self.model.logits(hidden[first + p - piece.start : first + q - piece.start])
                self._reached()
                following = torch.tensor(tokens[p + 1 : q + 1], device=self.device)
                top = state.logprobs.top if state.logprobs else 0
                found += logprobs_of(logits, following, [top] * (q - p))
            out[piece.seat] = found
        return out
