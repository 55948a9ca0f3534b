"""The compiled loops of a pushdown machine: one byte, one token, one walk of the vocabulary's tree.

A configuration is four numbers: state, place inside a string (its base: between characters), characters of
the string so far, and stack (a node of a tree of return states; 0 is the empty stack). States are built when
they are first needed: a loop that meets one that is not built stops and says which.

What an object may still hold, where members come in any order, is a set beside the state: states of members' names are
the same for all sets, carry the set's number as their count, and say which members they can lead to (their endings).
So does each entry of the stack. `enter` makes of a state that says "this member was taken" what follows in the new set.
Where a value is one of several objects, the set is that of all of them: what is left of each, as long as the text fits it.

A machine is the address of its tables' addresses (`machine_tables`), since handing arrays from one compiled
function to another counts their references, which takes longer than a step does. Whoever calls keeps the arrays alive.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

OK, DEAD, UNBUILT, FULL, CROWDED = 1, 0, -1, -2, -3  # CROWDED: no room for another set

# columns of the state table
# first arc, arcs (-1: not built), ...
# DENSE: row of the dense table, 0: none
# of a NAME: OTHER is the arc of what is another name, BY_NAME and BY_OTHER the bytes to the end of the text of either
# TOKENS are enough to the end of the text; of a RUN and a NAME AFTER those behind the fixed bytes, OTHERWISE those of another name
FIRST, COUNT, KIND, FINAL, LOW, HIGH, DISTANCE, BASE, DENSE, OTHER, BY_NAME, BY_OTHER = range(12)
TOKENS, AFTER, OTHERWISE = 12, 13, 14
# where what it can lead to stands in the table of endings, and how many that are (0: no set beside it);
# of a LEFT, the order is FIRST and the set LOW
ENDINGS, LEADS_TO = 15, 16
# of a state at which a member may be over: the TAKE of what it leads to without another byte; 0: none
OVER = 17
WIDTH = 18
# columns of the arc table
ARC_LOW, ARC_HIGH, ARC_TARGET, ARC_PUSH, ARC_PUSHES = range(5)
# columns of the stack table
# need: bytes to close all; ends: may all of it end here; close: tokens that are enough to close all
# held: the set beside the state
RETURN, PARENT, NEED, ENDS, CLOSE, HELD = range(6)
# columns of the table of endings: a member's number, bytes and tokens to there, the alternative that it is a member of, and its
# row in the table of members (-1: it is the end)
MEMBER, TO_BYTES, TO_TOKENS, ENDS_AT, ROW = range(5)
# columns of the table of orders: the states before the first and before any other member, words of a mask of all members, words
# of what a set has of its own, counts that are told apart, where its alternatives begin and how many they are, and the first
# row of the orders of some of its alternatives (0: none)
BEGIN, MORE, WORDS, SIZE, CAP, FIRST_PART, PARTS, FEWER = range(8)
# columns of the table of these: the alternatives that are left as a mask, the order of them, and the next row
ALIVE, GOAL, NEXT_FEWER = range(3)
# columns of the table of alternatives: the word of a mask at which its members begin, members (the number after them is that of
# other members, the next that of the end), least and largest number, the first row in the table of members, and bytes and
# tokens of the end
WORD, MEMBERS, LEAST, MOST, ROWS, END_BYTES, END_TOKENS = range(7)
# columns of the table of members: must it come, and bytes and tokens that it then takes from what is left
NEEDED, GIVES_BYTES, GIVES_TOKENS = range(3)
# columns of the table of sets: its order, members that came, and where in the table of masks the members begin that are left
# (with the end, as long as an alternative is one), then what may come next, and then, of each alternative, bytes and tokens of
# what must come and the end
OF_ORDER, CAME, MASKS, MAY, MUSTS = range(5)

# columns of the nodes of a `WalkTree`: children are CHILD .. END_CHILD - 1; TOKENS_HERE tokens end at the node: TOKEN if that is
# one, else those of the tree's `ids` from TOKEN on
CHILD, END_CHILD, TOKEN, TOKENS_HERE = range(4)
# columns of a walk's path: a configuration and these
NEXT, END = 4, 5
# of a walk's progress: depth (-1: not begun), ids so far, the largest need met, whether what is below `top` on the stack was looked
# at, and of a walk that leaves out other names (`fill`): the depth down to which the way is part of names (-1: of any walk else),
# the arc that other names take, the stack there, and the configuration behind them
DEPTH, FOUND, LARGEST, OUTSIDE, WITHIN, ARC, BELOW, BEHIND = range(8)
PROGRESS = 12

# kinds: nothing can follow; ordinary; inside of a counted string; fixed bytes (place: how many are done); the bytes of a
# name, or any other text of a string (place: how many are those of the name); and (in a walk only) one that is not built
# members in any order with a certain set, and with those less than the set held to which it leads (both are at once replaced
# by what follows)
CLOSED, OPEN, STRING, RUN, NAME, NOT_BUILT, LEFT, TAKE = range(8)

# what a machine's table of addresses holds, and sizes
_STATES, _ARCS, _DENSE, _PUSHES, _RUNS, _SPELLED, _INSIDE, _INSIDE_NEED, _STACK, _SLOTS, _USED = range(11)
_ENDINGS, _ORDERS, _MEMBERS, _SETS, _MASKS, _SET_SLOTS, _PATH, _PROGRESS = range(11, 19)
_EOS, _PARTS, _FEWER = 19, 20, 21
_ROOM, _BUCKETS, _SET_ROOM, _MASK_ROOM, _SET_BUCKETS, _DEPTH, _EOS_COUNT, _WORDS = range(22, 30)
# of `used`
STACKS, SETS, MASK_WORDS = range(3)
FAR = (1 << 31) - 1  # bytes or tokens, of what cannot come
NO_BUDGET = 1 << 60
_MANY = 1 << 30  # the length of arrays seen through an address is not looked at


def addresses(arrays: Sequence[np.ndarray], *sizes: int) -> np.ndarray:
    """int64: where each of these arrays begins, and `sizes`."""
    assert all(a.flags.c_contiguous for a in arrays)
    return np.array([*(a.ctypes.data for a in arrays), *sizes], np.int64)


def machine_tables(
    states: np.ndarray,
    arcs: np.ndarray,
    dense: np.ndarray,
    pushes: np.ndarray,
    runs: np.ndarray,
    spelled: np.ndarray,
    inside: np.ndarray,
    inside_need: np.ndarray,
    stack: np.ndarray,
    slots: np.ndarray,
    used: np.ndarray,
    endings: np.ndarray,
    orders: np.ndarray,
    members: np.ndarray,
    sets: np.ndarray,
    masks: np.ndarray,
    set_slots: np.ndarray,
    path: np.ndarray,
    progress: np.ndarray,
    eos: np.ndarray,
    alternatives: np.ndarray,
    fewer: np.ndarray,
    words: int,
) -> np.ndarray:
    """The table of addresses of a machine; its own address is what the loops take.

    states, arcs, dense, pushes  int32 [, WIDTH], [, 5], [, 256], []
    runs, spelled                uint8 [], int32 []: fixed bytes, and the fewest tokens from each on to the end of its run
    inside, inside_need          int16 [, 256], int64 []
    stack, slots, used           int64 [, 6], int32 [a power of two], int64 [3]
    endings, orders, members     int32 [, 5], int64 [, 8], int64 [, 3]
    sets, masks, set_slots       int64 [, 5], int64 [], int32 [a power of two]
    path, progress               int64 [depth, 6], int64 [PROGRESS]: see `walk`
    eos, words                   int32 []: the end tokens; the length of a row
    alternatives, fewer          int64 [, 7], int64 [, 3]
    """
    arrays = (states, arcs, dense, pushes, runs, spelled, inside, inside_need, stack, slots, used)
    of_sets = (endings, orders, members, sets, masks, set_slots, path, progress, eos, alternatives, fewer)
    sizes = (len(stack), len(slots), len(sets), len(masks), len(set_slots), len(path), len(eos), words)
    return addresses((*arrays, *of_sets), *sizes)


def _pointer(typing_context: Any, address: Any) -> Any:
    """An address as a pointer."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), build


_memory: Any = intrinsic(_pointer)


@njit(inline="always")
def _numbers(machine):  # type: ignore[no-untyped-def]
    return carray(_memory(machine), (30,), np.int64)


@njit(inline="always")
def _state_table(machine):  # type: ignore[no-untyped-def]
    return carray(_memory(_numbers(machine)[_STATES]), (_MANY, WIDTH), np.int32)


@njit(inline="always")
def _stack_table(machine):  # type: ignore[no-untyped-def]
    return carray(_memory(_numbers(machine)[_STACK]), (_MANY, 6), np.int64)


@njit(cache=True)
def _hash(masks, at, words, order, came):  # type: ignore[no-untyped-def]
    key = order * np.int64(0x9E3779B1) + came
    for w in range(words):
        key = (key ^ masks[at + w]) * np.int64(0x85EBCA77)
        key ^= key >> np.int64(29)
    return key


@njit(cache=True)
def place_set(slots, masks, at, words, order, came, number):  # type: ignore[no-untyped-def]
    """Enter a set, which is in none, in a table of slots."""
    slot = _hash(masks, at, words, order, came) & (len(slots) - 1)
    while slots[slot] >= 0:
        slot = (slot + 1) & (len(slots) - 1)
    slots[slot] = number


@njit(inline="always")
def _has(masks, at, member):  # type: ignore[no-untyped-def]
    """Is a member in the mask that begins at `at`?"""
    return (masks[at + (member >> 6)] >> np.int64(member & 63)) & 1 == 1


@njit(cache=True)
def set_of(machine, order, came):  # type: ignore[no-untyped-def]
    """The number of a set of `order`: the members of the mask that was written behind the masks of all sets, after `came` ones.

    CROWDED if there is no room for it; the caller has looked that there is for what it has of its own.
    """
    table = _numbers(machine)
    orders = carray(_memory(table[_ORDERS]), (_MANY, 8), np.int64)
    parts = carray(_memory(table[_PARTS]), (_MANY, 7), np.int64)
    members = carray(_memory(table[_MEMBERS]), (_MANY, 3), np.int64)
    sets = carray(_memory(table[_SETS]), (_MANY, 5), np.int64)
    masks = carray(_memory(table[_MASKS]), (_MANY,), np.int64)
    slots = carray(_memory(table[_SET_SLOTS]), (_MANY,), np.int32)
    used = carray(_memory(table[_USED]), (3,), np.int64)
    words, size, left = orders[order, WORDS], table[_SET_BUCKETS], used[MASK_WORDS]
    slot = _hash(masks, left, words, order, came) & (size - 1)
    while slots[slot] >= 0:
        found = np.int64(slots[slot])
        if sets[found, OF_ORDER] == order and sets[found, CAME] == came:
            same = True
            for w in range(words):
                if masks[sets[found, MASKS] + w] != masks[left + w]:
                    same = False
                    break
            if same:
                return found
        slot = (slot + 1) & (size - 1)
    made = used[SETS]
    if made >= table[_SET_ROOM] or made * 2 > size:
        return np.int64(CROWDED)
    may, musts = left + words, left + 2 * words
    for w in range(words):
        masks[may + w] = 0
    for k in range(orders[order, PARTS]):
        part = orders[order, FIRST_PART] + k
        first, end = parts[part, ROWS], parts[part, MEMBERS] + 1
        here = left + parts[part, WORD]
        must, must_bytes, must_tokens = 0, parts[part, END_BYTES], parts[part, END_TOKENS]
        for m in range(end):
            if members[first + m, NEEDED] and _has(masks, here, m):
                must += 1
                must_bytes += members[first + m, GIVES_BYTES]
                must_tokens += members[first + m, GIVES_TOKENS]
        masks[musts + 2 * k], masks[musts + 2 * k + 1] = must_bytes, must_tokens
        for m in range(end + 1):
            fits = _has(masks, here, m)
            if m == end:
                fits = fits and must == 0 and came >= parts[part, LEAST]
            elif fits and parts[part, MOST] >= 0:
                fits = came + 1 + must - members[first + m, NEEDED] <= parts[part, MOST]
            if fits:
                masks[may + parts[part, WORD] + (m >> 6)] |= np.int64(1) << np.int64(m & 63)
    sets[made, OF_ORDER], sets[made, CAME] = order, came
    sets[made, MASKS], sets[made, MAY], sets[made, MUSTS] = left, may, musts
    slots[slot] = made
    used[SETS], used[MASK_WORDS] = made + 1, left + orders[order, SIZE]
    return made


@njit(cache=True)
def _may(machine, held, member):  # type: ignore[no-untyped-def]
    """May this member come next, with the set `held`?"""
    table = _numbers(machine)
    sets = carray(_memory(table[_SETS]), (_MANY, 5), np.int64)
    masks = carray(_memory(table[_MASKS]), (_MANY,), np.int64)
    return _has(masks, sets[held, MAY], member)


@njit(cache=True)
def _alive(machine, state, held):  # type: ignore[no-untyped-def]
    """Does a state that has endings lead to a member that may come, with the set `held`?"""
    table, states = _numbers(machine), _state_table(machine)
    endings = carray(_memory(table[_ENDINGS]), (_MANY, 5), np.int32)
    masks = carray(_memory(table[_MASKS]), (_MANY,), np.int64)
    may = carray(_memory(table[_SETS]), (_MANY, 5), np.int64)[held, MAY]
    for k in range(states[state, ENDINGS], states[state, ENDINGS] + states[state, LEADS_TO]):
        if _has(masks, may, endings[k, MEMBER]):
            return True
    return False


@njit(cache=True)
def _without(machine, state, held):  # type: ignore[no-untyped-def]
    """The set after the members to which a TAKE leads came, out of the set `held`: that of the alternatives they are members of.
    0 if it was the end; CROWDED if there is no room for it."""
    table = _numbers(machine)
    states = _state_table(machine)
    endings = carray(_memory(table[_ENDINGS]), (_MANY, 5), np.int32)
    parts = carray(_memory(table[_PARTS]), (_MANY, 7), np.int64)
    sets = carray(_memory(table[_SETS]), (_MANY, 5), np.int64)
    orders = carray(_memory(table[_ORDERS]), (_MANY, 8), np.int64)
    masks = carray(_memory(table[_MASKS]), (_MANY,), np.int64)
    fewer = carray(_memory(table[_FEWER]), (_MANY, 3), np.int64)
    to = carray(_memory(table[_USED]), (3,), np.int64)[MASK_WORDS]
    order, left = sets[held, OF_ORDER], sets[held, MASKS]
    first, last = states[state, ENDINGS], states[state, ENDINGS] + states[state, LEADS_TO]
    alive = np.int64(0)
    for k in range(first, last):
        if _may(machine, held, endings[k, MEMBER]):
            if endings[k, ROW] < 0:
                return np.int64(0)
            alive |= np.int64(1) << np.int64(endings[k, ENDS_AT])
    goal = order
    if alive + 1 != np.int64(1) << orders[order, PARTS]:
        row = orders[order, FEWER]
        while row > 0 and fewer[row, ALIVE] != alive:
            row = fewer[row, NEXT_FEWER]
        if row > 0:
            goal = fewer[row, GOAL]
    if to + orders[goal, SIZE] > table[_MASK_ROOM]:
        return np.int64(CROWDED)
    for w in range(orders[goal, WORDS]):
        masks[to + w] = 0
    at = to
    for of in range(orders[order, PARTS]):
        if not (alive >> np.int64(of)) & 1:
            continue
        part = orders[order, FIRST_PART] + of
        begin = parts[part, WORD]
        if goal == order:
            at = to + begin
        for w in range((parts[part, MEMBERS] + 2 + 63) >> 6):
            masks[at + w] = masks[left + begin + w]
        for k in range(first, last):
            own = endings[k, MEMBER] - begin * 64
            if (
                endings[k, ENDS_AT] == of
                and own < parts[part, MEMBERS]
                and _may(machine, held, endings[k, MEMBER])
            ):
                masks[at + (own >> 6)] &= ~(np.int64(1) << np.int64(own & 63))
        at += (parts[part, MEMBERS] + 2 + 63) >> 6
    return set_of(machine, goal, min(sets[held, CAME] + 1, orders[goal, CAP]))


@njit(cache=True)
def enter(machine, state, held):  # type: ignore[no-untyped-def]
    """(status, state, set) where a text comes to a state with the set `held`."""
    states = _state_table(machine)
    leads_to = states[state, LEADS_TO]
    kind = states[state, KIND]
    if leads_to == 0 and kind != LEFT:
        return OK, np.int64(state), np.int64(0)
    table = _numbers(machine)
    orders = carray(_memory(table[_ORDERS]), (_MANY, 8), np.int64)
    sets = carray(_memory(table[_SETS]), (_MANY, 5), np.int64)
    if kind == LEFT:
        held = np.int64(states[state, LOW])
        return OK, orders[states[state, FIRST], BEGIN if sets[held, CAME] == 0 else MORE], held
    if not _alive(machine, state, held):
        return DEAD, np.int64(state), held
    if kind != TAKE:
        return OK, np.int64(state), held
    after = _without(machine, state, held)
    if after < 0:
        return after, np.int64(state), held
    if after == 0:
        return OK, np.int64(0), np.int64(0)
    return OK, orders[sets[after, OF_ORDER], MORE], after


@njit(cache=True)
def rest(machine, state, held):  # type: ignore[no-untyped-def]
    """Bytes of the shortest text of a state, and tokens that are enough for all such texts."""
    states = _state_table(machine)
    if states[state, LEADS_TO] == 0:
        return np.int64(states[state, DISTANCE]), np.int64(states[state, TOKENS])
    table = _numbers(machine)
    endings = carray(_memory(table[_ENDINGS]), (_MANY, 5), np.int32)
    members = carray(_memory(table[_MEMBERS]), (_MANY, 3), np.int64)
    sets = carray(_memory(table[_SETS]), (_MANY, 5), np.int64)
    masks = carray(_memory(table[_MASKS]), (_MANY,), np.int64)
    may, musts = sets[held, MAY], sets[held, MUSTS]
    least, most = np.int64(FAR), np.int64(0)
    for k in range(states[state, ENDINGS], states[state, ENDINGS] + states[state, LEADS_TO]):
        if not _has(masks, may, endings[k, MEMBER]):
            continue
        n_bytes, n_tokens = np.int64(endings[k, TO_BYTES]), np.int64(endings[k, TO_TOKENS])
        at, of = endings[k, ROW], musts + 2 * np.int64(endings[k, ENDS_AT])
        if at >= 0:
            n_bytes += masks[of] - members[at, GIVES_BYTES]
            n_tokens += masks[of + 1] - members[at, GIVES_TOKENS]
        if n_bytes < least:
            least, most = n_bytes, n_tokens
        elif n_bytes == least:
            most = max(most, n_tokens)
    return least, most


@njit(cache=True)
def push(machine, state, held, parent):  # type: ignore[no-untyped-def]
    """The stack `parent` with `state` and the set `held` on top; FULL if the table is."""
    table = _numbers(machine)
    states, stack = _state_table(machine), _stack_table(machine)
    slots = carray(_memory(table[_SLOTS]), (_MANY,), np.int32)
    used = carray(_memory(table[_USED]), (3,), np.int64)
    size = table[_BUCKETS]
    key = np.int64(state) * np.int64(0x9E3779B1) + np.int64(parent) * np.int64(0x85EBCA77)
    key += held * np.int64(0xC2B2AE3D)
    slot = (key ^ (key >> 15)) & (size - 1)
    while slots[slot] >= 0:
        node = np.int64(slots[slot])
        if stack[node, RETURN] == state and stack[node, PARENT] == parent and stack[node, HELD] == held:
            return node
        slot = (slot + 1) & (size - 1)
    node = used[STACKS]
    if node >= table[_ROOM] or node * 2 > size:
        return np.int64(FULL)
    n_bytes, n_tokens = rest(machine, state, held)
    stack[node, RETURN] = state
    stack[node, PARENT] = parent
    stack[node, HELD] = held
    stack[node, NEED] = stack[parent, NEED] + n_bytes
    stack[node, ENDS] = stack[parent, ENDS] & states[state, FINAL]
    stack[node, CLOSE] = stack[parent, CLOSE] + n_tokens
    slots[slot] = node
    used[STACKS] = node + 1
    return node


@njit(cache=True)
def _push_all(machine, arc, held, top):  # type: ignore[no-untyped-def]
    """The stack with what an arc pushes, from the set `held`; DEAD if that cannot come with the set, FULL or CROWDED."""
    table = _numbers(machine)
    arcs = carray(_memory(table[_ARCS]), (_MANY, 5), np.int32)
    pushes = carray(_memory(table[_PUSHES]), (_MANY,), np.int32)
    for k in range(arcs[arc, ARC_PUSH] + arcs[arc, ARC_PUSHES] - 1, arcs[arc, ARC_PUSH] - 1, -1):
        status, state, beside = enter(machine, np.int64(pushes[k]), held)
        if status != OK:
            return np.int64(status)
        top = push(machine, state, beside, top)
        if top < 0:
            return top
    return top


@njit(cache=True)
def step(machine, state, place, count, top, byte):  # type: ignore[no-untyped-def]
    """(status, state, place, count, stack) after one byte; with UNBUILT, `state` is the one to build."""
    table = _numbers(machine)
    states, stack = _state_table(machine), _stack_table(machine)
    inside = carray(_memory(table[_INSIDE]), (_MANY, 256), np.int16)
    while True:
        kind = states[state, KIND]
        if kind == STRING:
            base = states[state, BASE]
            if place == base:
                if byte == 0x22:
                    if count < states[state, LOW]:
                        return DEAD, state, place, count, top
                    state, count = np.int64(0), np.int64(0)
                    while state == 0 and top != 0:
                        state, count = stack[top, RETURN], stack[top, HELD]
                        top = stack[top, PARENT]
                    return OK, state, np.int64(0), count, top
                if states[state, HIGH] >= 0 and count >= states[state, HIGH]:
                    return DEAD, state, place, count, top
            after = np.int64(inside[place, byte])
            if after < 0:
                return DEAD, state, place, count, top
            if after == base:
                if states[state, HIGH] >= 0:
                    count += 1
                else:
                    count = min(count + 1, np.int64(states[state, LOW]))
            return OK, state, after, count, top
        arcs_here = states[state, COUNT]
        if arcs_here < 0:
            return UNBUILT, state, place, count, top
        if kind in (RUN, NAME):
            runs = carray(_memory(table[_RUNS]), (_MANY,), np.uint8)
            if runs[states[state, LOW] + place] != byte:
                if kind == RUN:
                    return DEAD, state, place, count, top
                arc = np.int64(states[state, OTHER])
                arcs = carray(_memory(table[_ARCS]), (_MANY, 5), np.int32)
                goal = np.int64(arcs[arc, ARC_TARGET])
                after = states[goal, BASE] if byte == 0x22 else inside[states[goal, BASE], byte]
                if after < 0:
                    return DEAD, state, place, count, top
                if arcs[arc, ARC_PUSHES] > 0:
                    below = _push_all(machine, arc, count, top)
                    if below <= 0:
                        return below, state, place, count, top
                    top = below
                if byte != 0x22:
                    return OK, goal, np.int64(after), np.int64(0), top
                state, count = np.int64(0), np.int64(0)
                while state == 0 and top != 0:
                    state, count = stack[top, RETURN], stack[top, HELD]
                    top = stack[top, PARENT]
                return OK, state, np.int64(states[state, BASE]), count, top
            if place + 1 < states[state, HIGH]:
                return OK, state, place + 1, count, top
            status, state, count = enter(machine, np.int64(states[state, FIRST]), count)
            while state == 0 and top != 0:
                state, count = stack[top, RETURN], stack[top, HELD]
                top = stack[top, PARENT]
            return status, state, np.int64(states[state, BASE]), count, top
        arcs = carray(_memory(table[_ARCS]), (_MANY, 5), np.int32)
        hit = np.int64(-1)
        row = states[state, DENSE]
        if row > 0:
            hit = np.int64(carray(_memory(table[_DENSE]), (_MANY, 256), np.int32)[row, byte])
        else:
            for a in range(states[state, FIRST], states[state, FIRST] + arcs_here):
                if arcs[a, ARC_LOW] <= byte <= arcs[a, ARC_HIGH]:
                    hit = np.int64(a)
                    break
        if hit >= 0:
            if arcs[hit, ARC_PUSHES] > 0:
                below = _push_all(machine, hit, count, top)
                if below <= 0:
                    return below, state, place, count, top
                top = below
            status, state, count = enter(machine, np.int64(arcs[hit, ARC_TARGET]), count)
            if states[state, KIND] == STRING and byte != 0x22:
                return status, state, np.int64(inside[states[state, BASE], byte]), count, top
            while state == 0 and top != 0:
                state, count = stack[top, RETURN], stack[top, HELD]
                top = stack[top, PARENT]
            return status, state, np.int64(states[state, BASE]), count, top
        if states[state, FINAL] and top != 0:
            state, count = stack[top, RETURN], stack[top, HELD]
            top = stack[top, PARENT]
            continue
        if states[state, OVER] > 0:
            status, after, held = enter(machine, np.int64(states[state, OVER]), count)
            if status != OK:
                return status, state, place, count, top
            state, count = after, held
            continue
        return DEAD, state, place, count, top


@njit(cache=True)
def _other(machine, state, held):  # type: ignore[no-untyped-def]
    """`rest` of another name than that of a NAME, from behind its first byte that differs."""
    table = _numbers(machine)
    states = _state_table(machine)
    arcs = carray(_memory(table[_ARCS]), (_MANY, 5), np.int32)
    pushes = carray(_memory(table[_PUSHES]), (_MANY,), np.int32)
    if states[state, LEADS_TO] == 0:
        return np.int64(states[state, BY_OTHER]), np.int64(states[state, OTHERWISE])
    n_bytes, n_tokens = rest(machine, np.int64(pushes[arcs[states[state, OTHER], ARC_PUSH]]), held)
    return n_bytes + 1, n_tokens + 1


@njit(cache=True)
def need(machine, state, place, count, top):  # type: ignore[no-untyped-def]
    """Bytes of the shortest way to a complete text."""
    states, stack = _state_table(machine), _stack_table(machine)
    here = np.int64(0)
    if states[state, KIND] == STRING:
        if place != states[state, BASE]:
            inside_need = carray(_memory(_numbers(machine)[_INSIDE_NEED]), (_MANY,), np.int64)
            here = inside_need[place] + max(states[state, LOW] - count - 1, 0) + 1
        else:
            here = max(states[state, LOW] - count, np.int64(0)) + 1
    elif states[state, KIND] == NAME and place > 0:
        here = states[state, BY_NAME]
        if states[state, LEADS_TO] > 0:
            here = rest(machine, np.int64(states[state, FIRST]), count)[0] + states[state, HIGH]
        here = min(here - place, _other(machine, state, count)[0])
    else:
        here = rest(machine, state, count)[0]
        if states[state, KIND] == RUN:
            here -= place
    return here + stack[top, NEED]


@njit(cache=True)
def close(machine, state, place, count, top):  # type: ignore[no-untyped-def]
    """Tokens that are enough for every shortest way to a complete text (`grammar.token_measure`)."""
    states, stack = _state_table(machine), _stack_table(machine)
    here = np.int64(0)
    kind = states[state, KIND]
    if kind == STRING:
        if place != states[state, BASE]:
            inside_need = carray(_memory(_numbers(machine)[_INSIDE_NEED]), (_MANY,), np.int64)
            here = inside_need[place] + max(states[state, LOW] - count - 1, 0) + 1
        else:
            here = max(states[state, LOW] - count, np.int64(0)) + 1
    elif kind in (RUN, NAME) and place > 0:
        spelled = carray(_memory(_numbers(machine)[_SPELLED]), (_MANY,), np.int32)
        here = np.int64(spelled[states[state, LOW] + place])
        by_name = np.int64(states[state, BY_NAME])
        if states[state, LEADS_TO] > 0:
            n_bytes, n_tokens = rest(machine, np.int64(states[state, FIRST]), count)
            here += n_tokens
            by_name = n_bytes + states[state, HIGH]
        else:
            here += states[state, AFTER]
        if kind == NAME:
            n_bytes, n_tokens = _other(machine, state, count)
            longer = by_name - place - n_bytes
            if longer > 0:
                here = n_tokens
            elif longer == 0:
                here = max(here, n_tokens)
    else:
        here = rest(machine, state, count)[1]
    return here + stack[top, CLOSE]


@njit(cache=True)
def _child(byte, first, end, wanted):  # type: ignore[no-untyped-def]
    """The first of these siblings whose byte is not below `wanted`."""
    while first < end:
        middle = (first + end) >> 1
        if byte[middle] < wanted:
            first = middle + 1
        else:
            end = middle
    return first


@njit(cache=True)
def _clear(nodes, ids, node, row):  # type: ignore[no-untyped-def]
    """Take the tokens of a subtree out of a row."""
    last = np.int64(node)
    while nodes[last, CHILD] < nodes[last, END_CHILD]:
        last = np.int64(nodes[last, END_CHILD]) - 1
    end = nodes[last, END_CHILD]  # of a leaf: where its children would be
    i, first = np.int64(node), np.int64(nodes[node, CHILD])
    while i < end:
        token, here = nodes[i, TOKEN], nodes[i, TOKENS_HERE]
        for k in range(here):
            t = token if here == 1 else ids[token + k]
            row[t >> 5] &= ~(np.uint32(1) << np.uint32(t & 31))
        i = first if i == node else i + 1


@njit(cache=True)
def walk(machine, tree, state, place, count, top, path, budget, row, out, needs, progress):  # type: ignore[no-untyped-def]
    """Tokens of a `WalkTree` that can follow a configuration, as bits in `row`; the first of them also as ids in `out`.

    tree      the address of the tree's addresses
    path      int64 [depth, 6]: the configuration behind the node of each depth on the way, its next child, their end
    budget    only tokens after which so many tokens are enough to complete the text
    needs     int32 like `out`: how many are enough after each of these, without what is below `top` on the stack
    progress  int64 [PROGRESS]: where to go on after UNBUILT, FULL or CROWDED
    """
    table = _numbers(machine)
    states, stack = _state_table(machine), _stack_table(machine)
    arcs = carray(_memory(table[_ARCS]), (_MANY, 5), np.int32)
    dense = carray(_memory(table[_DENSE]), (_MANY, 256), np.int32)
    runs = carray(_memory(table[_RUNS]), (_MANY,), np.uint8)
    inside = carray(_memory(table[_INSIDE]), (_MANY, 256), np.int16)
    parts = carray(_memory(tree), (3,), np.int64)
    byte = carray(_memory(parts[0]), (_MANY,), np.uint8)
    nodes = carray(_memory(parts[1]), (_MANY, 4), np.int32)
    ids = carray(_memory(parts[2]), (_MANY,), np.int32)
    bottom = top
    below_all = stack[top, CLOSE]
    d, found, most, outside = progress[DEPTH], progress[FOUND], progress[LARGEST], progress[OUTSIDE]
    within, of_others = progress[WITHIN], progress[BELOW]
    few = len(out)
    if d < 0:
        d = 0
        path[0, 0], path[0, 1], path[0, 2], path[0, 3] = state, place, count, top
        path[0, NEXT] = nodes[0, CHILD]
        path[0, END] = nodes[0, END_CHILD]
    other = np.int64(0)
    if within >= 0:
        other = np.int64(arcs[progress[ARC], ARC_TARGET])
    expected, inner, easy = np.uint8(0), False, False
    while d >= 0:
        state, place, count, top = path[d, 0], path[d, 1], path[d, 2], path[d, 3]
        i, end = path[d, NEXT], path[d, END]
        in_name = d <= within
        kind = states[state, KIND]
        if states[state, COUNT] < 0:
            kind = NOT_BUILT
        final = states[state, FINAL]
        row_of = states[state, DENSE]
        first_arc = states[state, FIRST]
        end_arc = first_arc + states[state, COUNT]
        if kind in (RUN, NAME):
            expected = runs[states[state, LOW] + place]
            inner = place + 1 < states[state, HIGH]
            alike = False
            if in_name and kind == NAME:
                alike = (
                    top == bottom
                    and count == path[0, 2]
                    and _same_arc(arcs, states[state, OTHER], progress[ARC])
                )
            if alike or (kind == RUN and not in_name):  # no other child can follow, or matters
                i = _child(byte, i, end, expected)
                end = min(i + 1, end)
        elif kind == STRING:
            easy = place == states[state, BASE] and states[state, HIGH] < 0
        elif kind == CLOSED:  # nothing can follow
            outside = 1
            i = end
        deeper = False
        while i < end:
            s, p, n, t = state, place, count, top
            b = byte[i]
            known = dead = False
            if kind in (RUN, NAME):
                if expected != b:
                    dead = kind == RUN
                elif inner:
                    p = place + 1
                    known = True
            elif kind == OPEN:
                hit, ahead = -1, 256
                if row_of > 0:
                    hit = dense[row_of, b]
                else:
                    for a in range(first_arc, end_arc):
                        if b <= arcs[a, ARC_HIGH]:
                            if arcs[a, ARC_LOW] <= b:
                                hit = a
                            else:
                                ahead = arcs[a, ARC_LOW]
                            break
                if hit >= 0:
                    if (
                        in_name
                        and b != 0x22
                        and top == bottom
                        and count == path[0, 2]
                        and _same_arc(arcs, hit, progress[ARC])
                    ):
                        i += 1
                        continue
                    if arcs[hit, ARC_PUSHES] == 0:
                        goal = arcs[hit, ARC_TARGET]
                        goal_kind = states[goal, KIND]
                        if goal_kind in (OPEN, RUN, NAME):
                            if states[goal, LEADS_TO] == 0:
                                n = 0
                            elif not _alive(machine, goal, count):
                                dead = True
                            s = np.int64(goal)
                            p = np.int64(states[goal, BASE])
                            known = True
                        elif goal_kind == STRING and b != 0x22:
                            s = np.int64(goal)
                            p = np.int64(inside[states[goal, BASE], b])
                            n = 0
                            known = True
                elif final:
                    outside = 1
                    if not _takes(machine, top, b):
                        dead = True
                elif states[state, OVER] > 0:
                    pass
                elif in_name or row_of > 0:
                    dead = True
                else:  # on to a child that an arc takes
                    i = end if ahead == 256 else _child(byte, i + 1, end, np.uint8(ahead))
                    continue
            elif kind == STRING:
                if easy and b != 0x22:
                    p = np.int64(inside[place, b])
                    if p < 0:
                        dead = True
                    if p == place:
                        n = min(count + 1, states[state, LOW])
                    known = True
            if not known and not dead:
                status, s, p, n, t = step(machine, state, place, count, top, b)
                if status < 0:
                    path[d, NEXT] = i
                    progress[DEPTH], progress[FOUND], progress[LARGEST], progress[OUTSIDE] = (
                        d,
                        found,
                        most,
                        outside,
                    )
                    progress[WITHIN] = within
                    return status, s
                dead = status == DEAD
            if in_name:
                if b == 0x22:
                    behind = progress[BEHIND:]
                    if not dead and s == behind[0] and p == behind[1] and n == behind[2] and t == behind[3]:
                        i += 1
                        continue
                    _clear(nodes, ids, i, row)
                elif s == other and t == of_others:
                    i += 1
                    continue
            if dead:
                i += 1
                continue
            here = nodes[i, TOKENS_HERE]
            if here > 0:
                enough = close(machine, s, p, n, t)
                if enough <= budget:
                    most = max(most, enough - below_all)
                    for k in range(here):
                        token = nodes[i, TOKEN] if here == 1 else ids[nodes[i, TOKEN] + k]
                        row[token >> 5] |= np.uint32(1) << np.uint32(token & 31)
                        if found < few:
                            out[found] = token
                            needs[found] = enough - below_all
                        found += 1
            if nodes[i, CHILD] < nodes[i, END_CHILD]:
                if t != top:
                    below = t
                    while below != bottom and below != 0:
                        below = stack[below, PARENT]
                    if below != bottom:
                        outside = 1
                if in_name:
                    within = d if b == 0x22 else np.int64(len(path))
                path[d, NEXT] = i + 1
                d += 1
                path[d, 0], path[d, 1], path[d, 2], path[d, 3] = s, p, n, t
                path[d, NEXT] = nodes[i, CHILD]
                path[d, END] = nodes[i, END_CHILD]
                deeper = True
                break
            i += 1
        if not deeper:
            d -= 1
    progress[DEPTH], progress[FOUND], progress[LARGEST], progress[OUTSIDE] = d, found, most, outside
    return OK, 0


@njit(cache=True)
def _same_arc(arcs, a, b):  # type: ignore[no-untyped-def]
    """Do two arcs lead to one state and push the same?"""
    same = arcs[a, ARC_PUSH] == arcs[b, ARC_PUSH] and arcs[a, ARC_PUSHES] == arcs[b, ARC_PUSHES]
    return same and arcs[a, ARC_TARGET] == arcs[b, ARC_TARGET]


@njit(cache=True)
def _takes(machine, top, byte):  # type: ignore[no-untyped-def]
    """May what is on the stack begin with `byte`? False only if it is certain that it may not."""
    states, stack = _state_table(machine), _stack_table(machine)
    if top == 0:
        return False
    state = stack[top, RETURN]
    kind = states[state, KIND]
    if states[state, COUNT] < 0:
        return True
    if kind == RUN:
        return carray(_memory(_numbers(machine)[_RUNS]), (_MANY,), np.uint8)[states[state, LOW]] == byte
    if kind != OPEN or states[state, FINAL] or states[state, DENSE] > 0:
        return True
    arcs = carray(_memory(_numbers(machine)[_ARCS]), (_MANY, 5), np.int32)
    for a in range(states[state, FIRST], states[state, FIRST] + states[state, COUNT]):
        if arcs[a, ARC_LOW] <= byte <= arcs[a, ARC_HIGH]:
            return True
    return False


@njit(cache=True)
def fill(machine, source, state, place, count, top, row_at, begin):  # type: ignore[no-untyped-def]
    """A whole row: what the `Source` at the address `source` shares, the tokens of its trees that can follow, and the end tokens.

    row_at    the address of uint32 [words], all zero
    begin     0 to go on after UNBUILT, FULL or CROWDED

    Returns (status, state, tokens that are enough after any of those that were walked without what is below on the stack,
    whether the row is that of this stack alone).

    A source with `names` is of a configuration in which any text of a string may follow, the rest of certain names or else
    that of other names, which takes one arc (OTHER). The row is made as if all were other names; then the tokens that are a part
    of the names are walked, and those that close one of them are set or cleared as the walk finds.
    """
    table = _numbers(machine)
    states, stack = _state_table(machine), _stack_table(machine)
    row = carray(_memory(row_at), (_MANY,), np.uint32)
    path = carray(_memory(table[_PATH]), (table[_DEPTH], 6), np.int64)
    progress = carray(_memory(table[_PROGRESS]), (PROGRESS,), np.int64)
    parts = carray(_memory(source), (4,), np.int64)
    none = carray(_memory(table[_PUSHES]), (0,), np.int32)
    names = parts[2]
    may_end = states[state, FINAL] & stack[top, ENDS]
    if begin:
        if parts[0] != 0:
            shared = carray(_memory(parts[0]), (_MANY,), np.uint32)
            for w in range(table[_WORDS]):
                row[w] = shared[w]
        if may_end:
            ends = carray(_memory(table[_EOS]), (table[_EOS_COUNT],), np.int32)
            for k in range(len(ends)):
                row[ends[k] >> 5] |= np.uint32(1) << np.uint32(ends[k] & 31)
        progress[DEPTH], progress[FOUND], progress[LARGEST], progress[OUTSIDE], progress[WITHIN] = (
            -1,
            0,
            0,
            0,
            -1,
        )
    s, p, n, t = state, place, count, top
    if names != 0:
        t = _push_all(machine, np.int64(states[state, OTHER]), count, top)
        if t <= 0:
            return t, np.int64(state), np.int64(0), False
        progress[ARC], progress[BELOW] = states[state, OTHER], t
    if parts[3] != 0:
        s, n = np.int64(0), np.int64(0)
        while s == 0 and t != 0:
            s, n = stack[t, RETURN], stack[t, HELD]
            t = stack[t, PARENT]
        p = np.int64(states[s, BASE])
    above = stack[t, CLOSE] - stack[top, CLOSE]
    if progress[WITHIN] < 0:
        status, at = np.int64(OK), np.int64(0)
        if parts[1] != 0:
            status, at = walk(machine, parts[1], s, p, n, t, path, NO_BUDGET, row, none, none, progress)
        if status != OK or names == 0:
            alone = progress[OUTSIDE] != 0 or may_end != 0
            return status, at, progress[LARGEST] + above, alone
        behind = progress[BEHIND:]
        behind[0], behind[1], behind[2], behind[3] = s, p, n, t
        progress[LARGEST] = max(progress[LARGEST] + above, close(machine, s, p, n, t) - stack[top, CLOSE])
        progress[OUTSIDE] |= t != top
        progress[DEPTH], progress[WITHIN] = -1, len(path)
    status, at = walk(machine, names, state, place, count, top, path, NO_BUDGET, row, none, none, progress)
    return status, at, progress[LARGEST], progress[OUTSIDE] != 0 or may_end != 0


@njit(cache=True)
def run(machine, data, config):  # type: ignore[no-untyped-def]
    """Advance `config` (int64 [5]: state, place, count, stack, bytes done) over `data`, in place."""
    for i in range(config[4], len(data)):
        status, s, p, n, t = step(machine, config[0], config[1], config[2], config[3], data[i])
        if status != OK:
            config[4] = i
            return status, s
        config[0] = s
        config[1] = p
        config[2] = n
        config[3] = t
    config[4] = len(data)
    return OK, 0


@njit(cache=True)
def string_walk(byte, depth, skip, unique, uniques, inside, start, base, max_depth):  # type: ignore[no-untyped-def]
    """What tokens do to a string from place `start`, wherever the string stands.

    Returns, for each byte string: characters it begins (-1: it leaves the string or is no part of one), those that
    it completes and its place; the nodes at which the closing quote is taken: (node, characters begun, characters completed).
    """
    starts = np.full(uniques, -1, np.int32)
    complete = np.zeros(uniques, np.int32)
    places = np.zeros(uniques, np.int32)
    exits = np.empty((len(byte), 3), np.int32)
    n_exits = 0
    place = np.zeros(max_depth + 1, np.int32)
    begun = np.zeros(max_depth + 1, np.int32)
    done = np.zeros(max_depth + 1, np.int32)
    place[0] = start
    i = 0
    while i < len(byte):
        d = depth[i]
        p = place[d - 1]
        if p == base and byte[i] == 0x22:
            exits[n_exits, 0] = i
            exits[n_exits, 1] = begun[d - 1]
            exits[n_exits, 2] = done[d - 1]
            n_exits += 1
            i = skip[i]
            continue
        after = inside[p, byte[i]]
        if after < 0:
            i = skip[i]
            continue
        place[d] = after
        begun[d] = begun[d - 1] + (1 if p == base else 0)
        done[d] = done[d - 1] + (1 if after == base else 0)
        if unique[i] >= 0:
            starts[unique[i]] = begun[d]
            complete[unique[i]] = done[d]
            places[unique[i]] = after
        i += 1
    return starts, complete, places, exits[:n_exits].copy()


@njit(cache=True)
def string_row(fits, offsets, ids, row):  # type: ignore[no-untyped-def]
    """Set the bits of the tokens of the byte strings that fit."""
    for u in range(len(fits)):
        if fits[u]:
            for k in range(offsets[u], offsets[u + 1]):
                row[ids[k] >> 5] |= np.uint32(1) << np.uint32(ids[k] & 31)


@njit(cache=True)
def set_bits(row, ids, count):  # type: ignore[no-untyped-def]
    for i in range(count):
        row[ids[i] >> 5] |= np.uint32(1) << np.uint32(ids[i] & 31)
