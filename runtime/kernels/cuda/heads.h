// What every kernel here that attends has: the shapes of its heads, their rotation, sums over a warp, places in shared memory.

#pragma once

#include <device.h>

constexpr int WIDE = (HEADS + 2 * KV_HEADS) * DIM;
constexpr int ATT = HEADS * DIM;
constexpr int GROUP = HEADS / KV_HEADS;
constexpr int QUERIES = (GROUP + 7) / 8;  // of 8 heads
constexpr int HALF = TURNED / 2;
constexpr float NOWHERE = -1e30f;  // below every score, and finite

// Of shared memory, so many bytes.
constexpr int take(int& at, int bytes) {
    int found = at;
    at += (bytes + 15) / 16 * 16;
    return found;
}

__device__ inline float warp_sum(float v) {
#pragma unroll
    for (int i = 16; i; i >>= 1) v += shuffle_xor(v, i);
    return v;
}

// A lane's coordinates of a row's rotation.
struct Turn {
    float cos[DIM / 32], sin[DIM / 32];

    __device__ void ask(const float* all_cos, const float* all_sin, int length, int lane) {
        long long position = length > 0 ? length - 1 : 0;
#pragma unroll
        for (int j = 0; j < DIM / 32; j++) {
            int d = lane + j * 32;
            int pair = INTERLEAVED ? d / 2 : d % (HALF > 0 ? HALF : 1);
            cos[j] = d < TURNED ? load_early(all_cos + position * HALF + pair) : 1;
            sin[j] = d < TURNED ? load_early(all_sin + position * HALF + pair) : 0;
        }
    }
};
