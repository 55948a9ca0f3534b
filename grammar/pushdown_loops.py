"""The compiled loops of a pushdown machine: one byte, one token, one walk of the vocabulary's tree.

A configuration is four numbers: state, place inside a string (its base: between characters), characters of
the string so far, and stack (a node of a tree of return states; 0 is the empty stack). States are built when
they are first needed: a loop that meets one that is not built stops and says which.
"""

from __future__ import annotations

import numpy as np
from numba import njit

OK, DEAD, UNBUILT, FULL = 1, 0, -1, -2

# columns of the state table
# first arc, arcs (-1: not built), ...
FIRST, COUNT, KIND, FINAL, LOW, HIGH, DISTANCE, BASE, DENSE = range(
    9
)  # DENSE: row of the dense table, 0: none
# columns of the arc table
ARC_LOW, ARC_HIGH, ARC_TARGET, ARC_PUSH, ARC_PUSHES = range(5)
# columns of the stack table
RETURN, PARENT, NEED, ENDS = range(4)  # need: bytes to close all; ends: may all of it end here

# columns of a walk's path: a configuration and these
NEXT, END = 4, 5

# kinds: nothing can follow; ordinary; inside of a counted string; fixed bytes (place: how many are done),
# and (in a walk only) one that is not built
CLOSED, OPEN, STRING, RUN, NOT_BUILT = range(5)


@njit(cache=True)
def push(stack, slots, used, states, state, parent):  # type: ignore[no-untyped-def]
    """The stack `parent` with `state` on top; -1 if the table is full."""
    size = len(slots)
    key = np.int64(state) * np.int64(0x9E3779B1) + np.int64(parent) * np.int64(0x85EBCA77)
    slot = (key ^ (key >> 15)) & (size - 1)
    while slots[slot] >= 0:
        node = slots[slot]
        if stack[node, RETURN] == state and stack[node, PARENT] == parent:
            return node
        slot = (slot + 1) & (size - 1)
    node = used[0]
    if node >= len(stack) or node * 2 > size:
        return -1
    stack[node, RETURN] = state
    stack[node, PARENT] = parent
    stack[node, NEED] = stack[parent, NEED] + states[state, DISTANCE]
    stack[node, ENDS] = stack[parent, ENDS] & states[state, FINAL]
    slots[slot] = node
    used[0] = node + 1
    return node


@njit(cache=True)
def find_arc(states, arcs, dense, state, byte):  # type: ignore[no-untyped-def]
    """The arc of an ordinary state that `byte` takes, -1 for none."""
    row = states[state, DENSE]
    if row > 0:
        return dense[row, byte]
    first = states[state, FIRST]
    for a in range(first, first + states[state, COUNT]):
        if arcs[a, ARC_LOW] <= byte <= arcs[a, ARC_HIGH]:
            return a
    return -1


@njit(cache=True)
def step(states, arcs, dense, pushes, runs, inside, stack, slots, used, state, place, count, top, byte):  # type: ignore[no-untyped-def]
    """(status, state, place, count, stack) after one byte; with UNBUILT, `state` is the one to build."""
    while True:
        kind = states[state, KIND]
        if kind == STRING:
            base = states[state, BASE]
            if place == base:
                if byte == 0x22:
                    if count < states[state, LOW]:
                        return DEAD, state, place, count, top
                    state = 0
                    while state == 0 and top != 0:
                        state = stack[top, RETURN]
                        top = stack[top, PARENT]
                    return OK, state, 0, 0, top
                if states[state, HIGH] >= 0 and count >= states[state, HIGH]:
                    return DEAD, state, place, count, top
            after = inside[place, byte]
            if after < 0:
                return DEAD, state, place, count, top
            if after == base:
                if states[state, HIGH] >= 0:
                    count += 1
                else:
                    count = min(count + 1, states[state, LOW])
            return OK, state, after, count, top
        arcs_here = states[state, COUNT]
        if arcs_here < 0:
            return UNBUILT, state, place, count, top
        if kind == RUN:
            if runs[states[state, LOW] + place] != byte:
                return DEAD, state, place, count, top
            if place + 1 < states[state, HIGH]:
                return OK, state, place + 1, 0, top
            state = states[state, FIRST]
            while state == 0 and top != 0:
                state = stack[top, RETURN]
                top = stack[top, PARENT]
            return OK, state, states[state, BASE], 0, top
        a = find_arc(states, arcs, dense, state, byte)
        if a >= 0:
            for k in range(arcs[a, ARC_PUSH] + arcs[a, ARC_PUSHES] - 1, arcs[a, ARC_PUSH] - 1, -1):
                top = push(stack, slots, used, states, pushes[k], top)
                if top < 0:
                    return FULL, state, place, count, top
            state = arcs[a, ARC_TARGET]
            if states[state, KIND] == STRING and byte != 0x22:
                return OK, state, np.int64(inside[states[state, BASE], byte]), 0, top
            while state == 0 and top != 0:
                state = stack[top, RETURN]
                top = stack[top, PARENT]
            return OK, state, states[state, BASE], 0, top
        if states[state, FINAL] and top != 0:
            state = stack[top, RETURN]
            top = stack[top, PARENT]
            continue
        return DEAD, state, place, count, top


@njit(cache=True)
def need(states, inside_need, stack, state, place, count, top):  # type: ignore[no-untyped-def]
    """Bytes of the shortest way to a complete text."""
    here = states[state, DISTANCE]
    if states[state, KIND] == STRING:
        if place != states[state, BASE]:
            here = inside_need[place] + max(states[state, LOW] - count - 1, 0) + 1
        else:
            here = max(states[state, LOW] - count, 0) + 1
    elif states[state, KIND] == RUN:
        here -= place
    return here + stack[top, NEED]


@njit(cache=True)
def walk(  # type: ignore[no-untyped-def]
    byte, first, last, unique, offsets, ids, states, arcs, dense, pushes, runs, inside, inside_need, stack, slots, used,
    path, origin, budget, row, out, progress,
):  # fmt: skip
    """Tokens of a `WalkTree` that can follow, as bits in `row`; the first of them also as ids in `out`.

    path      int64 [depth, 6]: the configuration behind the node of each depth on the way, its next child, their end
    origin    the configuration behind the root
    budget    only tokens after which so many bytes can complete the text
    progress  depth (-1: not begun), ids so far, the largest need met, whether what is below `origin` on the stack
              was looked at: where to go on after UNBUILT or FULL
    """
    d, found, most, outside = progress[0], progress[1], progress[2], progress[3]
    few = len(out)
    if d < 0:
        d = 0
        for c in range(4):
            path[0, c] = origin[c]
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
        if kind == RUN:
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
            if kind == RUN:
                if expected != b:
                    continue
                if inner:
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
                        if goal_kind in (OPEN, RUN):
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
                status, s, p, n, t = step(
                    states, arcs, dense, pushes, runs, inside, stack, slots, used, state, place, count, top, b
                )  # fmt: skip
                if status < 0:
                    path[d, NEXT] = i
                    progress[0], progress[1], progress[2], progress[3] = d, found, most, outside
                    return status, s
                if status == DEAD:
                    continue
            u = unique[i]
            if u >= 0:
                close = need(states, inside_need, stack, s, p, n, t)
                if close <= budget:
                    most = max(most, close)
                    for k in range(offsets[u], offsets[u + 1]):
                        token = ids[k]
                        row[token >> 5] |= np.uint32(1) << np.uint32(token & 31)
                        if found < few:
                            out[found] = token
                        found += 1
            if first[i] < last[i]:
                if t != top:
                    below = t
                    while below != origin[3] and below != 0:
                        below = stack[below, PARENT]
                    if below != origin[3]:
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
def run(states, arcs, dense, pushes, runs, inside, stack, slots, used, data, config):  # type: ignore[no-untyped-def]
    """Advance `config` (int64 [5]: state, place, count, stack, bytes done) over `data`, in place."""
    for i in range(config[4], len(data)):
        status, s, p, n, t = step(
            states,
            arcs,
            dense,
            pushes,
            runs,
            inside,
            stack,
            slots,
            used,
            config[0],
            config[1],
            config[2],
            config[3],
            data[i],
        )
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

    Returns, for each byte string: characters it begins (-1: it leaves the string or is no part of one);
    the nodes at which the closing quote is taken: (node, characters begun, characters completed); and for
    each node whether the string goes on there.
    """
    stays = np.zeros(len(byte), np.bool_)
    starts = np.full(uniques, -1, np.int32)
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
        stays[i] = True
        if unique[i] >= 0:
            starts[unique[i]] = begun[d]
        i += 1
    return starts, exits[:n_exits].copy(), stays


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
