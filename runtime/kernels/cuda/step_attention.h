// Attention of the newest tokens, by the consumers of a program: parts of contexts, each warp 16 positions of a stage.

#pragma once

#include <step_contexts.h>
#include <step_product.h>

// Heads of a projection as queries, and the new token's key and value: normed, rotated, and the latter two stored.
__device__ void turn_heads(Shared& s, const Args& a, const Unit& u, const Turn& turn, const long long* fields, float* new_value, bool stores, int warp, int lane) {
    const u16* row = a.qkv + (long long)u.row * WIDE;
    for (int i = warp; i < GROUP + (stores ? 1 : 0); i += WARPS) {
        bool key = i == GROUP;
        const u16* from = row + (i < GROUP ? u.head * GROUP + i : HEADS + u.head) * DIM;
        float own[DIM / 32], across[DIM / 32];
        u16 value[DIM / 32];
        long long slot = key ? a.slots[u.row] : -1;
#pragma unroll
        for (int j = 0; j < DIM / 32; j++) {
            int d = lane + j * 32;
            int other = INTERLEAVED ? d ^ 1 : (d < HALF ? d + HALF : d - HALF);
            own[j] = to_float(load_shared_l2(from + d));
            across[j] = to_float(load_if(from + other, d < TURNED));
            value[j] = load_if(row + (HEADS + KV_HEADS + u.head) * DIM + d, key);
        }
        if (NORM) {
            float squares = 0;
#pragma unroll
            for (int j = 0; j < DIM / 32; j++) squares += own[j] * own[j];
            float factor = rsqrtf(warp_sum(squares) / DIM + (float)a.qk_eps);
            const u16* w = (const u16*)fields[key ? K_NORM_AT : Q_NORM_AT];
#pragma unroll
            for (int j = 0; j < DIM / 32; j++) {
                int d = lane + j * 32;
                int other = INTERLEAVED ? d ^ 1 : (d < HALF ? d + HALF : d - HALF);
                float scale = to_float(load_fixed(w + d)) + (float)a.qk_offset;
                own[j] = rounded((QK_OFFSET ? own[j] * factor : rounded(own[j] * factor)) * scale);
                if (d < TURNED) {
                    scale = to_float(load_fixed(w + other)) + (float)a.qk_offset;
                    across[j] = rounded((QK_OFFSET ? across[j] * factor : rounded(across[j] * factor)) * scale);
                }
            }
        }
#pragma unroll
        for (int j = 0; j < DIM / 32; j++) {
            int d = lane + j * 32;
            float sign = INTERLEAVED ? (d & 1 ? 1 : -1) : (d < HALF ? -1 : 1);
            u16 turned = to_bfloat(own[j] * turn.cos[j] + sign * across[j] * turn.sin[j]);
            if (!key) {
                s.queries[i * QUERY_STRIDE + d] = turned;
                continue;
            }
            s.new_key[d] = to_float(turned);
            new_value[d] = to_float(value[j]);
            if (slot >= 0) {
                long long at = (slot * KV_HEADS + u.head) * DIM + d;
                ((u16*)fields[POOL_K_AT])[at] = turned;
                ((u16*)fields[POOL_V_AT])[at] = value[j];
            }
        }
    }
}

__device__ inline float scored(const Args& a, float product) {
    if (!SOFTCAP) return product * (float)a.scale * LOG2E;
    return tanhf(product * (float)a.scale / (float)a.softcap) * (float)a.softcap * LOG2E;
}

// Joins the parts of a context: a thread's numbers of eight parts are asked for together.
__device__ inline void join(const Args& a, u16* result, int begin, int parts, int thread) {
    constexpr int EACH = (GROUP * DIM + CONSUMERS - 1) / CONSUMERS;
    float high[EACH], sum[EACH], y[EACH];
#pragma unroll
    for (int e = 0; e < EACH; e++) high[e] = NOWHERE, sum[e] = y[e] = 0;
    for (int from = 0; from < parts; from += 8) {
        float weight[EACH][8], value[EACH][8];
#pragma unroll
        for (int e = 0; e < EACH; e++)
#pragma unroll
            for (int p = 0; p < 8; p++) {
                int i = thread + e * CONSUMERS, part = begin + from + p;
                bool live = from + p < parts && i < GROUP * DIM;
                weight[e][p] = load_if(a.weights + part * GROUP + i / DIM, live);
                value[e][p] = load_if(a.partial + (long long)part * GROUP * DIM + i, live);
            }
#pragma unroll
        for (int e = 0; e < EACH; e++) {
            float top = high[e];
#pragma unroll
            for (int p = 0; p < 8; p++) top = larger(top, from + p < parts ? weight[e][p] : NOWHERE);
            float keep = exp2f(high[e] - top);
            high[e] = top;
            sum[e] *= keep;
            y[e] *= keep;
#pragma unroll
            for (int p = 0; p < 8; p++) {
                float share = from + p < parts ? exp2f(weight[e][p] - top) : 0;
                sum[e] += share;
                y[e] += share * value[e][p];
            }
        }
    }
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        int i = thread + e * CONSUMERS;
        if (i < GROUP * DIM) result[i] = to_bfloat(y[e] / sum[e]);
    }
}

__device__ void attend(Shared& s, Ring& r, const Args& a, const long long* fields, int layer, int thread, int target) {
    int warp = thread >> 5, lane = thread & 31, own = lane >> 2, quarter = lane & 3;
    int window = (int)fields[WINDOW_AT];
    int kind = kind_of(window);
    int units = s.firsts[kind * (ROWS + 1) + (int)a.rows] * KV_HEADS;
    const float* cos = (const float*)fields[COS_AT];
    const float* sin = (const float*)fields[SIN_AT];
    Unit u;
    Turn turn;
    if (block() < units) {  // what depends on nobody is under way before all meet
        u = unit_at(s, a, kind, window, block(), lane);
        turn.ask(cos, sin, u.length, lane);
    }
    auto mark = [&](int at) { stamp(a, thread, layer, at); };
    meet(a, thread, target);
    float* new_value = s.new_value;
    for (int at = block(); at < units; at += PROGRAMS) {
        new_value = new_value == s.new_value ? s.new_value + DIM : s.new_value;  // slower warps still add the unit before up
        if (at != block()) {
            u = unit_at(s, a, kind, window, at, lane);
            turn.ask(cos, sin, u.length, lane);
        }
        bool last = u.part == u.parts - 1 && u.length > 0;
        turn_heads(s, a, u, turn, fields, new_value, last, warp, lane);
        together();
        uint4 q[DIM / 32][QUERIES];
#pragma unroll
        for (int g = 0; g < DIM / 32; g++)
#pragma unroll
            for (int b = 0; b < QUERIES; b++)
                q[g][b] = *(const uint4*)(s.queries + (b * 8 + own) * QUERY_STRIDE + g * 32 + quarter * 8);
        float top[QUERIES][2], total[QUERIES][2], out[DIM / 16][QUERIES][4];
#pragma unroll
        for (int b = 0; b < QUERIES; b++) {
            top[b][0] = top[b][1] = NOWHERE;
            total[b][0] = total[b][1] = 0;
#pragma unroll
            for (int d = 0; d < DIM / 16; d++)
#pragma unroll
                for (int i = 0; i < 4; i++) out[d][b][i] = 0;
        }
        if (last)  // the new token itself, which no stage holds
            for (int i = warp; i < GROUP; i += WARPS) {
                float sum = 0;
#pragma unroll
                for (int j = 0; j < DIM / 32; j++)
                    sum += to_float(s.queries[i * QUERY_STRIDE + lane + j * 32]) * s.new_key[lane + j * 32];
                float score = scored(a, warp_sum(sum));
                if (lane == 0) s.tops[WARPS * 8 * QUERIES + i] = score;
            }
        mark(9);
#pragma unroll 1
        for (int start = u.begin; start < u.end; start += SPAN_STEP) {
            float score[QUERIES][4];
#pragma unroll
            for (int b = 0; b < QUERIES; b++)
#pragma unroll
                for (int i = 0; i < 4; i++) score[b][i] = 0;
            wait_for(s.full + r.barrier(CONTEXT), r.full_parity(CONTEXT));
            const char* slice = s.ring + r.stage * STAGE + warp * SLICE;
#pragma unroll
            for (int g = 0; g < DIM / 32; g++) {
                uint4 low = *(const uint4*)(slice + place(own, g * 4 + quarter));
                uint4 high = *(const uint4*)(slice + place(own + 8, g * 4 + quarter));
#pragma unroll
                for (int b = 0; b < QUERIES; b++) {
                    mma(score[b], low.x, high.x, low.y, high.y, q[g][b].x, q[g][b].y);
                    mma(score[b], low.z, high.z, low.w, high.w, q[g][b].z, q[g][b].w);
                }
            }
            before_bulk_copies();
            release(s.empty + r.stage, lane);
            r.next(CONTEXT);
            int position = start + warp * 16 + own;
            unsigned probs[QUERIES][2];
            float keep[QUERIES][2];
#pragma unroll
            for (int b = 0; b < QUERIES; b++)
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    float first = position < u.end ? scored(a, score[b][c]) : NOWHERE;
                    float second = position + 8 < u.end ? scored(a, score[b][c + 2]) : NOWHERE;
                    float high = larger(first, second);
#pragma unroll
                    for (int i = 4; i < 32; i <<= 1) high = larger(high, shuffle_xor(high, i));
                    high = larger(high, top[b][c]);
                    keep[b][c] = exp2f(top[b][c] - high);
                    top[b][c] = high;
                    score[b][c] = position < u.end ? exp2f(first - high) : 0;
                    score[b][c + 2] = position + 8 < u.end ? exp2f(second - high) : 0;
                    total[b][c] = total[b][c] * keep[b][c] + score[b][c] + score[b][c + 2];
                }
#pragma unroll
            for (int b = 0; b < QUERIES; b++) {
                probs[b][0] = transposed(pack(score[b][0], score[b][1]));
                probs[b][1] = transposed(pack(score[b][2], score[b][3]));
            }
            wait_for(s.full + r.barrier(CONTEXT), r.full_parity(CONTEXT));
            slice = s.ring + r.stage * STAGE + warp * SLICE;
#pragma unroll
            for (int d = 0; d < DIM / 16; d++) {
                unsigned v[4];
                load_transposed(v, slice + place((lane & 7) + ((lane >> 4) & 1) * 8, d * 2 + ((lane >> 3) & 1)));
#pragma unroll
                for (int b = 0; b < QUERIES; b++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) out[d][b][i] *= keep[b][i & 1];
                    mma(out[d][b], v[0], v[1], v[2], v[3], probs[b][0], probs[b][1]);
                }
            }
            before_bulk_copies();
            release(s.empty + r.stage, lane);
            r.next(CONTEXT);
        }
        mark(10);
        float* mine = s.sums + warp * (GROUP * QUERY_STRIDE);
#pragma unroll
        for (int b = 0; b < QUERIES; b++)
#pragma unroll
            for (int c = 0; c < 2; c++) {
                int head = b * 8 + quarter * 2 + c;
                float sum = total[b][c];
#pragma unroll
                for (int i = 4; i < 32; i <<= 1) sum += shuffle_xor(sum, i);
                if (own == 0) {
                    s.tops[warp * 8 * QUERIES + head] = top[b][c];
                    s.totals[warp * 8 * QUERIES + head] = sum;
                }
                if (head >= GROUP) continue;
#pragma unroll
                for (int d = 0; d < DIM / 16; d++) {
                    mine[head * QUERY_STRIDE + d * 16 + own] = out[d][b][c];
                    mine[head * QUERY_STRIDE + d * 16 + own + 8] = out[d][b][c + 2];
                }
            }
        together();
        u16* result = a.attended + (long long)u.row * ATT + u.head * GROUP * DIM;
#pragma unroll
        for (int e = 0; e < (GROUP * DIM + CONSUMERS - 1) / CONSUMERS; e++) {
            int i = thread + e * CONSUMERS;
            if (i >= GROUP * DIM) break;
            int head = i / DIM, d = i % DIM;
            float high = last ? s.tops[WARPS * 8 * QUERIES + head] : NOWHERE;
#pragma unroll
            for (int w = 0; w < WARPS; w++) high = larger(high, s.tops[w * 8 * QUERIES + head]);
            float sum = last ? exp2f(s.tops[WARPS * 8 * QUERIES + head] - high) : 0;
            float y = last ? sum * new_value[d] : 0;
#pragma unroll
            for (int w = 0; w < WARPS; w++) {
                float weight = exp2f(s.tops[w * 8 * QUERIES + head] - high);
                sum += weight * s.totals[w * 8 * QUERIES + head];
                y += weight * s.sums[w * (GROUP * QUERY_STRIDE) + head * QUERY_STRIDE + d];
            }
            y = sum > 0 ? y / sum : 0;
            if (u.parts == 1) {
                result[i] = to_bfloat(y);
            } else {
                a.partial[(long long)at * GROUP * DIM + i] = y;
                if (d == 0) a.weights[at * GROUP + head] = sum > 0 ? high + log2f(sum) : NOWHERE;
            }
        }
        mark(11);
        if (u.parts > 1) {  // who comes last joins the parts
            together();
            int* arrived = a.arrived + u.row * KV_HEADS + u.head;
            if (thread == 0) *s.flag = add_both(arrived, 1) == u.parts - 1;
            together();
            mark(12);
            if (*s.flag) {
                join(a, result, at - u.part, u.parts, thread);
                mark(13);
                if (thread == 0) *arrived = 0;
            }
        }
    }
}
