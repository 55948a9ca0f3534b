"""From a byte automaton and a vocabulary to token classes: the compiled loops.

Tokens that lead every state to the same place are one class, so the table has a column for each class
instead of each token. First the vocabulary's tree is rewritten over byte classes (tokens that differ only
inside a byte class fall together); then each state walks that tree and adds a hash of (state, goal) to
every token it can take; tokens with equal sums are a class, and one walk of a representative fills its column.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_MIX = np.int64(0x9E3779B97F4A7C15 >> 1)


def class_trie(
    byte: np.ndarray,
    depth: np.ndarray,
    skip: np.ndarray,
    unique: np.ndarray,
    uniques: int,
    class_of: np.ndarray,
    class_live: np.ndarray,
    max_depth: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The tree of class strings: (class, first child, next sibling, parent) by node; the node of each byte
    string, -1 where one of its bytes is in a dead class. Node 0 is the root."""
    capacity, slots = 1024, 4096
    tree = np.full((4, capacity), -1, np.int32)
    tree[0, 0] = 0
    keys, values = np.full(slots, -1, np.int64), np.empty(slots, np.int32)
    node_of = np.full(uniques, -1, np.int32)
    path = np.zeros(max_depth + 1, np.int32)
    # arrays that grow are swapped out here: inside of a compiled loop each use of one would cost a reference count
    at, nodes = 0, 1
    while True:
        at, nodes = _add_strings(
            byte,
            depth,
            skip,
            unique,
            class_of,
            class_live,
            at,
            nodes,
            path,
            tree[0],
            tree[1],
            tree[2],
            tree[3],
            keys,
            values,
            node_of,
        )
        if at == len(byte):
            return tree[0, :nodes], tree[1, :nodes], tree[2, :nodes], tree[3, :nodes], node_of
        capacity, slots = capacity * 4, slots * 4
        larger = np.full((4, capacity), -1, np.int32)
        larger[:, :nodes] = tree[:, :nodes]
        tree, keys, values = larger, np.full(slots, -1, np.int64), np.empty(slots, np.int32)
        enter_nodes(tree[0], tree[3], nodes, keys, values)


@njit(cache=True, nogil=True)
def _add_strings(  # type: ignore[no-untyped-def]
    byte, depth, skip, unique, class_of, class_live, at, nodes, path, node_class, child, sibling, parent, keys, values, node_of
):  # fmt: skip
    """Add the strings of classes from node `at` of the trie on, until the arrays are full: (where it stopped, nodes)."""
    last = np.uint64(len(keys) - 1)
    room = len(node_class)
    i = at
    while i < len(byte):
        c = class_of[byte[i]]
        if not class_live[c]:
            i = skip[i]
            continue
        d = depth[i]
        up = path[d - 1]
        key = (np.int64(up) << 8) | c
        slot = (np.uint64(key * _MIX) >> np.uint64(20)) & last
        while keys[slot] != key and keys[slot] >= 0:
            slot = (slot + np.uint64(1)) & last
        if keys[slot] == key:
            found = values[slot]
        else:
            if nodes == room:
                return i, nodes
            node_class[nodes] = c
            sibling[nodes] = child[up]
            child[up] = nodes
            parent[nodes] = up
            keys[slot] = key
            values[slot] = nodes
            found = nodes
            nodes += 1
        path[d] = found
        if unique[i] >= 0:
            node_of[unique[i]] = found
        i += 1
    return i, nodes


@njit(cache=True, nogil=True)
def enter_nodes(node_class, parent, nodes, keys, values):  # type: ignore[no-untyped-def]
    """Fill a hash table anew; it has four slots for each node there is room for."""
    last = np.uint64(len(keys) - 1)
    for n in range(1, nodes):
        key = (np.int64(parent[n]) << 8) | node_class[n]
        slot = (np.uint64(key * _MIX) >> np.uint64(20)) & last
        while keys[slot] >= 0:
            slot = (slot + np.uint64(1)) & last
        keys[slot] = key
        values[slot] = n


@njit(cache=True, nogil=True)
def hash_columns(table, node_class, child, sibling, terminal, max_depth):  # type: ignore[no-untyped-def]
    """For each node where a token ends, the sum over states of a hash of (state, goal); 0 if none can take it."""
    states = table.shape[0]
    sums = np.zeros(len(node_class), np.uint64)
    node = np.empty(max_depth + 2, np.int32)
    state = np.empty(max_depth + 2, np.int32)
    for s in range(states):
        d = 0
        node[0] = child[0]
        state[0] = s
        while d >= 0:
            n = node[d]
            if n < 0:
                d -= 1
                continue
            node[d] = sibling[n]
            t = table[state[d], node_class[n]]
            if t < 0:
                continue
            if terminal[n]:
                x = (np.uint64(s) << np.uint64(32)) | np.uint64(t)
                x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9) + np.uint64(0x9E3779B97F4A7C15)
                x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
                sums[n] += x ^ (x >> np.uint64(31))
            if child[n] >= 0:
                d += 1
                node[d] = child[n]
                state[d] = t
    return sums


@njit(cache=True, nogil=True)
def group_columns(sums, terminal):  # type: ignore[no-untyped-def]
    """Number the different sums: class of each node (0: nothing can take it), a representative node of each."""
    nodes = len(sums)
    slots = 1024
    ends = 0
    for n in range(nodes):
        ends += terminal[n]
    while slots < 2 * ends:
        slots *= 2
    keys = np.zeros(slots, np.uint64)
    values = np.zeros(slots, np.int32)
    class_of_node = np.zeros(nodes, np.int32)
    samples = np.zeros(ends + 1, np.int32)
    classes = 1
    for n in range(nodes):
        if not terminal[n] or sums[n] == 0:
            continue
        slot = np.int64(sums[n] >> np.uint64(20)) & (slots - 1)
        while keys[slot] != 0 and keys[slot] != sums[n]:
            slot = (slot + 1) & (slots - 1)
        if keys[slot] == 0:
            keys[slot] = sums[n]
            values[slot] = classes
            samples[classes] = n
            classes += 1
        class_of_node[n] = values[slot]
    return class_of_node, samples[:classes].copy()


@njit(cache=True, nogil=True)
def fill_table(table, node_class, parent, samples, max_depth):  # type: ignore[no-untyped-def]
    """next[state, class] by walking one representative of each class from every state; -1 for none."""
    states = table.shape[0]
    classes = len(samples)
    out = np.full((states, classes), -1, np.int32)
    path = np.empty(max_depth + 1, np.int32)
    for k in range(1, classes):
        length = 0
        n = samples[k]
        while n > 0:
            path[length] = node_class[n]
            length += 1
            n = parent[n]
        for s in range(states):
            t = s
            for i in range(length - 1, -1, -1):
                t = table[t, path[i]]
                if t < 0:
                    break
            out[s, k] = t
    return out


@njit(cache=True, nogil=True)
def token_distance(table, accepting):  # type: ignore[no-untyped-def]
    """Tokens of the shortest way from each state to an accepting one (breadth first, backwards); -1: no way."""
    states, classes = table.shape
    distance = np.full(states, -1, np.int32)
    offsets = np.zeros(states + 1, np.int64)
    for s in range(states):
        for k in range(1, classes):
            if table[s, k] >= 0:
                offsets[table[s, k] + 1] += 1
    for s in range(states):
        offsets[s + 1] += offsets[s]
    fill = offsets[:-1].copy()
    sources = np.empty(offsets[-1], np.int32)
    for s in range(states):
        for k in range(1, classes):
            t = table[s, k]
            if t >= 0:
                sources[fill[t]] = s
                fill[t] += 1
    queue = np.empty(states, np.int32)
    head = 0
    tail = 0
    for s in range(states):
        if accepting[s]:
            distance[s] = 0
            queue[tail] = s
            tail += 1
    while head < tail:
        t = queue[head]
        head += 1
        for k in range(offsets[t], offsets[t + 1]):
            s = sources[k]
            if distance[s] < 0:
                distance[s] = distance[t] + 1
                queue[tail] = s
                tail += 1
    return distance


@njit(cache=True, nogil=True)
def longest_path(table, accepting):  # type: ignore[no-untyped-def]
    """Most tokens that a text can take from the start; -1 if there is no bound."""
    states, classes = table.shape
    reached = np.zeros(states, np.bool_)
    order = np.empty(states, np.int32)
    degree = np.zeros(states, np.int64)
    reached[0] = True
    order[0] = 0
    count = 1
    i = 0
    while i < count:
        s = order[i]
        i += 1
        for k in range(1, classes):
            t = table[s, k]
            if t >= 0:
                degree[t] += 1
                if not reached[t]:
                    reached[t] = True
                    order[count] = t
                    count += 1
    if degree[0] > 0:
        return -1
    length = np.zeros(states, np.int64)
    ready = np.empty(count, np.int32)
    ready[0] = 0
    top = 1
    i = 0
    longest = 0
    while i < top:
        s = ready[i]
        i += 1
        if accepting[s]:
            longest = max(longest, length[s])
        for k in range(1, classes):
            t = table[s, k]
            if t >= 0:
                length[t] = max(length[t], length[s] + 1)
                degree[t] -= 1
                if degree[t] == 0:
                    ready[top] = t
                    top += 1
    return longest if top == count else -1


@njit(cache=True, nogil=True)
def mask_by_class(live, class_of, out):  # type: ignore[no-untyped-def]
    """Set bit t of `out` (uint32 words) where live[class_of[t]]."""
    tokens = len(class_of)
    for w in range(len(out)):
        first = w * 32
        last = min(first + 32, tokens)
        bits = np.uint32(0)
        for t in range(first, last):
            bits |= np.uint32(live[class_of[t]]) << np.uint32(t - first)
        out[w] = bits


@njit(cache=True, nogil=True)
def mask_by_members(live, offsets, members, out):  # type: ignore[no-untyped-def]
    """The same for few tokens: class k has members[offsets[k] : offsets[k + 1]]."""
    out[:] = 0
    for k in range(1, len(live)):
        if live[k]:
            for i in range(offsets[k], offsets[k + 1]):
                t = members[i]
                out[t >> 5] |= np.uint32(1) << np.uint32(t & 31)


@njit(cache=True, nogil=True)
def members_by_class(class_of, classes):  # type: ignore[no-untyped-def]
    offsets = np.zeros(classes + 1, np.int32)
    for t in range(len(class_of)):
        offsets[class_of[t] + 1] += 1
    for k in range(classes):
        offsets[k + 1] += offsets[k]
    fill = offsets[:-1].copy()
    members = np.empty(len(class_of), np.int32)
    for t in range(len(class_of)):
        members[fill[class_of[t]]] = t
        fill[class_of[t]] += 1
    return offsets, members
