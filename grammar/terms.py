"""Languages of byte strings as terms, explored one byte at a time.

A term is an integer; equal terms are the same integer. `arcs(term)` says, for each byte, which term the
rest of the text must match: the term is the state of an automaton that is only built where it is visited.
Counted repeats are one term for each count, without copies of what is repeated.

A `call` is a rule that may call itself (an object in an object). Where the text enters a rule, an arc has
`pushes`: the terms that must match after the rule has ended, innermost first. So a stack of terms is the
state, and recursion needs no infinite automaton. Rules must end where they can end (they match no text
that begins with another text they match, unless what follows the call never continues it).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby

from grammar import codepoints as cp
from grammar.constraint_errors import TooLarge

Arc = tuple[int, tuple[int, ...], int]  # bytes as a 256-bit mask, terms pushed, term

EMPTY = 0  # matches nothing
EPSILON = 1  # matches the empty string

SET, LITERAL, CAT, ALT, REPEAT, CALL, STRING, BODY, STATE, MEMBERS, REFERENCE, ELSE, UNLIKE, TAKEN = range(
    2, 16
)  # kinds of terms


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a constraint may get before it is refused."""

    states: int = 60_000
    seconds: float = 10.0
    terms: int = 2_000_000


DEFAULT_LIMITS = Limits()
_FEW, _DEEP = 8, 100  # texts that need no tree, and how deep one gets
CONTINUATION = ((1 << 0x40) - 1) << 0x80  # bytes that begin no character


def byte_mask(low: int, high: int) -> int:
    return ((1 << (high - low + 1)) - 1) << low


def bits(mask: int) -> list[int]:
    """The bits that are set in a mask (of bytes: these bytes), ascending."""
    found = []
    while mask:
        bit = mask & -mask
        found.append(bit.bit_length() - 1)
        mask ^= bit
    return found


@dataclass(frozen=True, slots=True)
class Automaton:
    """A finite automaton as a term: `rows[state]` are (mask, state); bytes in `spelled` are written otherwise.

    Texts have `low` to `high` (-1: any number of) characters, counted beside the state; then `fewest` and
    `most` (-1: no bound) are characters from each state to acceptance. `free` states take any text.
    """

    rows: tuple[tuple[tuple[int, int], ...], ...]
    accepting: tuple[bool, ...]
    spelled: dict[int, bytes]
    low: int = 0
    high: int = -1
    fewest: tuple[int, ...] = ()
    most: tuple[int, ...] = ()
    free: tuple[bool, ...] = ()

    def live(self, state: int, count: int) -> bool:
        """Can a text with `count` characters so far still be finished from here?"""
        if not self.fewest:
            return True
        if self.high >= 0 and count + self.fewest[state] > self.high:
            return False
        return self.most[state] < 0 or count + self.most[state] >= self.low


@dataclass(frozen=True, slots=True)
class AnyOrder:
    """Members in any order, each at most once, with `comma` between them and `end` after them.

    `other` may stand any number of times; `low` to `high` (-1: any number of) members in all.
    """

    members: tuple[int, ...]
    needed: int  # mask of the members that must come
    other: int
    comma: int
    end: int
    low: int = 0
    high: int = -1

    @property
    def beside(self) -> bool:
        """Can what is left be kept beside the state? So it can where the least number is one of required members, or one."""
        return self.low <= 1

    @property
    def end_index(self) -> int:
        """What `Terms.taken` calls the end; the number before it is that of other members."""
        return len(self.members) + 1

    @property
    def cap(self) -> int:
        """Counts from here on are alike."""
        return self.high if self.high >= 0 else max(self.low, 1)

    def required(self, left: int) -> int:
        """How many of the members in the mask `left` must come."""
        return (left & self.needed).bit_count()

    def may_come(self, left: int, after: int) -> bool:
        """Can it still end with the members in `left` if there are `after` members then?"""
        if self.high >= 0 and after + self.required(left) > self.high:
            return False
        return self.other != EMPTY or after + left.bit_count() >= self.low


@dataclass(frozen=True, slots=True)
class NameOrOther:
    """The bytes `text` and then `after`; or the rest of another string (at any of these bytes), and then `tail`.

    inner   the inside of a string in its one spelling
    """

    text: bytes
    after: int
    inner: int
    tail: int


class Terms:
    """An arena of terms. Not thread safe; one compilation owns it."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self.limits = limits
        self.deadline = time.monotonic() + limits.seconds
        self._ids: dict[tuple, int] = {("empty",): EMPTY, ("epsilon",): EPSILON}
        self._data: list[tuple] = [(0,), (1,)]
        self._nullable: list[bool] = [False, True]
        self._head_call: list[bool] = [False, False]
        self._free: dict[int, int] = {}
        self._free_needs: dict[int, int] = {}
        self.beyond_ascii = (
            EMPTY  # a character beyond ASCII and the rest of a free string, where there are any
        )
        self._arcs: dict[int, tuple[Arc, ...]] = {EMPTY: (), EPSILON: ()}
        self._charsets: dict[cp.Ranges, int] = {}
        self._rules: list[int] = []
        self._own_rules: dict[int, int] = {}
        self._automata: list[Automaton] = []
        self._orders: list[AnyOrder] = []
        self._taking: set[int] = set()  # terms that end in a `taken`
        self._joining = 0  # calls of `_join_heads` that have not returned

    # building

    def _new(self, key: tuple, nullable: bool, head_call: bool = False) -> int:
        found = self._ids.get(key)
        if found is None:
            found = self._ids[key] = len(self._data)
            if found >= self.limits.terms:
                raise TooLarge(f"the constraint needs more than {self.limits.terms:,} terms")
            if not found & 1023:
                self.check_time()
            self._data.append(key)
            self._nullable.append(nullable)
            self._head_call.append(head_call)
            if key[0] == TAKEN or (key[0] in (CAT, ELSE, ALT) and self._ends_in_taken(key)):
                self._taking.add(found)
            if key[0] == CAT and key[1] in self._free:
                self._free[found] = self._free[key[1]]
            elif key[0] == ALT:
                spellings = [self._free[part] for part in key[1] if part in self._free]
                if spellings:
                    self._free[found] = min(spellings)
        return found

    def _ends_in_taken(self, key: tuple) -> bool:
        if key[0] == CAT:
            return key[2] in self._taking
        return any(p in self._taking for p in (key[1] if key[0] == ALT else key[1:]))

    def mark_free(self, term: int, need: int, spelling: int = 1) -> int:
        """Say that any text inside of a string begins a text of `term`; also of what is built on it.

        `need` bytes always complete a text of `term` that has whole characters behind it. `spelling`: 0 if
        a character may be written in any way, 1 if only in its one way.
        """
        self._free[term] = spelling
        self._free_needs[term] = need
        return term

    def free_spelling(self, term: int) -> int | None:
        """How free a term is (see `mark_free`), None if it is not."""
        return self._free.get(term)

    def free_need(self, term: int) -> int | None:
        return self._free_needs.get(term)

    def check_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise TooLarge(f"the constraint takes longer than {self.limits.seconds:g} s to compile")

    def literal(self, data: bytes) -> int:
        return self._new((LITERAL, data), False) if data else EPSILON

    def byte_set(self, mask: int) -> int:
        if not mask:
            return EMPTY
        if mask & (mask - 1) == 0:
            return self.literal(bytes([mask.bit_length() - 1]))
        return self._new((SET, mask), False)

    def chars(self, ranges: cp.Ranges) -> int:
        """One code point out of `ranges`, in UTF-8."""
        found = self._charsets.get(ranges)
        if found is None:
            found = self._charsets[ranges] = self._sequences(cp.utf8_sequences(ranges))
        return found

    def _sequences(
        self, sequences: list[tuple[cp.ByteRange, ...]], last: Callable[[int], int] | None = None
    ) -> int:
        """Alternatives of byte sequences; `last` makes the term of the last byte and what follows it."""
        single = 0
        by_first: dict[int, list[tuple[cp.ByteRange, ...]]] = {}
        for sequence in sequences:
            mask = byte_mask(*sequence[0])
            if len(sequence) == 1:
                single |= mask
            else:
                by_first.setdefault(mask, []).append(sequence[1:])
        by_tail: dict[int, int] = {}
        for mask, tails in by_first.items():
            tail = self._sequences(tails, last)
            by_tail[tail] = by_tail.get(tail, 0) | mask
        end = (last or self.byte_set)(single)
        return self.alt([end, *(self.cat(self.byte_set(m), t) for t, m in by_tail.items())])

    def chars_then(self, ranges: cp.Ranges, last: Callable[[int], int]) -> int:
        """One code point out of `ranges`; `last` makes of the bytes it ends in the term of them and the rest."""
        return self._sequences(cp.utf8_sequences(ranges), last)

    def cat(self, head: int, tail: int) -> int:
        """`head`, then `tail`; a sequence as head is taken apart, so that texts of one kind are one term (free ones stay)."""
        if head == EMPTY or tail == EMPTY:
            return EMPTY
        if head == EPSILON:
            return tail
        if tail == EPSILON:
            return head
        parts = []
        data = self._data[head]
        while data[0] == CAT and head not in self._free:
            parts.append(data[1])
            head = data[2]
            data = self._data[head]
        tail = self._pair(head, tail)
        while parts:
            tail = self._pair(parts.pop(), tail)
        return tail

    def _pair(self, head: int, tail: int) -> int:
        data = self._data[head]
        if data[0] == LITERAL:
            after = self._data[tail]
            if after[0] == LITERAL:
                return self.literal(data[1] + after[1])
            if after[0] == CAT and self._data[after[1]][0] == LITERAL:
                return self._pair(self.literal(data[1] + self._data[after[1]][1]), after[2])
        elif data[0] == BODY:
            return self.cat(self.expanded(head), tail)
        nullable = self._nullable[head] and self._nullable[tail]
        call = self._head_call[head] or (self._nullable[head] and self._head_call[tail])
        return self._new((CAT, head, tail), nullable, call)

    def sequence(self, *terms: int) -> int:
        tail = EPSILON
        for term in reversed(terms):
            tail = self.cat(term, tail)
        return tail

    def alt(self, terms: Iterable[int]) -> int:
        flat: set[int] = set()
        mask = 0
        repeats = False
        for term in terms:
            data = self._data[term]
            for part in data[1] if data[0] == ALT else (term,):
                kind = self._data[part]
                if kind[0] == SET:
                    mask |= kind[1]
                elif kind[0] == LITERAL and len(kind[1]) == 1:
                    mask |= 1 << kind[1][0]
                elif part != EMPTY:
                    flat.add(self.expanded(part) if kind[0] == BODY else part)
                    repeats |= kind[0] == REPEAT or (kind[0] == CAT and self._data[kind[1]][0] == REPEAT)
        if mask:
            flat.add(self.byte_set(mask))
        if repeats and len(flat) > 1:
            flat = self._join_counts(flat)
        if len(flat) > 1:
            flat = self._join_heads(flat)
        if len(flat) <= 1:
            return next(iter(flat), EMPTY)
        parts = tuple(sorted(flat))
        nullable = any(self._nullable[p] for p in parts)
        return self._new((ALT, parts), nullable, any(self._head_call[p] for p in parts))

    def _join_heads(self, parts: set[int]) -> set[int]:
        """xy | xz is x(y | z): what alternatives begin with alike is followed once."""
        tails: dict[int, list[int]] = {}
        count = 0
        for part in parts:
            data = self._data[part]
            if data[0] == CAT:
                tails.setdefault(data[1], []).append(data[2])
                count += 1
        if len(tails) == count or self._joining > _DEEP:
            return parts
        self._joining += 1
        kept = set(parts)
        for head, found in tails.items():
            data = self._data[head]
            if len(found) > 1 and (data[0] != REPEAT or data[3] < 0):  # counts are joined by `_join_counts`
                kept.difference_update(self._ids[CAT, head, tail] for tail in found)
                kept.add(self.cat(head, self.alt(found)))
        self._joining -= 1
        return kept

    def listed(self, terms: Iterable[int]) -> int:
        """`alt` of many that begin with fixed texts, as a tree of these: a byte then looks only at those that go on with it."""
        words: set[tuple[bytes, int]] = set()
        others = []
        for term in terms:
            leading = self.leading_literal(term)
            if leading is None:
                others.append(term)
            else:
                words.add(leading)
        return self.alt([*others, self._tree(sorted(words), 0)] if words else others)

    def _tree(self, words: list[tuple[bytes, int]], depth: int) -> int:
        if len(words) < _FEW or depth > _DEEP:
            return self.alt(self.cat(self.literal(w), rest) for w, rest in words)
        first, last = words[0][0], words[-1][0]
        shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), None)
        shared = min(len(first), len(last)) if shared is None else shared
        options = []
        for head, group in groupby(words, key=lambda w: w[0][: shared + 1]):
            tails = [(w[shared + 1 :], rest) for w, rest in group]
            if len(head) > shared:
                options.append(self.cat(self.literal(head[shared:]), self._tree(tails, depth + 1)))
            else:  # these end where the others go on
                options += [rest for _, rest in tails]
        return self.cat(self.literal(first[:shared]), self.alt(options))

    def otherwise(self, first: int, rest: int) -> int:
        """`first` or `rest`, put together only where it is visited: a list of n of these has n parts, not n * n."""
        if first == EMPTY or rest == EMPTY:
            return first if rest == EMPTY else rest
        nullable = self._nullable[first] or self._nullable[rest]
        return self._new((ELSE, first, rest), nullable, self._head_call[first] or self._head_call[rest])

    def _alternatives(self, term: int) -> int:
        """The `alt` of all that an `otherwise` lists."""
        parts = []
        while self._data[term][0] == ELSE:
            _, first, term = self._data[term]
            parts.append(first)
        return self.listed([*parts, term])

    def _join_counts(self, parts: set[int]) -> set[int]:
        """x{0,3}y | x{2,5}y is x{0,5}y, and y is x{0,0}y: keeps the number of states of nested counts down."""
        groups: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
        for part in parts:
            data = self._data[part]
            tail = EPSILON
            if data[0] == CAT:
                tail, data = data[2], self._data[data[1]]
            if data[0] == REPEAT:
                groups.setdefault((data[1], tail), []).append((data[2], data[3], part))
        kept = set(parts)
        for (item, tail), counts in groups.items():
            counts = list(counts)
            if tail in kept:
                counts.append((0, 0, tail))
            once = self.cat(item, tail)
            if once in kept:
                counts.append((1, 1, once))
            if len(counts) < 2:
                continue
            counts.sort(key=lambda c: c[0])
            low, high, _ = counts[0]
            merged: list[tuple[int, int]] = []
            for next_low, next_high, _ in counts[1:]:
                if high == -1 or next_low <= high + 1:
                    high = -1 if -1 in (high, next_high) else max(high, next_high)
                else:
                    merged.append((low, high))
                    low, high = next_low, next_high
            merged.append((low, high))
            kept.difference_update(c[2] for c in counts)
            kept.update(self.cat(self.repeat(item, a, b), tail) for a, b in merged)
        kept.discard(EMPTY)
        return kept

    def repeat(self, item: int, low: int, high: int) -> int:
        """`item` from `low` to `high` times; `high` -1: without end."""
        if item == EMPTY:
            return EPSILON if low == 0 else EMPTY
        if item == EPSILON or high == 0:
            return EPSILON
        if low == high == 1:
            return item
        if self._nullable[item]:
            low = 0
        data = self._data[item]
        if data[0] == REPEAT:
            inner_low, inner_high = data[2], data[3]
            if low == 0:
                gapless = inner_low <= 1
            else:
                gapless = inner_high == -1 or low == high or low * inner_high + 1 >= (low + 1) * inner_low
            if gapless:
                top = -1 if -1 in (inner_high, high) else inner_high * high
                return self.repeat(data[1], inner_low * low, top)
        return self._new((REPEAT, item, low, high), low == 0, self._head_call[item])

    # rules

    def rule(self) -> int:
        """A new rule, to be given its body by `define`."""
        self._rules.append(EMPTY)
        return len(self._rules) - 1

    def define(self, rule: int, body: int) -> None:
        if body == EMPTY or self._nullable[body]:
            raise ValueError("a rule must match something, and not the empty string")
        self._rules[rule] = body

    def call(self, rule: int) -> int:
        return self._new((CALL, rule), False, True)

    def on_its_own(self, term: int) -> int:
        """`term` as a rule: its states are then the same wherever it stands, since what follows is on the stack."""
        if term == EMPTY or self._data[term][0] in (CALL, STRING):
            return term
        found = self._own_rules.get(term)
        if found is None:
            rule = self.rule()
            self.define(rule, term)
            found = self._own_rules[term] = self.call(rule)
        return found

    def define_reference(self, rule: int, body: int) -> None:
        """Give a rule that only `reference` uses its body; it may match the empty string, and end before it has to."""
        self._rules[rule] = body

    def reference(self, rule: int, nullable: bool) -> int:
        """A rule put in where it stands: no stack, so it needs no sure end. It must not begin with itself."""
        return self._new((REFERENCE, rule), nullable, True)

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

    def expanded_rest(self, quoted: int) -> int:
        """What follows the opening quote of a quoted string that is spelled out."""
        return self.arcs(quoted)[0][2]

    def expanded(self, term: int) -> int:
        """`term`, or what follows the opening quote of its expansion if it is the inside of a string."""
        data = self._data[term]
        return self.arcs(data[3])[0][2] if data[0] == BODY else term

    def automaton(self, automaton: Automaton) -> int:
        """The language of a finite automaton, entered at state 0."""
        if not any(automaton.accepting) or not automaton.live(0, 0):
            return EMPTY
        self._automata.append(automaton)
        return self._state(len(self._automata) - 1, 0, 0)

    def _state(self, index: int, state: int, count: int) -> int:
        automaton = self._automata[index]
        term = self._new((STATE, index, state, count), automaton.accepting[state] and count >= automaton.low)
        if automaton.free and automaton.free[state]:
            self._free[term] = 1
        return term

    def _state_arcs(self, index: int, state: int, count: int) -> list[Arc]:
        automaton = self._automata[index]
        special = sum(1 << b for b in automaton.spelled)
        arcs: list[Arc] = []
        for mask, goal in automaton.rows[state]:
            for part, more in ((mask & CONTINUATION, 0), (mask & ~CONTINUATION, 1)):
                after = count
                if automaton.fewest:
                    after = count + more if automaton.high >= 0 else min(count + more, automaton.low)
                if not part or not automaton.live(goal, after):
                    continue
                target = self._state(index, goal, after)
                if part & ~special:
                    arcs.append((part & ~special, (), target))
                for byte in bits(part & special):
                    text = automaton.spelled[byte]
                    arcs.append((1 << text[0], (), self.cat(self.literal(text[1:]), target)))
        return arcs

    def any_order(self, order: AnyOrder) -> int:
        every = (1 << len(order.members)) - 1
        if not order.may_come(every, 0):
            return EMPTY
        self._orders.append(order)
        return self._members(len(self._orders) - 1, every, 0)

    def order_of(self, index: int) -> AnyOrder:
        return self._orders[index]

    def _members(self, index: int, left: int, count: int) -> int:
        return self._new((MEMBERS, index, left, min(count, self._orders[index].cap)), False, True)

    def _next_member(self, index: int, left: int, count: int) -> int:
        """What can follow when the members in `left` have not come."""
        order = self._orders[index]
        after = count + 1
        options = []
        for i, member in enumerate(order.members):
            rest = left & ~(1 << i)
            if left >> i & 1 and order.may_come(rest, after):
                options.append(self.cat(member, self._members(index, rest, after)))
        if order.other != EMPTY and order.may_come(left, after):
            options.append(self.cat(order.other, self._members(index, left, after)))
        end = order.end if not order.required(left) and count >= order.low else EMPTY
        return self._one_of(order, options, end, count == 0)

    def _one_of(self, order: AnyOrder, options: list[int], end: int, first: bool) -> int:
        if not first:
            options = [self.cat(order.comma, self.listed(options))]
        return self.listed([*options, end])

    def any_left(self, index: int, first: bool) -> int:
        """What can follow, whatever is left: all members, each with a `taken` behind it, which depends on what is left.

        first  no member has come
        """
        order = self._orders[index]
        options = [self.cat(member, self.taken(index, i)) for i, member in enumerate(order.members)]
        if order.other != EMPTY:
            options.append(self.cat(order.other, self.taken(index, len(order.members))))
        return self._one_of(order, options, self.cat(order.end, self.taken(index, order.end_index)), first)

    def taken(self, index: int, member: int) -> int:
        """What follows after a member of an order: the members that were left, without this one.

        member  its number; one more than the last for another one, and one more for the end
        """
        return self._new((TAKEN, index, member), False, True)

    def takes(self, term: int) -> bool:
        """Does it end in a `taken`?"""
        return term in self._taking

    def members_left(self, term: int) -> tuple[int, int, int] | None:
        """(number of the order, mask of the members that are left, how many came) if that is all of `term`."""
        data = self._data[term]
        return (data[1], data[2], data[3]) if data[0] == MEMBERS else None

    # exploring

    def leading_literal(self, term: int) -> tuple[bytes, int] | None:
        """(bytes, term after them) if the texts of a term begin with fixed bytes that stand in it as such."""
        data = self._data[term]
        if data[0] == LITERAL:
            return data[1], EPSILON
        if data[0] == CAT and self._data[data[1]][0] == LITERAL:
            return self._data[data[1]][1], data[2]
        return None

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

    def nullable(self, term: int) -> bool:
        return self._nullable[term]

    def data(self, term: int) -> tuple:
        """(kind, ...) of a term; for `grammar.measure`."""
        return self._data[term]

    @property
    def count(self) -> int:
        """Of the terms that are known."""
        return len(self._data)

    @property
    def rule_count(self) -> int:
        return len(self._rules)

    def rule_body(self, rule: int) -> int:
        """EMPTY while the rule is not defined."""
        return self._rules[rule]

    def automaton_of(self, index: int) -> Automaton:
        return self._automata[index]

    def arcs(self, term: int) -> tuple[Arc, ...]:
        """Where each byte leads, masks disjoint."""
        found = self._arcs.get(term)
        if found is None:
            found = self._arcs[term] = tuple(self._merge(self._arcs_then(term, EPSILON)))
        return found

    def _arcs_then(self, term: int, tail: int) -> list[Arc]:
        """The arcs of `term` followed by `tail` (without those that skip `term`), perhaps overlapping."""
        data = self._data[term]
        kind = data[0]
        if kind == LITERAL:
            rest = self.literal(data[1][1:]) if len(data[1]) > 1 else EPSILON
            return [(1 << data[1][0], (), self.cat(rest, tail))]
        if kind == SET:
            return [(data[1], (), tail)]
        if kind == STRING:
            return [(data[2], (tail,), data[1])]
        if kind == UNLIKE:
            return self._unlike_arcs(data[1], data[2], data[3], tail)
        if kind == CALL:
            after = (tail,) if tail != EPSILON else ()
            return [(m, p + after, u) for m, p, u in self.arcs(self._rules[data[1]])]
        if kind == REFERENCE:
            return self._arcs_then(self._rules[data[1]], tail)
        if not self._head_call[term] and tail != EPSILON:
            return [(m, p, self.cat(u, tail)) for m, p, u in self.arcs(term)]
        if kind == ALT:
            return [arc for part in data[1] for arc in self._arcs_then(part, tail)]
        if kind == REPEAT:
            _, item, low, high = data
            rest = self.repeat(item, max(low - 1, 0), high - 1 if high > 0 else -1)
            return self._arcs_then(item, self.cat(rest, tail))
        if kind == CAT:
            arcs = []
            while data[0] == CAT:
                arcs += self._arcs_then(data[1], self.cat(data[2], tail))
                term = data[2]
                if not self._nullable[data[1]]:
                    return arcs
                data = self._data[term]
            return arcs + self._arcs_then(term, tail)
        if kind == BODY:
            return self._arcs_then(self.expanded(term), tail)
        if kind == ELSE:
            return self._arcs_then(self._alternatives(term), tail)
        if kind == MEMBERS:
            return self._arcs_then(self._next_member(data[1], data[2], data[3]), tail)
        if kind == STATE:
            return [(m, p, self.cat(u, tail)) for m, p, u in self._state_arcs(data[1], data[2], data[3])]
        return []

    def _unlike_arcs(self, text: bytes, mask: int, expansion: int, tail: int) -> list[Arc]:
        _, inner, entered = self._data[self.enter(mask, expansion)]
        if not text:
            return [(entered, (tail,), inner)]
        rest = self.mark_free(
            self.unlike(text[1:], mask, expansion), self._free_needs[self.unlike(text, mask, expansion)]
        )
        same = 1 << text[0]
        return [(same, (), self.cat(rest, tail)), (1 << 0x22, (), tail), (entered & ~same, (tail,), inner)]

    def _merge(self, arcs: list[Arc]) -> list[Arc]:
        if len(arcs) <= 1:
            return arcs
        by_mask: dict[int, list[tuple[tuple[int, ...], int]]] = {}
        for mask, pushes, target in arcs:
            by_mask.setdefault(mask, []).append((pushes, target))
        cells: list[tuple[int, list[tuple[tuple[int, ...], int]]]] = []
        for mask, goals in by_mask.items():
            rest = mask
            split: list[tuple[int, list[tuple[tuple[int, ...], int]]]] = []
            for cell, others in cells:
                both = cell & rest
                if not both:
                    split.append((cell, others))
                    continue
                split.append((both, others + goals))
                if cell != both:
                    split.append((cell ^ both, others))
                rest ^= both
            if rest:
                split.append((rest, goals))
            cells = split
        chosen: list[Arc] = []
        for mask, goals in cells:
            goals = list(dict.fromkeys(goals))
            if len(goals) > 1 and any(self._is_entered(t) for _, t in goals):
                chosen += self._merge([arc for p, t in goals for arc in self._spelled_out(mask, p, t)])
            else:
                chosen.append((mask, *self._choose(goals)))
        return chosen

    def _is_entered(self, term: int) -> bool:
        data = self._data[term]
        return bool(data[0] == BODY and data[4] == 1)

    def _spelled_out(self, mask: int, pushes: tuple[int, ...], target: int) -> list[Arc]:
        """An arc; one that enters a string as the arcs of that string's expansion."""
        if not self._is_entered(target):
            return [(mask, pushes, target)]
        inside = self.arcs(self.expanded(target))
        return [(m & mask, (), self.sequence(t, *pushes)) for m, _, t in inside if m & mask]

    def _choose(self, goals: list[tuple[tuple[int, ...], int]]) -> tuple[tuple[int, ...], int]:
        """One goal for several: alternatives on an equal stack, or spelled out without the stack."""
        pushes = goals[0][0]
        if len(goals) == 1:
            return goals[0]
        if all(p == pushes for p, _ in goals):
            return pushes, self.alt(t for _, t in goals)
        target, below = goals[0][1], pushes[:-1]
        if pushes and all(t == target and p and p[:-1] == below for p, t in goals):
            return (*below, self.alt(p[-1] for p, _ in goals)), target
        return (), self.alt(self.sequence(t, *p) for p, t in goals)


@dataclass(frozen=True, slots=True)
class Explored:
    """A finite automaton: `arcs[i]` are (mask, state) of state i; state 0 is the start."""

    arcs: list[list[tuple[int, int]]]
    accepting: list[bool]


def explore(terms: Terms, start: int) -> Explored:
    """All states of a term, calls put in where they stand. Raises TooLarge at a limit, which recursion always meets."""
    order = [start]
    index = {start: 0}
    rows: list[list[tuple[int, int]]] = []
    for term in order:
        row = []
        for mask, pushes, target in terms.arcs(term):
            if pushes:
                target = terms.sequence(terms.expanded(target), *pushes)
            state = index.get(target)
            if state is None:
                state = index[target] = len(order)
                order.append(target)
            row.append((mask, state))
        rows.append(row)
        if len(order) > terms.limits.states:
            raise TooLarge(f"the constraint needs more than {terms.limits.states:,} states")
        if not len(rows) & 255:
            terms.check_time()
    return Explored(rows, [terms.nullable(t) for t in order])
