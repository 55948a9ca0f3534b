"""The smallest automaton of a language: states that no text can tell apart become one (Hopcroft)."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True)
def _reverse(table, states, classes):  # type: ignore[no-untyped-def]
    """For each class and target, the states that go there: offsets[class * states + target]."""
    offsets = np.zeros(classes * states + 1, np.int64)
    for s in range(states):
        for c in range(classes):
            t = table[s, c]
            if t >= 0:
                offsets[c * states + t + 1] += 1
    for i in range(classes * states):
        offsets[i + 1] += offsets[i]
    fill = offsets[:-1].copy()
    sources = np.empty(offsets[-1], np.int32)
    for s in range(states):
        for c in range(classes):
            t = table[s, c]
            if t >= 0:
                sources[fill[c * states + t]] = s
                fill[c * states + t] += 1
    return offsets, sources


@njit(cache=True)
def _partition(table, group):  # type: ignore[no-untyped-def]
    """Refine `group` (int32 [states], numbered from 0) until no class of bytes tells members apart.

    A missing transition (-1) is its own goal: splitting by every group tells it from the others.
    """
    states, classes = table.shape
    offsets, sources = _reverse(table, states, classes)
    groups = 0
    for s in range(states):
        groups = max(groups, group[s] + 1)
    start = np.zeros(states + 1, np.int32)
    size = np.zeros(states + 1, np.int32)
    for s in range(states):
        size[group[s]] += 1
    for g in range(1, groups):
        start[g] = start[g - 1] + size[g - 1]
    member = np.empty(states, np.int32)
    place = np.empty(states, np.int32)
    fill = start.copy()
    for s in range(states):
        member[fill[group[s]]] = s
        place[s] = fill[group[s]]
        fill[group[s]] += 1
    marked = np.zeros(states + 1, np.int32)
    queue = np.empty(states + 1, np.int32)
    queued = np.zeros(states + 1, np.bool_)
    head = 0
    tail = 0
    count = 0
    for g in range(groups):
        queue[tail] = g
        tail += 1
        count += 1
        queued[g] = True
    touched = np.empty(states + 1, np.int32)
    splitter = np.empty(states, np.int32)
    while count:
        g = queue[head]
        head = (head + 1) % (states + 1)
        count -= 1
        queued[g] = False
        members = size[g]
        for i in range(members):
            splitter[i] = member[start[g] + i]
        for c in range(classes):
            n_touched = 0
            for i in range(members):
                cell = c * states + splitter[i]
                for k in range(offsets[cell], offsets[cell + 1]):
                    s = sources[k]
                    h = group[s]
                    if marked[h] == 0:
                        touched[n_touched] = h
                        n_touched += 1
                    swap = start[h] + marked[h]
                    other = member[swap]
                    p = place[s]
                    member[swap] = s
                    member[p] = other
                    place[s] = swap
                    place[other] = p
                    marked[h] += 1
            for k in range(n_touched):
                h = touched[k]
                m = marked[h]
                marked[h] = 0
                if m == size[h]:
                    continue
                new = groups
                groups += 1
                if m <= size[h] - m:
                    start[new] = start[h]
                    size[new] = m
                    start[h] += m
                    size[h] -= m
                else:
                    start[new] = start[h] + m
                    size[new] = size[h] - m
                    size[h] = m
                for i in range(start[new], start[new] + size[new]):
                    group[member[i]] = new
                # the smaller part is the new one: enough, unless the old one is still to be used (then both are)
                queue[tail] = new
                tail = (tail + 1) % (states + 1)
                count += 1
                queued[new] = True
    return group, groups


@njit(cache=True)
def _can_accept(table, accepting):  # type: ignore[no-untyped-def]
    states, classes = table.shape
    offsets, sources = _reverse(table, states, classes)
    live = accepting.copy()
    stack = np.empty(states, np.int32)
    top = 0
    for s in range(states):
        if live[s]:
            stack[top] = s
            top += 1
    while top:
        top -= 1
        t = stack[top]
        for c in range(classes):
            for k in range(offsets[c * states + t], offsets[c * states + t + 1]):
                s = sources[k]
                if not live[s]:
                    live[s] = True
                    stack[top] = s
                    top += 1
    return live


@njit(cache=True)
def _renumber(table, accepting, group, groups, start):  # type: ignore[no-untyped-def]
    """The quotient, its states numbered breadth first from the start."""
    classes = table.shape[1]
    number = np.full(groups, -1, np.int32)
    sample = np.empty(groups, np.int32)
    number[group[start]] = 0
    sample[0] = start
    found = 1
    done = 0
    while done < found:
        s = sample[done]
        for c in range(classes):
            t = table[s, c]
            if t >= 0 and number[group[t]] < 0:
                number[group[t]] = found
                sample[found] = t
                found += 1
        done += 1
    small = np.full((found, classes), -1, np.int32)
    accept = np.zeros(found, np.bool_)
    for i in range(found):
        s = sample[i]
        accept[i] = accepting[s]
        for c in range(classes):
            t = table[s, c]
            if t >= 0:
                small[i, c] = number[group[t]]
    return small, accept


def minimise(table: np.ndarray, accepting: np.ndarray, start: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The minimal automaton of (table int32 [states, classes] with -1 for none, accepting bool [states]).

    The start of the result is state 0. Without an accepting state that can be reached it has one state,
    no transitions, and accepts nothing.
    """
    table = np.ascontiguousarray(table, np.int32)
    live = _can_accept(table, np.ascontiguousarray(accepting, np.bool_))
    if not live[start]:
        return np.full((1, table.shape[1]), -1, np.int32), np.zeros(1, np.bool_)
    table = np.where((table >= 0) & live[table], table, -1).astype(np.int32)
    kinds = np.where(live, np.where(accepting, 1, 0), 2)
    _, group = np.unique(kinds, return_inverse=True)
    refined, groups = _partition(table, group.astype(np.int32))
    return _renumber(table, accepting, refined, groups, start)
