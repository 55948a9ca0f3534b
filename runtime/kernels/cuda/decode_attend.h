// Attention of a warp's queries to its positions of a unit, and what becomes of that.

#pragma once

#include <decode_heads.h>

// What a product is multiplied by before `scored` caps it, or makes it a power of two.
__device__ inline float scale_of(const Args& a) { return SOFTCAP ? (float)a.scale / (float)a.softcap : (float)a.scale * LOG2E; }

__device__ inline float scored(const Args& a, float scale, float product) {
    if (!SOFTCAP) return product * scale;
    return tanhf(product * scale) * (float)a.softcap * LOG2E;
}

// What a warp has found for the queries of a unit's rows.
template <int MOST>
struct Found {
    float top[TILES<MOST>][2], total[TILES<MOST>][2], out[DIM / 16][TILES<MOST>][4];

    __device__ void begin() {
#pragma unroll
        for (int b = 0; b < TILES<MOST>; b++) {
            top[b][0] = top[b][1] = NOWHERE;
            total[b][0] = total[b][1] = 0;
#pragma unroll
            for (int d = 0; d < DIM / 16; d++) out[d][b][0] = out[d][b][1] = out[d][b][2] = out[d][b][3] = 0;
        }
    }
    // Totals of all positions that the warp has seen.
    __device__ void end() {
#pragma unroll
        for (int b = 0; b < TILES<MOST>; b++)
#pragma unroll
            for (int c = 0; c < 2; c++)
#pragma unroll
                for (int i = 4; i < 32; i <<= 1) total[b][c] += shuffle_xor(total[b][c], i);
    }
};

// Queries as tensor units take them: of each 16 numbers and each tile.
template <int MOST>
struct Queries {
    unsigned q[DIM / 16][TILES<MOST>][2];

    __device__ void begin() {
#pragma unroll
        for (int g = 0; g < DIM / 16; g++)
#pragma unroll
            for (int b = 0; b < TILES<MOST>; b++) q[g][b][0] = q[g][b][1] = 0;
    }
    // Those of one row, from shared memory.
    __device__ void read(const Shared& s, int member, const Warp& w) {
        int own = w.lane >> 2, quarter = w.lane & 3;
#pragma unroll
        for (int b = 0; b < TILES<MOST>; b++) {
            Query query(b, own);
            const u16* from = s.queries + (w.mine * GROUP + query.head) * PADDED + quarter * 2;
#pragma unroll
            for (int g = 0; g < DIM / 16; g++)
#pragma unroll
                for (int i = 0; i < 2; i++)
                    if (query.member == member) q[g][b][i] = *(const unsigned*)(from + g * 16 + i * 8);
        }
    }
};

// The warp's positions of a unit's steps, as they arrive.
template <int MOST>
__device__ inline void attend(Shared& s, Ring& r, const Args& a, const Unit& u, const Queries<MOST>& queries, Found<MOST>& f, float scale, const Warp& w) {
    int lane = w.lane, own = lane >> 2;
    int line = w.sub * 16 + (lane & 7), column = w.mine * (DIM * 2);
#pragma unroll 1
    for (int start = u.begin; start < u.end; start += SPAN) {
        constexpr int MORE = MOST > 1 ? 1 : TILES<MOST>;
        float score[TILES<MOST>][4] = {}, more[MORE][4] = {};  // of even and odd columns: shorter chains, where there are few
        wait_for(s.full + r.stage, r.parity);
        const char* at = s.ring + r.stage * STAGE + (line + ((lane >> 3) & 1) * 8) * STRIDE + column + (lane >> 4) * 16;
#pragma unroll
        for (int g = 0; g < DIM / 16; g++) {
            unsigned k[4];
            load_matrices(k, at + g * 32);
#pragma unroll
            for (int b = 0; b < TILES<MOST>; b++) mma(MOST == 1 && g & 1 ? more[b % MORE] : score[b], k[0], k[1], k[2], k[3], queries.q[g][b][0], queries.q[g][b][1]);
        }
        release(s.empty + r.stage, lane);
        r.next();
        int position = start + w.sub * 16 + own;
        bool first_in = position < u.end, second_in = position + 8 < u.end;
        unsigned probs[TILES<MOST>][2];
        float keep[TILES<MOST>][2];
#pragma unroll
        for (int b = 0; b < TILES<MOST>; b++)
#pragma unroll
            for (int c = 0; c < 2; c++) {
                float first = first_in ? scored(a, scale, score[b][c] + more[b % MORE][c]) : NOWHERE;
                float second = second_in ? scored(a, scale, score[b][c + 2] + more[b % MORE][c + 2]) : NOWHERE;
                float high = larger(first, second);
#pragma unroll
                for (int i = 4; i < 32; i <<= 1) high = larger(high, shuffle_xor(high, i));
                high = larger(high, f.top[b][c]);
                keep[b][c] = power_of_two(f.top[b][c] - high);
                f.top[b][c] = high;
                score[b][c] = first_in ? power_of_two(first - high) : 0;
                score[b][c + 2] = second_in ? power_of_two(second - high) : 0;
                f.total[b][c] = f.total[b][c] * keep[b][c] + score[b][c] + score[b][c + 2];
            }
#pragma unroll
        for (int b = 0; b < TILES<MOST>; b++) {
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
            for (int b = 0; b < TILES<MOST>; b++) {
#pragma unroll
                for (int i = 0; i < 4; i++) f.out[d][b][i] *= keep[b][i & 1];
                mma(f.out[d][b], v[0], v[1], v[2], v[3], probs[b][0], probs[b][1]);
            }
        }
        release(s.empty + r.stage, lane);
        r.next();
    }
}

// Where a unit's results go: to parts, a place for each row (a lane's is that of the member of its number), or to their end.
struct Goal {
    bool joined;
    long long part;
    float *partial, *weights;
    u16* result;
};

// What a warp alone has of a head's context goes from its registers to where it belongs.
template <int MOST>
__device__ inline void give(Shared& s, const Found<MOST>& f, int members, const u16* new_value, bool last, const Goal& goal, const Warp& w) {
    int own = w.lane >> 2, quarter = w.lane & 3;
#pragma unroll
    for (int b = 0; b < TILES<MOST>; b++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            Query query(b, quarter * 2 + c);
            int head = query.head;
            long long part = MOST > 1 ? shuffle(goal.part, query.member & 31) : goal.part;
            bool live = query.member < members;
            float newest = last && live ? s.newest[w.mine * GROUP + head] : NOWHERE, high = larger(f.top[b][c], newest);
            float keep = power_of_two(f.top[b][c] - high), add = last ? power_of_two(newest - high) : 0;
            float sum = f.total[b][c] * keep + add, whole = sum > 0 ? 1 / sum : 0;
            if (goal.joined && live && own == 0) goal.weights[part * GROUP + head] = sum > 0 ? high + log2f(sum) : NOWHERE;
            float* to = goal.partial + (part * GROUP + head) * DIM + own;
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
__device__ inline void add_up(Shared& s, const Found<MOST>& f, int members, const u16* new_value, bool last, const Goal& goal, const Warp& w) {
    int own = w.lane >> 2, quarter = w.lane & 3, first_warp = w.mine * EACH, warp = first_warp + w.sub;
    float* sums = s.sums + warp * (GROUP * PADDED);
#pragma unroll 1
    for (int member = 0; member < (MOST > 1 ? members : 1); member++) {
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
                float* to = goal.partial + part * (GROUP * DIM) + i * 2;
                to[0] = y;
                to[1] = z;
                if (d == 0) goal.weights[part * GROUP + head] = sum > 0 ? high + log2f(sum) : NOWHERE;
            }
        }
    }
}
