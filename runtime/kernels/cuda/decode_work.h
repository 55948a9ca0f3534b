// How the contexts of a batch are shared out: all pieces in a line, cut into equal lengths, each for every block of heads. First come the
// positions that the rows of a bundle have in common, bundle after bundle, then what each row has alone. A piece is its steps, behind as
// many more as its beginning and its end cost. A program has whole pieces and at most two parts of some, at its beginning and its end.
// Where contexts are about equally long, all are cut into the same number of parts, or each program has the same number of whole ones.

#pragma once

#include <decode_shapes.h>

// A part of what a row has alone, or of what a bundle begins with, for a block of heads: positions [begin, end) of those that stages hold.
struct Unit {
    int row, block, part, parts, begin, end, length;
    int first;  // program that has the beginning of the piece
    Share share;
    bool bundle;

    // Whether the newest token of the row is attended with it, and stored.
    __device__ bool stores() const { return !bundle && part == parts - 1 && length > 0; }

    // Whether the row's result comes from several parts.
    __device__ bool joined() const { return parts > 1 || share.positions > 0; }
};

// Steps of SPAN cached positions behind the shared ones; one where there are none, since somebody must write the row.
__device__ inline int steps_of(int length, int window, int shared) { return larger(1, (least(length, window) - shared + SPAN - 2) / SPAN); }

// What the beginning and the end of a unit cost, in steps: those of 128 KB, for a bundle twice as many.
constexpr int UNIT_COST = larger(1, (128 << 10) / (2 * SPAN * ROW));
__device__ constexpr int cost_of(bool bundle) { return bundle ? 2 * UNIT_COST : UNIT_COST; }

// The program that has place `at` of `total` on the line. Where there are fewer than programs, some have none.
__device__ inline int program_of(int at, int total) {
    return (int)(((long long)(at + 1) * least(PROGRAMS, total) - 1) / total);
}

__device__ inline int first_of(int program, int total) { return (int)((long long)program * total / least(PROGRAMS, total)); }

// Where the parts of a row's result are: how many programs have some of what it has alone, and of what it shares, from which on.
struct Parts {
    int own_first, own, shared_first, shared;

    __device__ int all() const { return own + shared; }
};

// A program's way through its units.
struct Walk {
    Place next;
    int end, total, window;
    int each;  // parts of each context; 0: the line is cut into equal lengths
    int bundled;  // where the bundles' part of the line ends
    int length, row;  // of the next unit
    Share share;

    __device__ Walk(const Args& a) : next(a.places[block()]), end(a.places[block() + 1].at), total(a.places[PROGRAMS].at - cost_of(false)), window((int)a.window), each(a.places[PROGRAMS].row), bundled(a.places[PROGRAMS].block), length(0), row(0) {
        if (more()) look(a);
    }
    __device__ bool more() const { return next.at < end; }
    __device__ void look(const Args& a) {
        row = next.at < bundled ? (int)load_early(a.order + next.row) : next.row;
        length = load_early(a.lengths + row);
        if (a.shares) share = Share(load_early(a.shares + row));
    }
    __device__ Unit take(const Args& a) {
        Unit u;
        u.bundle = next.at < bundled;
        u.row = row;
        u.block = next.block;
        u.length = length;
        u.share = share;
        int steps = u.bundle ? share.positions / SPAN : steps_of(length, window, share.positions);
        int from = next.at - next.step;  // where the piece's first step is
        int until = least(steps, end - from);
        int oldest = u.bundle ? 0 : length > window ? length - window : share.positions;
        u.begin = oldest + next.step * SPAN;
        u.end = u.bundle ? until * SPAN : least(oldest + until * SPAN, length - 1);
        u.first = ::block();
        u.part = 0;
        u.parts = 1;
        if (until - next.step < steps) {
            u.first = each ? (next.row * BLOCKS + next.block) * each : program_of(from, total);
            u.part = ::block() - u.first;
            u.parts = each ? least(each, steps) : program_of(from + steps - 1, total) - u.first + 1;
        }
        next.at = from + until;
        next.step = until;
        if (until == steps) {
            next.step = 0;
            if (++next.block == BLOCKS) {
                next.block = 0;
                next.row = !u.bundle ? next.row + 1 : next.at < bundled ? next.row + share.count : 0;
            }
            next.at += cost_of(next.at < bundled);
            if (more()) look(a);
        }
        return u;
    }
    // Of a row with this share; of the unit's own row, if it shares nothing.
    __device__ Parts parts_of(const Args& a, const Unit& u, int row, int length, const Share& share) const {
        if (!share.positions) return Parts{u.first, u.parts, 0, 0};
        int steps = steps_of(length, window, share.positions), together = share.positions / SPAN;
        int shared_at = a.begins[row] + u.block * (together + cost_of(true)) + cost_of(true);
        int own_at = a.begins[a.most + row] + u.block * (steps + cost_of(false)) + cost_of(false);
        Parts p{program_of(own_at, total), 0, program_of(shared_at, total), 0};
        p.own = program_of(own_at + steps - 1, total) - p.own_first + 1;
        p.shared = program_of(shared_at + together - 1, total) - p.shared_first + 1;
        return p;
    }
};

// Where in `partial` a part lies: of a piece's beginning, by its row; of others, by its program, which has no second one.
__device__ inline long long begun_at(const Args& a, int row, int block, bool shared) {
    return PROGRAMS * BUNDLE + ((shared ? a.most : 0) + row) * BLOCKS + block;
}
__device__ inline long long continued_at(int program, int member) { return program * BUNDLE + member; }

// Where each program begins, for one kind of layers: a block of CONSUMERS threads. `sums` holds three times as many.
__device__ inline void cut_work(const CutArgs& a, int* sums, int kind, int thread) {
    int window = kind ? (int)a.window : FOREVER, rows = (int)a.rows, *bundles = sums + CONSUMERS, *tops = bundles + CONSUMERS;
    int share = (rows + CONSUMERS - 1) / CONSUMERS, begin = least(rows, thread * share), last = least(rows, begin + share);
    bool shares = a.shares && !kind;
    auto shared = [&](int row) { return shares ? Share(a.shares[row]) : Share(); };
    auto steps_at = [&](int row) { return steps_of(a.lengths[row], window, shared(row).positions); };
    auto led = [&](int index) {  // the bundle that begins there, if one does
        int row = shares ? (int)a.order[index] : -1;
        Share found = row >= 0 && row < rows ? shared(row) : Share();
        return found.leads(index) ? found : Share();
    };
    int own = 0, bundled = 0, top = 0;
    for (int i = begin; i < last; i++) {
        int steps = steps_at(i);
        own += steps + cost_of(false);
        if (int shared_steps = led(i).positions / SPAN) bundled += shared_steps + cost_of(true);
        top = larger(top, steps);
    }
    sums[thread] = own;
    bundles[thread] = bundled;
    tops[thread] = top;
    for (int reach = 1; reach < CONSUMERS; reach *= 2) {
        all_together();
        bool some = thread >= reach;
        int more = some ? sums[thread - reach] : 0, others = some ? bundles[thread - reach] : 0, other = some ? tops[thread - reach] : 0;
        all_together();
        sums[thread] += more;
        bundles[thread] += others;
        tops[thread] = larger(tops[thread], other);
    }
    all_together();
    int in_bundles = bundles[CONSUMERS - 1] * BLOCKS, total = sums[CONSUMERS - 1] * BLOCKS + in_bundles, longest = tops[CONSUMERS - 1];
    int used = least(PROGRAMS, total), items = rows * BLOCKS;
    int each = items <= PROGRAMS ? PROGRAMS / items : 0, whole = (items + PROGRAMS - 1) / PROGRAMS;  // parts of an item, items of a program
    int alike_cost = each ? (longest + each - 1) / each + UNIT_COST : whole * (longest + UNIT_COST);
    bool alike = !in_bundles && alike_cost < (total + used - 1) / used + UNIT_COST;  // a part more than the line counts
    Place* places = a.places + kind * (PROGRAMS + 1);
    auto cut = [&](int row, int steps, int cost, int from) {  // programs that begin in a piece
        int wide = steps + cost;
        for (int p = (int)(((long long)from * used + total - 1) / total); p < used && first_of(p, total) < from + wide * BLOCKS; p++) {
            int within = first_of(p, total) - from, b = within / wide, step = larger(0, within % wide - cost);
            places[p] = Place{row, b, step, from + b * wide + cost + step};
        }
    };
    int from = (bundles[thread] - bundled) * BLOCKS;
    for (int i = begin; in_bundles && i < last; i++) {
        Share found = led(i);
        if (!found.positions) continue;
        int steps = found.positions / SPAN;
        cut(i, steps, cost_of(true), from);
        for (int m = 0; m < found.count; m++) a.begins[a.order[i + m]] = from;
        from += (steps + cost_of(true)) * BLOCKS;
    }
    from = in_bundles + (sums[thread] - own) * BLOCKS;
    for (int row = begin; row < last; row++) {
        int steps = steps_at(row), wide = steps + cost_of(false);
        for (int b = 0; alike && b < BLOCKS; b++) {
            int item = row * BLOCKS + b, at = from + b * wide + cost_of(false), parts = least(each, steps);
            for (int p = 0; p < each; p++) {  // a program without a part has nothing before the next piece
                int step = p < parts ? (int)((long long)p * steps / parts) : 0;
                places[item * each + p] = Place{row, b, step, p < parts ? at + step : at + wide};
            }
            if (!each && item % whole == 0) places[item / whole] = Place{row, b, 0, at};
        }
        if (!alike) cut(row, steps, cost_of(false), from);
        if (in_bundles) a.begins[a.most + row] = from;
        from += wide * BLOCKS;
    }
    if (alike) used = each ? items * each : (items + whole - 1) / whole;
    if (thread == 0)
        for (int p = used; p <= PROGRAMS; p++) {
            bool end = p == PROGRAMS;
            places[p] = Place{end && alike ? each : 0, end ? in_bundles : 0, 0, total + cost_of(false)};
        }
}
