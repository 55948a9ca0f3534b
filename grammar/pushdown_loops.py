"""The compiled loops of a pushdown machine: one byte, one token, one walk of the vocabulary's tree.

A configuration is four numbers: state, place inside a string (0 between characters), characters of the
string so far, and stack (a node of a tree of return states; 0 is the empty stack). States are built when
they are first needed: a loop that meets one that is not built stops and says which.
"""

from __future__ import annotations

import numpy as np
from numba import njit

OK, DEAD, UNBUILT, FULL = 1, 0, -1, -2

# columns of the state table
FIRST, COUNT, KIND, FINAL, LOW, HIGH, DISTANCE = range(7)  # first arc, arcs (-1: not built), ...
# columns of the arc table
ARC_LOW, ARC_HIGH, ARC_TARGET, ARC_PUSH, ARC_PUSHES = range(5)
# columns of the stack table
RETURN, PARENT, NEED, ENDS = range(4)  # need: bytes to close all; ends: may all of it end here

CLOSED, OPEN, STRING = 0, 1, 2  # kinds: nothing can follow; ordinary; inside of a counted string


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
def step(states, arcs, pushes, inside, stack, slots, used, state, place, count, top, byte):  # type: ignore[no-untyped-def]
    """(status, state, place, count, stack) after one byte; with UNBUILT, `state` is the one to build."""
    while True:
        kind = states[state, KIND]
        if kind == STRING:
            if place == 0:
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
            if after == 0:
                if states[state, HIGH] >= 0:
                    count += 1
                else:
                    count = min(count + 1, states[state, LOW])
            return OK, state, after, count, top
        arcs_here = states[state, COUNT]
        if arcs_here < 0:
            return UNBUILT, state, place, count, top
        first = states[state, FIRST]
        for a in range(first, first + arcs_here):
            if arcs[a, ARC_LOW] <= byte <= arcs[a, ARC_HIGH]:
                for k in range(arcs[a, ARC_PUSH] + arcs[a, ARC_PUSHES] - 1, arcs[a, ARC_PUSH] - 1, -1):
                    top = push(stack, slots, used, states, pushes[k], top)
                    if top < 0:
                        return FULL, state, place, count, top
                state = arcs[a, ARC_TARGET]
                while state == 0 and top != 0:
                    state = stack[top, RETURN]
                    top = stack[top, PARENT]
                return OK, state, 0, 0, top
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
        if place != 0:
            here = inside_need[place] + max(states[state, LOW] - count - 1, 0) + 1
        else:
            here = max(states[state, LOW] - count, 0) + 1
    return here + stack[top, NEED]


@njit(cache=True)
def walk(  # type: ignore[no-untyped-def]
    byte, depth, skip, unique, states, arcs, pushes, inside, inside_need, stack, slots, used,
    path, at, origin, budget, offsets, ids, out, progress,
):  # fmt: skip
    """Tokens that can follow, of the subtrees listed in `at`, as ids in `out`.

    path      int64 [depth, 4]: the configuration behind the node of each depth on the way
    at        int32 [subtrees, 3]: first node, end, depth of the node they hang from
    origin    the configuration behind the node that each subtree hangs from
    budget    only tokens after which so many bytes can complete the text
    progress  subtree, node, ids so far, the largest need met: where to go on after UNBUILT or FULL
    """
    found = progress[2]
    most = progress[3]
    for part in range(progress[0], len(at)):
        for c in range(4):
            path[at[part, 2], c] = origin[c]
        i = at[part, 0]
        if part == progress[0] and progress[1] >= 0:
            i = progress[1]
        end = at[part, 1]
        while i < end:
            d = depth[i]
            status, s, p, n, t = step(
                states, arcs, pushes, inside, stack, slots, used,
                path[d - 1, 0], path[d - 1, 1], path[d - 1, 2], path[d - 1, 3], byte[i],
            )  # fmt: skip
            if status < 0:
                progress[0] = part
                progress[1] = i
                progress[2] = found
                progress[3] = most
                return status, s
            if status == DEAD:
                i = skip[i]
                continue
            path[d, 0] = s
            path[d, 1] = p
            path[d, 2] = n
            path[d, 3] = t
            u = unique[i]
            if u >= 0:
                close = need(states, inside_need, stack, s, p, n, t)
                if close <= budget:
                    most = max(most, close)
                    for k in range(offsets[u], offsets[u + 1]):
                        out[found] = ids[k]
                        found += 1
            i += 1
    progress[2] = found
    progress[3] = most
    return OK, 0


@njit(cache=True)
def run(states, arcs, pushes, inside, stack, slots, used, data, config):  # type: ignore[no-untyped-def]
    """Advance `config` (int64 [5]: state, place, count, stack, bytes done) over `data`, in place."""
    for i in range(config[4], len(data)):
        status, s, p, n, t = step(
            states,
            arcs,
            pushes,
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
def string_walk(byte, depth, skip, unique, uniques, inside, start, max_depth):  # type: ignore[no-untyped-def]
    """What tokens do to a string from place `start`, wherever the string stands.

    Returns, for each byte string: characters it begins (-1: it leaves the string or is no part of one);
    and the nodes at which the closing quote is taken: (node, characters begun, characters completed).
    """
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
        if p == 0 and byte[i] == 0x22:
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
        begun[d] = begun[d - 1] + (1 if p == 0 else 0)
        done[d] = done[d - 1] + (1 if after == 0 else 0)
        if unique[i] >= 0:
            starts[unique[i]] = begun[d]
        i += 1
    return starts, exits[:n_exits].copy()


@njit(cache=True)
def set_bits(row, ids, count):  # type: ignore[no-untyped-def]
    for i in range(count):
        row[ids[i] >> 5] |= np.uint32(1) << np.uint32(ids[i] & 31)
