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

#include <step_attention.h>
#include <step_stream.h>

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
    ask_own(next_norm, s.fields[ATTN_NORM_AT], first, count);
    if (QKV_BIAS) ask_own(qkv_bias, s.fields[QKV_BIAS_AT], qkv_first, qkv_count);
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
        ask_own(mlp_norm, fields[MLP_NORM_AT], first, count);
        if (OUT_BIAS) ask_own(out_bias, fields[OUT_BIAS_AT], first, count);
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

        ask_own(next_norm, more ? next_fields[ATTN_NORM_AT] : (long long)a.last_norm, first, count);
        if (QKV_BIAS && more) ask_own(qkv_bias, next_fields[QKV_BIAS_AT], qkv_first, qkv_count);
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
    Shared s = shared_at(shared_memory());
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
