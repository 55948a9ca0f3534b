// x W^T of up to 64 rows on Hopper where all of x fits a multiprocessor, and the likeliest column of each row: the head of a model.
//
// Programs keep x and pass tiles of COLUMNS rows of the matrix, one after another. One warp asks the copy engine for these, as far
// ahead as there is room, before it is known whether the launch before has ended; another asks for x once it has. Who multiplies keeps
// the maximum of what it stores, so nobody reads that again.
//
// Compiled by NVRTC; kernels/head_linear.py defines COLUMNS, DEPTH (64 columns of x each), STAGES (of the matrix) and SHARED_BYTES.

#include <device.h>

constexpr int ROWS = 64;  // of x
constexpr int DEEP = 64;  // columns of x and of the matrix in a stage: 128 bytes
constexpr int LINE = DEEP * 2;  // bytes
constexpr int X_BYTES = ROWS * LINE;
constexpr int W_BYTES = COLUMNS * LINE;
constexpr int MULTIPLYING = 128;  // threads
constexpr int THREADS = MULTIPLYING + 64;
constexpr int W_AT = DEPTH * X_BYTES;
constexpr int BARRIERS_AT = W_AT + STAGES * W_BYTES;
constexpr int END = BARRIERS_AT + (DEPTH + 2 * STAGES) * 8 + 1024;  // with what is lost before the first multiple of 1,024
static_assert(END <= SHARED_BYTES, "the host counted less shared memory");

struct Args {
    TensorMap x;  // tiles of ROWS rows by 64 columns
    TensorMap w;  // tiles of COLUMNS rows by 64 columns
    u16* out;
    float* best;  // [rows, programs]
    int* index;
    long long rows, n;
};

struct Shared {
    char* start;
    u64* x_there;  // of each 64 columns
    u64* full;
    u64* empty;

    __device__ Shared(char* start) : start(start), x_there((u64*)(start + BARRIERS_AT)), full(x_there + DEPTH), empty(full + STAGES) {}
    __device__ char* x(int deep) const { return start + deep * X_BYTES; }
    __device__ char* w(int step) const { return start + W_AT + step % STAGES * W_BYTES; }
    // Of the barriers, when this step is awaited.
    static __device__ unsigned parity(int step) { return step / STAGES & 1; }
};

// The maximum of a row so far, and the first column that has it; NaN counts as infinity.
struct Likeliest {
    float top;
    int column;

    __device__ void see(float v, int at) {
        if (v != v) v = float_of(0x7f800000);
        if (v > top) *this = {v, at};
    }
    __device__ void join(float v, int at) {
        if (v > top || (v == top && at < column)) *this = {v, at};
    }
};

__device__ inline int tiles_of(const Args& a) { return ((int)a.n + COLUMNS - 1) / COLUMNS; }

__device__ void bring_weights(const Shared& s, const Args& a) {
    int step = 0;
    for (int tile = block(); tile < tiles_of(a); tile += programs())
        for (int deep = 0; deep < DEPTH; deep++, step++) {
            u64* arrived = s.full + step % STAGES;
            if (step >= STAGES) wait_for(s.empty + step % STAGES, Shared::parity(step) ^ 1);
            expect(arrived, W_BYTES);
            copy_tile(s.w(step), &a.w, deep * DEEP, tile * COLUMNS, arrived);
        }
}

__device__ void multiply(const Shared& s, const Args& a, int thread) {
    int warp = thread >> 5, lane = thread & 31, first = block() * COLUMNS + (lane & 3) * 2, step = 0;
    Likeliest best[2];
    for (Likeliest& b : best) b = {float_of(0xff800000), first < a.n ? first : FOREVER};  // of nothing but -infinity the first
    auto read = [&](int step) {
        if (thread == 0) arrive_at_own(s.empty + step % STAGES);
    };
    for (int tile = block(); tile < tiles_of(a); tile += programs()) {
        float sums[COLUMNS / 2];
        for (int deep = 0; deep < DEPTH; deep++, step++) {
            if (tile == block()) wait_for(s.x_there + deep, 0);
            wait_for(s.full + step % STAGES, Shared::parity(step));
            products_begin();
#pragma unroll
            for (int i = 0; i < DEEP / 16; i++) products(sums, s.x(deep) + i * 32, s.w(step) + i * 32, deep + i > 0);
            products_sent();
            if (deep) {
                products_done<1>();
                read(step - 1);
            }
        }
        products_done<0>();
        read(step - 1);
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; j++)
#pragma unroll
            for (int lower = 0; lower < 2; lower++) {
                int row = warp * 16 + lower * 8 + (lane >> 2), column = tile * COLUMNS + j * 8 + (lane & 3) * 2;
                unsigned pair = pack(sums[j * 4 + lower * 2], sums[j * 4 + lower * 2 + 1]);
                if (column >= a.n) continue;
                if (row < a.rows) *(unsigned*)(a.out + row * a.n + column) = pair;
                best[lower].see(low_of(pair), column);
                best[lower].see(high_of(pair), column + 1);
            }
    }
#pragma unroll
    for (int lower = 0; lower < 2; lower++) {
        int row = warp * 16 + lower * 8 + (lane >> 2);
        for (int other = 1; other < 4; other *= 2)
            best[lower].join(shuffle_xor(best[lower].top, other), shuffle_xor(best[lower].column, other));
        if ((lane & 3) == 0 && row < a.rows) {
            a.best[row * programs() + block()] = best[lower].top;
            a.index[row * programs() + block()] = best[lower].column;
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) head_linear(const __grid_constant__ Args a) {
    char* start = shared_memory();
    start += (1024 - shared_address(start) % 1024) % 1024;
    Shared s(start);
    int thread = thread_index();
    let_next_begin();
    if (thread == 0) {
        for (int i = 0; i < DEPTH + 2 * STAGES; i++) begin_barrier(s.x_there + i, 1);
        barriers_begun();
        ask_map(&a.x);
        ask_map(&a.w);
    }
    all_together();
    if (thread < MULTIPLYING) {
        multiply(s, a, thread);
    } else if (thread == MULTIPLYING) {
        bring_weights(s, a);
    } else if (thread == MULTIPLYING + 32 && block() < tiles_of(a)) {  // nobody would wait for the copies of others
        wait_for_launches_before();  // all that others do here with what is written by them follows from x
        for (int deep = 0; deep < DEPTH; deep++) {
            expect(s.x_there + deep, X_BYTES);
            copy_tile(s.x(deep), &a.x, deep * DEEP, 0, s.x_there + deep);
        }
    }
}
