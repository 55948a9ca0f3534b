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

# kinds: nothing can follow; ordinary; inside of a counted string; fixed bytes (place: how many are done)
CLOSED, OPEN, STRING, RUN = range(4)


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
    byte, depth, skip, unique, states, arcs, dense, pushes, runs, inside, inside_need, stack, slots, used,
    path, at, origin, budget, offsets, ids, clean, next_exit, out, progress,
):  # fmt: skip
    """Tokens that can follow, of the subtrees listed in `at`, as ids in `out`.

    path      int64 [depth, 4]: the configuration behind the node of each depth on the way
    at        int32 [subtrees, 3]: first node, end, depth of the node they hang from
    origin    the configuration behind the node that each subtree hangs from
    budget    only tokens after which so many bytes can complete the text
    clean, next_exit   where not empty: tokens that stay inside of a string are left out; only nodes that
              close the string, or that lead to one that does, are looked at
    progress  subtree, node, ids so far, the largest need met: where to go on after UNBUILT or FULL
    """
    found = progress[2]
    most = progress[3]
    for part in range(progress[0], len(at)):
        for c in range(4):
            path[at[part, 2], c] = origin[c]
        i = np.int64(at[part, 0])
        if part == progress[0] and progress[1] >= 0:
            i = progress[1]
        end = at[part, 1]
        while i < end:
            if len(clean) and clean[i] and next_exit[i] >= skip[i]:
                i = np.int64(skip[i])
                continue
            d = depth[i]
            state = path[d - 1, 0]
            quick = False
            if states[state, KIND] == OPEN and states[state, COUNT] >= 0:
                hit = find_arc(states, arcs, dense, state, byte[i])
                if (
                    hit >= 0
                    and arcs[hit, ARC_PUSHES] == 0
                    and states[arcs[hit, ARC_TARGET], KIND] in (OPEN, RUN)
                ):
                    s = np.int64(arcs[hit, ARC_TARGET])
                    p = np.int64(states[s, BASE])
                    n = np.int64(0)
                    t = path[d - 1, 3]
                    quick = True
                elif hit < 0 and not states[state, FINAL]:
                    i = np.int64(skip[i])
                    continue
            if not quick:
                status, s, p, n, t = step(
                    states, arcs, dense, pushes, runs, inside, stack, slots, used,
                    state, path[d - 1, 1], path[d - 1, 2], path[d - 1, 3], byte[i],
                )  # fmt: skip
                if status < 0:
                    progress[0], progress[1], progress[2], progress[3] = part, i, found, most
                    return status, s
                if status == DEAD:
                    i = np.int64(skip[i])
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
