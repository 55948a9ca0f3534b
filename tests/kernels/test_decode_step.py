"""The kernels around a captured step compute what their reference does, and a turn's rows end one by one."""

from __future__ import annotations

import pytest
import torch

from runtime.kernels.decode_step import begin_reference, begin_step, end_step


@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("size", [1, 3, 130])
def test_rows_become_inputs(size: int, page_size: int, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(size * 100 + page_size)
    seats = torch.randperm(200, generator=generator)[:size]
    positions = torch.randint(-1, 32, (size,), generator=generator)
    given = torch.randint(-1, 2, (size,), generator=generator)
    control = torch.stack((seats, positions, torch.ones_like(seats), given)).to(device)
    table = torch.randint(0, 1000, (200, 33), generator=generator, dtype=torch.int32).to(device)
    newest = torch.randint(0, 5000, (200,), generator=generator).to(device)
    found = begin_step(control, table, newest, page_size)
    wanted = begin_reference(control, table, newest, page_size)
    for name in ("ids", "positions", "slots", "seats", "lengths"):
        have, want = getattr(found, name), getattr(wanted, name)
        assert have.dtype == want.dtype and torch.equal(have, want), name


def test_a_turn_ends_row_by_row(device: torch.device) -> None:
    """The rows have two, no and three steps; what they draw afterwards is nobody's."""
    control = torch.tensor([[4, 2, 7], [10, 5, 0], [2, 0, 3], [-1, 8, -1]], device=device)
    newest = torch.zeros(9, dtype=torch.int64, device=device)
    best = torch.tensor([0.5, 1.0, -2.0], device=device)
    turn = (([11, -1, 1], [5, 0, 7]), ([-1, -1, 2], [15, 0, 17]), ([-1, -1, -1], [15, 0, 27]))
    for step, (positions, newer) in enumerate(turn):
        tokens = torch.tensor([5, 6, 7], device=device) + 10 * step
        marked = end_step(control, tokens, best, newest)
        assert marked.tolist() == tokens.tolist()
        assert newest[[4, 2, 7]].tolist() == newer
        assert control[1].tolist() == positions
    assert control[0].tolist() == [4, 2, 7]


def test_logits_that_are_not_finite_are_told(device: torch.device) -> None:
    control = torch.tensor([[0, 1, 2], [0, 0, 0], [1, 1, 1], [-1, -1, -1]], device=device)
    best = torch.tensor([float("inf"), float("nan"), float("-inf")], device=device)
    newest = torch.zeros(3, dtype=torch.int64, device=device)
    assert end_step(control, torch.arange(3, device=device), best, newest).tolist() == [-1, -1, -1]


def test_shapes_are_checked(device: torch.device) -> None:
    with pytest.raises(ValueError, match="int64"):
        begin_step(
            torch.zeros(2, 3, dtype=torch.int64, device=device),
            torch.zeros(1, 1, dtype=torch.int32, device=device),
            torch.zeros(1, dtype=torch.int64, device=device),
            1,
        )
