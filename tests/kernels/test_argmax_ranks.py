"""The likeliest token over ranks through mailboxes: every rank has the same, whatever the turns before held."""

from __future__ import annotations

import pytest
import torch

from runtime.kernels.argmax_ranks import WORDS, argmax_ranks, argmax_ranks_reference
from runtime.kernels.sum_ranks import TURNS
from tests.kernels.rank_boxes import mailboxes


@pytest.mark.parametrize("size", [2, 3])
def test_every_rank_has_the_likeliest(size: int, device: torch.device) -> None:
    torch.manual_seed(size)
    mail = mailboxes(size, 150, WORDS, torch.float32, device, looks=10)
    firsts = [100 * r for r in range(size)]
    for rows in (4, 150, 1, 70, 130, 2, 150, 64, 5):
        best = [torch.randint(-2, 3, (rows,), device=device).float() for _ in range(size)]  # many are equal
        for values in best:
            values[torch.rand(rows, device=device) < 0.2] = -0.0  # what an empty box holds
            values[torch.rand(rows, device=device) < 0.05] = float("inf")
        tokens = [torch.randint(0, 100, (rows,), device=device) for _ in range(size)]
        each = list(zip(mail, best, tokens, firsts, strict=True))
        for m, values, places, first in each:  # one device runs all ranks, so all send before any takes
            argmax_ranks(values, places, first, mail=m, take=False)
        wanted = argmax_ranks_reference(best, tokens, firsts)
        for m, values, places, first in each:
            found = argmax_ranks(values, places, first, mail=m, send=False)
            assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])
    for m in mail:
        assert m.state.tolist()[:3] == [9 % TURNS, 0, 0]


def test_a_rank_that_sends_nothing_is_told_by_the_maximum(device: torch.device) -> None:
    mail = mailboxes(2, 4, WORDS, torch.float32, device, looks=5)
    best, tokens = torch.ones(3, device=device), torch.arange(3, device=device)
    for _ in range(2):
        high, found = argmax_ranks(best, tokens, 0, mail=mail[0])
        assert high.isinf().all() and (found >= 0).all()
    assert mail[0].state[2] == 1


def test_rows_must_fit(device: torch.device) -> None:
    mail = mailboxes(2, 4, WORDS, torch.float32, device, looks=5)[0]
    with pytest.raises(ValueError, match="do not fit boxes of 4 rows"):
        argmax_ranks(
            torch.ones(5, device=device), torch.zeros(5, dtype=torch.int64, device=device), 0, mail=mail
        )
