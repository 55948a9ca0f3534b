// A matrix times the rows of the batch, by the consumers of a program: its rows of the matrix, each warp some of the columns.

#pragma once

#include <gates.h>
#include <step_meet.h>

// What makes each row's norm of the residual, from all programs' sums of squares: asked for early, added up late.
struct Factors {
    static constexpr int EACH = (PROGRAMS + 31) / 32;
    float squares[BATCHES][EACH];

    __device__ void ask(const Args& a, int warp, int lane) {
#pragma unroll
        for (int b = 0; b < BATCHES; b++)
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                int row = b * WARPS + warp, from = lane + i * 32;
                squares[b][i] = load_if(a.squares + row * PROGRAMS + from, row < (int)a.rows && from < PROGRAMS);
            }
    }
    __device__ void put(Shared& s, const Args& a, int warp, int lane) {
#pragma unroll
        for (int b = 0; b < BATCHES; b++) {
            float sum = 0;
#pragma unroll
            for (int i = 0; i < EACH; i++) sum += squares[b][i];
            sum = warp_sum(sum);
            if (lane == 0) s.factor[b * WARPS + warp] = rsqrtf(sum / HIDDEN + (float)a.eps);
        }
    }
};

struct Nothing {
    __device__ void operator()() const {}
};

// What a thread multiplies of a chunk of x: 8 columns of each 32, of each 8 rows.
template <int K>
__device__ inline void read_x(uint4 (&in)[4][BATCHES], const u16* x, int chunk, int rows, int warp, int lane) {
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
        for (int b = 0; b < BATCHES; b++) {
            int row = b * 8 + (lane >> 2), column = chunk * CHUNK + warp * 128 + (lane & 3) * 8 + j * 32;
            in[j][b] = load_16(x + (long long)row * K + column, row < rows && column < K);
        }
}

// A stage times x, added to sums.
template <int K>
__device__ inline void add_stage(Shared& s, Ring& r, float (&sums)[BATCHES][4], const uint4 (&in)[4][BATCHES], int chunk, int warp, int lane) {
    wait_for(s.full + r.barrier(MATRIX), r.full_parity(MATRIX));
    const char* at = s.ring + r.stage * STAGE + (lane >> 2) * STRIDE + warp * 256 + (lane & 3) * 16;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        if (K % CHUNK && chunk * CHUNK + warp * 128 + j * 32 >= K) break;  // nothing was copied there
        uint4 low = *(const uint4*)(at + j * 64);
        uint4 high = *(const uint4*)(at + 8 * STRIDE + j * 64);
#pragma unroll
        for (int b = 0; b < BATCHES; b++) {
            mma(sums[b], low.x, high.x, low.y, high.y, in[j][b].x, in[j][b].y);
            mma(sums[b], low.z, high.z, low.w, high.w, in[j][b].z, in[j][b].w);
        }
    }
    release(s.empty + r.stage, lane);
    r.next(MATRIX);
}

__device__ inline void keep_sums(Shared& s, const float (&sums)[BATCHES][4], int t, int warp, int lane) {
    float* mine = s.sums + warp * SUMS + (t * ROWS + (lane & 3) * 2) * PADDED + (lane >> 2);
#pragma unroll
    for (int b = 0; b < BATCHES; b++)
#pragma unroll
        for (int i = 0; i < 4; i++) mine[(b * 8 + (i & 1)) * PADDED + (i >> 1) * 8] = sums[b][i];
}

// The sums of `there` tiles over all warps; `end` takes each.
template <bool GATED, class End>
__device__ inline void add_up(Shared& s, int from, int there, int thread, End end) {
    constexpr int HEIGHT = GATED ? 8 : 16;
#pragma unroll 1
    for (int i = thread; i < there * ROWS * HEIGHT; i += CONSUMERS) {
        int row = i % HEIGHT, column = i / HEIGHT % ROWS, t = i / HEIGHT / ROWS;
        const float* at = s.sums + (t * ROWS + column) * PADDED + row;
        float y = 0, up = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            y += at[w * SUMS];
            if (GATED) up += at[w * SUMS + 8];
        }
        end((from + t) * HEIGHT + row, column, y, up);
    }
}

// This program's rows of w x; `end(own row, batch row, y, up)` takes each, with GATED y is the gate. `meanwhile` comes before
// sums are added up.
template <int K, int N, bool GATED, class Meanwhile, class End>
__device__ inline void multiply(Shared& s, Ring& r, const u16* x, int rows, int count, int thread, Meanwhile meanwhile, End end) {
    constexpr int HEIGHT = GATED ? 8 : 16, CHUNKS = chunks_of(K);
    int warp = thread >> 5, lane = thread & 31;
    int tiles = (count + HEIGHT - 1) / HEIGHT;
    if constexpr (resident(K)) {
        uint4 in[CHUNKS][4][BATCHES];
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) read_x<K>(in[c], x, c, rows, warp, lane);
#pragma unroll 1
        for (int from = 0; from < tiles; from += ROUND) {
            int there = least(ROUND, tiles - from);
            if (from) together();  // the sums before have been read
#pragma unroll 1
            for (int t = 0; t < there; t++) {
                float sums[BATCHES][4] = {};
#pragma unroll
                for (int c = 0; c < CHUNKS; c++) add_stage<K>(s, r, sums, in[c], c, warp, lane);
                keep_sums(s, sums, t, warp, lane);
            }
            if (!from) meanwhile();
            together();
            add_up<GATED>(s, from, there, thread, end);
        }
    } else {
        constexpr int TURN = turn_of(N, HEIGHT), DEPTH = BATCHES == 1 ? 2 : 1;
        static_assert(TURN <= ROUND, "the sums of a turn are added up together");
#pragma unroll 1
        for (int from = 0; from < tiles; from += TURN) {
            float sums[TURN][BATCHES][4] = {};
#pragma unroll 1
            for (int chunk = 0; chunk < CHUNKS; chunk += DEPTH) {
                uint4 in[DEPTH][4][BATCHES];
#pragma unroll
                for (int c = 0; c < DEPTH; c++) read_x<K>(in[c], x, chunk + c, rows, warp, lane);
#pragma unroll
                for (int c = 0; c < DEPTH; c++)
#pragma unroll
                    for (int t = 0; t < TURN; t++)
                        if (from + t < tiles && chunk + c < CHUNKS) add_stage<K>(s, r, sums[t], in[c], chunk + c, warp, lane);
            }
            if (from) together();
#pragma unroll
            for (int t = 0; t < TURN; t++)
                if (from + t < tiles) keep_sums(s, sums[t], t, warp, lane);
            if (!from) meanwhile();
            together();
            add_up<GATED>(s, from, least(TURN, tiles - from), thread, end);
        }
    }
}
