// How the consumers of a program, the programs of a launch and the ranks of a model wait for each other.

#pragma once

#include <step_shapes.h>

__device__ inline void together() { barrier_of(1, CONSUMERS); }

__device__ inline void leave(const Args& a, int thread) {
    together();
    if (thread == 0) add_release(a.counter, 1);
}

__device__ inline void meet(const Args& a, int thread, int target) {
    if (thread == 0)
        while (load_acquire(a.counter) < target) spin();
    together();
}

// When this program came so far: the ends of the phases first, then when it had met the others, then steps of attention.
__device__ inline void stamp(const Args& a, int thread, int layer, int at) {
    if (a.stamps && thread == 0) a.stamps[((long long)layer * MARKS + at) * PROGRAMS + block()] = now();
}

// The sums of this program's rows over all ranks, in the order of ranks; each pair of rows goes to the other ranks as two bfloat16
// and the number of the exchange, in one store of 8 bytes. All lanes of a warp come here together.
__device__ inline float over_ranks(const Args& a, float y, int place_in_box, int lane, unsigned tag, bool live) {
    if (RANKS == 1) return y;
    constexpr int BOX = (OWN + 15) / 16 * 16 * ROWS / 2;  // words of a program; `box_bytes` counts them too
    float next = shuffle_down(y, 1);
    unsigned pair = pack(y, next);
    long long part = ((long long)(tag & 1) * RANKS * PROGRAMS + block()) * BOX + place_in_box / 2;
    u64 word = ((u64)tag << 32) | pair;
    int rank = (int)a.rank;
    if (live && !(lane & 1))
        for (int i = 1; i < RANKS; i++)
            store_system((u64*)a.boxes[(rank + i) % RANKS] + part + (long long)rank * PROGRAMS * BOX, word);
    float low = 0, high = 0;
    for (int i = 0; i < RANKS; i++) {
        unsigned got = pair;
        if (i != rank && live && !(lane & 1)) {
            const u64* at = (const u64*)a.boxes[rank] + part + (long long)i * PROGRAMS * BOX;
            u64 seen = load_system(at);
            long long left = load_acquire(a.state + 1) ? 0 : a.looks;
            while ((unsigned)(seen >> 32) != tag && left > 0) {
                spin();
                seen = load_system(at);
                left--;
            }
            got = (unsigned)seen;
            if ((unsigned)(seen >> 32) != tag) {
                a.state[1] = 1;
                got = 0x7fff7fff;  // not numbers
            }
        }
        low += low_of(got);
        high += high_of(got);
    }
    float other = shuffle_up(high, 1);
    return lane & 1 ? other : low;
}
