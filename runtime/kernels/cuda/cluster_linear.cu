// x W^T of up to 64 rows on Hopper, for matrices so small that a launch's beginning and end count as much as their bytes.
//
// A program multiplies all rows of x by COLUMNS rows of the matrix over its share of the inner dimension; the SPLIT programs of a
// cluster have one share each, and add up through each other's shared memory. One warp asks the copy engine for weights, as many as
// there is room for, before it is known whether the launch before has ended; another asks for x once it has. With a gate, half of
// the matrix rows are the gate's and the others those of `up` that belong to them.
//
// Compiled by NVRTC; kernels/cluster_linear.py defines GATE (-1: none, else its place in ACTIVATIONS), COLUMNS, SPLIT, W_STAGES,
// X_STAGES and SHARED_BYTES.

#include <gates.h>

constexpr int ROWS = 64;  // of x
constexpr int HALF = COLUMNS / 2;
constexpr int DEEP = 64;  // columns of x and of the matrix in a stage: 128 bytes
constexpr int LINE = DEEP * 2;  // bytes
constexpr int X_BYTES = ROWS * LINE;
constexpr int W_BYTES = COLUMNS * LINE;
constexpr int MULTIPLYING = 128;  // threads
constexpr int THREADS = MULTIPLYING + 64;
constexpr bool GATED = GATE >= 0;
constexpr int OUT_COLUMNS = GATED ? HALF : COLUMNS;
constexpr int BROAD = COLUMNS + 4;  // numbers of a row of sums in shared memory
constexpr int SHARE = ROWS / SPLIT;  // rows that a program of a cluster adds up
constexpr int X_AT = W_STAGES * W_BYTES;
constexpr int RINGS_END = X_AT + X_STAGES * X_BYTES;
constexpr int BARRIERS_AT = SPLIT > 1 ? larger(RINGS_END, ROWS * BROAD * 4) : RINGS_END;
constexpr int END = BARRIERS_AT + (W_STAGES + X_STAGES) * 16 + 1024;  // with what is lost before the first multiple of 1,024
static_assert(END <= SHARED_BYTES, "the host counted less shared memory");
static_assert(HALF % 8 == 0 && ROWS % SPLIT == 0, "swizzled rows come by eights, shares are whole rows");

struct Args {
    TensorMap x;  // tiles of ROWS rows by 64 columns
    TensorMap w;  // tiles of HALF rows by 64 columns
    const u16* bias;  // or none
    u16* out;
    long long rows, n, k;
};

// Stages of one operand in shared memory, in turn.
template <int STAGES, int BYTES>
struct Ring {
    char* start;
    u64* full;
    u64* empty;

    __device__ char* at(int step) const { return start + step % STAGES * BYTES; }
    __device__ u64* arrived(int step) const { return full + step % STAGES; }
    __device__ u64* taken(int step) const { return empty + step % STAGES; }
    // Of the barriers, when this step is awaited.
    static __device__ unsigned parity(int step) { return step / STAGES & 1; }
    // Before a step's stage is filled; the first ones are empty.
    __device__ void room(int step) const {
        if (step >= STAGES) wait_for(taken(step), parity(step) ^ 1);
    }
    __device__ void begin() const {
        for (int i = 0; i < STAGES; i++) {
            begin_barrier(full + i, 1);
            begin_barrier(empty + i, 1);
        }
    }
};
typedef Ring<W_STAGES, W_BYTES> Weights;
typedef Ring<X_STAGES, X_BYTES> Inputs;

__device__ inline float with_bias(const Args& a, float v, long long column) {
    return a.bias ? v + to_float(load_fixed(a.bias + column)) : v;
}

// Two neighbours of a row of results, `second` those of `up`.
__device__ inline unsigned finished(const Args& a, const float* first, const float* second, int column) {
    float y[2];
    for (int i = 0; i < 2; i++) {
        y[i] = with_bias(a, first[i], column + i);
        if (GATED) y[i] = activated(y[i]) * with_bias(a, second[i], a.n + column + i);
    }
    return pack(y[0], y[1]);
}

__device__ void multiply(const Weights& weights, const Inputs& inputs, int steps, float (&sums)[COLUMNS / 2], int thread) {
#pragma unroll
    for (int i = 0; i < COLUMNS / 2; i++) sums[i] = 0;
    auto read = [&](int step) {
        if (thread == 0) {
            arrive_at_own(weights.taken(step));
            arrive_at_own(inputs.taken(step));
        }
    };
    for (int step = 0; step < steps; step++) {
        wait_for(weights.arrived(step), weights.parity(step));
        wait_for(inputs.arrived(step), inputs.parity(step));
        products_begin();
#pragma unroll
        for (int i = 0; i < DEEP / 16; i++) products(sums, inputs.at(step) + i * 32, weights.at(step) + i * 32, true);
        products_sent();
        if (step) {
            products_done<1>();
            read(step - 1);
        }
    }
    products_done<0>();
}

extern "C" __global__ void __cluster_dims__(SPLIT, 1, 1) __launch_bounds__(THREADS, 1) cluster_linear(const __grid_constant__ Args a) {
    char* start = shared_memory();
    start += (1024 - shared_address(start) % 1024) % 1024;
    u64* barriers = (u64*)(start + BARRIERS_AT);
    Weights weights{start, barriers, barriers + W_STAGES};
    Inputs inputs{start + X_AT, barriers + 2 * W_STAGES, barriers + 2 * W_STAGES + X_STAGES};
    int thread = thread_index(), rank = block() % SPLIT, column = block() / SPLIT * OUT_COLUMNS;
    let_next_begin();
    if (thread == 0) {
        weights.begin();
        inputs.begin();
        barriers_begun();
        ask_map(&a.x);
        ask_map(&a.w);
    }
    all_together();
    int deep = ((int)a.k + DEEP - 1) / DEEP, first = deep * rank / SPLIT, steps = deep * (rank + 1) / SPLIT - first;
    float sums[COLUMNS / 2];
    if (thread == MULTIPLYING) {
        int second = GATED ? (int)a.n + column : column + HALF;
        for (int step = 0; step < steps; step++) {
            weights.room(step);
            u64* arrived = weights.arrived(step);
            expect(arrived, W_BYTES);
            copy_tile(weights.at(step), &a.w, (first + step) * DEEP, column, arrived);
            copy_tile(weights.at(step) + HALF * LINE, &a.w, (first + step) * DEEP, second, arrived);
        }
    } else if (thread == MULTIPLYING + 32) {
        wait_for_launches_before();  // all that others do here with what is written by them follows from x
        for (int step = 0; step < steps; step++) {
            inputs.room(step);
            expect(inputs.arrived(step), X_BYTES);
            copy_tile(inputs.at(step), &a.x, (first + step) * DEEP, 0, inputs.arrived(step));
        }
    } else if (thread < MULTIPLYING) {
        multiply(weights, inputs, steps, sums, thread);
    }
    warp_together();
    int warp = thread >> 5, lane = thread & 31;
    if (SPLIT == 1) {
        if (thread >= MULTIPLYING) return;
#pragma unroll
        for (int j = 0; j < OUT_COLUMNS / 8; j++)
#pragma unroll
            for (int lower = 0; lower < 2; lower++) {
                int row = warp * 16 + lower * 8 + (lane >> 2), to = column + j * 8 + (lane & 3) * 2, from = j * 4 + lower * 2;
                if (row < a.rows && to < a.n)
                    *(unsigned*)(a.out + row * a.n + to) = finished(a, sums + from, sums + (from + COLUMNS / 4) % (COLUMNS / 2), to);
            }
        return;
    }
    float* own = (float*)start;  // of this program, where its stages were
    if (thread < MULTIPLYING) {
        barrier_of(1, MULTIPLYING);  // all have been multiplied
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; j++)
#pragma unroll
            for (int lower = 0; lower < 2; lower++) {
                float* to = own + (warp * 16 + lower * 8 + (lane >> 2)) * BROAD + j * 8 + (lane & 3) * 2;
                to[0] = sums[j * 4 + lower * 2];
                to[1] = sums[j * 4 + lower * 2 + 1];
            }
    }
    cluster_together();
    for (int i = thread; i < SHARE * OUT_COLUMNS / 4; i += THREADS) {
        int row = rank * SHARE + i / (OUT_COLUMNS / 4), within = i % (OUT_COLUMNS / 4) * 4, to = column + within;
        if (row >= a.rows || to >= a.n) continue;
        float4 parts[2][SPLIT];
#pragma unroll
        for (int part = 0; part < SPLIT; part++) {
            parts[0][part] = load_from(own + row * BROAD + within, part);
            if (GATED) parts[1][part] = load_from(own + row * BROAD + within + HALF, part);
        }
        float total[2][4] = {};
#pragma unroll
        for (int part = 0; part < SPLIT; part++)
#pragma unroll
            for (int which = 0; which < (GATED ? 2 : 1); which++) {
                total[which][0] += parts[which][part].x;
                total[which][1] += parts[which][part].y;
                total[which][2] += parts[which][part].z;
                total[which][3] += parts[which][part].w;
            }
        unsigned* out = (unsigned*)(a.out + row * a.n + to);
        out[0] = finished(a, total[0], total[1], to);
        out[1] = finished(a, total[0] + 2, total[1] + 2, to + 2);
    }
    cluster_together();  // nobody leaves while another still reads its memory
}
