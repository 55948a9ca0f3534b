// Attention of single tokens to their contexts in pages, for one layer; keys and values of the tokens are stored on the way.
//
// One program a multiprocessor: one warp has the copy engine bring contexts into a ring in shared memory, position by position, or
// several warps copy them, where a position is little; eight attend, each 16 positions of a stage. What is cached was written by
// earlier steps, so the copies begin while the launch before is still at work.
//
// Compiled by NVRTC; the macros that kernels/paged_decode.py defines are its shapes.

#include <decode_heads.h>

// Where a position lies in a pool.
__device__ inline int slot_of(const int* pages, int position) { return load_fixed(pages + position / PAGE) * PAGE + position % PAGE; }

// One warp has the copy engine bring contexts, stage by stage: keys, then values. Behind a context's end comes its last position
// again.
__device__ inline void bring_by_engine(Shared& s, const Args& a, Walk walk, int lane) {
    constexpr int HELD = (SPAN + 31) / 32;  // positions of a lane
    Ring r;
    while (walk.more()) {
        Unit u = walk.take(a);
        if (u.begin >= u.end) continue;
        const int* pages = a.pages + load_fixed(a.seats + u.row) * a.width;
        int next[HELD];
#pragma unroll
        for (int i = 0; i < HELD; i++) next[i] = slot_of(pages, least(u.begin + i * 32 + lane, u.end - 1));
#pragma unroll 1
        for (int start = u.begin; start < u.end; start += SPAN) {
            int slots[HELD];
#pragma unroll
            for (int i = 0; i < HELD; i++) {
                slots[i] = next[i];
                next[i] = slot_of(pages, least(start + SPAN + i * 32 + lane, u.end - 1));
            }
#pragma unroll
            for (int both = 0; both < 2; both++) {
                char* stage = s.ring + r.stage * STAGE;
                u64* full = s.full + r.stage;
                wait_for(s.empty + r.stage, r.parity ^ 1);
                if (lane == 0) expect(full, SPAN * ROW);
                warp_together();
                const u16* pool = (both ? a.pool_v : a.pool_k) + u.block * (TOGETHER * DIM);
#pragma unroll
                for (int i = 0; i < HELD; i++) {  // a position whole
                    int position = i * 32 + lane;
                    const u16* from = pool + (long long)slots[i] * (KV_HEADS * DIM);
                    if (position >= SPAN) continue;
                    if (u.bundle)  // another may need it as well
                        copy_bulk(stage + position * STRIDE, from, ROW, full);
                    else
                        copy_bulk_once(stage + position * STRIDE, from, ROW, full);
                }
                r.next();
            }
        }
    }
}

// The same by the threads of several warps, 16 bytes at a time: each has one piece of some positions, and asks for their slots itself.
__device__ inline void bring_by_threads(Shared& s, const Args& a, Walk walk, int thread) {
    constexpr int PIECES = ROW / 16, AT_ONCE = larger(1, FEEDERS / PIECES), COUNT = (SPAN + AT_ONCE - 1) / AT_ONCE;
    static_assert(COPIERS == 1 || PIECES <= FEEDERS, "threads have a position at a time");
    int first = thread / PIECES, piece = thread % PIECES;
    Ring r;
    while (walk.more()) {
        Unit u = walk.take(a);
        if (u.begin >= u.end) continue;
        const int* pages = a.pages + load_fixed(a.seats + u.row) * a.width;
        int next[COUNT];
#pragma unroll
        for (int i = 0; i < COUNT; i++) next[i] = slot_of(pages, least(u.begin + first + i * AT_ONCE, u.end - 1));
#pragma unroll 1
        for (int start = u.begin; start < u.end; start += SPAN) {
            int slots[COUNT];
#pragma unroll
            for (int i = 0; i < COUNT; i++) {
                slots[i] = next[i];
                next[i] = slot_of(pages, least(start + SPAN + first + i * AT_ONCE, u.end - 1));
            }
#pragma unroll
            for (int both = 0; both < 2; both++) {
                char* to = s.ring + r.stage * STAGE + first * STRIDE + piece * 16;
                const u16* pool = (both ? a.pool_v : a.pool_k) + u.block * (TOGETHER * DIM) + piece * 8;
                wait_for(s.empty + r.stage, r.parity ^ 1);
#pragma unroll
                for (int i = 0; i < COUNT; i++)
                    if (first < AT_ONCE && first + i * AT_ONCE < SPAN)
                        copy_16(to + i * (AT_ONCE * STRIDE), pool + (long long)slots[i] * (KV_HEADS * DIM), true);
                arrive_when_copied(s.full + r.stage);
                r.next();
            }
        }
    }
}

__device__ inline float scored(const Args& a, float scale, float product) {
    if (!SOFTCAP) return product * scale;
    return tanhf(product * scale) * (float)a.softcap * LOG2E;
}

// Joins the parts of a head's result in a row: a lane's numbers of two parts are asked for together.
__device__ inline void join(const Args& a, const Parts& parts, int row, int block, int member, const Warp& w) {
    constexpr int FOURS = GROUP * DIM / 4, ALL = (FOURS + 32 * EACH - 1) / (32 * EACH), AT_ONCE = ALL < 4 ? ALL : 4;
    u16* result = a.attended + (long long)row * ATT + (block * TOGETHER + w.mine) * (GROUP * DIM);
    auto place_of = [&](int part) {
        bool shared = part >= parts.own;
        int within = shared ? part - parts.own : part;
        return within ? continued_at((shared ? parts.shared_first : parts.own_first) + within, shared ? member : 0) : begun_at(a, row, block, shared);
    };
#pragma unroll 1
    for (int begin = 0; begin < ALL; begin += AT_ONCE) {
        float high[AT_ONCE], sum[AT_ONCE], y[AT_ONCE][4] = {};
#pragma unroll
        for (int e = 0; e < AT_ONCE; e++) high[e] = NOWHERE, sum[e] = 0;
#pragma unroll 1
        for (int from = 0; from < parts.all(); from += 2) {
            float weight[AT_ONCE][2];
            uint4 value[AT_ONCE][2];
#pragma unroll
            for (int e = 0; e < AT_ONCE; e++)
#pragma unroll
                for (int p = 0; p < 2; p++) {
                    int i = w.sub * 32 + w.lane + (begin + e) * 32 * EACH;
                    bool live = from + p < parts.all() && i < FOURS;
                    long long head = place_of(from + p) * TOGETHER + w.mine;
                    weight[e][p] = load_if(a.weights + head * GROUP + i * 4 / DIM, live);
                    value[e][p] = load_16(a.partial + head * (GROUP * DIM) + i * 4, live);
                }
#pragma unroll
            for (int e = 0; e < AT_ONCE; e++)
#pragma unroll
                for (int p = 0; p < 2; p++) {
                    float own = from + p < parts.all() ? weight[e][p] : NOWHERE, top = larger(high[e], own);
                    float keep = power_of_two(high[e] - top), part = from + p < parts.all() ? power_of_two(own - top) : 0;
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

// What a warp has found for the queries of a unit's rows.
template <int MOST>
struct Found {
    float top[TILES<MOST>][2], total[TILES<MOST>][2], out[DIM / 16][TILES<MOST>][4];
};

// Where a unit's results go: to `partial`, a place for each row (a lane's is that of the row of its number), or to their end.
struct Goal {
    bool joined;
    long long part;
    u16* result;
};

// What a warp alone has of a head's context goes from its registers to where it belongs.
template <int MOST>
__device__ inline void give(Shared& s, const Args& a, const Unit& u, const Found<MOST>& f, const u16* new_value, bool last, const Goal& goal, const Warp& w) {
    int own = w.lane >> 2, quarter = w.lane & 3;
#pragma unroll
    for (int b = 0; b < TILES<MOST>; b++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            Query query(b, quarter * 2 + c);
            int head = query.head;
            long long part = MOST > 1 ? shuffle(goal.part, query.member & 31) : goal.part;
            bool live = query.member < (MOST > 1 ? u.share.count : 1);
            float newest = last && live ? s.newest[w.mine * GROUP + head] : NOWHERE, high = larger(f.top[b][c], newest);
            float keep = power_of_two(f.top[b][c] - high), add = last ? power_of_two(newest - high) : 0;
            float sum = f.total[b][c] * keep + add, whole = sum > 0 ? 1 / sum : 0;
            if (goal.joined && live && own == 0) a.weights[part * GROUP + head] = sum > 0 ? high + log2f(sum) : NOWHERE;
            float* to = a.partial + (part * GROUP + head) * DIM + own;
#pragma unroll
            for (int d = 0; d < DIM / 16; d++) {
                const u16* value = new_value + w.mine * DIM + d * 16 + own;
                float y = (f.out[d][b][c] * keep + (last ? add * to_float(value[0]) : 0)) * whole;
                float z = (f.out[d][b][c + 2] * keep + (last ? add * to_float(value[8]) : 0)) * whole;
                if (MOST > 1 || goal.joined) {
                    if (live) to[d * 16] = y, to[d * 16 + 8] = z;
                    continue;
                }
                float got = shuffle_xor(own & 1 ? y : z, 4);  // neighbours make pairs
                unsigned* pair = (unsigned*)(goal.result + head * DIM + d * 16 + (own & 1 ? own + 7 : own));
                if (live) *pair = own & 1 ? pack(got, z) : pack(y, got);
            }
        }
}

// The same where several warps have parts of it; row after row.
template <int MOST>
__device__ inline void add_up(Shared& s, const Args& a, const Unit& u, const Found<MOST>& f, const u16* new_value, bool last, const Goal& goal, const Warp& w) {
    int own = w.lane >> 2, quarter = w.lane & 3, first_warp = w.mine * EACH, warp = first_warp + w.sub;
    float* sums = s.sums + warp * (GROUP * PADDED);
#pragma unroll 1
    for (int member = 0; member < (MOST > 1 ? u.share.count : 1); member++) {
        long long part = MOST > 1 ? shuffle(goal.part, member) : goal.part;
        if (member) w.together();  // the row before has been read
#pragma unroll
        for (int b = 0; b < TILES<MOST>; b++)
#pragma unroll
            for (int c = 0; c < 2; c++) {
                Query query(b, quarter * 2 + c);
                if (query.member != member) continue;
                if (own == 0) {
                    s.tops[warp * 8 * QUERIES + query.head] = f.top[b][c];
                    s.totals[warp * 8 * QUERIES + query.head] = f.total[b][c];
                }
#pragma unroll
                for (int d = 0; d < DIM / 16; d++) {
                    sums[query.head * PADDED + d * 16 + own] = f.out[d][b][c];
                    sums[query.head * PADDED + d * 16 + own + 8] = f.out[d][b][c + 2];
                }
            }
        w.together();
#pragma unroll 2
        for (int i = w.sub * 32 + w.lane; i < GROUP * DIM / 2; i += EACH * 32) {
            int head = i * 2 / DIM, d = i * 2 % DIM;
            float newest = last ? s.newest[w.mine * GROUP + head] : NOWHERE, high = newest;
#pragma unroll
            for (int k = 0; k < EACH; k++) high = larger(high, s.tops[(first_warp + k) * 8 * QUERIES + head]);
            float sum = last ? power_of_two(newest - high) : 0;
            unsigned value = last ? *(const unsigned*)(new_value + w.mine * DIM + d) : 0;
            float y = sum * low_of(value), z = sum * high_of(value);
#pragma unroll
            for (int k = first_warp; k < first_warp + EACH; k++) {
                float weight = power_of_two(s.tops[k * 8 * QUERIES + head] - high);
                const float* from = s.sums + (k * GROUP + head) * PADDED + d;
                sum += weight * s.totals[k * 8 * QUERIES + head];
                y += weight * from[0];
                z += weight * from[1];
            }
            float whole = sum > 0 ? 1 / sum : 0;
            y *= whole;
            z *= whole;
            if (MOST == 1 && !goal.joined) {
                ((unsigned*)goal.result)[i] = pack(y, z);
            } else {
                float* to = a.partial + part * (GROUP * DIM) + i * 2;
                to[0] = y;
                to[1] = z;
                if (d == 0) a.weights[part * GROUP + head] = sum > 0 ? high + log2f(sum) : NOWHERE;
            }
        }
    }
}

// Counts the arrival of this part of each row's result. Who comes last joins the parts. `row`, `length`: a lane's are those of the
// member of its number.
template <int MOST>
__device__ inline void arrive(Shared& s, const Args& a, const Walk& walk, const Unit& u, int row, int length, const Warp& w) {
    int members = MOST > 1 ? u.share.count : 1, kv_head = u.block * TOGETHER + w.mine;
    Share share = u.share;
    if (MOST > 1) share.member = w.lane;
    Parts parts = walk.parts_of(a, u, row, length, share);
    w.together();
    int before = 0;
    if (w.sub == 0 && w.lane < members) before = add_both(a.arrived + row * KV_HEADS + kv_head, 1);
    if (EACH > 1) {
        if (w.sub == 0 && w.lane < members) s.flags[w.mine * BUNDLE + w.lane] = before;
        w.together();
        if (w.lane < members) before = s.flags[w.mine * BUNDLE + w.lane];
    }
    bool joins = w.lane < members && before == parts.all() - 1;
    for (int m = 0; m < members; m++) {
        if (!shuffle((int)joins, m)) continue;
        Parts theirs{shuffle(parts.own_first, m), shuffle(parts.own, m), shuffle(parts.shared_first, m), shuffle(parts.shared, m)};
        int joined = shuffle(row, m);
        join(a, theirs, joined, u.block, shuffle(share.member, m), w);
        if (w.sub == 0 && w.lane == 0) a.arrived[joined * KV_HEADS + kv_head] = 0;
    }
}

// The warps of a head attend with a part of the context of a row, or of a bundle of up to MOST, and join the parts of those rows whose
// others are there already. `heads` are asked for; those of the program's next unit are, once what is attended to has been read.
template <int MOST>
__device__ inline void attend(Shared& s, Ring& r, const Args& a, Walk& walk, Unit& next, Heads& heads, u16* new_value, float scale, const Warp& w) {
    const Unit u = next;
    constexpr int TILES = ::TILES<MOST>;
    int lane = w.lane, own = lane >> 2, quarter = lane & 3, members = MOST > 1 ? u.share.count : 1;
    bool last = MOST == 1 && u.stores();
    int row = u.row;  // of the member of the lane's number
    if (MOST > 1 && lane < members) row = (int)load_fixed(a.order + u.share.index + lane);
    int length = MOST > 1 ? load_early(a.lengths + row) : u.length;
    const u16* queries = s.queries + w.mine * (GROUP * PADDED);
    unsigned q[DIM / 16][TILES][2] = {};
#pragma unroll 1
    for (int member = 0; member < members; member++) {
        Heads now = heads;
        if (member + 1 < members) heads.ask(a, shuffle(row, member + 1), u.block, shuffle(length, member + 1), false, w);
        if (member) w.together();  // the row before has been read
        now.give(s, a, shuffle(row, member), u.block, new_value, last, w);
        w.together();
#pragma unroll
        for (int b = 0; b < TILES; b++) {
            Query query(b, own);
            const u16* from = queries + query.head * PADDED + quarter * 2;
#pragma unroll
            for (int g = 0; g < DIM / 16; g++)
#pragma unroll
                for (int i = 0; i < 2; i++)
                    if (query.member == member) q[g][b][i] = *(const unsigned*)(from + g * 16 + i * 8);
        }
    }
    Found<MOST> f = {};
    auto& [top, total, out] = f;
#pragma unroll
    for (int b = 0; b < TILES; b++) top[b][0] = top[b][1] = NOWHERE;
    if (last)  // the new token itself, which no stage holds
        for (int i = w.sub; i < GROUP; i += EACH) {
            float sum = 0;
#pragma unroll
            for (int j = 0; j < DIM / 32; j++)
                sum += to_float(queries[i * PADDED + lane + j * 32]) * to_float(s.new_key[w.mine * DIM + lane + j * 32]);
            float score = scored(a, scale, warp_sum(sum));
            if (lane == 0) s.newest[w.mine * GROUP + i] = score;
        }
    int line = w.sub * 16 + (lane & 7), column = w.mine * (DIM * 2);
#pragma unroll 1
    for (int start = u.begin; start < u.end; start += SPAN) {
        float score[TILES][4] = {}, more[TILES][4] = {};  // of even and odd columns: shorter chains
        wait_for(s.full + r.stage, r.parity);
        const char* at = s.ring + r.stage * STAGE + (line + ((lane >> 3) & 1) * 8) * STRIDE + column + (lane >> 4) * 16;
#pragma unroll
        for (int g = 0; g < DIM / 16; g++) {
            unsigned k[4];
            load_matrices(k, at + g * 32);
#pragma unroll
            for (int b = 0; b < TILES; b++) mma(g & 1 ? more[b] : score[b], k[0], k[1], k[2], k[3], q[g][b][0], q[g][b][1]);
        }
        release(s.empty + r.stage, lane);
        r.next();
        int position = start + w.sub * 16 + own;
        bool first_in = position < u.end, second_in = position + 8 < u.end;
        unsigned probs[TILES][2];
        float keep[TILES][2];
#pragma unroll
        for (int b = 0; b < TILES; b++)
#pragma unroll
            for (int c = 0; c < 2; c++) {
                float first = first_in ? scored(a, scale, score[b][c] + more[b][c]) : NOWHERE;
                float second = second_in ? scored(a, scale, score[b][c + 2] + more[b][c + 2]) : NOWHERE;
                float high = larger(first, second);
#pragma unroll
                for (int i = 4; i < 32; i <<= 1) high = larger(high, shuffle_xor(high, i));
                high = larger(high, top[b][c]);
                keep[b][c] = power_of_two(top[b][c] - high);
                top[b][c] = high;
                score[b][c] = first_in ? power_of_two(first - high) : 0;
                score[b][c + 2] = second_in ? power_of_two(second - high) : 0;
                total[b][c] = total[b][c] * keep[b][c] + score[b][c] + score[b][c + 2];
            }
#pragma unroll
        for (int b = 0; b < TILES; b++) {
            probs[b][0] = transposed(pack(score[b][0], score[b][1]));
            probs[b][1] = transposed(pack(score[b][2], score[b][3]));
        }
        wait_for(s.full + r.stage, r.parity);
        at = s.ring + r.stage * STAGE + (line + ((lane >> 4) & 1) * 8) * STRIDE + column + ((lane >> 3) & 1) * 16;
#pragma unroll
        for (int d = 0; d < DIM / 16; d++) {
            unsigned v[4];
            load_transposed(v, at + d * 32);
#pragma unroll
            for (int b = 0; b < TILES; b++) {
#pragma unroll
                for (int i = 0; i < 4; i++) out[d][b][i] *= keep[b][i & 1];
                mma(out[d][b], v[0], v[1], v[2], v[3], probs[b][0], probs[b][1]);
            }
        }
        release(s.empty + r.stage, lane);
        r.next();
    }
    if (walk.more()) {
        next = walk.take(a);
        heads.ask(a, next.row, next.block, next.length, next.stores(), w);
    } else {
        next.row = -1;
    }
#pragma unroll
    for (int b = 0; b < TILES; b++)
#pragma unroll
        for (int c = 0; c < 2; c++)
#pragma unroll
            for (int i = 4; i < 32; i <<= 1) total[b][c] += shuffle_xor(total[b][c], i);
    int kv_head = u.block * TOGETHER + w.mine;
    Goal goal{MOST > 1 || u.joined(), 0, a.attended + (long long)u.row * ATT + kv_head * (GROUP * DIM)};
    goal.part = u.part ? continued_at(block(), MOST > 1 ? lane % BUNDLE : 0) : begun_at(a, row, u.block, u.bundle);
    goal.part = goal.part * TOGETHER + w.mine;
    if (EACH == 1)
        give<MOST>(s, a, u, f, new_value, last, goal, w);
    else
        add_up<MOST>(s, a, u, f, new_value, last, goal, w);
    if (goal.joined) arrive<MOST>(s, a, walk, u, row, length, w);
}

extern "C" __global__ void __launch_bounds__(CONSUMERS, 1) cut_contexts(const __grid_constant__ CutArgs a) {
    cut_work(a, (int*)shared_memory(), block(), thread_index());
}

extern "C" __global__ void __launch_bounds__(CONSUMERS + FEEDERS, 1) paged_decode(const __grid_constant__ Args a) {
    let_next_begin();
    Shared s = shared_at(shared_memory());
    int thread = thread_index();
    if (thread == 0)
        for (int i = 0; i < STAGES; i++) {
            begin_barrier(s.full + i, COPIERS == 1 ? 1 : FEEDERS);
            begin_barrier(s.empty + i, WARPS);
        }
    Walk walk(a);
    all_together();
    if (thread >= CONSUMERS) {
        if (COPIERS == 1)
            bring_by_engine(s, a, walk, thread - CONSUMERS);
        else
            bring_by_threads(s, a, walk, thread - CONSUMERS);
        return;
    }
    Warp w(thread);
    Ring r;
    float scale = SOFTCAP ? (float)a.scale / (float)a.softcap : (float)a.scale * LOG2E;
    u16* new_value = s.new_value;
    if (!walk.more()) return;
    Unit next = walk.take(a);
    Heads heads;
    heads.turn.ask(a.cos, a.sin, next.length, w.lane);
    wait_for_launches_before();
    heads.ask_from(a, next.row, next.block, next.stores(), 0, w);
    while (next.row >= 0) {
        new_value = new_value == s.new_value ? s.new_value + TOGETHER * DIM : s.new_value;  // slower warps still add the unit before up
        if (BUNDLE > 1 && next.bundle)
            attend<BUNDLE>(s, r, a, walk, next, heads, new_value, scale, w);
        else
            attend<1>(s, r, a, walk, next, heads, new_value, scale, w);
    }
}
