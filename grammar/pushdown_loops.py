"""The compiled loops of a pushdown machine: one byte, one token, one walk of the vocabulary's tree.

A configuration is four numbers: state, place inside a string (its base: between characters), characters of
the string so far, and stack (a node of a tree of return states; 0 is the empty stack). States are built when
they are first needed: a loop that meets one that is not built stops and says which.

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

OK, DEAD, UNBUILT, FULL = 1, 0, -1, -2

# columns of the state table
# first arc, arcs (-1: not built), ...
# DENSE: row of the dense table, 0: none
# of a NAME: OTHER is the arc of what is another name, BY_NAME and BY_OTHER the bytes to the end of the text of either
# TOKENS are enough to the end of the text; of a RUN and a NAME AFTER those behind the fixed bytes, OTHERWISE those of another name
FIRST, COUNT, KIND, FINAL, LOW, HIGH, DISTANCE, BASE, DENSE, OTHER, BY_NAME, BY_OTHER = range(12)
TOKENS, AFTER, OTHERWISE = 12, 13, 14
WIDTH = 15
# columns of the arc table
ARC_LOW, ARC_HIGH, ARC_TARGET, ARC_PUSH, ARC_PUSHES = range(5)
# columns of the stack table
# need: bytes to close all; ends: may all of it end here; close: tokens that are enough to close all
RETURN, PARENT, NEED, ENDS, CLOSE = range(5)

# columns of a walk's path: a configuration and these
NEXT, END = 4, 5

# kinds: nothing can follow; ordinary; inside of a counted string; fixed bytes (place: how many are done); the bytes of a
# name, or any other text of a string (place: how many are those of the name); and (in a walk only) one that is not built
CLOSED, OPEN, STRING, RUN, NAME, NOT_BUILT = range(6)

# what a machine's table of addresses holds, and two sizes
_STATES, _ARCS, _DENSE, _PUSHES, _RUNS, _SPELLED, _INSIDE, _INSIDE_NEED, _STACK, _SLOTS, _USED = range(11)
_ROOM, _BUCKETS = 11, 12
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
) -> np.ndarray:
    """The table of addresses of a machine; its own address is what the loops take.

    states, arcs, dense, pushes  int32 [, WIDTH], [, 5], [, 256], []
    runs, spelled                uint8 [], int32 []: fixed bytes, and the fewest tokens from each on to the end of its run
    inside, inside_need          int16 [, 256], int64 []
    stack, slots, used           int64 [, 5], int32 [a power of two], int64 [1]
    """
    arrays = (states, arcs, dense, pushes, runs, spelled, inside, inside_need, stack, slots, used)
    return addresses(arrays, len(stack), len(slots))


def _pointer(typing_context: Any, address: Any) -> Any:
    """An address as a pointer."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), build


_memory: Any = intrinsic(_pointer)


@njit(inline="always")
def _numbers(machine):  # type: ignore[no-untyped-def]
    return carray(_memory(machine), (13,), np.int64)


@njit(inline="always")
def _state_table(machine):  # type: ignore[no-untyped-def]
    return carray(_memory(_numbers(machine)[_STATES]), (_MANY, WIDTH), np.int32)


@njit(inline="always")
def _stack_table(machine):  # type: ignore[no-untyped-def]
    return carray(_memory(_numbers(machine)[_STACK]), (_MANY, 5), np.int64)


@njit(cache=True)
def push(machine, state, parent):  # type: ignore[no-untyped-def]
    """The stack `parent` with `state` on top; -1 if the table is full."""
    table = _numbers(machine)
    states, stack = _state_table(machine), _stack_table(machine)
    slots = carray(_memory(table[_SLOTS]), (_MANY,), np.int32)
    used = carray(_memory(table[_USED]), (1,), np.int64)
    size = table[_BUCKETS]
    key = np.int64(state) * np.int64(0x9E3779B1) + np.int64(parent) * np.int64(0x85EBCA77)
    slot = (key ^ (key >> 15)) & (size - 1)
    while slots[slot] >= 0:
        node = np.int64(slots[slot])
        if stack[node, RETURN] == state and stack[node, PARENT] == parent:
            return node
        slot = (slot + 1) & (size - 1)
    node = used[0]
    if node >= table[_ROOM] or node * 2 > size:
        return np.int64(-1)
    stack[node, RETURN] = state
    stack[node, PARENT] = parent
    stack[node, NEED] = stack[parent, NEED] + states[state, DISTANCE]
    stack[node, ENDS] = stack[parent, ENDS] & states[state, FINAL]
    stack[node, CLOSE] = stack[parent, CLOSE] + states[state, TOKENS]
    slots[slot] = node
    used[0] = node + 1
    return node


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
                    state = np.int64(0)
                    while state == 0 and top != 0:
                        state = stack[top, RETURN]
                        top = stack[top, PARENT]
                    return OK, state, np.int64(0), np.int64(0), top
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
                arc = states[state, OTHER]
                arcs = carray(_memory(table[_ARCS]), (_MANY, 5), np.int32)
                goal = np.int64(arcs[arc, ARC_TARGET])
                after = states[goal, BASE] if byte == 0x22 else inside[states[goal, BASE], byte]
                if after < 0:
                    return DEAD, state, place, count, top
                pushes = carray(_memory(table[_PUSHES]), (_MANY,), np.int32)
                for k in range(arcs[arc, ARC_PUSH] + arcs[arc, ARC_PUSHES] - 1, arcs[arc, ARC_PUSH] - 1, -1):
                    top = push(machine, np.int64(pushes[k]), top)
                    if top < 0:
                        return FULL, state, place, count, top
                if byte != 0x22:
                    return OK, goal, np.int64(after), np.int64(0), top
                state = np.int64(0)
                while state == 0 and top != 0:
                    state = stack[top, RETURN]
                    top = stack[top, PARENT]
                return OK, state, np.int64(states[state, BASE]), np.int64(0), top
            if place + 1 < states[state, HIGH]:
                return OK, state, place + 1, np.int64(0), top
            state = np.int64(states[state, FIRST])
            while state == 0 and top != 0:
                state = stack[top, RETURN]
                top = stack[top, PARENT]
            return OK, state, np.int64(states[state, BASE]), np.int64(0), top
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
            pushes = carray(_memory(table[_PUSHES]), (_MANY,), np.int32)
            for k in range(arcs[hit, ARC_PUSH] + arcs[hit, ARC_PUSHES] - 1, arcs[hit, ARC_PUSH] - 1, -1):
                top = push(machine, np.int64(pushes[k]), top)
                if top < 0:
                    return FULL, state, place, count, top
            state = np.int64(arcs[hit, ARC_TARGET])
            if states[state, KIND] == STRING and byte != 0x22:
                return OK, state, np.int64(inside[states[state, BASE], byte]), np.int64(0), top
            while state == 0 and top != 0:
                state = stack[top, RETURN]
                top = stack[top, PARENT]
            return OK, state, np.int64(states[state, BASE]), np.int64(0), top
        if states[state, FINAL] and top != 0:
            state = stack[top, RETURN]
            top = stack[top, PARENT]
            continue
        return DEAD, state, place, count, top


@njit(cache=True)
def need(machine, state, place, count, top):  # type: ignore[no-untyped-def]
    """Bytes of the shortest way to a complete text."""
    states, stack = _state_table(machine), _stack_table(machine)
    here = np.int64(states[state, DISTANCE])
    if states[state, KIND] == STRING:
        if place != states[state, BASE]:
            inside_need = carray(_memory(_numbers(machine)[_INSIDE_NEED]), (_MANY,), np.int64)
            here = inside_need[place] + max(states[state, LOW] - count - 1, 0) + 1
        else:
            here = max(states[state, LOW] - count, np.int64(0)) + 1
    elif states[state, KIND] == RUN:
        here -= place
    elif states[state, KIND] == NAME and place > 0:
        here = min(states[state, BY_NAME] - place, np.int64(states[state, BY_OTHER]))
    return here + stack[top, NEED]


@njit(cache=True)
def close(machine, state, place, count, top):  # type: ignore[no-untyped-def]
    """Tokens that are enough for every shortest way to a complete text (`grammar.token_measure`)."""
    states, stack = _state_table(machine), _stack_table(machine)
    here = np.int64(states[state, TOKENS])
    kind = states[state, KIND]
    if kind == STRING:
        if place != states[state, BASE]:
            inside_need = carray(_memory(_numbers(machine)[_INSIDE_NEED]), (_MANY,), np.int64)
            here = inside_need[place] + max(states[state, LOW] - count - 1, 0) + 1
        else:
            here = max(states[state, LOW] - count, np.int64(0)) + 1
    elif kind in (RUN, NAME) and place > 0:
        spelled = carray(_memory(_numbers(machine)[_SPELLED]), (_MANY,), np.int32)
        here = np.int64(spelled[states[state, LOW] + place]) + states[state, AFTER]
        if kind == NAME:
            longer = states[state, BY_NAME] - place - states[state, BY_OTHER]
            if longer > 0:
                here = np.int64(states[state, OTHERWISE])
            elif longer == 0:
                here = max(here, np.int64(states[state, OTHERWISE]))
    return here + stack[top, CLOSE]


@njit(cache=True)
def walk(machine, tree, state, place, count, top, path, budget, row, out, needs, progress):  # type: ignore[no-untyped-def]
    """Tokens of a `WalkTree` that can follow a configuration, as bits in `row`; the first of them also as ids in `out`.

    tree      the address of the tree's addresses
    path      int64 [depth, 6]: the configuration behind the node of each depth on the way, its next child, their end
    budget    only tokens after which so many tokens are enough to complete the text
    needs     int32 like `out`: how many are enough after each of these, without what is below `top` on the stack
    progress  depth (-1: not begun), ids so far, the largest need met, whether what is below `top` on the stack
              was looked at: where to go on after UNBUILT or FULL
    """
    table = _numbers(machine)
    states, stack = _state_table(machine), _stack_table(machine)
    arcs = carray(_memory(table[_ARCS]), (_MANY, 5), np.int32)
    dense = carray(_memory(table[_DENSE]), (_MANY, 256), np.int32)
    runs = carray(_memory(table[_RUNS]), (_MANY,), np.uint8)
    inside = carray(_memory(table[_INSIDE]), (_MANY, 256), np.int16)
    parts = carray(_memory(tree), (6,), np.int64)
    byte = carray(_memory(parts[0]), (_MANY,), np.uint8)
    first = carray(_memory(parts[1]), (_MANY,), np.int32)
    last = carray(_memory(parts[2]), (_MANY,), np.int32)
    unique = carray(_memory(parts[3]), (_MANY,), np.int32)
    offsets = carray(_memory(parts[4]), (_MANY,), np.int32)
    ids = carray(_memory(parts[5]), (_MANY,), np.int32)
    bottom = top
    below_all = stack[top, CLOSE]
    d, found, most, outside = progress[0], progress[1], progress[2], progress[3]
    few = len(out)
    if d < 0:
        d = 0
        path[0, 0], path[0, 1], path[0, 2], path[0, 3] = state, place, count, top
        path[0, NEXT] = first[0]
        path[0, END] = last[0]
    expected, inner, easy = np.uint8(0), False, False
    while d >= 0:
        state, place, count, top = path[d, 0], path[d, 1], path[d, 2], path[d, 3]
        end = path[d, END]
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
        elif kind == STRING:
            easy = place == states[state, BASE] and states[state, HIGH] < 0
        elif kind == CLOSED:
            outside = 1
        deeper = False
        for i in range(path[d, NEXT], end):
            s, p, n, t = state, place, count, top
            b = byte[i]
            known = False
            if kind in (RUN, NAME):
                if expected != b:
                    if kind == RUN:
                        continue
                elif inner:
                    p = place + 1
                    n = 0
                    known = True
            elif kind == OPEN:
                hit = -1
                if row_of > 0:
                    hit = dense[row_of, b]
                else:
                    for a in range(first_arc, end_arc):
                        if arcs[a, ARC_LOW] <= b <= arcs[a, ARC_HIGH]:
                            hit = a
                            break
                if hit >= 0:
                    if arcs[hit, ARC_PUSHES] == 0:
                        goal = arcs[hit, ARC_TARGET]
                        goal_kind = states[goal, KIND]
                        if goal_kind in (OPEN, RUN, NAME):
                            s = np.int64(goal)
                            p = np.int64(states[goal, BASE])
                            n = 0
                            known = True
                        elif goal_kind == STRING and b != 0x22:
                            s = np.int64(goal)
                            p = np.int64(inside[states[goal, BASE], b])
                            n = 0
                            known = True
                elif final:
                    outside = 1
                else:
                    continue
            elif kind == STRING:
                if easy and b != 0x22:
                    p = np.int64(inside[place, b])
                    if p < 0:
                        continue
                    if p == place:
                        n = min(count + 1, states[state, LOW])
                    known = True
            if not known:
                status, s, p, n, t = step(machine, state, place, count, top, b)
                if status < 0:
                    path[d, NEXT] = i
                    progress[0], progress[1], progress[2], progress[3] = d, found, most, outside
                    return status, s
                if status == DEAD:
                    continue
            u = unique[i]
            if u >= 0:
                enough = close(machine, s, p, n, t)
                if enough <= budget:
                    most = max(most, enough - below_all)
                    for k in range(offsets[u], offsets[u + 1]):
                        token = ids[k]
                        row[token >> 5] |= np.uint32(1) << np.uint32(token & 31)
                        if found < few:
                            out[found] = token
                            needs[found] = enough - below_all
                        found += 1
            if first[i] < last[i]:
                if t != top:
                    below = t
                    while below != bottom and below != 0:
                        below = stack[below, PARENT]
                    if below != bottom:
                        outside = 1
                path[d, NEXT] = i + 1
                d += 1
                path[d, 0], path[d, 1], path[d, 2], path[d, 3] = s, p, n, t
                path[d, NEXT] = first[i]
                path[d, END] = last[i]
                deeper = True
                break
        if not deeper:
            d -= 1
    progress[0], progress[1], progress[2], progress[3] = d, found, most, outside
    return OK, 0


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
