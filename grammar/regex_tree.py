"""A regular expression as a tree; each node knows where it stands in the pattern."""

from __future__ import annotations

from dataclasses import dataclass

from grammar import codepoints as cp


@dataclass(frozen=True, slots=True)
class Chars:
    """One character out of `ranges`."""

    ranges: cp.Ranges
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Sequence:
    items: tuple[Node, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Either:
    options: tuple[Node, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Repeat:
    """`item` from `low` to `high` times; `high` None: without end."""

    item: Node
    low: int
    high: int | None
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Anchor:
    """The start or the end of the text. There is none in a `Pattern`."""

    at_end: bool
    start: int
    end: int


Node = Chars | Sequence | Either | Repeat | Anchor


@dataclass(frozen=True, slots=True)
class Alternative:
    """One way to match: `node`, tied to the start and to the end of the text or not."""

    node: Node
    at_start: bool
    at_end: bool


@dataclass(frozen=True, slots=True)
class Pattern:
    source: str
    alternatives: tuple[Alternative, ...]


def children(node: Node) -> tuple[Node, ...]:
    if isinstance(node, Sequence):
        return node.items
    if isinstance(node, Either):
        return node.options
    return (node.item,) if isinstance(node, Repeat) else ()
