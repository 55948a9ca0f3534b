"""Requests that are awaited together start in the order in which all of them end soonest."""

from __future__ import annotations

from runtime.api import SamplingParams
from runtime.engine.messages import Add
from runtime.engine.order import longest_first


def calls(*asked: tuple[list[int], int | None]) -> list[Add]:
    return [Add(str(i), ids, SamplingParams(max_new_tokens=n), 0) for i, (ids, n) in enumerate(asked)]


def names(found: list[Add]) -> list[str]:
    return [c.id for c in found]


def test_most_outputs_come_first_and_equal_ones_keep_their_order() -> None:
    given = calls(([1, 2], 5), ([2, 2], 9), ([3], None), ([4], 5), ([5], 9))
    assert names(longest_first(given)) == ["2", "1", "4", "0", "3"]
    assert longest_first([]) == []


def test_prompts_that_begin_alike_stay_neighbours() -> None:
    head = list(range(16))
    given = calls(([*head, 1], 1), ([*head, 2], 7), ([9], 5))
    assert names(longest_first(given)) == ["0", "1", "2"]
