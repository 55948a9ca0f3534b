// How the contexts of a batch are shared out: all steps of all blocks of heads of all rows in a line, cut into equal lengths. A program
// has whole contexts and at most two parts of some, at its beginning and its end. Each costs it as long as some steps, so where
// contexts are about equally long, all are cut into the same number of parts, or each program has the same number of whole ones.

#pragma once

#include <decode_shapes.h>

// A part of a row's context for a block of heads: positions [begin, end) of those that stages hold.
struct Unit {
    int row, block, part, parts, begin, end, length;
};

// Steps of SPAN cached positions; one where there are none, since somebody must write the row.
__device__ inline int steps_of(int length, int window) { return larger(1, (least(length, window) + SPAN - 2) / SPAN); }

// What the beginning and the end of a unit cost, in steps: those of 128 KB.
constexpr int UNIT_COST = larger(1, (128 << 10) / (2 * SPAN * ROW));

// The program that has step `at` of `total`. Where there are fewer steps than programs, some have none.
__device__ inline int program_of(int at, int total) {
    return (int)(((long long)(at + 1) * least(PROGRAMS, total) - 1) / total);
}

__device__ inline int first_of(int program, int total) { return (int)((long long)program * total / least(PROGRAMS, total)); }

// A program's way through its units.
struct Walk {
    Place next;
    int end, total, window;
    int each;  // parts of each context; 0: the line is cut into equal lengths
    int length;  // of the next unit's row
    int first;  // program that has the beginning of the unit's context

    __device__ Walk(const Args& a) : next(a.places[block()]), end(a.places[block() + 1].at), total(a.places[PROGRAMS].at), window((int)a.window), each(a.places[PROGRAMS].row), first(0) {
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
        if (until - next.step < steps && each) {
            first = (next.row * BLOCKS + next.block) * each;
            u.part = ::block() - first;
            u.parts = least(each, steps);
        } else if (until - next.step < steps) {
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

// Where each program begins, for one kind of layers: a block of CONSUMERS threads. `sums` holds twice as many.
__device__ inline void cut_work(const CutArgs& a, int* sums, int kind, int thread) {
    int window = kind ? (int)a.window : FOREVER, rows = (int)a.rows, *tops = sums + CONSUMERS;
    int share = (rows + CONSUMERS - 1) / CONSUMERS, row = least(rows, thread * share), last = least(rows, row + share);
    int own = 0, top = 0;
    for (int i = row; i < last; i++) {
        int steps = steps_of(a.lengths[i], window);
        own += steps;
        top = larger(top, steps);
    }
    sums[thread] = own;
    tops[thread] = top;
    for (int reach = 1; reach < CONSUMERS; reach *= 2) {
        all_together();
        int more = thread >= reach ? sums[thread - reach] : 0, other = thread >= reach ? tops[thread - reach] : 0;
        all_together();
        sums[thread] += more;
        tops[thread] = larger(tops[thread], other);
    }
    all_together();
    int total = sums[CONSUMERS - 1] * BLOCKS, longest = tops[CONSUMERS - 1], used = least(PROGRAMS, total), items = rows * BLOCKS;
    int length = (total + used - 1) / used, units = 1 + (int)(((long long)length * items + total - 1) / total);
    int each = items <= PROGRAMS ? PROGRAMS / items : 0, whole = (items + PROGRAMS - 1) / PROGRAMS;  // parts of an item, items of a program
    bool alike = (each ? (longest + each - 1) / each + UNIT_COST : whole * (longest + UNIT_COST)) < length + units * UNIT_COST;
    Place* places = a.places + kind * (PROGRAMS + 1);
    int from = (sums[thread] - own) * BLOCKS;
    for (; row < last; row++) {
        int steps = steps_of(a.lengths[row], window), end = from + steps * BLOCKS;
        for (int b = 0; alike && b < BLOCKS; b++) {
            int item = row * BLOCKS + b, begin = from + b * steps, parts = least(each, steps);
            for (int p = 0; p < each; p++) {
                int step = p < parts ? (int)((long long)p * steps / parts) : steps;
                places[item * each + p] = Place{row, b, step, begin + step};
            }
            if (!each && item % whole == 0) places[item / whole] = Place{row, b, 0, begin};
        }
        if (!alike)
            for (int p = (int)(((long long)from * used + total - 1) / total); p < used && first_of(p, total) < end; p++) {
                int within = first_of(p, total) - from;
                places[p] = Place{row, within / steps, within % steps, first_of(p, total)};
            }
        from = end;
    }
    if (alike) used = each ? items * each : (items + whole - 1) / whole;
    if (thread == 0)
        for (int p = used; p <= PROGRAMS; p++) places[p] = Place{alike && p == PROGRAMS ? each : 0, 0, 0, total};  // a row that there is, for those with nothing to do
}
