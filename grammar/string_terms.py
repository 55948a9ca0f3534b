"""JSON strings as terms: their inside is one term, which a rest of the text waits for on the stack.

Where the inside must be told from another text, it is spelled out (`Terms.expanded`): each such term has an
expansion, the same language as a term of characters.
"""

from __future__ import annotations

from dataclasses import dataclass

from grammar.term_arena import ALT, BODY, CAT, EMPTY, STRING, UNLIKE, Arc, TermArena


@dataclass(frozen=True, slots=True)
class NameOrOther:
    """The bytes `text` and then `after`; or the rest of another string (at any of these bytes), and then `tail`.

    inner   the inside of a string in its one spelling
    """

    text: bytes
    after: int
    inner: int
    tail: int


class StringTerms(TermArena):
    """Terms that begin in a string or in front of one."""

    def string(self, low: int, high: int, expansion: int) -> int:
        """A quoted JSON string of `low` to `high` (-1: any number of) characters, counted beside the state.

        `expansion` is the same language as a term, used where it must be told from another one.
        """
        return self._new((STRING, self._new((BODY, low, high, expansion, 0), False), 1 << 0x22), False, True)

    def enter(self, mask: int, expansion: int) -> int:
        """The inside of a JSON string in its one spelling and the closing quote, beginning with a byte of `mask`.

        `expansion` is any quoted string in its one spelling.
        """
        if not mask:
            return EMPTY
        return self._new((STRING, self._new((BODY, 0, -1, expansion, 1), False), mask), False, True)

    def unlike(self, text: bytes, mask: int, expansion: int) -> int:
        """The inside of a JSON string in its one spelling and the closing quote, where it is not `text`.

        text       bytes that stand for themselves, all ASCII
        mask       bytes that begin a character or its spelling
        expansion  see `enter`
        """
        return self._new((UNLIKE, text, mask, expansion), False, True)

    def string_bounds(self, term: int) -> tuple[int, int, int] | None:
        """(low, high, spelling) if `term` is the inside of a string, counted from its first character."""
        data = self._data[term]
        return (data[1], data[2], data[4]) if data[0] == BODY else None

    def name_or_other(self, term: int) -> NameOrOther | None:
        """`term` as a name's bytes or any other string, if it is that (see `unlike`) for some bytes."""
        data = self._data[term]
        parts = data[1] if data[0] == ALT else (term,)
        unlike = named = None
        for part in parts:
            head = self._data[part]
            if head[0] == CAT and self._data[head[1]][0] == UNLIKE:
                unlike, tail = self._data[head[1]], head[2]
            else:
                named = self.leading_literal(part)
        if unlike is None or len(parts) > 2 or (len(parts) == 2 and named is None):
            return None
        _, text, mask, expansion = unlike
        if named is not None:
            count = next((i for i, (a, b) in enumerate(zip(text, named[0], strict=False)) if a != b), None)
            text = text[: min(len(text), len(named[0])) if count is None else count]
        if len(text) < 2:
            return None
        return NameOrOther(
            text,
            self._beyond(unlike, named, len(text), tail),
            self._data[self.enter(mask, expansion)][1],
            tail,
        )

    def _beyond(self, unlike: tuple, named: tuple[bytes, int] | None, done: int, tail: int) -> int:
        _, text, mask, expansion = unlike
        rest = self.mark_free(self.unlike(text[done:], mask, expansion), self._free_needs[self._ids[unlike]])
        options = [self.cat(rest, tail)]
        if named is not None:
            options.append(self.cat(self.literal(named[0][done:]), named[1]))
        return self.alt(options)

    def _unlike_arcs(self, text: bytes, mask: int, expansion: int, tail: int) -> list[Arc]:
        _, inner, entered = self._data[self.enter(mask, expansion)]
        if not text:
            return [(entered, (tail,), inner)]
        rest = self.mark_free(
            self.unlike(text[1:], mask, expansion), self._free_needs[self.unlike(text, mask, expansion)]
        )
        same = 1 << text[0]
        return [(same, (), self.cat(rest, tail)), (1 << 0x22, (), tail), (entered & ~same, (tail,), inner)]
