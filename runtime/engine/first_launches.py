"""Launching once what no graph holds, before the first request: else that request, or one beside it, waits until kernels are compiled.

The batches here are those whose kernels differ (tests/kernels/test_launches.py): prompts alone and beside few, many and all
seats, fresh and continued. With a kernel cache it is some loading; Triton keeps compiled kernels there by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from runtime.api import SamplingParams
from runtime.batch import Admission, Batch, Slice
from runtime.kernels.tuning import EARLY_ROWS
from runtime.sampling.sampler import fields_of

if TYPE_CHECKING:
    from runtime.engine.device import DeviceRunner

# So long that rows of a batch are read as such, and that graphs do not take them (`_READ_AGAIN`).
_PROMPT = 300
_SAMPLING = SamplingParams(temperature=1.0, top_p=0.9)


@torch.inference_mode()
def rehearse(runner: DeviceRunner) -> None:
    """What a start launches, without graphs."""
    if runner.graphs is not None:
        runner.graphs.rehearse(runner.spare)
    launch_all(runner)


def launch_all(runner: DeviceRunner) -> None:
    """Seats and pages are used as if nobody had any: nobody has. What is left in them means nothing to those who come."""
    store = runner.store
    slots = min(store.k.shape[1] // store.page_size, runner.table.shape[1] - 1) * store.page_size
    prompt = min(_PROMPT, slots - 1)
    most = 0 if runner.head is not None else runner.spare - 1
    taken: list[int] = []
    for rows in sorted(
        {most, min(most, EARLY_ROWS + 1), min(most, EARLY_ROWS), min(most, 1), 0}, reverse=True
    ):
        for start, tokens in ((0, prompt), (1, prompt), (0, 2), (0, 0)):
            batch = _batch(runner, rows, start, tokens, taken)
            if batch.slices:
                runner.collect(runner.launch(batch))
                runner.forget()
                taken = [s.seat for s in batch.slices]
    if runner.head is None:
        for dtype in (runner.model.dtype, torch.float32):
            _draw(runner, dtype)


def _draw(runner: DeviceRunner, dtype: torch.dtype) -> None:
    """From logits as the model makes them, or in float32, as for penalties and log-probabilities; under a constraint, too."""
    from runtime.kernels.mask import mask_bits

    device, vocabulary = runner.device, runner.model.spec.vocabulary
    logits = torch.zeros(1, vocabulary, dtype=dtype, device=device)
    if runner.tables is not None:
        seat = torch.zeros(1, dtype=torch.int64, device=device)
        runner.tables.mask(logits, seat)
        runner.tables.take(seat, seat)
        mask_bits(logits, seat.int(), torch.zeros(1, -(-vocabulary // 32), dtype=torch.int32, device=device))
    fields = np.array([fields_of(_SAMPLING)])
    packed = torch.from_numpy(np.append(fields.T, [[0.5]], axis=0)).to(device)
    runner.sampler(logits, packed, fields)


def _batch(runner: DeviceRunner, rows: int, start: int, tokens: int, taken: list[int]) -> Batch:
    """`rows` seats that decode behind a prompt of so many tokens from `start`; all share pages, since nobody reads the results."""
    size = runner.store.page_size
    pages = list(range(-(-(start + tokens) // size)))
    draws = runner.head is None
    slices = [Slice(1 + i, 0, [], [0], True) for i in range(rows)]
    if tokens:
        slices.append(Slice(0, start, [0] * tokens, pages, draws, pool=not draws))
    admitted = [Admission(s.seat, s.tokens or [0], 1, [], _SAMPLING, 0) for s in slices]
    return Batch(0, slices, admitted, taken)
