"""What a model that does not generate makes of a text: an embedding, or the scores of a reward model.

Both are of the last token's hidden state after the final norm: causal attention lets it alone see all of the text.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from runtime.models.decoder import Decoder

Head = Callable[[Tensor], Tensor]


def head_of(model: Decoder) -> Head | None:
    """From hidden states [rows, hidden] to float32 [rows, size]; None for a model that generates.

    Embeddings have length 1. Source: arXiv 2401.00368 (last-token pooling).
    """
    score = model.score
    if score is not None:
        return lambda hidden: score(hidden).float()
    if model.spec.task == "embed":
        return lambda hidden: torch.nn.functional.normalize(hidden.float(), dim=-1)
    return None


def vectors(head: Head, hidden: Tensor) -> list[bytes | None]:
    """Of each row its vector, as little-endian float32; None where one is not finite."""
    found = head(hidden).cpu()
    finite = torch.isfinite(found).all(dim=-1).tolist()
    rows = found.numpy().astype("<f4")
    return [row.tobytes() if good else None for row, good in zip(rows, finite, strict=True)]
