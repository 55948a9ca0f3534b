"""How many tokens a text has of which only parts are known.

A text is a tuple of pieces: constants, and intervals for what nobody knows yet. Constants are counted by the tokenizer,
as whole runs; where known text meets unknown text, tokens may fall otherwise than in either alone.

Two ways to count: `bound` holds whatever happens; `nominal` is the largest that the program itself asks for, with
what is not known counted as nothing, so that exceeding a limit by it is the program's own doing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sglc.ir.pure import Pure
from sglc.plan.interval import NOTHING, UNKNOWN, Interval

SLACK = 8
_PARTS = frozenset(  # what they give has no more text than their first operand
    {
        "strip", "lstrip", "rstrip", "lower", "upper", "title", "capitalize", "removeprefix", "removesuffix",
        "split", "splitlines", "item", "slice", "json_get", "int", "float", "reasoning",
    }
)  # fmt: skip

Piece = str | Interval


@dataclass(frozen=True)
class Sizes:
    """
    count     tokens of a text
    unknown   of a text of which nothing is known
    slack     by how many tokens a text may differ at each end from what it is in its place
    again     tokens for each token of a text that is tokenised again
    endless   rounds are counted of loops that only the model ends; else one
    """

    count: Callable[[str], int]
    unknown: Interval = UNKNOWN
    slack: int = SLACK
    again: int = 2
    endless: bool = True
    _counted: dict[str, int] = field(default_factory=dict, repr=False)

    @classmethod
    def bound(cls, count: Callable[[str], int]) -> Sizes:
        return cls(count)

    @classmethod
    def nominal(cls, count: Callable[[str], int]) -> Sizes:
        return cls(count, unknown=NOTHING, slack=0, again=1, endless=False)

    def tokens(self, run: Sequence[Piece]) -> Interval:
        """Of a run of text between answers."""
        texts: list[str] = []
        total, places = NOTHING, 0
        for piece in (*run, None):
            if isinstance(piece, str):
                texts.append(piece)
                continue
            if texts and (text := "".join(texts)):
                if text not in self._counted:
                    self._counted[text] = self.count(text)
                total = total + Interval(self._counted[text], self._counted[text])
            texts = []
            if piece is not None:
                total, places = total + piece, places + 1
        return total.wider(2 * self.slack * places) if places else total

    def edge(self, size: Interval) -> Interval:
        """Of a text whose ends may fall otherwise."""
        return size.wider(self.slack)

    def pieces(self, value: Any) -> tuple[Piece, ...]:
        if isinstance(value, tuple):
            return value
        return (value if isinstance(value, (str, Interval)) else self.unknown,)

    def interval(self, value: Any) -> Interval:
        """Tokens of a text wherever it may stand."""
        if isinstance(value, Interval):
            return value
        if isinstance(value, str):
            return Interval(0, len(value.encode()) if self.slack else self.tokens((value,)).high)
        if isinstance(value, tuple):
            total = NOTHING
            for piece in value:
                total = total + self.interval(piece)
            return total
        return self.unknown

    def computed(self, node: Pure, operands: Sequence[Any]) -> Any:
        """What a pure op gives: concatenations keep their pieces, what shortens a text is bounded by it."""
        if node.op == "concat":
            return tuple(p for value in operands for p in self.pieces(value))
        if node.op in _PARTS:
            return self.anew(self.interval(operands[0]))
        if node.op == "format" and operands[1:] == ["", ""]:  # as in f"{...}"
            return operands[0]
        return self.unknown

    def anew(self, size: Interval) -> Interval:
        """A text of which some part, or all, is tokenised again."""
        return Interval(0, None if size.high is None else self.again * size.high + self.slack)
