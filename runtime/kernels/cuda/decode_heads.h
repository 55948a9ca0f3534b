// Queries of a unit, and its newest token's key and value: by the warps of each head of keys, from what a projection gives.

#pragma once

#include <decode_work.h>

// A lane's warp: which head of the block it has, and which of that head's warps it is.
struct Warp {
    int lane, mine, sub;

    __device__ Warp(int thread) : lane(thread & 31), mine((thread >> 5) / EACH), sub((thread >> 5) % EACH) {}
    // All warps of the head.
    __device__ void together() const {
        if (EACH == 1)
            warp_together();
        else
            barrier_of(1 + mine, 32 * EACH);
    }
};

__device__ inline int partner(int d) { return INTERLEAVED ? d ^ 1 : (d < HALF ? d + HALF : d - HALF); }

// Some of a head's numbers as they come from the projection: those of a lane, and those that they are turned with.
struct Raw {
    float own[DIM / 32], across[DIM / 32];

    __device__ void ask(const u16* from, int lane) {
        constexpr bool HELD = !INTERLEAVED && TURNED == DIM && HALF % 32 == 0;  // partners are the same lane's
#pragma unroll
        for (int j = 0; j < DIM / 32; j++) own[j] = to_float(load_if(from + lane + j * 32, true));
#pragma unroll
        for (int j = 0; j < DIM / 32; j++) {
            int d = lane + j * 32;
            across[j] = HELD ? own[(j + HALF / 32) % (DIM / 32)] : to_float(load_if(from + partner(d), d < TURNED));
        }
    }
    __device__ void norm(const Args& a, const u16* w, int lane) {
        float squares = 0;
#pragma unroll
        for (int j = 0; j < DIM / 32; j++) squares += own[j] * own[j];
        float factor = rsqrtf(warp_sum(squares) / DIM + (float)a.qk_eps);
#pragma unroll
        for (int j = 0; j < DIM / 32; j++) {
            int d = lane + j * 32;
            float scale = to_float(load_fixed(w + d)) + (float)a.qk_offset;
            own[j] = rounded((QK_OFFSET ? own[j] * factor : rounded(own[j] * factor)) * scale);
            if (d < TURNED) {
                scale = to_float(load_fixed(w + partner(d))) + (float)a.qk_offset;
                across[j] = rounded((QK_OFFSET ? across[j] * factor : rounded(across[j] * factor)) * scale);
            }
        }
    }
    __device__ u16 turned(const Turn& turn, int j, int lane) const {
        int d = lane + j * 32;
        float sign = INTERLEAVED ? (d & 1 ? 1 : -1) : (d < HALF ? -1 : 1);
        return to_bfloat(own[j] * turn.cos[j] + sign * across[j] * turn.sin[j]);
    }
};

// What a warp turns of a row's projection: asked for before it is needed.
struct Heads {
    static constexpr int JOBS = (GROUP + EACH) / EACH, AT_ONCE = JOBS < 5 ? JOBS : 5;  // queries and a key, of each warp
    Turn turn;
    Raw raw[AT_ONCE];
    u16 value[DIM / 32];
    long long slot;

    __device__ void ask(const Args& a, int of, int block, int length, bool stores, const Warp& w) {
        turn.ask(a.cos, a.sin, length, w.lane);
        ask_from(a, of, block, stores, 0, w);
    }
    __device__ void ask_from(const Args& a, int of, int block, bool stores, int begin, const Warp& w) {
        const u16* row = a.qkv + (long long)of * WIDE;
        int head = block * TOGETHER + w.mine;
#pragma unroll
        for (int e = 0; e < AT_ONCE; e++) {
            int i = w.sub + (begin + e) * EACH;
            if (i < GROUP || (i == GROUP && stores)) raw[e].ask(row + (i < GROUP ? head * GROUP + i : HEADS + head) * DIM, w.lane);
        }
        int key = GROUP - w.sub - begin * EACH;  // which of these is the key, times EACH
        bool mine = stores && key >= 0 && key % EACH == 0 && key / EACH < AT_ONCE;
#pragma unroll
        for (int j = 0; j < DIM / 32; j++) value[j] = load_if(row + (HEADS + KV_HEADS + head) * DIM + w.lane + j * 32, mine);
        slot = mine ? load_early(a.slots + of) : -1;
    }
    // Queries of the row, and the new token's key and value: normed, rotated, and the latter two stored.
    __device__ void give(Shared& s, const Args& a, int of, int block, u16* new_value, bool stores, const Warp& w) {
#pragma unroll 1
        for (int begin = 0; begin < JOBS; begin += AT_ONCE) {
            if (begin) ask_from(a, of, block, stores, begin, w);
            give_from(s, a, block, new_value, stores, begin, w);
        }
    }
    __device__ void give_from(Shared& s, const Args& a, int block, u16* new_value, bool stores, int begin, const Warp& w) {
        int head = block * TOGETHER + w.mine;
        u16* queries = s.queries + w.mine * (GROUP * PADDED);
#pragma unroll
        for (int e = 0; e < AT_ONCE; e++) {
            int i = w.sub + (begin + e) * EACH;
            if (i > GROUP || (i == GROUP && !stores)) continue;
            if (NORM) raw[e].norm(a, i < GROUP ? a.q_norm : a.k_norm, w.lane);
#pragma unroll
            for (int j = 0; j < DIM / 32; j++) {
                int d = w.lane + j * 32;
                u16 turned = raw[e].turned(turn, j, w.lane);
                if (i < GROUP) {
                    queries[i * PADDED + d] = turned;
                    continue;
                }
                s.new_key[w.mine * DIM + d] = turned;
                new_value[w.mine * DIM + d] = value[j];
                if (slot >= 0) {
                    long long at = (slot * KV_HEADS + head) * DIM + d;
                    a.pool_k[at] = turned;
                    a.pool_v[at] = value[j];
                }
            }
        }
    }
};
