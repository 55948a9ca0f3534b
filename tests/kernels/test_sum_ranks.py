"""Sums over ranks through mailboxes: every rank has the same sum, whatever the turns before held."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from runtime.kernels.sum_ranks import TURNS, Mailboxes, sum_ranks, sum_ranks_reference
from tests.kernels.rank_boxes import mailboxes

WIDTH = 24


def launches(
    mail: list[Mailboxes],
    parts: list[Tensor],
    residual: Tensor,
    weight: Tensor,
    offset: float,
    bias: Tensor | None,
) -> list[tuple[Tensor, Tensor]]:
    """Each rank's new residual and norm. One device runs all ranks, so all send before any takes."""
    for m, part in zip(mail, parts, strict=True):
        sum_ranks(part, residual.clone(), weight, 1e-5, offset, mail=m, bias=bias, take=False)
    found = []
    for m, part in zip(mail, parts, strict=True):
        held = residual.clone()
        out = sum_ranks(part, held, weight, 1e-5, offset, mail=m, bias=bias, send=False)
        found.append((held, out))
    return found


@pytest.mark.parametrize(
    ("size", "dtype"),
    [(3, torch.float32), (2, torch.bfloat16), (3, torch.bfloat16), (2, torch.float16)],
    ids=str,
)
def test_every_rank_has_the_sum(size: int, dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(size)
    mail = mailboxes(size, 9, WIDTH * dtype.itemsize // 4, dtype, device, looks=10)
    weight = torch.randn(WIDTH, device=device).to(dtype)
    bias = torch.randn(WIDTH, device=device).to(dtype)
    # Fewer rows after more and more after fewer: what a turn leaves must not be taken for what a later one sends.
    for turn, rows in enumerate((4, 9, 1, 2, 9, 9, 3, 1, 5)):
        parts = [torch.randn(rows, WIDTH, device=device).to(dtype) for _ in range(size)]
        for part in parts:
            part[torch.rand(rows, WIDTH, device=device) < 0.3] = -0.0  # what an empty box holds
        residual = torch.randn(rows, WIDTH, device=device).to(dtype)
        offset, more = (1.0, bias) if turn % 2 else (0.0, None)
        found = launches(mail, parts, residual, weight, offset, more)
        wanted, norm = sum_ranks_reference(
            [*parts, *([] if more is None else [more.expand(rows, WIDTH)])], residual, weight, 1e-5, offset
        )
        tolerance = 1e-6 if dtype == torch.float32 else 2e-2
        for held, out in found:
            assert torch.equal(held, found[0][0]) and torch.equal(out, found[0][1])
            torch.testing.assert_close(held, wanted, rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(out, norm, rtol=tolerance, atol=tolerance)
    for m in mail:
        assert m.state.tolist()[:3] == [9 % TURNS, 0, 0]


def test_a_rank_that_sends_nothing_makes_rows_nan(device: torch.device) -> None:
    mail = mailboxes(2, 4, WIDTH, torch.float32, device, looks=5)
    x, weight = torch.ones(3, WIDTH, device=device), torch.ones(WIDTH, device=device)
    residual = torch.zeros(3, WIDTH, device=device)
    assert sum_ranks(x, residual, weight, 1e-5, mail=mail[0]).isnan().all()
    assert mail[0].state[2] == 1
    again = sum_ranks(x, torch.zeros(3, WIDTH, device=device), weight, 1e-5, mail=mail[0])
    assert again.isnan().all()


def test_rows_that_do_not_fit_are_refused(device: torch.device) -> None:
    mail = mailboxes(2, 4, WIDTH, torch.float32, device, looks=5)[0]
    x, weight = torch.ones(5, WIDTH, device=device), torch.ones(WIDTH, device=device)
    assert not mail.fits(x) and mail.fits(x[:4]) and not mail.fits(x[:4].to(torch.bfloat16))
    with pytest.raises(ValueError, match="boxes of 4 rows of 24 words"):
        sum_ranks(x, x.clone(), weight, 1e-5, mail=mail)
    with pytest.raises(ValueError, match="residual"):
        sum_ranks(x[:4], x.clone(), weight, 1e-5, mail=mail)
