"""FlashInfer's kernels for sampling, imitated in torch: what they take, what they keep, and what they refuse."""

from __future__ import annotations

from types import SimpleNamespace

import torch


class Cuts:
    """Stands in for `flashinfer.sampling` of 0.6.12; `shown` are the calls and their rows."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, int]] = []

    def top_k_mask_logits(self, logits: torch.Tensor, top_k: torch.Tensor | int) -> torch.Tensor:
        """Those that are not less than the k-th largest stay, the others are -inf."""
        self._look("top_k", logits, (torch.float32, torch.float16, torch.bfloat16), top_k, torch.int32)
        assert torch.is_tensor(top_k) and int(top_k.min()) > 0, "its search knows no 0"
        assert int(top_k.max()) < max(logits.shape[1], 2), "rows that are only copied pass its barriers"
        at = top_k.long()[:, None] - 1
        least = logits.sort(dim=-1, descending=True).values.gather(1, at)
        return torch.where(logits >= least, logits, float("-inf"))

    def top_p_renorm_probs(
        self, probs: torch.Tensor, top_p: torch.Tensor | float, is_deterministic: bool = False
    ) -> torch.Tensor:
        """The likeliest until they have top_p of the mass, all equals of the last included, scaled to a sum of 1."""
        self._look("top_p", probs, (torch.float32,), top_p, torch.float32)
        assert is_deterministic, "else its sums depend on the order of atomic additions"
        assert torch.is_tensor(top_p)
        ordered = probs.sort(dim=-1, descending=True).values
        wide = ordered.double()
        before = wide.cumsum(dim=-1) - wide
        most = probs.shape[1] - (
            probs.shape[1] >= 2048
        )  # there its sums may reach the whole before the last one
        count = (before < top_p[:, None]).sum(dim=-1, keepdim=True).clamp(min=1, max=most)
        kept = torch.where(probs >= ordered.gather(1, count - 1), probs, 0.0)
        return kept / kept.sum(dim=-1, keepdim=True)

    def _look(
        self,
        name: str,
        rows: torch.Tensor,
        types: tuple[torch.dtype, ...],
        limit: torch.Tensor | float,
        limit_type: torch.dtype,
    ) -> None:
        assert rows.dtype in types and rows.dim() == 2 and rows.is_contiguous()
        assert torch.is_tensor(limit) and limit.dtype == limit_type and limit.shape == rows.shape[:1]
        assert limit.is_contiguous() and limit.device == rows.device
        self.shown.append((name, len(rows)))


def stand_in() -> SimpleNamespace:
    """The module, for `sys.modules`."""
    return SimpleNamespace(sampling=Cuts())
