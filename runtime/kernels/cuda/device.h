// What the CUDA sources here need of the device beyond plain C++: each a few instructions of PTX. tests/kernels/emulator/device.h
// has the same functions for a CPU.

#pragma once

typedef unsigned short u16;
typedef unsigned long long u64;
struct alignas(64) TensorMap {  // of a matrix whose tiles the copy engine brings
    u64 words[16];
};
constexpr int FOREVER = 0x7fffffff;
constexpr float LOG2E = 1.4426950408889634f;

extern __shared__ char shared_start[];

__device__ inline char* shared_memory() { return shared_start; }
__device__ inline int thread_index() { return threadIdx.x; }
__device__ inline int block() { return blockIdx.x; }
__device__ inline int programs() { return gridDim.x; }
__device__ inline unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }
__device__ inline void spin() {}
__device__ inline long long now() {
    long long t;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
    return t;
}

template <class T>
__device__ constexpr T least(T a, T b) { return a < b ? a : b; }
template <class T>
__device__ constexpr T larger(T a, T b) { return a > b ? a : b; }

// ---- bfloat16 ---------------------------------------------------------------------------------------------------------

__device__ inline float float_of(unsigned bits) { return __uint_as_float(bits); }
// 2^v to two units of the last place; 0 below the normal numbers.
__device__ inline float power_of_two(float v) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(v));
    return y;
}
// 1 / v to one unit of the last place.
__device__ inline float reciprocal(float v) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(v));
    return y;
}
__device__ inline float to_float(u16 v) { return __uint_as_float((unsigned)v << 16); }
__device__ inline float low_of(unsigned pair) { return __uint_as_float(pair << 16); }
__device__ inline float high_of(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }
__device__ inline unsigned pack(float low, float high) {
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
__device__ inline u16 to_bfloat(float v) { return (u16)pack(v, 0.0f); }
__device__ inline float rounded(float v) { return low_of(pack(v, 0.0f)); }

// ---- memory -----------------------------------------------------------------------------------------------------------

// What no thread writes while the kernel runs.
template <class T>
__device__ inline T load_fixed(const T* p) { return __ldg(p); }
// The same, asked for here and not where it is needed.
__device__ inline long long load_early(const long long* p) {
    long long v;
    asm volatile("ld.global.nc.b64 %0, [%1];" : "=l"(v) : "l"(p));
    return v;
}
__device__ inline u16 load_early(const u16* p) {
    u16 v;
    asm volatile("ld.global.nc.b16 %0, [%1];" : "=h"(v) : "l"(p));
    return v;
}
__device__ inline int load_early(const int* p) {
    int v;
    asm volatile("ld.global.nc.b32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}
__device__ inline float load_early(const float* p) {
    float v;
    asm volatile("ld.global.nc.b32 %0, [%1];" : "=f"(v) : "l"(p));
    return v;
}
// What other multiprocessors wrote: the nearest cache may be stale.
template <class T>
__device__ inline T load_shared_l2(const T* p) { return __ldcg(p); }
// A number of it, or 0.
__device__ inline float load_if(const float* p, bool live) {
    float v;
    asm volatile("{ .reg .pred live; setp.ne.s32 live, %2, 0; mov.f32 %0, 0f00000000; @live ld.global.cg.f32 %0, [%1]; }"
                 : "=&f"(v) : "l"(p), "r"((int)live) : "memory");
    return v;
}
__device__ inline u16 load_if(const u16* p, bool live) {
    u16 v;
    asm volatile("{ .reg .pred live; setp.ne.s32 live, %2, 0; mov.b16 %0, 0; @live ld.global.cg.b16 %0, [%1]; }"
                 : "=&h"(v) : "l"(p), "r"((int)live) : "memory");
    return v;
}
// 16 bytes of it, or zeros.
__device__ inline uint4 load_16(const void* p, bool live) {
    uint4 v;
    asm volatile(
        "{\n"
        ".reg .pred live;\n"
        "setp.ne.s32 live, %5, 0;\n"
        "mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0;\n"
        "@live ld.global.cg.v4.b32 {%0, %1, %2, %3}, [%4];\n"
        "}\n"
        : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
        : "l"(p), "r"((int)live)
        : "memory");
    return v;
}
__device__ inline int load_acquire(const int* p) {
    int v;
    asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}
__device__ inline void add_release(int* p, int v) {
    asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
// Adds and returns what was there; orders what came before and what follows.
__device__ inline int add_both(int* p, int v) {
    int old;
    asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(v) : "memory");
    return old;
}
// Whole words between devices; each says by itself whether it has arrived.
__device__ inline void store_system(u64* p, u64 v) {
    asm volatile("st.relaxed.sys.global.b64 [%0], %1;" ::"l"(p), "l"(v) : "memory");
}
__device__ inline u64 load_system(const u64* p) {
    u64 v;
    asm volatile("ld.relaxed.sys.global.b64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
    return v;
}

// ---- launches that begin before the one before has ended ----------------------------------------------------------------

__device__ inline void let_next_begin() { asm volatile("griddepcontrol.launch_dependents;"); }
// Nothing that launches before this one write may be read earlier, nothing that they read be written.
__device__ inline void wait_for_launches_before() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// ---- threads ----------------------------------------------------------------------------------------------------------

template <class T>
__device__ inline T shuffle_xor(T v, int i) { return __shfl_xor_sync(0xffffffffu, v, i); }
template <class T>
__device__ inline T shuffle(T v, int lane) { return __shfl_sync(0xffffffffu, v, lane); }
__device__ inline float shuffle_down(float v, int i) { return __shfl_down_sync(0xffffffffu, v, i); }
__device__ inline float shuffle_up(float v, int i) { return __shfl_up_sync(0xffffffffu, v, i); }
__device__ inline unsigned lanes_where(bool v) { return __ballot_sync(0xffffffffu, v); }
__device__ inline int count_bits(unsigned v) { return __popc(v); }
__device__ inline void warp_together() { __syncwarp(); }
__device__ inline void all_together() { __syncthreads(); }
__device__ inline void barrier_of(int name, int threads) {
    __syncwarp();  // a warp that came in parts would count twice
    asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

// Of a warpgroup: registers of each thread from here on.
template <int COUNT>
__device__ inline void fewer_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT)); }
template <int COUNT>
__device__ inline void more_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT)); }

// ---- copies that run ahead, and their barriers in shared memory -------------------------------------------------------

__device__ inline void begin_barrier(u64* at, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(at)), "r"(count) : "memory");
}
// Waits until the barrier's phase of this parity is over.
__device__ inline void wait_for(u64* at, unsigned parity) {
    asm volatile(
        "{\n"
        ".reg .pred over;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n"
        "@!over bra again;\n"
        "}\n" ::"r"(shared_address(at)), "r"(parity) : "memory");
}
// What other threads read or wrote in shared memory comes before what the copy engine writes there next.
__device__ inline void before_bulk_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// The warp has read what it waited for.
__device__ inline void release(u64* at, int lane) {
    __syncwarp();
    if (lane == 0) asm volatile("{ .reg .b64 t; mbarrier.arrive.shared::cta.b64 t, [%0]; }" ::"r"(shared_address(at)) : "memory");
}
// 16 bytes, or zeros.
__device__ inline void copy_16(void* to, const void* from, bool live) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(live ? 16 : 0) : "memory");
}
// This thread's arrival, once all that it has begun to copy is there.
__device__ inline void arrive_when_copied(u64* at) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(at)) : "memory");
}
// Arrives; the barrier's phase lasts until so many bytes were copied in bulk.
__device__ inline void expect(u64* at, int bytes) {
    asm volatile("{ .reg .b64 t; mbarrier.arrive.expect_tx.shared::cta.b64 t, [%0], %1; }" ::"r"(shared_address(at)), "r"(bytes)
                 : "memory");
}
// A multiple of 16 bytes, by the copy engine.
__device__ inline void copy_bulk(void* to, const void* from, int bytes, u64* at) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(at))
                 : "memory");
}
// The same of what nobody reads again soon: it leaves the last cache first.
__device__ inline void copy_bulk_once(void* to, const void* from, int bytes, u64* at) {
    asm volatile(
        "{\n"
        ".reg .b64 policy;\n"
        "createpolicy.fractional.L2::evict_first.b64 policy, 1.0;\n"
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], policy;\n"
        "}\n" ::"r"(shared_address(to)), "l"(from), "r"(bytes), "r"(shared_address(at))
        : "memory");
}

// A tile of a matrix, its rows of 128 bytes swizzled; what lies outside of the matrix is zeros. `to` is a multiple of 1,024.
__device__ inline void copy_tile(void* to, const TensorMap* map, int column, int row, u64* at) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(shared_address(to)),
        "l"(map), "r"(column), "r"(row), "r"(shared_address(at))
        : "memory");
}
// The same for both programs of a cluster of two, each of which has it at the same place and counts its bytes.
__device__ inline void copy_tile_to_both(void* to, const TensorMap* map, int column, int row, u64* at) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;"
        ::"r"(shared_address(to)), "l"(map), "r"(column), "r"(row), "r"(shared_address(at)), "h"((u16)3)
        : "memory");
}
// A tile from shared memory into its matrix, but for what lies outside of that; before_bulk_copies() comes first.
__device__ inline void store_tile(const TensorMap* map, const void* from, int column, int row) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map), "r"(column), "r"(row),
                 "r"(shared_address(from))
                 : "memory");
}
__device__ inline void stores_sent() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Waits until what this thread stores has been read.
__device__ inline void stores_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
__device__ inline void ask_map(const TensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }

// ---- clusters of programs ----------------------------------------------------------------------------------------------

__device__ inline void cluster_together() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// Barriers that were begun are known to the copy engine and to the cluster.
__device__ inline void barriers_begun() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// An arrival at the barrier that lies at this place in a program of the cluster.
__device__ inline void arrive_at(u64* at, int program) {
    asm volatile(
        "{\n"
        ".reg .b32 there;\n"
        "mapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
        "}\n" ::"r"(shared_address(at)), "r"(program)
        : "memory");
}

// An arrival at a barrier of this program.
__device__ inline void arrive_at_own(u64* at) {
    asm volatile("{ .reg .b64 t; mbarrier.arrive.shared::cta.b64 t, [%0]; }" ::"r"(shared_address(at)) : "memory");
}
// What lies at this place in a program of the cluster.
__device__ inline float4 load_from(const float* at, int program) {
    float4 v;
    asm volatile(
        "{\n"
        ".reg .b32 there;\n"
        "mapa.shared::cluster.u32 there, %4, %5;\n"
        "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [there];\n"
        "}\n"
        : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
        : "r"(shared_address(at)), "r"(program)
        : "memory");
    return v;
}

// ---- tensor units -----------------------------------------------------------------------------------------------------

// d [16, 8] += a [16, 16] b [16, 8]
__device__ inline void mma(float (&d)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// Four matrices of 8 by 8; lane 8 i + j gives the address of row j of matrix i.
__device__ inline void load_matrices(unsigned (&v)[4], const void* at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "r"(shared_address(at)) : "memory");
}
// Four matrices of 8 by 8, transposed; lane 8 i + j gives the address of row j of matrix i.
__device__ inline void load_transposed(unsigned (&v)[4], const void* at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "r"(shared_address(at)) : "memory");
}
// Four matrices of 8 by 8 into shared memory; lane 8 i + j gives the address of row j of matrix i.
__device__ inline void store_matrices(void* at, const unsigned (&v)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(shared_address(at)), "r"(v[0]), "r"(v[1]), "r"(v[2]),
                 "r"(v[3])
                 : "memory");
}
// A matrix of 8 by 8 held as a fragment, transposed.
__device__ inline unsigned transposed(unsigned v) {
    unsigned t;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(t) : "r"(v));
    return t;
}

// ---- tensor units, a warpgroup at a time ---------------------------------------------------------------------------------

// Registers of sums are touched by the tensor units from here on.
__device__ inline void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void products_sent() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until all but so many groups of products are done.
template <int COUNT>
__device__ inline void products_done() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(COUNT) : "memory"); }

// Rows of 64 numbers in shared memory, swizzled as `copy_tile` leaves them.
__device__ inline u64 swizzled(const void* at) {
    return (u64)((shared_address(at) & 0x3ffff) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}
#define SUMS_EIGHT(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define SUMS_32(d, i) SUMS_EIGHT(d, i), SUMS_EIGHT(d, i + 8), SUMS_EIGHT(d, i + 16), SUMS_EIGHT(d, i + 24)
#define NAMES_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define NAMES_24 NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define NAMES_32 NAMES_24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_40 NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define NAMES_48 NAMES_40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define NAMES_64 NAMES_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NAMES_80 NAMES_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define NAMES_112 \
    NAMES_80 ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define NAMES_128 NAMES_112 ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define PRODUCTS(columns, names, first, second, third, ...) \
    asm volatile("{ .reg .pred adds; setp.ne.b32 adds, %" third ", 0; wgmma.mma_async.sync.aligned.m64n" columns \
                 "k16.f32.bf16.bf16 {" names "}, %" first ", %" second ", adds, 1, 1, 0, 0; }" \
                 : __VA_ARGS__ : "l"(swizzled(a)), "l"(swizzled(b)), "r"((int)adds))

// d [64, columns] = (or +=) a [64, 16] times the transpose of b [columns, 16]; a thread has two neighbours of each 8 columns in two
// rows.
__device__ inline void products(float (&d)[16], const void* a, const void* b, bool adds) {
    PRODUCTS("32", NAMES_16, "16", "17", "18", SUMS_EIGHT(d, 0), SUMS_EIGHT(d, 8));
}
__device__ inline void products(float (&d)[24], const void* a, const void* b, bool adds) {
    PRODUCTS("48", NAMES_24, "24", "25", "26", SUMS_EIGHT(d, 0), SUMS_EIGHT(d, 8), SUMS_EIGHT(d, 16));
}
__device__ inline void products(float (&d)[32], const void* a, const void* b, bool adds) {
    PRODUCTS("64", NAMES_32, "32", "33", "34", SUMS_32(d, 0));
}
__device__ inline void products(float (&d)[40], const void* a, const void* b, bool adds) {
    PRODUCTS("80", NAMES_40, "40", "41", "42", SUMS_32(d, 0), SUMS_EIGHT(d, 32));
}
__device__ inline void products(float (&d)[48], const void* a, const void* b, bool adds) {
    PRODUCTS("96", NAMES_48, "48", "49", "50", SUMS_32(d, 0), SUMS_EIGHT(d, 32), SUMS_EIGHT(d, 40));
}
__device__ inline void products(float (&d)[64], const void* a, const void* b, bool adds) {
    PRODUCTS("128", NAMES_64, "64", "65", "66", SUMS_32(d, 0), SUMS_32(d, 32));
}
__device__ inline void products(float (&d)[80], const void* a, const void* b, bool adds) {
    PRODUCTS("160", NAMES_80, "80", "81", "82", SUMS_32(d, 0), SUMS_32(d, 32), SUMS_EIGHT(d, 64), SUMS_EIGHT(d, 72));
}
__device__ inline void products(float (&d)[112], const void* a, const void* b, bool adds) {
    PRODUCTS("224", NAMES_112, "112", "113", "114", SUMS_32(d, 0), SUMS_32(d, 32), SUMS_32(d, 64), SUMS_EIGHT(d, 96), SUMS_EIGHT(d, 104));
}
__device__ inline void products(float (&d)[128], const void* a, const void* b, bool adds) {
    PRODUCTS("256", NAMES_128, "128", "129", "130", SUMS_32(d, 0), SUMS_32(d, 32), SUMS_32(d, 64), SUMS_32(d, 96));
}
