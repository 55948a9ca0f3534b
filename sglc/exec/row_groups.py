"""In which order the rows of a batch run, and which prefixes they share on several levels.

What each row's prompt begins with is known before the batch runs, from the trace and the row's arguments. Sorted by that
text, rows that share a system prompt, a subject, a document stand together: each shared text is computed once, before its
rows begin, and its rows run while it is in the cache. An engine that only sees requests come in has to find this
order in its queue, as far as it can see.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.api import TextSegment
from runtime.backends.base import Backend
from sglc.lang.chat_template import chat_template_for
from sglc.lang.known_prefix import KnownPrefix, known_prefix
from sglc.lang.purity import Unplain, freeze

LEAST_PREFIX = 64  # characters beyond the level above; a shorter prefix is not worth a call of its own
MOST_SHAPES = 8  # different values of arguments that are not strings, for which the beginning is looked up
_BLOCK = 256
log = logging.getLogger("sglc")


@dataclass(frozen=True, slots=True)
class Group:
    """Rows [first, first + count) of the order begin with the same `length` characters."""

    length: int
    first: int
    count: int


@dataclass(frozen=True)
class RowGroups:
    """`order[k]` is the row that runs as the k-th; `groups` are nested or apart, outer ones first.

    `texts` are what the rows begin with, by row.
    """

    order: tuple[int, ...]
    groups: tuple[Group, ...]
    texts: tuple[str, ...]

    def prefix(self, group: Group) -> str:
        return self.texts[self.order[group.first]][: group.length]


def group_rows(texts: Sequence[str], least: int = LEAST_PREFIX) -> RowGroups:
    """The order in which rows that begin alike stand together; that of the rows where none do.

    A group has at least two rows, and `least` characters more than the one around it.
    """
    count = len(texts)
    order = sorted(range(count), key=texts.__getitem__)
    found: list[Group] = []
    stack: list[tuple[int, int]] = []  # open runs of rows: what they have in common, and where they begin
    for at in range(1, count + 1):
        same = _common(texts[order[at - 1]], texts[order[at]]) if at < count else 0
        first = at - 1
        while stack and stack[-1][0] > same:
            length, first = stack.pop()
            found.append(Group(length, first, at - first))
        if same >= least and (not stack or stack[-1][0] < same):
            stack.append((same, first))
    kept: list[Group] = []
    around: list[Group] = []
    for group in sorted(found, key=lambda g: (g.first, -g.count, g.length)):
        while around and around[-1].first + around[-1].count <= group.first:
            around.pop()
        if group.length - (around[-1].length if around else 0) >= least:
            kept.append(group)
            around.append(group)
    if not kept:
        order = list(range(count))
    return RowGroups(tuple(order), tuple(kept), tuple(texts))


def _common(a: str, b: str) -> int:
    """How many leading characters are equal; compares blocks, so that long texts cost little."""
    limit, at = min(len(a), len(b)), 0
    while at < limit and a[at : at + _BLOCK] == b[at : at + _BLOCK]:
        at += _BLOCK
    while at < limit and a[at] == b[at]:
        at += 1
    return min(at, limit)


def groups_of(program: Any, rows: Sequence[Mapping[str, Any]], backend: Backend) -> RowGroups:
    """The groups of a batch; none where the backend keeps no prefixes, or nothing is known of the prompts."""
    if len(rows) < 2 or not backend.capabilities.prefill:
        return RowGroups(tuple(range(len(rows))), (), ())
    template = chat_template_for(backend.model)
    seen: dict[Any, KnownPrefix] = {}
    texts: list[str] = []
    for row in rows:
        constants = {n: v for n, v in row.items() if type(v) is not str}
        try:
            key = freeze(constants)
        except Unplain:
            key = None
        if key is not None and key not in seen and len(seen) < MOST_SHAPES:
            seen[key] = known_prefix(program, template, constants)
        known = seen.get(key) if key is not None else None
        texts.append(known.text(row) if known is not None else "")
    return group_rows(texts)


class Warmup:
    """Computes the groups' prefixes as their first rows come. All methods run on the event loop."""

    def __init__(self, groups: RowGroups, backend: Backend) -> None:
        self._groups = groups
        self._backend = backend
        self._next = 0
        self._open: list[tuple[Group, asyncio.Task[None]]] = []

    def before(self, position: int) -> asyncio.Task[None] | None:
        """What the row at this position of the order waits for; None if nothing. Positions come in order."""
        groups = self._groups.groups
        while self._open and self._open[-1][0].first + self._open[-1][0].count <= position:
            self._open.pop()
        while self._next < len(groups) and groups[self._next].first <= position:
            group = groups[self._next]
            self._next += 1
            while self._open and self._open[-1][0].first + self._open[-1][0].count <= group.first:
                self._open.pop()
            outer = self._open[-1][1] if self._open else None
            task = asyncio.get_running_loop().create_task(self._compute(self._groups.prefix(group), outer))
            self._open.append((group, task))
        task_now = self._open[-1][1] if self._open else None
        return None if task_now is None or task_now.done() else task_now

    async def _compute(self, prefix: str, outer: asyncio.Task[None] | None) -> None:
        if outer is not None:
            await asyncio.wait([outer])
        try:
            await self._backend.prefill((TextSegment(prefix),))
        except Exception as error:  # a hint: what is wrong will be told by the calls themselves
            log.warning("a shared prefix of %d characters was not computed ahead: %s", len(prefix), error)
