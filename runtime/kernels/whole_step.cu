// All decoder layers of a decode step of a few rows, in one launch.
//
// One program a multiprocessor stays for the whole step. Its producer warps stream what it will multiply (its rows of every
// matrix, its part of the cached keys and values) through a ring in shared memory; what they fetch depends on nothing that
// this launch computes, so they run ahead across phases and the memory never waits for a barrier. Eight consumer warps each
// take an eighth of the columns, multiply on the tensor units (m16n8k16: 16 rows of a matrix by 8 rows of the batch), add
// their sums up in shared memory, and meet the other programs between phases.
//
// A slice of a stage is what one warp reads: 16 rows of 128 numbers, or 16 positions of a head. Within a fragment of 32 columns
// a thread reads 8 successive ones of either operand: the order of a sum's terms does not matter as long as both agree.
//
// Compiled by NVRTC for one model and number of rows; the macros that kernels/whole_step.py defines are its shapes.

#include <device.h>

constexpr int CONSUMERS = 256;  // threads
constexpr int WARPS = CONSUMERS / 32;
constexpr int FEEDERS = PRODUCERS * 32;
constexpr int CHUNK = WARPS * 128;  // columns of a stage
constexpr int STRIDE = CHUNK * 2 + 64;  // bytes of a matrix row in a stage: two rows' fragments do not meet in a bank
constexpr int SLICE = 4096;  // bytes of 16 positions of a head
constexpr int STAGE = 16 * STRIDE;
constexpr int BATCHES = ROWS / 8;   // of 8 rows
constexpr int PADDED = 20;  // 16 sums of a column, and room that spreads them over the banks
constexpr int WIDE = (HEADS + 2 * KV_HEADS) * DIM;
constexpr int ATT = HEADS * DIM;
constexpr int GROUP = HEADS / KV_HEADS;
constexpr int QUERIES = (GROUP + 7) / 8;  // of 8 heads
constexpr int QUERY_STRIDE = DIM + 8;
constexpr int HALF = TURNED / 2;
constexpr int FIELDS = 15;
constexpr int MARKS = 14;
constexpr int SPAN_STEP = CONSUMERS / 2;  // positions of a stage
constexpr int MOST_UNITS = 8;  // parts of contexts a program, at most
constexpr float LOG2E = 1.4426950408889634f;
constexpr float NOWHERE = -1e30f;  // below every score, and finite

struct Args {
    const long long* table;  // [layers, FIELDS]: addresses of a layer's tensors, by their place in StepLayer
    const u16* x;  // [rows, HIDDEN]
    u16* hidden;  // [rows, HIDDEN], out
    const u16* last_norm;
    u16* h;  // [rows, HIDDEN]: the residual times the next norm's weight
    u16* qkv;  // [rows, WIDE]
    u16* attended;  // [rows, ATT]
    u16* gated;  // [rows, INNER]
    float* squares;  // [rows, programs]: of each program's part of the residual
    float* partial;  // [MOST_UNITS * programs, GROUP * DIM]
    float* weights;  // [MOST_UNITS * programs, GROUP]
    int* arrived;  // [rows, KV_HEADS], zero between launches
    int* counter;  // zero between launches
    const int* pages;  // [seats, width]
    const int* seats;
    const int* lengths;
    const long long* slots;
    long long* stamps;  // [layers, 5, programs] or null
    const long long* boxes;  // [RANKS] addresses
    int* state;  // [2]: launches, a rank is lost
    long long rows, layers, width, window, rank, looks;
    double scale, softcap, eps, offset, qk_eps, qk_offset;
};

struct Shared {
    char* ring;
    float* sums;  // [WARPS, SUMS], or [WARPS, GROUP, QUERY_STRIDE]
    float* residual;  // [ROWS, own rows]
    float* side;  // [own rows]: what the end of a phase adds or multiplies
    float* bias;
    float* factor;  // [ROWS]
    u16* queries;  // [8 * QUERIES, QUERY_STRIDE]
    float* new_key;  // [DIM]
    float* new_value;  // [2, DIM]: of one unit and the next, by turns
    float* tops;  // [WARPS + 1, 8 * QUERIES], the last of the new token
    float* totals;
    int* firsts;  // [2, ROWS + 1]: parts of contexts before a row's, without and with a window
    int* lengths;  // [ROWS]
    int* spans;  // [2]
    int* flag;
    long long* fields;  // [2, FIELDS]: of this layer and the next, by turns
    int* slots;  // [FEEDERS]: places of a stage's positions in a pool
    u64* full;  // [2, STAGES]: by kind
    u64* empty;
};

constexpr int most(int n) { return (n + PROGRAMS - 1) / PROGRAMS; }  // rows of a matrix of n that a program has
// Of 16 matrix rows that a program has.
constexpr int tiles_of(int n, int height) { return (most(n) + height - 1) / height; }
constexpr int chunks_of(int k) { return (k + CHUNK - 1) / CHUNK; }
// Whether a thread's part of x stays in registers while all tiles pass by.
constexpr bool resident(int k) { return chunks_of(k) * BATCHES <= 5; }
// Else these tiles share what is read of x: a warp holds the sums of all.
constexpr int least_of(int a, int b) { return a < b ? a : b; }
constexpr int turn_of(int n, int height) { return least_of(tiles_of(n, height), 16 / BATCHES < 4 ? 16 / BATCHES : 4); }
constexpr int SUMS = ROUND * ROWS * PADDED;  // floats of a warp: of tiles that are added up together
constexpr int OWN = most(HIDDEN);
static_assert(OWN <= CONSUMERS && most(WIDE) <= CONSUMERS, "a thread each");
constexpr int WIDEST = most(WIDE) > OWN ? most(WIDE) : OWN;
constexpr int SUM_FLOATS = SUMS > GROUP * QUERY_STRIDE ? SUMS : GROUP * QUERY_STRIDE;

__device__ inline char* carve(char*& at, int bytes) {
    char* found = at;
    at += (bytes + 15) / 16 * 16;
    return found;
}

__device__ inline Shared carved(char* at) {
    Shared s;
    s.ring = carve(at, STAGES * STAGE);
    s.sums = (float*)carve(at, WARPS * SUM_FLOATS * 4);
    s.residual = (float*)carve(at, ROWS * OWN * 4);
    s.side = (float*)carve(at, OWN * 4);
    s.bias = (float*)carve(at, WIDEST * 4);
    s.factor = (float*)carve(at, ROWS * 4);
    s.queries = (u16*)carve(at, 8 * QUERIES * QUERY_STRIDE * 2);
    s.new_key = (float*)carve(at, DIM * 4);
    s.new_value = (float*)carve(at, 2 * DIM * 4);
    s.tops = (float*)carve(at, (WARPS + 1) * 8 * QUERIES * 4);
    s.totals = (float*)carve(at, WARPS * 8 * QUERIES * 4);
    s.firsts = (int*)carve(at, 2 * (ROWS + 1) * 4);
    s.lengths = (int*)carve(at, ROWS * 4);
    s.spans = (int*)carve(at, 8);
    s.flag = (int*)carve(at, 4);
    s.fields = (long long*)carve(at, 2 * FIELDS * 8);
    s.slots = (int*)carve(at, FEEDERS * 4);
    s.full = (u64*)carve(at, 2 * STAGES * 8);
    s.empty = (u64*)carve(at, STAGES * 8);
    return s;
}

constexpr int padded(int bytes) { return (bytes + 15) / 16 * 16; }
static_assert(STAGES * STAGE + padded(WARPS * SUM_FLOATS * 4) + padded(ROWS * OWN * 4) + padded(OWN * 4) + padded(WIDEST * 4) +
                      padded(ROWS * 4) + padded(8 * QUERIES * QUERY_STRIDE * 2) + 3 * padded(DIM * 4) +
                      2 * padded((WARPS + 1) * 8 * QUERIES * 4) + padded(2 * (ROWS + 1) * 4) + padded(ROWS * 4) + 32 + padded(2 * FIELDS * 8) + FEEDERS * 4 +
                      padded(2 * STAGES * 8) + padded(STAGES * 8) <=
                  SHARED_BYTES,
              "the host counted less shared memory");

// A position's 16-byte pieces change places so that neither the fragments of a product (two rows, four pieces) nor transposed
// loads (eight rows, one piece) meet in a bank.
__device__ inline int place(int row, int piece) {
    return row * 256 + ((piece ^ (((row & 1) << 2) | ((row >> 1) & 3))) << 4);
}

enum Kind { MATRIX, CONTEXT };  // of a stage: the copy engine brings one, threads the other

struct Ring {
    int stage = 0;
    unsigned parity = 0;  // of the turn through the stages
    unsigned parities = 0;  // of each stage's barriers, by kind
    int recent[PACE];  // barriers of the stages before, with their parities

    __device__ Ring() {
#pragma unroll
        for (int i = 0; i < PACE; i++) recent[i] = -1;
    }
    __device__ int barrier(Kind kind) const { return kind * STAGES + stage; }
    __device__ unsigned full_parity(Kind kind) const { return (parities >> barrier(kind)) & 1; }
    __device__ void next(Kind kind) {
        parities ^= 1u << barrier(kind);
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};
static_assert(2 * STAGES <= 32, "a bit each");

__device__ inline int share(int n, int program) { return (int)((long long)program * n / PROGRAMS); }

// ---- producers ------------------------------------------------------------------------------------------------------

// A stage that the consumers have read. Few stages are on their way at a time: requests beyond what the memory needs would only
// queue up before those that the other programs wait for.
__device__ inline char* claimed(Shared& s, Ring& r) {
    wait_for(s.empty + r.stage, r.parity ^ 1);
    int last = r.recent[PACE - 1];
    if (last >= 0) wait_for(s.full + (last >> 1), last & 1);
    return s.ring + r.stage * STAGE;
}

__device__ inline void sent(Ring& r, Kind kind) {
#pragma unroll
    for (int i = PACE - 1; i > 0; i--) r.recent[i] = r.recent[i - 1];
    r.recent[0] = r.barrier(kind) << 1 | (int)r.full_parity(kind);
    r.next(kind);
}

// A stage of a matrix: one warp has its rows copied whole.
template <int K, bool GATED>
__device__ inline void copy_rows(Shared& s, Ring& r, const u16* w, int n, int top, int last, int chunk, int thread) {
    if (thread < 32) {
        constexpr int HEIGHT = GATED ? 8 : 16;
        char* stage = claimed(s, r);
        before_bulk_copies();
        int bytes = least(CHUNK, K - chunk * CHUNK) * 2;
        int live = least(HEIGHT, last - top);
        if (thread == 0) expect(s.full + r.stage, (GATED ? 2 : 1) * live * bytes);
        warp_together();
        int local = thread & (HEIGHT - 1);
        if (thread < 16 && local < live)
            copy_bulk(stage + thread * STRIDE, w + ((long long)top + local + (thread < HEIGHT ? 0 : n)) * K + chunk * CHUNK, bytes,
                      s.full + r.stage);
    }
    sent(r, MATRIX);
}

template <int K, int N, bool GATED>
__device__ void stream(Shared& s, Ring& r, const u16* w, int program, int thread) {
    constexpr int HEIGHT = GATED ? 8 : 16, CHUNKS = chunks_of(K);
    constexpr int TURN = resident(K) ? 1 : turn_of(N, HEIGHT);
    int first = share(N, program), last = share(N, program + 1);
    int tiles = (last - first + HEIGHT - 1) / HEIGHT;
#pragma unroll 1
    for (int from = 0; from < tiles; from += TURN)
#pragma unroll 1
        for (int chunk = 0; chunk < CHUNKS; chunk++)
#pragma unroll 1
            for (int tile = from; tile < from + TURN && tile < tiles; tile++)
                copy_rows<K, GATED>(s, r, w, N, first + tile * HEIGHT, last, chunk, thread);
}

struct Unit {
    int row, head, part, parts, begin, end, length;
};

// The part of a context that comes at `at` in the order of rows, heads, parts. All lanes of a warp ask together.
__device__ inline Unit unit_at(Shared& s, const Args& a, int kind, int window, int at, int lane) {
    const int* firsts = s.firsts + kind * (ROWS + 1);
    int row = 0;
    for (int from = 0; from < ROWS; from += 32) {
        int i = from + lane;
        row += count_bits(lanes_where(i < (int)a.rows && at >= firsts[i + 1 > ROWS ? ROWS : i + 1] * KV_HEADS));
    }
    Unit u;
    u.row = row;
    u.parts = firsts[row + 1] - firsts[row];
    int within = at - firsts[row] * KV_HEADS;
    u.head = within / u.parts;
    u.part = within % u.parts;
    u.length = s.lengths[row];
    int oldest = u.length > window ? u.length - window : 0;
    int span = s.spans[kind];
    u.begin = oldest + u.part * span;
    u.end = least(u.begin + span, u.length - 1);
    return u;
}

__device__ inline int kind_of(int window) { return window == FOREVER ? 0 : 1; }

// Where a stage's position lies in a pool; -1: nowhere.
__device__ inline int slot_of(const int* pages, int position, int end) {
    return position < end ? load_fixed(pages + position / PAGE) * PAGE + position % PAGE : -1;
}

__device__ void stream_contexts(Shared& s, Ring& r, const Args& a, const u16* pool_k, const u16* pool_v, int window, int program, int thread) {
    constexpr int PIECES = DIM / 8;
    static_assert(FEEDERS == SPAN_STEP, "each finds a position's place");
    int kind = kind_of(window);
    int units = s.firsts[kind * (ROWS + 1) + (int)a.rows] * KV_HEADS;
    for (int at = program; at < units; at += PROGRAMS) {
        Unit u = unit_at(s, a, kind, window, at, thread & 31);
        const int* pages = a.pages + (long long)a.seats[u.row] * a.width;
        int slot = slot_of(pages, u.begin + thread, u.end);
        for (int start = u.begin; start < u.end; start += SPAN_STEP) {
            barrier_of(2, FEEDERS);  // the places before have been read
            s.slots[thread] = slot;
            slot = slot_of(pages, start + SPAN_STEP + thread, u.end);
#pragma unroll 1
            for (int both = 0; both < 2; both++) {
                char* stage = s.ring + r.stage * STAGE;
                if (thread < 32) claimed(s, r);
                barrier_of(2, FEEDERS);
                const u16* pool = (both ? pool_v : pool_k) + u.head * DIM;
#pragma unroll 4
                for (int index = thread; index < SPAN_STEP * PIECES; index += FEEDERS) {
                    int position = index / PIECES, piece = index % PIECES, from = s.slots[position];
                    copy_16(stage + (position >> 4) * SLICE + place(position & 15, piece),
                            pool + (long long)larger(from, 0) * (KV_HEADS * DIM) + piece * 8, from >= 0);
                }
                arrive_when_copied(s.full + r.barrier(CONTEXT));
                sent(r, CONTEXT);
            }
        }
    }
}

// ---- consumers ------------------------------------------------------------------------------------------------------

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

__device__ inline float warp_sum(float v) {
#pragma unroll
    for (int i = 16; i; i >>= 1) v += shuffle_xor(v, i);
    return v;
}

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

// y[first:last] of all rows; `end(tile row in own rows, batch row, y)` takes each, with GATED `end(.., gate, up)`.
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

__device__ inline float activated(float x) {
    if (GATE == 0) return x / (1 + expf(-x));
    if (GATE == 1) return 0.5f * x * (1 + erff(x * 0.7071067811865476f));
    return x / (1 + expf(-1.5957691216057308f * (x + 0.044715f * x * x * x)));  // 0.5 (1 + tanh z) is sigmoid(2 z)
}

// The sums of this program's rows over all ranks, in the order of ranks; each pair of rows goes to the other ranks as two bfloat16
// and the number of the exchange, in one store of 8 bytes. All lanes of a warp come here together.
__device__ inline float over_ranks(const Args& a, float y, int place_in_box, int lane, unsigned tag, bool live) {
    if (RANKS == 1) return y;
    constexpr int BOX = (OWN + 15) / 16 * 16 * ROWS / 2;  // words of a program
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
            const u16* w = (const u16*)fields[key ? 4 : 3];
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
                ((u16*)fields[7])[at] = turned;
                ((u16*)fields[8])[at] = value[j];
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
    int window = (int)fields[14];
    int kind = kind_of(window);
    int units = s.firsts[kind * (ROWS + 1) + (int)a.rows] * KV_HEADS;
    const float* cos = (const float*)fields[5];
    const float* sin = (const float*)fields[6];
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

// How contexts are cut: so that the program with most to read has least. One warp.
__device__ void cut_contexts(Shared& s, const Args& a, int lane) {
    for (int i = lane; i < (int)a.rows; i += 32) s.lengths[i] = a.lengths[i];
    warp_together();
    for (int kind = 0; kind < 2; kind++) {
        int window = kind ? (int)a.window : FOREVER;
        int longest = 1;
        for (int i = 0; i < (int)a.rows; i++) longest = larger(longest, least(s.lengths[i], window));
        int span = lane < 24 ? SPAN_STEP * (lane + 1) : (SPAN_STEP * 32) << (lane - 24);
        int parts = 0;
        for (int i = 0; i < (int)a.rows; i++) {
            int cached = least(s.lengths[i], window) - 1;
            parts += larger(1, (cached + span - 1) / span);
        }
        int rounds = (parts * KV_HEADS + PROGRAMS - 1) / PROGRAMS;
        // a round's overhead counts as much as 96 positions
        long long cost = (long long)rounds * (least(span, longest) + 96);
        if (rounds > MOST_UNITS && parts > (int)a.rows) cost = (long long)1 << 40;
        long long best = (cost << 5) | lane;
        for (int i = 16; i; i >>= 1) {
            long long other = shuffle_xor(best, i);
            best = other < best ? other : best;
        }
        span = shuffle(span, (int)(best & 31));
        if (lane == 0) {
            s.spans[kind] = span;
            int first = 0;
            for (int i = 0; i <= (int)a.rows; i++) {
                s.firsts[kind * (ROWS + 1) + i] = first;
                if (i < (int)a.rows) {
                    int cached = least(s.lengths[i], window) - 1;
                    first += larger(1, (cached + span - 1) / span);
                }
            }
        }
    }
}

// The residual's own rows into the next norm's input, and their squares.
__device__ inline void put_squares(Shared& s, const Args& a, int count, int warp, int lane) {
    together();
    for (int row = warp; row < (int)a.rows; row += WARPS) {
        float sum = 0;
        for (int i = lane; i < count; i += 32) sum += s.residual[row * OWN + i] * s.residual[row * OWN + i];
        sum = warp_sum(sum);
        if (lane == 0) a.squares[row * PROGRAMS + block()] = sum;
    }
}

__device__ void feed(Shared& s, const Args& a, int thread) {
    Ring r;
    int program = block();
    const long long* row = a.table;
    long long qkv = load_early(row + 1), keys = load_early(row + 7), values = load_early(row + 8), window = load_early(row + 14);
    for (int layer = 0; layer < (int)a.layers; layer++, row += FIELDS) {
        long long out = load_early(row + 9), up = load_early(row + 12), down = load_early(row + 13);
        stream<HIDDEN, WIDE, false>(s, r, (const u16*)qkv, program, thread);
        stream_contexts(s, r, a, (const u16*)keys, (const u16*)values, (int)window, program, thread);
        if (layer + 1 < (int)a.layers) {  // so that nothing waits for an address
            const long long* next = row + FIELDS;
            qkv = load_early(next + 1), keys = load_early(next + 7), values = load_early(next + 8), window = load_early(next + 14);
        }
        stream<ATT, HIDDEN, false>(s, r, (const u16*)out, program, thread);
        stream<HIDDEN, INNER, true>(s, r, (const u16*)up, program, thread);
        stream<INNER, HIDDEN, false>(s, r, (const u16*)down, program, thread);
    }
}

__device__ void compute(Shared& s, const Args& a, int thread) {
    Ring r;
    int program = block(), warp = thread >> 5, lane = thread & 31;
    int rows = (int)a.rows;
    int first = share(HIDDEN, program), count = share(HIDDEN, program + 1) - first;
    int qkv_first = share(WIDE, program), qkv_count = share(WIDE, program + 1) - qkv_first;
    int up_first = share(INNER, program), up_count = share(INNER, program + 1) - up_first;
    float offset = (float)a.offset;
    unsigned exchange = RANKS > 1 ? (unsigned)load_acquire(a.state) * (2 * (unsigned)a.layers) : 0;
    int target = 0;
    Factors factors;
    auto put_factors = [&] { factors.put(s, a, warp, lane); };
    // What the end of a phase adds or multiplies is asked for phases before.
    u16 qkv_bias = 0, out_bias = 0, mlp_norm = 0, next_norm = 0;
    long long next_field = 0;
    auto ask_own = [&](u16& value, long long address, int from, int size) {
        if (thread < size) value = load_early((const u16*)address + from + thread);
    };
    if (thread < FIELDS) s.fields[thread] = load_early(a.table + thread);
    together();
    ask_own(next_norm, s.fields[0], first, count);
    if (QKV_BIAS) ask_own(qkv_bias, s.fields[2], qkv_first, qkv_count);
    if (thread < count) s.side[thread] = to_float(next_norm) + offset;
    together();
    for (int i = thread; i < count * rows; i += CONSUMERS) {
        int n = i % count, row = i / count;
        float value = to_float(a.x[(long long)row * HIDDEN + first + n]);
        s.residual[row * OWN + n] = value;
        a.h[(long long)row * HIDDEN + first + n] = to_bfloat(value * s.side[n]);
    }
    put_squares(s, a, count, warp, lane);
    leave(a, thread);
    target += PROGRAMS;
    for (int layer = 0; layer < (int)a.layers; layer++) {
        const long long* fields = s.fields + (layer & 1) * FIELDS;
        long long* next_fields = s.fields + ((layer + 1) & 1) * FIELDS;
        bool more = layer + 1 < (int)a.layers;
        auto residual = [&](int n, int row, float y, float) {
            bool live = n < count && row < rows;
            y = over_ranks(a, y, row * ((OWN + 15) / 16 * 16) + n, lane, exchange + 1, live);
            if (!live) return;
            float value = rounded(y + s.bias[n] + s.residual[row * OWN + n]);
            s.residual[row * OWN + n] = value;
            a.h[(long long)row * HIDDEN + first + n] = to_bfloat(value * s.side[n]);
        };
        if (QKV_BIAS && thread < qkv_count) s.bias[thread] = to_float(qkv_bias);
        meet(a, thread, target);
        stamp(a, thread, layer, 5);
        factors.ask(a, warp, lane);
        multiply<HIDDEN, WIDE, false>(s, r, a.h, rows, qkv_count, thread, put_factors, [&](int n, int row, float y, float) {
            if (n >= qkv_count || row >= rows) return;
            y *= s.factor[row];
            if (QKV_BIAS) y += s.bias[n];
            a.qkv[(long long)row * WIDE + qkv_first + n] = to_bfloat(y);
        });
        stamp(a, thread, layer, 0);
        leave(a, thread);
        target += PROGRAMS;

        if (more && thread < FIELDS) next_field = load_early(a.table + (layer + 1) * FIELDS + thread);
        ask_own(mlp_norm, fields[11], first, count);
        if (OUT_BIAS) ask_own(out_bias, fields[10], first, count);
        attend(s, r, a, fields, layer, thread, target);
        stamp(a, thread, layer, 1);
        leave(a, thread);
        target += PROGRAMS;

        if (thread < count) {
            s.bias[thread] = OUT_BIAS ? to_float(out_bias) : 0;
            s.side[thread] = to_float(mlp_norm) + offset;
        }
        if (thread < FIELDS) next_fields[thread] = next_field;
        meet(a, thread, target);
        stamp(a, thread, layer, 6);
        multiply<ATT, HIDDEN, false>(s, r, a.attended, rows, count, thread, Nothing(), residual);
        exchange++;
        put_squares(s, a, count, warp, lane);
        stamp(a, thread, layer, 2);
        leave(a, thread);
        target += PROGRAMS;

        ask_own(next_norm, more ? next_fields[0] : (long long)a.last_norm, first, count);
        if (QKV_BIAS && more) ask_own(qkv_bias, next_fields[2], qkv_first, qkv_count);
        meet(a, thread, target);
        stamp(a, thread, layer, 7);
        factors.ask(a, warp, lane);
        multiply<HIDDEN, INNER, true>(s, r, a.h, rows, up_count, thread, put_factors, [&](int n, int row, float gate, float up) {
            if (n >= up_count || row >= rows) return;
            float factor = s.factor[row];
            a.gated[(long long)row * INNER + up_first + n] = to_bfloat(activated(gate * factor) * (up * factor));
        });
        stamp(a, thread, layer, 3);
        leave(a, thread);
        target += PROGRAMS;

        if (thread < count) {
            s.bias[thread] = 0;
            s.side[thread] = to_float(next_norm) + offset;
        }
        meet(a, thread, target);
        stamp(a, thread, layer, 8);
        multiply<INNER, HIDDEN, false>(s, r, a.gated, rows, count, thread, Nothing(), residual);
        exchange++;
        put_squares(s, a, count, warp, lane);
        stamp(a, thread, layer, 4);
        leave(a, thread);
        target += PROGRAMS;
    }
    meet(a, thread, target);
    factors.ask(a, warp, lane);
    factors.put(s, a, warp, lane);
    together();
    for (int i = thread; i < count * rows; i += CONSUMERS) {
        int n = i % count, row = i / count;
        float value = s.residual[row * OWN + n] * s.factor[row];
        if (!OFFSET) value = rounded(value);
        a.hidden[(long long)row * HIDDEN + first + n] = to_bfloat(value * s.side[n]);
    }
    leave(a, thread);
    target += PROGRAMS;
    if (program == 0) {  // nobody looks at the counter any more
        meet(a, thread, target);
        if (thread == 0) {
            *a.counter = 0;
            if (RANKS > 1) a.state[0] += 1;
        }
    }
}

extern "C" __global__ void __launch_bounds__(CONSUMERS + FEEDERS, 1) whole_step(const __grid_constant__ Args a) {
    Shared s = carved(shared_memory());
    int thread = thread_index();
    if (thread == 0) {
        for (int i = 0; i < STAGES; i++) {
            begin_barrier(s.full + i, 1);
            begin_barrier(s.full + STAGES + i, FEEDERS);
            begin_barrier(s.empty + i, WARPS);
        }
    }
    for (int i = thread; i < 8 * QUERIES * QUERY_STRIDE; i += CONSUMERS + FEEDERS) s.queries[i] = 0;
    if (thread < 32) cut_contexts(s, a, thread);
    all_together();
    if (thread >= CONSUMERS) {
        fewer_registers<72>();
        feed(s, a, thread - CONSUMERS);
    } else {
        more_registers<216>();
        compute(s, a, thread);
    }
}
