// Attention of single tokens to what several rows begin with: read once for the rows of a bundle, which are attended together.
//
// What is found goes to `bundle_partial`, from where the next launch, paged_decode.cu, joins it with what each row has alone. Threads
// that bring contexts give registers to those that attend, whose results are many.
//
// Compiled by NVRTC; the macros that kernels/paged_decode.py defines are its shapes.

#include <decode_attend.h>
#include <decode_bring.h>

constexpr int WARPGROUP = 128;  // threads whose registers change together: those that bring are one, though one warp of it may do

// The warps of a head attend with a part of what a bundle has in common.
__device__ inline void attend_bundle(Shared& s, Ring& r, const Args& a, const BundleUnit& u, float scale, const Warp& w) {
    int members = u.count, row = u.row;  // of the member of the lane's number
    if (w.lane < members) row = (int)load_fixed(a.order + u.index + w.lane);
    int length = load_early(a.lengths + row);
    Queries<BUNDLE> queries;
    queries.begin();
    Heads heads;
    heads.ask(a, u.row, u.block, shuffle(length, 0), false, w);
#pragma unroll 1
    for (int member = 0; member < members; member++) {
        Heads now = heads;
        if (member + 1 < members) heads.ask(a, shuffle(row, member + 1), u.block, shuffle(length, member + 1), false, w);
        w.together();  // the row before has been read
        now.give(s, a, shuffle(row, member), u.block, s.new_value, false, w);
        w.together();
        queries.read(s, member, w);
    }
    Found<BUNDLE> f;
    f.begin();
    attend<BUNDLE>(s, r, a, u, queries, f, scale, w);
    f.end();
    Goal goal{true, u.part ? continued_at<BUNDLE>(block(), w.lane % BUNDLE) : begun_at<BUNDLE>(row, u.block), a.bundle_partial, a.bundle_weights, nullptr};
    goal.part = goal.part * TOGETHER + w.mine;
    if (EACH == 1)
        give<BUNDLE>(s, f, members, s.new_value, false, goal, w);
    else
        add_up<BUNDLE>(s, f, members, s.new_value, false, goal, w);
}

extern "C" __global__ void __launch_bounds__(CONSUMERS + WARPGROUP, 1) bundle_decode(const __grid_constant__ Args a) {
    let_next_begin();
    Shared s = shared_at(shared_memory());
    int thread = thread_index();
    begin_ring(s, thread);
    BundleWalk walk(a);
    all_together();
    if (thread >= CONSUMERS) {
        fewer_registers<56>();
        if (thread < CONSUMERS + FEEDERS) bring<false>(s, a, walk, thread - CONSUMERS);
        return;
    }
    more_registers<224>();
    Warp w(thread);
    Ring r;
    float scale = scale_of(a);
    wait_for_launches_before();  // by all programs, so that who waits for this launch has waited for those before
    while (walk.more()) attend_bundle(s, r, a, walk.take(a), scale, w);
}
