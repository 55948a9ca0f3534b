// What a step in one launch has: its shapes, its arguments, its shared memory, the ring of stages in that.

#pragma once

#include <heads.h>

constexpr int CONSUMERS = 256;  // threads
constexpr int WARPS = CONSUMERS / 32;
constexpr int FEEDERS = PRODUCERS * 32;
constexpr int CHUNK = WARPS * 128;  // columns of a stage
constexpr int STRIDE = CHUNK * 2 + 64;  // bytes of a matrix row in a stage: two rows' fragments do not meet in a bank
constexpr int SLICE = 4096;  // bytes of 16 positions of a head
constexpr int STAGE = 16 * STRIDE;
constexpr int BATCHES = ROWS / 8;   // of 8 rows
constexpr int PADDED = 20;  // 16 sums of a column, and room that spreads them over the banks
constexpr int QUERY_STRIDE = DIM + 8;
constexpr int SPAN_STEP = CONSUMERS / 2;  // positions of a stage

// Of a layer, in the order of StepLayer.
enum Field {
    ATTN_NORM_AT, QKV_AT, QKV_BIAS_AT, Q_NORM_AT, K_NORM_AT, COS_AT, SIN_AT, POOL_K_AT, POOL_V_AT, OUT_AT, OUT_BIAS_AT, MLP_NORM_AT, UP_AT,
    DOWN_AT, WINDOW_AT, FIELDS_HERE
};
static_assert(FIELDS_HERE == FIELDS, "StepLayer has other fields");

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
    long long* stamps;  // [layers, MARKS, programs] or null
    const long long* boxes;  // [RANKS] addresses
    int* state;  // [2]: launches, a rank is lost
    long long rows, layers, width, window, rank, looks;
    double scale, softcap, eps, offset, qk_eps, qk_offset;
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

// Where each lies, in bytes.
struct Layout {
    int ring, sums, residual, side, bias, factor, queries, new_key, new_value, tops, totals, firsts, lengths, spans, flag, fields, slots, full, empty, end;
};

constexpr Layout laid_out() {
    Layout l{};
    int at = 0;
    l.ring = take(at, STAGES * STAGE);
    l.sums = take(at, WARPS * SUM_FLOATS * 4);
    l.residual = take(at, ROWS * OWN * 4);
    l.side = take(at, OWN * 4);
    l.bias = take(at, WIDEST * 4);
    l.factor = take(at, ROWS * 4);
    l.queries = take(at, 8 * QUERIES * QUERY_STRIDE * 2);
    l.new_key = take(at, DIM * 4);
    l.new_value = take(at, 2 * DIM * 4);
    l.tops = take(at, (WARPS + 1) * 8 * QUERIES * 4);
    l.totals = take(at, WARPS * 8 * QUERIES * 4);
    l.firsts = take(at, 2 * (ROWS + 1) * 4);
    l.lengths = take(at, ROWS * 4);
    l.spans = take(at, 8);
    l.flag = take(at, 4);
    l.fields = take(at, 2 * FIELDS * 8);
    l.slots = take(at, FEEDERS * 4);
    l.full = take(at, 2 * STAGES * 8);
    l.empty = take(at, STAGES * 8);
    l.end = at;
    return l;
}

constexpr Layout LAYOUT = laid_out();
static_assert(LAYOUT.end <= SHARED_BYTES, "the host counted less shared memory");

__device__ inline Shared shared_at(char* start) {
    Shared s;
    s.ring = start + LAYOUT.ring;
    s.sums = (float*)(start + LAYOUT.sums);
    s.residual = (float*)(start + LAYOUT.residual);
    s.side = (float*)(start + LAYOUT.side);
    s.bias = (float*)(start + LAYOUT.bias);
    s.factor = (float*)(start + LAYOUT.factor);
    s.queries = (u16*)(start + LAYOUT.queries);
    s.new_key = (float*)(start + LAYOUT.new_key);
    s.new_value = (float*)(start + LAYOUT.new_value);
    s.tops = (float*)(start + LAYOUT.tops);
    s.totals = (float*)(start + LAYOUT.totals);
    s.firsts = (int*)(start + LAYOUT.firsts);
    s.lengths = (int*)(start + LAYOUT.lengths);
    s.spans = (int*)(start + LAYOUT.spans);
    s.flag = (int*)(start + LAYOUT.flag);
    s.fields = (long long*)(start + LAYOUT.fields);
    s.slots = (int*)(start + LAYOUT.slots);
    s.full = (u64*)(start + LAYOUT.full);
    s.empty = (u64*)(start + LAYOUT.empty);
    return s;
}

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
