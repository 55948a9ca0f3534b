// How the contexts of a step's rows are cut into parts, and which part a program has.

#pragma once

#include <step_shapes.h>

// How contexts are cut: so that the program with most to read has least. One warp.
__device__ void cut_contexts(Shared& s, const Args& a, int lane) {
    for (int i = lane; i < (int)a.rows; i += 32) s.lengths[i] = a.lengths[i];
    warp_together();
    for (int kind = 0; kind < 2; kind++) {
        int window = kind ? (int)a.window : FOREVER;
        int longest = 1;
        for (int i = 0; i < (int)a.rows; i++) longest = larger(longest, least(s.lengths[i], window));
        int span = lane < 24 ? SPAN_STEP * (lane + 1) : (SPAN_STEP * 32) << (lane - 24);
        int parts = 0;
        for (int i = 0; i < (int)a.rows; i++) {
            int cached = least(s.lengths[i], window) - 1;
            parts += larger(1, (cached + span - 1) / span);
        }
        int rounds = (parts * KV_HEADS + PROGRAMS - 1) / PROGRAMS;
        // a round's overhead counts as much as 96 positions
        long long cost = (long long)rounds * (least(span, longest) + 96);
        if (rounds > MOST_UNITS && parts > (int)a.rows) cost = (long long)1 << 40;
        long long best = (cost << 5) | lane;
        for (int i = 16; i; i >>= 1) {
            long long other = shuffle_xor(best, i);
            best = other < best ? other : best;
        }
        span = shuffle(span, (int)(best & 31));
        if (lane == 0) {
            s.spans[kind] = span;
            int first = 0;
            for (int i = 0; i <= (int)a.rows; i++) {
                s.firsts[kind * (ROWS + 1) + i] = first;
                if (i < (int)a.rows) {
                    int cached = least(s.lengths[i], window) - 1;
                    first += larger(1, (cached + span - 1) / span);
                }
            }
        }
    }
}

struct Unit {
    int row, head, part, parts, begin, end, length;
};

// The part of a context that comes at `at` in the order of rows, heads, parts. All lanes of a warp ask together.
__device__ inline Unit unit_at(Shared& s, const Args& a, int kind, int window, int at, int lane) {
    const int* firsts = s.firsts + kind * (ROWS + 1);
    int row = 0;
    for (int from = 0; from < ROWS; from += 32) {
        int i = from + lane;
        row += count_bits(lanes_where(i < (int)a.rows && at >= firsts[i + 1 > ROWS ? ROWS : i + 1] * KV_HEADS));
    }
    Unit u;
    u.row = row;
    u.parts = firsts[row + 1] - firsts[row];
    int within = at - firsts[row] * KV_HEADS;
    u.head = within / u.parts;
    u.part = within % u.parts;
    u.length = s.lengths[row];
    int oldest = u.length > window ? u.length - window : 0;
    int span = s.spans[kind];
    u.begin = oldest + u.part * span;
    u.end = least(u.begin + span, u.length - 1);
    return u;
}

__device__ inline int kind_of(int window) { return window == FOREVER ? 0 : 1; }
