// How the programs of a step of a few rows hand numbers to each other: in words of 8 bytes, each a pair of bfloat16 or a float and
// the number of its layer. Who needs a word looks at it until it has that number, so nobody meets all others between phases.
//
// A word of layer i is written again in layer i + 2. By then everybody has read it: each phase of a layer needs numbers of all
// programs, each of which has rows of every matrix (kernels/whole_step.py asks for that).

#pragma once

#include <step_shapes.h>

constexpr int FEW = WORDS > 0 ? WORDS : 1;  // rows
// Places of a layer's words.
constexpr int ATTN_WORDS = 0;  // the residual times the norm's weight, before attention
constexpr int QKV_WORDS = ATTN_WORDS + FEW * HIDDEN / 2;
constexpr int ATTENDED_WORDS = QKV_WORDS + FEW * WIDE / 2;
constexpr int MLP_WORDS = ATTENDED_WORDS + FEW * ATT / 2;  // the residual times the norm's weight, before the MLP
constexpr int GATED_WORDS = MLP_WORDS + FEW * HIDDEN / 2;
constexpr int ATTN_SQUARES = GATED_WORDS + FEW * INNER / 2;  // [FEW, PROGRAMS]: of each program's part of the residual
constexpr int MLP_SQUARES = ATTN_SQUARES + FEW * PROGRAMS;
constexpr int LAYER_WORDS = (MLP_SQUARES + FEW * PROGRAMS + 1) / 2 * 2;
// Parts of contexts, of all layers: numbers, then weights.
constexpr int PARTIAL_WORDS = 2 * LAYER_WORDS;
constexpr int WEIGHT_WORDS = PARTIAL_WORDS + MOST_UNITS * PROGRAMS * GROUP * DIM;
constexpr int ALL_WORDS = WEIGHT_WORDS + MOST_UNITS * PROGRAMS * GROUP;
static_assert(!WORDS || ALL_WORDS <= WORDS_HELD, "the host holds fewer words");
static_assert(!WORDS || (HIDDEN / 2 >= PROGRAMS && WIDE / 2 >= PROGRAMS && INNER / 2 >= PROGRAMS), "a program without rows waits for nobody");

// The words of one layer, or of what comes after the last.
struct LayerWords {
    u64* at;
    unsigned tag;
};

__device__ inline LayerWords layer_words(const Args& a, unsigned first, int layer) {
    return {a.words + (layer & 1) * LAYER_WORDS, first + (unsigned)layer};
}

__device__ inline u64 tagged(unsigned value, unsigned tag) { return (u64)tag << 32 | value; }

// Numbers of neighbouring columns, held by neighbouring lanes: all lanes of a warp come here together.
__device__ inline void put_pair(u64* row, int column, float value, unsigned tag, bool live) {
    float next = shuffle_down(value, 1);
    if (live && !(column & 1)) store_word(row + column / 2, tagged(pack(value, next), tag));
}

// Loads `count` words at the places that `place` names (null: none) until all are there.
template <int COUNT, class Place>
__device__ inline void wait_for_words(u64 (&seen)[COUNT], unsigned tag, Place place) {
    for (;;) {
        bool here = true;
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            const u64* at = place(i);
            seen[i] = at ? load_word(at) : tagged(0, tag);
            here = here && (unsigned)(seen[i] >> 32) == tag;
        }
        if (here) break;
        spin();
    }
    warp_together();
}

__device__ inline float half_of_word(u64 word, int which) { return which ? high_of((unsigned)word) : low_of((unsigned)word); }
