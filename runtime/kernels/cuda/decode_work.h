// How the contexts of a batch are shared out: all steps of all blocks of heads of all rows in a line, cut into equal lengths. A program
// has whole contexts and at most two parts of some, at its beginning and its end.

#pragma once

#include <decode_shapes.h>

// A part of a row's context for a block of heads: positions [begin, end) of those that stages hold.
struct Unit {
    int row, block, part, parts, begin, end, length;
};

// Steps of SPAN cached positions; one where there are none, since somebody must write the row.
__device__ inline int steps_of(int length, int window) { return larger(1, (least(length, window) + SPAN - 2) / SPAN); }

// The program that has step `at` of `total`. Where there are fewer steps than programs, some have none.
__device__ inline int program_of(int at, int total) {
    return (int)(((long long)(at + 1) * least(PROGRAMS, total) - 1) / total);
}

__device__ inline int first_of(int program, int total) { return (int)((long long)program * total / least(PROGRAMS, total)); }

// A program's way through its units.
struct Walk {
    Place next;
    int end, total, window;
    int length;  // of the next unit's row
    int first;  // program that has the beginning of the unit's context

    __device__ Walk(const Args& a) : next(a.places[block()]), end(a.places[block() + 1].at), total(a.places[PROGRAMS].at), window((int)a.window), first(0) {
        length = load_early(a.lengths + next.row);
    }
    __device__ bool more() const { return next.at < end; }
    __device__ Unit take(const Args& a) {
        Unit u;
        u.row = next.row;
        u.block = next.block;
        u.length = length;
        int steps = steps_of(length, window), until = least(steps, next.step + end - next.at);
        int oldest = length > window ? length - window : 0;
        u.begin = oldest + next.step * SPAN;
        u.end = least(oldest + until * SPAN, length - 1);
        u.part = 0;
        u.parts = 1;
        if (until - next.step < steps) {
            int from = next.at - next.step;
            first = program_of(from, total);
            u.part = ::block() - first;
            u.parts = program_of(from + steps - 1, total) - first + 1;
        }
        next.at += until - next.step;
        next.step = until;
        if (until == steps) {
            next.step = 0;
            if (++next.block == BLOCKS) {
                next.block = 0;
                next.row++;
                if (more()) length = load_early(a.lengths + next.row);
            }
        }
        return u;
    }
    // Of a part of the last unit's context in `partial`: a program writes one that begins a context, and one that does not.
    __device__ int place_of(int part) const { return part ? first + part : PROGRAMS + first; }
};

// Where each program begins, for one kind of layers: a block of CONSUMERS threads.
__device__ inline void cut_work(const CutArgs& a, int* sums, int kind, int thread) {
    int window = kind ? (int)a.window : FOREVER, rows = (int)a.rows;
    int each = (rows + CONSUMERS - 1) / CONSUMERS, row = least(rows, thread * each), last = least(rows, row + each);
    int own = 0;
    for (int i = row; i < last; i++) own += steps_of(a.lengths[i], window);
    sums[thread] = own;
    for (int reach = 1; reach < CONSUMERS; reach *= 2) {
        all_together();
        int more = thread >= reach ? sums[thread - reach] : 0;
        all_together();
        sums[thread] += more;
    }
    all_together();
    int total = sums[CONSUMERS - 1] * BLOCKS, used = least(PROGRAMS, total);
    Place* places = a.places + kind * (PROGRAMS + 1);
    int from = (sums[thread] - own) * BLOCKS;
    for (; row < last; row++) {
        int steps = steps_of(a.lengths[row], window), end = from + steps * BLOCKS;
        for (int p = (int)(((long long)from * used + total - 1) / total); p < used && first_of(p, total) < end; p++) {
            int within = first_of(p, total) - from;
            places[p] = Place{row, within / steps, within % steps, first_of(p, total)};
        }
        from = end;
    }
    if (thread == 0)
        for (int p = used; p <= PROGRAMS; p++) places[p] = Place{0, 0, 0, total};
}
