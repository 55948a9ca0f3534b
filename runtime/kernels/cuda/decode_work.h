// How the contexts of a batch are shared out: all pieces in a line, cut into equal lengths, each for every block of heads. A piece is what
// a row attends to alone, or what the rows of a bundle have in common, which have a line of their own: its steps, and before them as many
// more as its beginning and its end cost. A program has whole pieces and at most two parts of some, at its beginning and its end.
// Where contexts are about equally long, all are cut into the same number of parts, or each program has the same number of whole ones.

#pragma once

#include <decode_shapes.h>

// A part of a piece for a block of heads: positions [begin, end) of those that stages hold.
struct Unit {
    int row;  // of a bundle its first one
    int block, part, parts, begin, end, length;
    int first;  // program that has the beginning of the piece
    int shared;  // positions before those

    // Whether the newest token of the row is attended with it, and stored.
    __device__ bool stores() const { return part == parts - 1 && length > 0; }
};

// Steps of SPAN cached positions behind the shared ones; one where there are none, since somebody must write the row.
__device__ inline int steps_of(int length, int window, int shared) { return larger(1, (least(length, window) - shared + SPAN - 2) / SPAN); }

// What the beginning and the end of a unit cost, in steps: those of 128 KB, for a bundle twice as many.
constexpr int UNIT_COST = larger(1, (128 << 10) / (2 * SPAN * ROW));
constexpr int BUNDLE_COST = 2 * UNIT_COST;

// Of the `used` programs that share the line, the one that has place `at` of `total`.
__device__ inline int program_of(int at, int total, int used) { return (int)(((long long)(at + 1) * used - 1) / total); }

__device__ inline int first_of(int program, int total, int used) { return (int)((long long)program * total / used); }

// Parts of what a bundle shares, at most: who joins them reads one after another, so more would cost more than they save.
__device__ inline int most_parts(int steps) { return steps ? (int)ceilf(sqrtf(2.0f * steps)) : 0; }

// A program's way through its units of a line whose pieces cost `COST` steps more.
template <int COST>
struct Way {
    Place next;
    int end, total, used;
    int each;  // parts of each piece; 0: the line is cut into equal lengths

    __device__ Way(const Place* places) : next(places[block()]), end(places[block() + 1].at), total(places[PROGRAMS].at - COST), used(places[PROGRAMS].block), each(places[PROGRAMS].row) {}
    __device__ bool more() const { return next.at < end; }
    // The next unit, of a piece of so many steps: of these which, and which part. Whether the piece's last block is done then.
    __device__ bool take(Unit& u, int steps) {
        int from = next.at - next.step;  // where the piece's first step is
        int until = least(steps, end - from);
        u.block = next.block;
        u.begin = next.step * SPAN;
        u.end = until * SPAN;
        u.first = ::block();
        u.part = 0;
        u.parts = 1;
        if (until - next.step < steps) {
            u.first = each ? (next.row * BLOCKS + next.block) * each : program_of(from, total, used);
            u.part = ::block() - u.first;
            u.parts = each ? least(each, steps) : program_of(from + steps - 1, total, used) - u.first + 1;
        }
        next.at = from + until;
        next.step = until;
        if (until < steps) return false;
        next.step = 0;
        next.at += COST;
        if (++next.block < BLOCKS) return false;
        next.block = 0;
        return true;
    }
};

// Through what rows have alone.
struct Walk {
    Way<UNIT_COST> way;
    int window;
    int length, shared;  // of the next unit's row

    __device__ Walk(const Args& a) : way(a.places), window((int)a.window), length(0), shared(0) { look(a); }
    __device__ bool more() const { return way.more(); }
    __device__ void look(const Args& a) {
        if (!more()) return;
        length = load_early(a.lengths + way.next.row);
        if (a.shares) shared = Share(load_early(a.shares + way.next.row)).positions;
    }
    __device__ Unit take(const Args& a) {
        Unit u;
        u.row = way.next.row;
        u.length = length;
        u.shared = shared;
        bool done = way.take(u, steps_of(length, window, shared));
        int oldest = length > window ? length - window : shared;
        u.begin += oldest;
        u.end = least(u.end + oldest, length - 1);
        way.next.row += done;
        if (done) look(a);
        return u;
    }
};

struct BundleUnit : Unit {
    int index, count;  // of its rows in `order`
};

// Through what bundles have in common; a place's row is the bundle's place in `order`.
struct BundleWalk {
    Way<BUNDLE_COST> way;
    int row;
    Share share;

    __device__ BundleWalk(const Args& a) : way(a.bundle_places), row(0) { look(a); }
    __device__ bool more() const { return way.more(); }
    __device__ void look(const Args& a) {
        if (!more()) return;
        row = (int)load_early(a.order + way.next.row);
        share = Share(load_early(a.shares + row));
    }
    __device__ BundleUnit take(const Args& a) {
        BundleUnit u;
        u.row = row;
        u.length = u.shared = 0;
        u.index = share.index;
        u.count = share.count;
        bool done = way.take(u, share.positions / SPAN);
        way.next.row += done ? share.count : 0;
        if (done) look(a);
        return u;
    }
};

// Where in `partial` (MEMBERS 1) or `bundle_partial` a part of a row's result lies: of a piece's beginning, by the row; of others, by the
// program, which has no second one, and by the row's place in the bundle.
template <int MEMBERS>
__device__ inline int begun_at(int row, int block) { return PROGRAMS * MEMBERS + row * BLOCKS + block; }
template <int MEMBERS>
__device__ inline int continued_at(int program, int member) { return program * MEMBERS + member; }

// Parts of what a row shares: how many, and the program of the first one.
struct SharedParts {
    int first, count;
    int member;  // which row of its bundle it is

    __device__ SharedParts() : first(0), count(0), member(0) {}
    __device__ SharedParts(const Args& a, const Unit& u) : member(Share(load_fixed(a.shares + u.row)).member) {
        int steps = u.shared / SPAN, total = a.bundle_places[PROGRAMS].at - BUNDLE_COST, used = a.bundle_places[PROGRAMS].block;
        int at = a.begins[u.row] + u.block * (steps + BUNDLE_COST) + BUNDLE_COST;
        first = program_of(at, total, used);
        count = program_of(at + steps - 1, total, used) - first + 1;
    }
};

// Where each program begins on a line, and behind all of them how many share it: of what rows have alone, in layers without a window (0)
// or with one (1), or of bundles (2). A block of CONSUMERS threads; `sums` holds twice as many.
__device__ inline void cut_work(const CutArgs& a, int* sums, int line, int thread) {
    bool bundles = line == 2, shares = a.shares && line != 1;
    int window = line == 1 ? (int)a.window : FOREVER, rows = (int)a.rows, *tops = sums + CONSUMERS;
    int cost = bundles ? BUNDLE_COST : UNIT_COST;
    int share = (rows + CONSUMERS - 1) / CONSUMERS, begin = least(rows, thread * share), last = least(rows, begin + share);
    auto share_of = [&](int row) { return shares && row >= 0 && row < rows ? Share(a.shares[row]) : Share(); };
    auto steps_at = [&](int i) {  // of a row, or of the bundle that begins there; 0: none does
        if (!bundles) return steps_of(a.lengths[i], window, share_of(i).positions);
        Share found = share_of(shares ? (int)a.order[i] : -1);
        return found.positions && found.member == 0 && found.index == i ? found.positions / SPAN : 0;
    };
    int own = 0, top = 0;  // the longest, or of bundles the most parts of all
    for (int i = begin; i < last; i++) {
        int steps = steps_at(i);
        own += steps ? steps + cost : 0;
        top = bundles ? top + most_parts(steps) * BLOCKS : larger(top, steps);
    }
    sums[thread] = own;
    tops[thread] = top;
    for (int reach = 1; reach < CONSUMERS; reach *= 2) {
        all_together();
        int more = thread >= reach ? sums[thread - reach] : 0, other = thread >= reach ? tops[thread - reach] : 0;
        all_together();
        sums[thread] += more;
        tops[thread] = bundles ? tops[thread] + other : larger(tops[thread], other);
    }
    all_together();
    int total = sums[CONSUMERS - 1] * BLOCKS, longest = tops[CONSUMERS - 1];
    int used = least(least(PROGRAMS, total), bundles ? longest : PROGRAMS), items = rows * BLOCKS;
    int each = items <= PROGRAMS ? PROGRAMS / items : 0, whole = (items + PROGRAMS - 1) / PROGRAMS;  // parts of an item, items of a program
    int alike_cost = each ? (longest + each - 1) / each + cost : whole * (longest + cost);
    bool alike = !bundles && alike_cost <= (total + used - 1) / used + cost;  // a part more than the line counts
    Place* places = a.places + line * (PROGRAMS + 1);
    int from = (sums[thread] - own) * BLOCKS;
    for (int i = begin; i < last; i++) {
        int steps = steps_at(i), wide = steps + cost;
        if (!steps) continue;
        for (int b = 0; alike && b < BLOCKS; b++) {
            int item = i * BLOCKS + b, at = from + b * wide + cost, parts = least(each, steps);
            for (int p = 0; p < each; p++) {  // a program without a part has nothing before the next piece
                int step = p < parts ? (int)((long long)p * steps / parts) : 0;
                places[item * each + p] = Place{i, b, step, p < parts ? at + step : at + wide};
            }
            if (!each && item % whole == 0) places[item / whole] = Place{i, b, 0, at};
        }
        if (!alike)  // programs that begin in it
            for (int p = (int)(((long long)from * used + total - 1) / total); p < used && first_of(p, total, used) < from + wide * BLOCKS; p++) {
                int within = first_of(p, total, used) - from, b = within / wide, step = larger(0, within % wide - cost);
                places[p] = Place{i, b, step, from + b * wide + cost + step};
            }
        if (bundles)
            for (int m = 0, count = share_of((int)a.order[i]).count; m < count; m++) a.begins[a.order[i + m]] = from;
        from += wide * BLOCKS;
    }
    int last_one = !alike ? used : each ? items * each : (items + whole - 1) / whole;
    if (thread == 0)
        for (int p = last_one; p <= PROGRAMS; p++) places[p] = p < PROGRAMS ? Place{0, 0, 0, total + cost} : Place{alike ? each : 0, used, 0, total + cost};
}
