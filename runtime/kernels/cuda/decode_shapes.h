// What attention of single tokens in a launch of its own has: its shapes, its arguments, its shared memory.

#pragma once

#include <heads.h>

constexpr int WARPS = 8;  // that attend; COPIERS more bring what they need
constexpr int CONSUMERS = 32 * WARPS;
constexpr int FEEDERS = 32 * COPIERS;
// Heads of keys that a program attends with at a time: neighbours in memory, so that a position is one copy.
constexpr int TOGETHER = KV_HEADS % 8 == 0 ? 8 : KV_HEADS % 4 == 0 ? 4 : KV_HEADS % 2 == 0 ? 2 : 1;
constexpr int EACH = WARPS / TOGETHER;  // warps of a head of keys
constexpr int BLOCKS = KV_HEADS / TOGETHER;  // of heads of keys
constexpr int SPAN = 16 * EACH;  // positions of a stage, of each warp 16
constexpr int ROW = TOGETHER * DIM * 2;  // bytes of a position
constexpr int STRIDE = ROW + 16;  // eight rows of 16 bytes do not meet in a bank
constexpr int STAGE = SPAN * STRIDE;
constexpr int PADDED = DIM + 8;
// Rows that begin with the same positions are attended together there, BUNDLE of them at most: eight queries are a tile, of several
// rows or of a part of one.
constexpr int ROWS_OF_TILE = GROUP < 8 ? 8 / GROUP : 1;
template <int MOST>
constexpr int TILES = GROUP < 8 ? (MOST + ROWS_OF_TILE - 1) / ROWS_OF_TILE : MOST * QUERIES;

// A query of a unit's rows, by its tile and its place there.
struct Query {
    int member, head;

    __device__ Query(int tile, int column) : member(GROUP < 8 ? tile * ROWS_OF_TILE + column / GROUP : tile / QUERIES), head(GROUP < 8 ? column % GROUP : tile % QUERIES * 8 + column) {
        if (GROUP < 8 ? column >= ROWS_OF_TILE * GROUP : head >= GROUP) member = FOREVER;  // nobody's
    }
};

// Where a program's work begins: a step of a block of heads of a piece, at which place of the line. The next program's is where it ends.
struct Place {
    int row, block, step, at;
};

// A row's place among those that begin alike.
struct Share {
    int positions;  // that all rows of its bundle begin with: a multiple of SPAN; 0: it shares nothing
    int index;  // of the row in `order`
    int member, count;  // of how many rows

    __device__ Share() : positions(0), index(0), member(0), count(0) {}
    __device__ Share(long long word) : positions((int)(word >> 32)), index((int)(word >> 16) & 0xffff), member((int)(word >> 8) & 0xff), count((int)word & 0xff) {}
};

struct Args {
    const u16* qkv;  // [rows, WIDE]
    u16* attended;  // [rows, ATT]
    float* partial;  // [PROGRAMS + rows * BLOCKS, TOGETHER, GROUP, DIM]
    float* weights;  // the same without DIM
    float* bundle_partial;  // of what rows share: [PROGRAMS * BUNDLE + rows * BLOCKS, TOGETHER, GROUP, DIM]
    float* bundle_weights;
    int* arrived;  // [rows, KV_HEADS], zero between launches
    const Place* places;  // [PROGRAMS + 1]
    const Place* bundle_places;
    const int* begins;  // [rows]: where on its line a row's bundle begins
    const long long* order;  // [rows]: bundle after bundle
    const long long* shares;  // [rows], as `Share` reads them; none: no row shares anything
    const int* pages;  // [seats, width]
    const int* seats;
    const int* lengths;
    const long long* slots;
    const u16* q_norm;
    const u16* k_norm;
    const float* cos;
    const float* sin;
    u16* pool_k;
    u16* pool_v;
    long long width, window;
    double scale, softcap, qk_eps, qk_offset;
};

struct CutArgs {
    const int* lengths;
    Place* places;  // [3, PROGRAMS + 1]: for layers without and with a window, where nothing is shared; of bundles
    int* begins;
    const long long* order;
    const long long* shares;
    long long rows, window;
};

struct Shared {
    char* ring;
    float* sums;  // [WARPS, GROUP, PADDED], where warps share a head
    u16* queries;  // [TOGETHER, GROUP, PADDED]
    u16* new_key;  // [TOGETHER, DIM]
    u16* new_value;  // [2, TOGETHER, DIM]: of one unit and the next, by turns
    float* tops;  // [WARPS, 8 * QUERIES]
    float* totals;
    float* newest;  // [TOGETHER, GROUP]: scores of the new token
    int* flags;  // [TOGETHER]
    u64* full;  // [STAGES]
    u64* empty;
};

// Where each lies, in bytes.
struct Layout {
    int ring, sums, queries, new_key, new_value, tops, totals, newest, flags, full, empty, end;
};

constexpr Layout laid_out() {
    Layout l{};
    int at = 0;
    l.ring = take(at, STAGES * STAGE);
    l.sums = take(at, EACH > 1 ? WARPS * GROUP * PADDED * 4 : 0);
    l.queries = take(at, TOGETHER * GROUP * PADDED * 2);
    l.new_key = take(at, TOGETHER * DIM * 2);
    l.new_value = take(at, 2 * TOGETHER * DIM * 2);
    l.tops = take(at, WARPS * 8 * QUERIES * 4);
    l.totals = take(at, WARPS * 8 * QUERIES * 4);
    l.newest = take(at, TOGETHER * GROUP * 4);
    l.flags = take(at, TOGETHER * 4);
    l.full = take(at, STAGES * 8);
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
    s.queries = (u16*)(start + LAYOUT.queries);
    s.new_key = (u16*)(start + LAYOUT.new_key);
    s.new_value = (u16*)(start + LAYOUT.new_value);
    s.tops = (float*)(start + LAYOUT.tops);
    s.totals = (float*)(start + LAYOUT.totals);
    s.newest = (float*)(start + LAYOUT.newest);
    s.flags = (int*)(start + LAYOUT.flags);
    s.full = (u64*)(start + LAYOUT.full);
    s.empty = (u64*)(start + LAYOUT.empty);
    return s;
}

struct Ring {
    int stage = 0;
    unsigned parity = 0;  // of the turn through the stages

    __device__ void next() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};
