// The producers of a step: what the consumers will multiply, stage by stage, in the order in which they will.

#pragma once

#include <step_contexts.h>

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

__device__ void feed(Shared& s, const Args& a, int thread) {
    Ring r;
    int program = block();
    const long long* row = a.table;
    long long qkv = load_early(row + QKV_AT), keys = load_early(row + POOL_K_AT), values = load_early(row + POOL_V_AT), window = load_early(row + WINDOW_AT);
    for (int layer = 0; layer < (int)a.layers; layer++, row += FIELDS) {
        long long out = load_early(row + OUT_AT), up = load_early(row + UP_AT), down = load_early(row + DOWN_AT);
        stream<HIDDEN, WIDE, false>(s, r, (const u16*)qkv, program, thread);
        stream_contexts(s, r, a, (const u16*)keys, (const u16*)values, (int)window, program, thread);
        if (layer + 1 < (int)a.layers) {  // so that nothing waits for an address
            const long long* next = row + FIELDS;
            qkv = load_early(next + QKV_AT), keys = load_early(next + POOL_K_AT), values = load_early(next + POOL_V_AT), window = load_early(next + WINDOW_AT);
        }
        stream<ATT, HIDDEN, false>(s, r, (const u16*)out, program, thread);
        stream<HIDDEN, INNER, true>(s, r, (const u16*)up, program, thread);
        stream<INNER, HIDDEN, false>(s, r, (const u16*)down, program, thread);
    }
}
