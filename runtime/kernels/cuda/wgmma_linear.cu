// x W^T of many rows on Hopper, with the gate of a feed-forward layer behind it if that is asked for.
//
// Each program multiplies 128 rows of x by COLUMNS rows of the matrix; two on neighbouring multiprocessors share one of the two
// tiles, of which each brings half for both (multicast). One thread asks the copy engine for what two warpgroups, of 64 rows each,
// multiply next; pairs stay and take one tile after another, and the copy engine takes results away meanwhile. With a gate, half of
// the matrix rows are the gate's and the others those of `up` that belong to them, so a thread holds both factors and neither goes
// through memory.
//
// Compiled by NVRTC; kernels/wgmma_linear.py defines GATE (-1: none, else its place in ACTIVATIONS), COLUMNS, ACROSS (pairs are
// neighbours across the matrix and share x; else they share the matrix), STAGES and SHARED_BYTES.

#include <gates.h>

constexpr int ROWS = 128;  // of x
constexpr int HALF = COLUMNS / 2;
constexpr int DEEP = 64;  // columns of x and of the matrix in a stage: 128 bytes
constexpr int LINE = DEEP * 2;  // bytes
constexpr int STAGE = (ROWS + COLUMNS) * LINE;
constexpr int PAIR = 2;
constexpr int GROUPS = 2;  // warpgroups that multiply
constexpr int THREADS = 128 * (GROUPS + 1);
constexpr int TALL = 2048;  // rows of x that are passed before the next columns, for the last cache's sake
constexpr bool GATED = GATE >= 0;
constexpr int OUT_COLUMNS = GATED ? HALF : COLUMNS;
constexpr int BOX = OUT_COLUMNS % 64 ? 16 : 64;  // columns of results that are stored together: swizzled if they fill 128 bytes
constexpr int BOXES = OUT_COLUMNS / BOX;  // of 64 rows each
constexpr int BOX_BYTES = 64 * BOX * 2;
constexpr int RESULTS_AT = STAGES * STAGE;
constexpr int BARRIERS_AT = RESULTS_AT + GROUPS * BOXES * BOX_BYTES;
constexpr int END = BARRIERS_AT + STAGES * 16 + 1024;  // with what is lost before the first multiple of 1,024
static_assert(END <= SHARED_BYTES, "the host counted less shared memory");
static_assert(HALF % 8 == 0 && OUT_COLUMNS % 16 == 0, "swizzled rows come by eights, results by boxes");

struct Args {
    TensorMap x;  // tiles of 128 rows, or 64 with ACROSS, by 64 columns
    TensorMap w;  // tiles of HALF rows by 64 columns
    TensorMap out;  // tiles of 64 by BOX
    long long rows, n, k;
};

struct Ring {
    char* start;
    u64* full;
    u64* empty;
    int stage = 0;
    unsigned parity = 0;

    __device__ Ring(char* start) : start(start), full((u64*)(start + BARRIERS_AT)), empty(full + STAGES) {}
    __device__ char* x() const { return start + stage * STAGE; }
    __device__ char* w() const { return x() + ROWS * LINE; }
    __device__ void next() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

// The tiles of pairs, in the order in which they are taken.
struct Tiles {
    static constexpr int HIGH = ROWS * (ACROSS ? 1 : PAIR), BROAD = OUT_COLUMNS * (ACROSS ? PAIR : 1), BAND = TALL / HIGH;
    int down, across;

    __device__ Tiles(const Args& a) : down(((int)a.rows + HIGH - 1) / HIGH), across(((int)a.n + BROAD - 1) / BROAD) {}
    __device__ int count() const { return down * across; }
    __device__ void find(int index, int rank, int& row, int& column) const {
        int band = index / (BAND * across), within = index % (BAND * across);
        int height = least(BAND, down - band * BAND);
        row = (band * BAND + within % height) * HIGH + (ACROSS ? 0 : rank * ROWS);
        column = within / height * BROAD + (ACROSS ? rank * OUT_COLUMNS : 0);
    }
};

__device__ void bring(Ring r, const Args& a, int pair, int pairs, int rank) {
    Tiles tiles(a);
    int steps = ((int)a.k + DEEP - 1) / DEEP;
    wait_for_launches_before();  // all that others do here follows from what is brought
    for (int index = pair; index < tiles.count(); index += pairs) {
        int row, column;
        tiles.find(index, rank, row, column);
        int second = GATED ? (int)a.n + column : column + HALF;
        for (int at = 0; at < steps * DEEP; at += DEEP) {
            wait_for(r.empty + r.stage, r.parity ^ 1);
            u64* full = r.full + r.stage;
            expect(full, STAGE);
            if (ACROSS) {
                copy_tile_to_both(r.x() + rank * (ROWS / 2 * LINE), &a.x, at, row + rank * (ROWS / 2), full);
                copy_tile(r.w(), &a.w, at, column, full);
                copy_tile(r.w() + HALF * LINE, &a.w, at, second, full);
            } else {
                copy_tile(r.x(), &a.x, at, row, full);
                copy_tile_to_both(r.w() + rank * (HALF * LINE), &a.w, at, rank ? second : column, full);
            }
            r.next();
        }
    }
}

// A warpgroup's 64 rows of results, on their way.
__device__ inline void store(Ring& r, const Args& a, const float (&sums)[COLUMNS / 2], int row, int column, int group, int thread) {
    int warp = thread >> 5, lane = thread & 31;
    char* results = r.start + RESULTS_AT + group * (BOXES * BOX_BYTES);
    if (thread == 0) stores_read();  // those of the tile before
    barrier_of(1 + group, 128);
    int own = warp * 16 + (lane & 15);  // of the row whose address this lane gives
#pragma unroll
    for (int j = 0; j < OUT_COLUMNS / 8; j += 2) {
        unsigned pairs[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int from = (j + (i >> 1)) * 4 + (i & 1) * 2;
            float y[2] = {sums[from], sums[from + 1]};
            if (GATED) {
                y[0] = activated(y[0]) * sums[(from + HALF / 2) % (COLUMNS / 2)];
                y[1] = activated(y[1]) * sums[(from + HALF / 2 + 1) % (COLUMNS / 2)];
            }
            pairs[i] = pack(y[0], y[1]);
        }
        int piece = (j + (lane >> 4)) % (BOX / 8);
        if (BOX == 64) piece ^= own % 8;
        store_matrices(results + j * 8 / BOX * BOX_BYTES + own * (BOX * 2) + piece * 16, pairs);
    }
    before_bulk_copies();
    barrier_of(1 + group, 128);
    if (thread == 0) {
        for (int i = 0; i < BOXES; i++) store_tile(&a.out, results + i * BOX_BYTES, column + i * BOX, row);
        stores_sent();
    }
}

__device__ void multiply(Ring r, const Args& a, int pair, int pairs, int rank, int group, int thread) {
    Tiles tiles(a);
    int steps = ((int)a.k + DEEP - 1) / DEEP;
    auto read = [&](int stage) {  // by this warpgroup: both programs may write there
        if (thread < PAIR) arrive_at(r.empty + stage, thread);
    };
    for (int index = pair; index < tiles.count(); index += pairs) {
        int row, column;
        tiles.find(index, rank, row, column);
        float sums[COLUMNS / 2];
        int before = 0;
        for (int step = 0; step < steps; step++) {
            wait_for(r.full + r.stage, r.parity);
            products_begin();
            const char* x = r.x() + group * 64 * LINE;
            const char* w = r.w();
#pragma unroll
            for (int i = 0; i < DEEP / 16; i++) products(sums, x + i * 32, w + i * 32, step + i > 0);
            products_sent();
            if (step) {
                products_done<1>();
                read(before);
            }
            before = r.stage;
            r.next();
        }
        products_done<0>();
        read(before);
        store(r, a, sums, row + group * 64, column, group, thread);
    }
    if (thread == 0) stores_read();
}

extern "C" __global__ void __cluster_dims__(PAIR, 1, 1) __launch_bounds__(THREADS, 1) wgmma_linear(const __grid_constant__ Args a) {
    char* start = shared_memory();
    start += (1024 - shared_address(start) % 1024) % 1024;
    Ring r(start);
    int thread = thread_index(), rank = block() % PAIR, pair = block() / PAIR, pairs = programs() / PAIR;
    let_next_begin();
    if (thread == 0) {
        for (int i = 0; i < STAGES; i++) {
            begin_barrier(r.full + i, 1);
            begin_barrier(r.empty + i, GROUPS * PAIR);
        }
        barriers_begun();
        ask_map(&a.x);
        ask_map(&a.w);
        ask_map(&a.out);
    }
    all_together();
    cluster_together();
    int group = thread / 128;
    if (group == GROUPS) {
        fewer_registers<40>();
        if (thread == GROUPS * 128) bring(r, a, pair, pairs, rank);
    } else {
        more_registers<232>();
        multiply(r, a, pair, pairs, rank, group, thread % 128);
    }
    warp_together();
    cluster_together();  // nobody leaves while another still writes into its memory
}
