"""Anchors out of the tree of a regular expression: ways to match, each tied to the ends of the text or not."""

from __future__ import annotations

from grammar.constraint_errors import RegexError
from grammar.regex_tree import Alternative, Anchor, Chars, Either, Node, Repeat, Sequence, children


def split_anchors(node: Node, source: str) -> list[Alternative]:
    """Pull anchors out to the alternatives of the whole; refuse one that is not at an end."""
    if isinstance(node, Anchor):
        empty = Sequence((), node.start, node.end)
        return [Alternative(empty, not node.at_end, node.at_end)]
    if not _has_anchor(node):
        return [Alternative(node, False, False)]
    if isinstance(node, Either):
        return [a for option in node.options for a in split_anchors(option, source)]
    if isinstance(node, Sequence):
        return _split_sequence(node, source)
    assert isinstance(node, Repeat)
    raise RegexError(
        "an anchor inside a repeat can never be repeated; move it out", source, _first_anchor(node)
    )


def _split_sequence(node: Sequence, source: str) -> list[Alternative]:
    partial = [Alternative(Sequence((), node.start, node.start), False, False)]
    for index, item in enumerate(node.items):
        options = split_anchors(item, source)
        if len(partial) * len(options) > 256:
            raise RegexError("too many combinations of anchored alternatives", source, item.start)
        joined = []
        for left in partial:
            for right in options:
                before = left.node.items if isinstance(left.node, Sequence) else (left.node,)
                if right.at_start and any(map(_consumes, before)):
                    raise RegexError(
                        "'^' after something that takes text never matches", source, _first_anchor(item)
                    )
                if left.at_end and _consumes(right.node):
                    place = next(_first_anchor(i) for i in node.items[: index + 1] if _has_anchor(i))
                    raise RegexError("'$' before something that takes text never matches", source, place)
                if right.at_start and before and not left.at_start:
                    raise RegexError("'^' after something that may take text", source, _first_anchor(item))
                if left.at_end and not _is_empty(right.node):
                    raise RegexError("'$' before something that may take text", source, item.start)
                both = Sequence((*before, right.node), node.start, node.end)
                joined.append(Alternative(both, left.at_start or right.at_start, left.at_end or right.at_end))
        partial = joined
    return partial


def _is_empty(node: Node) -> bool:
    return isinstance(node, Sequence) and all(map(_is_empty, node.items))


def _consumes(node: Node) -> bool:
    """Does every match of `node` take at least one character?"""
    if isinstance(node, Chars):
        return True
    if isinstance(node, Sequence):
        return any(map(_consumes, node.items))
    if isinstance(node, Either):
        return all(map(_consumes, node.options))
    return isinstance(node, Repeat) and node.low > 0 and _consumes(node.item)


def _has_anchor(node: Node) -> bool:
    return isinstance(node, Anchor) or any(map(_has_anchor, children(node)))


def _first_anchor(node: Node) -> int:
    if isinstance(node, Anchor):
        return node.start
    return next((_first_anchor(c) for c in children(node) if _has_anchor(c)), node.start)
