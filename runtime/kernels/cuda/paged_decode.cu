// Attention of single tokens to their contexts in pages, for one layer; keys and values of the tokens are stored on the way.
//
// One program a multiprocessor: one warp has the copy engine bring contexts into a ring in shared memory, or several warps copy them;
// eight attend, each 16 positions of a stage. What is cached was written by earlier steps, so the copies begin while the launch before
// is still at work. Of rows that begin alike, bundle_decode.cu has attended to what they share: it is the launch before then.
//
// Compiled by NVRTC; the macros that kernels/paged_decode.py defines are its shapes.

#include <decode_attend.h>
#include <decode_bring.h>

// Joins the parts of a head's result, its own and, if SHARES, those of what the row shares: a lane's numbers of two parts are asked for
// together.
template <bool SHARES>
__device__ inline void join(const Args& a, const Unit& u, const SharedParts& shared, const Warp& w) {
    constexpr int FOURS = GROUP * DIM / 4, ALL = (FOURS + 32 * EACH - 1) / (32 * EACH), AT_ONCE = ALL < 4 ? ALL : 4;
    u16* result = a.attended + (long long)u.row * ATT + (u.block * TOGETHER + w.mine) * (GROUP * DIM);
    int all = SHARES ? u.parts + shared.count : u.parts;
#pragma unroll 1
    for (int begin = 0; begin < ALL; begin += AT_ONCE) {
        float high[AT_ONCE], sum[AT_ONCE], y[AT_ONCE][4] = {};
#pragma unroll
        for (int e = 0; e < AT_ONCE; e++) high[e] = NOWHERE, sum[e] = 0;
#pragma unroll 1
        for (int from = 0; from < all; from += 2) {
            float weight[AT_ONCE][2];
            uint4 value[AT_ONCE][2];
#pragma unroll
            for (int e = 0; e < AT_ONCE; e++)
#pragma unroll
                for (int p = 0; p < 2; p++) {
                    int i = w.sub * 32 + w.lane + (begin + e) * 32 * EACH, part = from + p;
                    bool live = part < all && i < FOURS, own = !SHARES || part < u.parts;
                    int place = part == 0         ? begun_at<1>(u.row, u.block)
                                : own             ? continued_at<1>(u.first + part, 0)
                                : part == u.parts ? begun_at<BUNDLE>(u.row, u.block)
                                                  : continued_at<BUNDLE>(shared.first + part - u.parts, shared.member);
                    long long head = (long long)place * TOGETHER + w.mine;
                    weight[e][p] = load_if((own ? a.weights : a.bundle_weights) + head * GROUP + i * 4 / DIM, live);
                    value[e][p] = load_16((own ? a.partial : a.bundle_partial) + head * (GROUP * DIM) + i * 4, live);
                }
#pragma unroll
            for (int e = 0; e < AT_ONCE; e++)
#pragma unroll
                for (int p = 0; p < 2; p++) {
                    float own = from + p < all ? weight[e][p] : NOWHERE, top = larger(high[e], own);
                    float keep = power_of_two(high[e] - top), part = from + p < all ? power_of_two(own - top) : 0;
                    high[e] = top;
                    sum[e] = sum[e] * keep + part;
                    y[e][0] = y[e][0] * keep + part * float_of(value[e][p].x);
                    y[e][1] = y[e][1] * keep + part * float_of(value[e][p].y);
                    y[e][2] = y[e][2] * keep + part * float_of(value[e][p].z);
                    y[e][3] = y[e][3] * keep + part * float_of(value[e][p].w);
                }
        }
#pragma unroll
        for (int e = 0; e < AT_ONCE; e++) {
            int i = w.sub * 32 + w.lane + (begin + e) * 32 * EACH;
            if (i >= FOURS) continue;
            float whole = 1 / sum[e];
            unsigned* to = (unsigned*)(result + i * 4);
            to[0] = pack(y[e][0] * whole, y[e][1] * whole);
            to[1] = pack(y[e][2] * whole, y[e][3] * whole);
        }
    }
}

// A function of its own, so that its registers are not those of a launch beside which others must find room.
__device__ __noinline__ void join_shared(const Args& a, int row, int block, int first, int parts, int positions) {
    Unit u;
    u.row = row;
    u.block = block;
    u.first = first;
    u.parts = parts;
    u.shared = positions;
    join<true>(a, u, SharedParts(a, u), Warp(thread_index()));
}

// The warps of a head attend with a unit of a row, and join the parts of its result if the others are there already.
__device__ inline void attend_row(Shared& s, Ring& r, const Args& a, const Unit& u, Heads& heads, u16* new_value, float scale, const Warp& w) {
    int lane = w.lane;
    bool last = u.stores();
    heads.ask_from(a, u.row, u.block, last, 0, w);
    heads.give(s, a, u.row, u.block, new_value, last, w);
    w.together();
    Queries<1> queries;
    queries.begin();
    queries.read(s, 0, w);
    if (last)  // the new token itself, which no stage holds
        for (int i = w.sub; i < GROUP; i += EACH) {
            const u16* query = s.queries + (w.mine * GROUP + i) * PADDED;
            float sum = 0;
#pragma unroll
            for (int j = 0; j < DIM / 32; j++) sum += to_float(query[lane + j * 32]) * to_float(s.new_key[w.mine * DIM + lane + j * 32]);
            float score = scored(a, scale, warp_sum(sum));
            if (lane == 0) s.newest[w.mine * GROUP + i] = score;
        }
    Found<1> f;
    f.begin();
    attend<1>(s, r, a, u, queries, f, scale, w);
    f.end();
    int kv_head = u.block * TOGETHER + w.mine;
    bool joined = u.parts > 1 || u.shared > 0;
    Goal goal{joined, u.part ? continued_at<1>(block(), 0) : begun_at<1>(u.row, u.block), a.partial, a.weights, a.attended + (long long)u.row * ATT + kv_head * (GROUP * DIM)};
    goal.part = goal.part * TOGETHER + w.mine;
    if (EACH == 1)
        give<1>(s, f, 1, new_value, last, goal, w);
    else
        add_up<1>(s, f, 1, new_value, last, goal, w);
    if (!joined) return;
    w.together();
    if (u.parts > 1) {  // who comes last joins them
        int* arrived = a.arrived + u.row * KV_HEADS + kv_head;
        int before = 0;
        if (w.sub == 0 && lane == 0) before = add_both(arrived, 1);
        if (EACH == 1) {
            before = shuffle(before, 0);
        } else {
            if (w.sub == 0 && lane == 0) s.flags[w.mine] = before;
            w.together();
            before = s.flags[w.mine];
        }
        if (before != u.parts - 1) return;
        if (w.sub == 0 && lane == 0) *arrived = 0;
    }
    if (u.shared)
        join_shared(a, u.row, u.block, u.first, u.parts, u.shared);
    else
        join<false>(a, u, SharedParts(), w);
}

extern "C" __global__ void __launch_bounds__(CONSUMERS, 1) cut_contexts(const __grid_constant__ CutArgs a) {
    cut_work(a, (int*)shared_memory(), block(), thread_index());
}

extern "C" __global__ void __launch_bounds__(CONSUMERS + FEEDERS, 1) paged_decode(const __grid_constant__ Args a) {
    let_next_begin();
    Shared s = shared_at(shared_memory());
    int thread = thread_index();
    begin_ring(s, thread);
    Walk walk(a);
    all_together();
    if (thread >= CONSUMERS) return bring<true>(s, a, walk, thread - CONSUMERS);
    Warp w(thread);
    Ring r;
    float scale = scale_of(a);
    u16* new_value = s.new_value;
    bool waited = false;
    while (walk.more()) {
        Unit u = walk.take(a);
        Heads heads;
        heads.turn.ask(a.cos, a.sin, u.length, w.lane);
        if (!waited) wait_for_launches_before();
        waited = true;
        new_value = new_value == s.new_value ? s.new_value + TOGETHER * DIM : s.new_value;  // slower warps still add the unit before up
        attend_row(s, r, a, u, heads, new_value, scale, w);
    }
}
