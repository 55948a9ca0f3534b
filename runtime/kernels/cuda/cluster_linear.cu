// x W^T of up to 64 rows on Hopper, for matrices so small that a launch's beginning and end count as much as their bytes.
//
// A program multiplies all rows of x by COLUMNS rows of the matrix over its share of the inner dimension; the SPLIT programs of a
// cluster have one share each, and add up through each other's shared memory. One warp asks the copy engine for weights, as many as
// there is room for, before it is known whether the launch before has ended; another asks for x once it has. With a gate, half of
// the matrix rows are the gate's and the others those of `up` that belong to them.
//
// An RMS norm between two products has no launch of its own: the one that adds to the residual (ADDS) stores the sums times the norm's
// weight and tells the sum of squares of each row's columns in a program; the one that reads these (NORMED) multiplies its results by
// the row's factor.
//
// Compiled by NVRTC; kernels/cluster_linear.py defines GATE (-1: none, else its place in ACTIVATIONS), COLUMNS, SPLIT, ADDS, NORMED (0,
// or how many sums of squares a row has), W_STAGES, X_STAGES and SHARED_BYTES.

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
constexpr int FACTORS_AT = BARRIERS_AT + (W_STAGES + X_STAGES) * 16 + 16;  // the barrier of the factors comes before them
constexpr int END = (NORMED ? FACTORS_AT + ROWS * 4 : FACTORS_AT - 16) + 1024;  // with what is lost before the first multiple of 1,024
static_assert(END <= SHARED_BYTES, "the host counted less shared memory");
constexpr int QUARTERS = OUT_COLUMNS / 4;  // threads that add up a row
constexpr int TURNS = larger(1, SHARE * QUARTERS / MULTIPLYING);  // of a thread that adds to the residual
static_assert(HALF % 8 == 0 && ROWS % SPLIT == 0, "swizzled rows come by eights, shares are whole rows");
static_assert(!ADDS || (SPLIT > 1 && !GATED && (QUARTERS & (QUARTERS - 1)) == 0 && QUARTERS <= 32), "a row is within a warp");

struct Args {
    TensorMap x;  // tiles of ROWS rows by 64 columns
    TensorMap w;  // tiles of HALF rows by 64 columns
    const u16* bias;  // or none
    u16* out;  // what is added to the residual, times the norm's weight, if there is one
    u16* residual;
    const u16* weight;  // of the norm behind this product
    float* squares;  // [programs of a row, ROWS]
    float eps, offset;
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

// Two neighbours of a row of results, `second` those of `up`; `factor` is the row's.
__device__ inline unsigned finished(const Args& a, const float* first, const float* second, int column, float factor) {
    float y[2];
    for (int i = 0; i < 2; i++) {
        y[i] = with_bias(a, first[i] * factor, column + i);
        if (GATED) y[i] = activated(y[i]) * with_bias(a, second[i] * factor, a.n + column + i);
    }
    return pack(y[0], y[1]);
}

// Of each row, one over the root of the mean of its squares; by a warp.
__device__ inline void find_factors(const Args& a, float* factors, int lane) {
    float total[ROWS / 32] = {};
#pragma unroll 16
    for (int part = 0; part < NORMED; part++)
#pragma unroll
        for (int i = 0; i < ROWS / 32; i++) total[i] += load_shared_l2(a.squares + part * ROWS + i * 32 + lane);
#pragma unroll
    for (int i = 0; i < ROWS / 32; i++) factors[i * 32 + lane] = rsqrtf(total[i] / a.k + a.eps);
}

// Four neighbours of a row, of each factor, from all programs of the cluster.
__device__ inline void add_up(const float* at, float (&total)[2][4]) {
    float4 parts[2][SPLIT];
#pragma unroll
    for (int part = 0; part < SPLIT; part++) {
        parts[0][part] = load_from(at, part);
        if (GATED) parts[1][part] = load_from(at + HALF, part);
    }
#pragma unroll
    for (int which = 0; which < (GATED ? 2 : 1); which++) {
        float(&sum)[4] = total[which];
        sum[0] = sum[1] = sum[2] = sum[3] = 0;
#pragma unroll
        for (int part = 0; part < SPLIT; part++) {
            sum[0] += parts[which][part].x;
            sum[1] += parts[which][part].y;
            sum[2] += parts[which][part].z;
            sum[3] += parts[which][part].w;
        }
    }
}

// What a thread adds to, four neighbours of a row in each turn, and the weights of the norm there.
struct Residual {
    u64 held[TURNS], weight;

    // The row, of the cluster's, of a thread's turn, and the column of its own.
    static __device__ int row(int turn, int thread) { return (turn * MULTIPLYING + thread) / QUARTERS; }
    static __device__ int within(int thread) { return thread % QUARTERS * 4; }
    static __device__ bool live(const Args& a, int row, int column) { return row < a.rows && column < a.n; }

    // They are under way while the product is.
    __device__ void ask(const Args& a, int first_row, int column, int thread) {
        int to = column + within(thread);
        weight = to < a.n ? load_fixed((const u64*)(a.weight + to)) : 0;
        wait_for_launches_before();
#pragma unroll
        for (int i = 0; i < TURNS; i++) {
            int at = first_row + row(i, thread);
            held[i] = live(a, at, to) ? load_shared_l2((const u64*)(a.residual + at * a.n + to)) : 0;
        }
    }

    __device__ void add(const Args& a, const float* own, int first_row, int column, int thread) {
        int to = column + within(thread);
#pragma unroll
        for (int i = 0; i < TURNS; i++) {
            if (row(i, thread) >= SHARE) break;  // whole warps
            int at = first_row + row(i, thread);
            bool here = live(a, at, to);
            float squares = 0;
            if (here) {
                float total[2][4];
                add_up(own + at * BROAD + within(thread), total);
                unsigned scaled[2], sums[2];
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    unsigned before = (unsigned)(held[i] >> 32 * j), by = (unsigned)(weight >> 32 * j);
                    const float* y = total[0] + 2 * j;
                    int own_column = to + 2 * j;
                    sums[j] = pack(with_bias(a, y[0], own_column) + low_of(before), with_bias(a, y[1], own_column + 1) + high_of(before));
                    float low = low_of(sums[j]), high = high_of(sums[j]);
                    squares += low * low + high * high;
                    scaled[j] = pack(low * (low_of(by) + a.offset), high * (high_of(by) + a.offset));
                }
                long long place = at * a.n + to;
                *(u64*)(a.residual + place) = sums[0] | (u64)sums[1] << 32;
                *(u64*)(a.out + place) = scaled[0] | (u64)scaled[1] << 32;
            }
#pragma unroll
            for (int other = QUARTERS / 2; other; other /= 2) squares += shuffle_xor(squares, other);
            if (thread % QUARTERS == 0 && here) a.squares[block() / SPLIT * ROWS + at] = squares;
        }
    }
};

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
    u64* factors_there = (u64*)(start + FACTORS_AT) - 1;
    float* factors = (float*)(start + FACTORS_AT);
    Residual residual;
    int thread = thread_index(), rank = block() % SPLIT, column = block() / SPLIT * OUT_COLUMNS;
    let_next_begin();
    if (thread == 0) {
        weights.begin();
        inputs.begin();
        if (NORMED) begin_barrier(factors_there, 1);
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
        if (ADDS) residual.ask(a, rank * SHARE, column, thread);
        multiply(weights, inputs, steps, sums, thread);
    }
    warp_together();
    int warp = thread >> 5, lane = thread & 31;
    if (NORMED && warp == MULTIPLYING / 32) {  // whoever asked for weights has nothing else to do
        wait_for_launches_before();
        find_factors(a, factors, lane);
        release(factors_there, lane);
    }
    if (SPLIT == 1) {
        if (thread >= MULTIPLYING) return;
        if (NORMED) wait_for(factors_there, 0);
#pragma unroll
        for (int j = 0; j < OUT_COLUMNS / 8; j++)
#pragma unroll
            for (int lower = 0; lower < 2; lower++) {
                int row = warp * 16 + lower * 8 + (lane >> 2), to = column + j * 8 + (lane & 3) * 2, from = j * 4 + lower * 2;
                if (row < a.rows && to < a.n)
                    *(unsigned*)(a.out + row * a.n + to) =
                        finished(a, sums + from, sums + (from + COLUMNS / 4) % (COLUMNS / 2), to, NORMED ? factors[row] : 1.0f);
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
    if (NORMED) wait_for(factors_there, 0);
    cluster_together();
    if (ADDS) {
        if (thread < MULTIPLYING) residual.add(a, own, rank * SHARE, column, thread);
    } else {
        for (int i = thread; i < SHARE * QUARTERS; i += THREADS) {
            int row = rank * SHARE + i / QUARTERS, within = i % QUARTERS * 4, to = column + within;
            if (row >= a.rows || to >= a.n) continue;
            float total[2][4], factor = NORMED ? factors[row] : 1.0f;
            add_up(own + row * BROAD + within, total);
            unsigned* out = (unsigned*)(a.out + row * a.n + to);
            out[0] = finished(a, total[0], total[1], to, factor);
            out[1] = finished(a, total[0] + 2, total[1] + 2, to + 2, factor);
        }
    }
    cluster_together();  // nobody leaves while another still reads its memory
}
