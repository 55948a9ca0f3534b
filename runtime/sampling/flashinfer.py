"""Top-k and top-p by FlashInfer's kernels; what they keep, kernels/sample.py draws from.

Only their cuts are taken. Their draws depend on a row's place in its batch (one seed for all rows, the row's number is its
stream), so a request's token would not be its own. Both cuts look at the same probabilities, as `Draws` defines; FlashInfer's
own joint calls renormalise between them. A row without a cut is not shown to them. Kernels are compiled when the sampler is
made; FLASHINFER_WORKSPACE_BASE names the folder that keeps them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from runtime.errors import Unsupported
from runtime.sampling.sampler import by_triton

_ROWS = 128  # whose probabilities are in memory at once


class FlashInferSampler:
    """`Sampler` on a CUDA device. Raises Unsupported if FlashInfer cannot compile its kernels here."""

    def __init__(self, device: torch.device) -> None:
        import flashinfer

        self._kernels = flashinfer.sampling
        try:  # the launches of a first request; here they compile
            p = torch.full((1, 8), 0.125, device=device)
            self._top_k(p, torch.ones(1, device=device))
            self._top_p(p, torch.full((1,), 0.5, device=device))
        except Exception as error:
            raise Unsupported(
                f"sampling backend 'flashinfer' cannot run here: {error}; FlashInfer 0.6.12 and a CUDA compiler are known "
                "to work; else use 'auto'"
            ) from error

    def __call__(self, logits: Tensor, packed: Tensor, fields: np.ndarray) -> tuple[Tensor, Tensor]:
        random = fields[:, 0] > 0
        by_k = random & (fields[:, 1] > 0)
        by_p = random & (fields[:, 2] < 1)
        by_min = random & (fields[:, 3] > 0)
        count = int((by_k | by_p | by_min).sum())
        if not count:
            return by_triton(logits, packed, fields)
        which = (bool(by_k.any()), bool(by_p.any()), bool(by_min.any()))
        places = None if count == len(fields) else _cut_rows(packed)[:count]
        for first in range(0, count, _ROWS):
            part = slice(first, first + _ROWS)
            if places is None:
                self._cut(logits[part], packed[:, part], *which)
                continue
            rows = logits[places[part]]
            self._cut(rows, packed[:, places[part]], *which)
            logits.index_copy_(0, places[part], rows)
        uncut = packed.clone()
        uncut[1:4] = 0
        uncut[2] = 1
        return by_triton(logits, uncut, fields)

    def _cut(self, logits: Tensor, packed: Tensor, by_k: bool, by_p: bool, by_min: bool) -> None:
        """Exclude what these rows do not keep, in place."""
        temperature, top_k, top_p, min_p, _ = packed
        p = (logits.float() / temperature.float()[:, None]).softmax(dim=-1)
        gone = torch.zeros_like(p, dtype=torch.bool)
        if by_k:
            gone |= ~self._top_k(p, top_k)
        if by_p:
            gone |= ~self._top_p(p, top_p)
        if by_min:
            gone |= p < min_p[:, None] * p.amax(dim=-1, keepdim=True)
        logits.masked_fill_(gone, float("-inf"))

    def _top_k(self, p: Tensor, top_k: Tensor) -> Tensor:
        """bool [rows, vocabulary]: fewer than `top_k` are likelier; 0 keeps all.

        Rows that keep all are searched nevertheless: FlashInfer only copies them, and two of them in turn let one block of a
        large row clear counts that another may not have read.
        """
        size = p.shape[-1]
        whole = (top_k == 0) | (top_k >= size)
        limit = torch.where(whole, max(size - 1, 1), top_k).int()
        return (self._kernels.top_k_mask_logits(p, limit) >= 0) | whole[:, None]

    def _top_p(self, p: Tensor, top_p: Tensor) -> Tensor:
        """bool [rows, vocabulary]: those that are likelier have at most `top_p` of the mass; 1 keeps all.

        FlashInfer keeps a token if they have less than that, hence the next larger float. Its sums are the same in every
        batch only where it is asked for that.
        """
        narrow = top_p.float()
        more = torch.nextafter(narrow, torch.full_like(narrow, 2.0))
        kept = self._kernels.top_p_renorm_probs(p, more, is_deterministic=True) > 0
        return kept | (top_p >= 1)[:, None]


def _cut_rows(packed: Tensor) -> Tensor:
    """int64 [rows]: the rows that cut, then the others. A sort: for `nonzero` the host would wait."""
    temperature, top_k, top_p, min_p, _ = packed
    cut = (temperature > 0) & ((top_k > 0) | (top_p < 1) | (min_p > 0))
    return cut.byte().argsort(descending=True, stable=True)
