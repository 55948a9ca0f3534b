"""Rows to draw from, and the comparison of a sampler's tokens with the plain one's."""

from __future__ import annotations

import torch

from runtime.sampling.sampler import Draws, Sampler, draw


def packed_of(
    rows: int, fields: list[tuple[float, int, float, float]], generator: torch.Generator
) -> torch.Tensor:
    wanted = torch.tensor([fields[i % len(fields)] for i in range(rows)], dtype=torch.float64).T
    return torch.cat((wanted, torch.rand(1, rows, generator=generator, dtype=torch.float64))).contiguous()


def agrees(sampler: Sampler, logits: torch.Tensor, packed: torch.Tensor) -> None:
    """Equal to the reference; where not, the reference would say the same of a `u` that differs by rounding."""
    wide = logits.clone().float().cpu()  # a sampler may change them
    here = packed.cpu()
    tokens, best = sampler(logits, packed, here[:4].T.numpy())
    got = tokens.cpu()
    near = [draw(wide, Draws.from_packed(here))]
    for step in (-2e-6, 2e-6):
        moved = here.clone()
        moved[4] = (moved[4] + step).clamp(0, 1 - 1e-12)
        near.append(draw(wide, Draws.from_packed(moved)))
    assert torch.stack([got == other for other in near]).any(dim=0).all(), (got, near)
    assert (got == near[0]).float().mean() > 0.9
    assert torch.equal(best.cpu(), wide.amax(dim=-1))
