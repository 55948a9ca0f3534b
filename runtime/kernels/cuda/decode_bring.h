// What a program attends to, on its way into a ring in shared memory: by the copy engine, position by position, or by the threads of
// several warps, where a position is little. A walk goes through the program's units.

#pragma once

#include <decode_work.h>

// Where a position lies in a pool.
__device__ inline int slot_of(const int* pages, int position) { return load_fixed(pages + position / PAGE) * PAGE + position % PAGE; }

// One warp has the copy engine bring contexts, stage by stage: keys, then values. Behind a context's end comes its last position
// again. ONCE: nobody else reads it soon.
template <bool ONCE, class Walk>
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
                    if (ONCE)
                        copy_bulk_once(stage + position * STRIDE, from, ROW, full);
                    else
                        copy_bulk(stage + position * STRIDE, from, ROW, full);
                }
                r.next();
            }
        }
    }
}

// The same by the threads of several warps, 16 bytes at a time: each has one piece of some positions, and asks for their slots itself.
template <class Walk>
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

template <bool ONCE, class Walk>
__device__ inline void bring(Shared& s, const Args& a, const Walk& walk, int thread) {
    if (COPIERS == 1)
        bring_by_engine<ONCE>(s, a, walk, thread);
    else
        bring_by_threads(s, a, walk, thread);
}

__device__ inline void begin_ring(Shared& s, int thread) {
    if (thread == 0)
        for (int i = 0; i < STAGES; i++) {
            begin_barrier(s.full + i, COPIERS == 1 ? 1 : FEEDERS);
            begin_barrier(s.empty + i, WARPS);
        }
}
