// runtime/kernels/device.h for a CPU: every thread of every program is a fiber, and a warp's instructions wait for its lanes.
//
// Fibers go on in changing orders, and copies that were begun land at some later time, so what lacks a wait reads old memory.
// What threads copied and the copy engine then overwrites must have been fenced by who asks the engine: a fault otherwise.

#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <unordered_map>
#include <vector>

typedef unsigned short u16;
typedef unsigned long long u64;
constexpr int FOREVER = 0x7fffffff;
constexpr float LOG2E = 1.4426950408889634f;

#define __device__
#define __global__
#define __launch_bounds__(...)
#define __grid_constant__
#define __noinline__
#define __cluster_dims__(...)

struct uint4 {
    unsigned x, y, z, w;
};
struct float4 {
    float x, y, z, w;
};

struct alignas(64) TensorMap {
    const char* start;
    long long rows, columns, stride, high, wide;  // stride in bytes; rows and columns of a tile
    u64 unused[10];
};

namespace emulator {

struct Gate {  // opens when so many have come
    unsigned opened = 0;
    int come = 0;
};

struct Lane {
    u64 words[8];
};

struct Warp {
    Gate gate;
    Lane lanes[2][32];
};

struct Program {
    int index, of;
    std::vector<Program*> cluster;
    Gate* all = nullptr;  // of the cluster
    std::vector<char> memory;
    std::vector<Warp> warps;
    Gate gates[16];
    Gate warpgroups[8];
    std::unordered_map<uintptr_t, u64> copied;  // by threads: when, of each 16 bytes
};

struct Copy {
    void* to;
    const void* from;
    int bytes;  // 0: 16 zeros
    u64* barrier = nullptr;
    enum { PLAIN, BULK, ARRIVAL, STORE } kind = PLAIN;
};

struct Product {
    float* d;
    int columns;
    const char *a, *b;
    bool adds, last = false;  // last: of its group
};

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    Program* program;
    int thread;
    bool over = false;
    const unsigned* word = nullptr;  // it waits until this
    unsigned old = 0;  // is another than this
    u64 fenced = 0;
    std::vector<Copy> copies;
    std::vector<Product> products;
};

inline Fiber* self;
inline ucontext_t home;
inline u64 ticks = 0;
inline bool fault = false;

inline void yield() { swapcontext(&self->context, &home); }

inline void pass(Gate& gate, int count) {
    if (++gate.come == count) {
        gate.come = 0;
        gate.opened++;
        return;
    }
    self->word = &gate.opened;
    self->old = gate.opened;
    yield();
    self->word = nullptr;
}

// What all lanes of the warp brought.
inline const Lane* gathered(const Lane& mine) {
    Warp& warp = self->program->warps[self->thread / 32];
    Lane* lanes = warp.lanes[warp.gate.opened & 1];
    lanes[self->thread % 32] = mine;
    pass(warp.gate, 32);
    return lanes;
}

struct Barrier {
    uint8_t expected, missing;
    int16_t coming;  // sixteenths of bytes
    uint32_t phase;
};
static_assert(sizeof(Barrier) == 8);

inline void change(u64* at, int arrivals, int bytes) {
    Barrier* b = (Barrier*)at;
    b->missing -= arrivals;
    b->coming += bytes / 16;
    if (b->missing == 0 && b->coming == 0) {
        b->missing = b->expected;
        b->phase ^= 1;
    }
}

inline void land(Fiber& fiber) {
    for (const Copy& c : fiber.copies) {
        if (c.kind == Copy::BULK && !c.from) memset(c.to, 0, c.bytes);
        else if (c.kind != Copy::ARRIVAL && c.bytes) memcpy(c.to, c.from, c.bytes);
        if (c.kind == Copy::PLAIN && !c.bytes) memset(c.to, 0, 16);
        if (c.kind == Copy::PLAIN) fiber.program->copied[(uintptr_t)c.to / 16] = ++ticks;
        if (c.kind == Copy::BULK) change(c.barrier, 0, -c.bytes);
        if (c.kind == Copy::ARRIVAL) change(c.barrier, 1, 0);
    }
    fiber.copies.clear();
}

inline unsigned bits(float v) {
    unsigned b;
    memcpy(&b, &v, 4);
    return b;
}
inline float number(unsigned b) {
    float v;
    memcpy(&v, &b, 4);
    return v;
}

template <class T>
T from_lane(T v, int lane) {
    Lane mine{};
    memcpy(mine.words, &v, sizeof v);
    const Lane* all = gathered(mine);
    memcpy(&v, all[lane & 31].words, sizeof v);
    return v;
}

}  // namespace emulator

inline char* shared_memory() { return (char*)(((uintptr_t)emulator::self->program->memory.data() + 1023) / 1024 * 1024); }
inline unsigned shared_address(const void* p) { return (unsigned)(uintptr_t)p; }
inline int thread_index() { return emulator::self->thread; }
inline int block() { return emulator::self->program->index; }
inline int programs() { return emulator::self->program->of; }
inline void spin() { emulator::yield(); }
inline long long now() {
    static long long ticks = 0;
    return ++ticks;
}
template <class T>
constexpr T least(T a, T b) { return a < b ? a : b; }
template <class T>
constexpr T larger(T a, T b) { return a > b ? a : b; }

inline float rsqrtf(float v) { return 1 / sqrtf(v); }
inline float float_of(unsigned bits) { return emulator::number(bits); }
inline float reciprocal(float v) { return 1 / v; }
inline float power_of_two(float v) { return exp2f(v); }
inline float to_float(u16 v) { return emulator::number((unsigned)v << 16); }
inline float low_of(unsigned pair) { return emulator::number(pair << 16); }
inline float high_of(unsigned pair) { return emulator::number(pair & 0xffff0000u); }
inline u16 to_bfloat(float v) {
    unsigned b = emulator::bits(v);
    if (v != v) return 0x7fff;
    return (u16)((b + 0x7fff + ((b >> 16) & 1)) >> 16);
}
inline unsigned pack(float low, float high) { return to_bfloat(low) | (unsigned)to_bfloat(high) << 16; }
inline float rounded(float v) { return to_float(to_bfloat(v)); }

template <class T>
T load_fixed(const T* p) { return *p; }
template <class T>
T load_early(const T* p) { return *p; }
template <class T>
T load_shared_l2(const T* p) { return *p; }
template <class T>
T load_if(const T* p, bool live) { return live ? *p : T(); }
inline uint4 load_16(const void* p, bool live) { return live ? *(const uint4*)p : uint4{0, 0, 0, 0}; }
inline int load_acquire(const int* p) { return *p; }
inline void add_release(int* p, int v) { *p += v; }
inline int add_both(int* p, int v) { return (*p += v) - v; }
inline void let_next_begin() {}
inline void wait_for_launches_before() {}
inline void store_system(u64* p, u64 v) { *p = v; }
inline u64 load_system(const u64* p) { return *p; }

template <class T>
T shuffle_xor(T v, int i) { return emulator::from_lane(v, (emulator::self->thread & 31) ^ i); }
template <class T>
T shuffle(T v, int lane) { return emulator::from_lane(v, lane); }
inline float shuffle_down(float v, int i) {
    int lane = emulator::self->thread & 31;
    return emulator::from_lane(v, lane + i < 32 ? lane + i : lane);
}
inline float shuffle_up(float v, int i) {
    int lane = emulator::self->thread & 31;
    return emulator::from_lane(v, lane >= i ? lane - i : lane);
}
inline unsigned lanes_where(bool v) {
    const emulator::Lane* all = emulator::gathered({{v}});
    unsigned found = 0;
    for (int i = 0; i < 32; i++) found |= (unsigned)all[i].words[0] << i;
    return found;
}
inline int count_bits(unsigned v) { return __builtin_popcount(v); }
inline void warp_together() { emulator::gathered({}); }
inline void barrier_of(int name, int threads) { emulator::pass(emulator::self->program->gates[name], threads); }
inline void all_together() { barrier_of(0, 32 * (int)emulator::self->program->warps.size()); }
template <int COUNT>
void fewer_registers() {}
template <int COUNT>
void more_registers() {}

inline void begin_barrier(u64* at, int count) { *(emulator::Barrier*)at = {(uint8_t)count, (uint8_t)count, 0, 0}; }
inline void wait_for(u64* at, unsigned parity) {
    emulator::Barrier* b = (emulator::Barrier*)at;
    while (b->phase == parity) {
        emulator::self->word = &b->phase;
        emulator::self->old = b->phase;
        emulator::yield();
        emulator::self->word = nullptr;
    }
}
inline void before_bulk_copies() { emulator::self->fenced = ++emulator::ticks; }
inline void release(u64* at, int lane) {
    warp_together();
    if (lane == 0) emulator::change(at, 1, 0);
}
inline void copy_16(void* to, const void* from, bool live) { emulator::self->copies.push_back({to, from, live ? 16 : 0}); }
inline void arrive_when_copied(u64* at) {
    emulator::self->copies.push_back({nullptr, nullptr, 0, at, emulator::Copy::ARRIVAL});
}
inline void expect(u64* at, int bytes) { emulator::change(at, 1, bytes); }
inline void copy_bulk(void* to, const void* from, int bytes, u64* at) {
    if ((uintptr_t)to % 16 || (uintptr_t)from % 16 || bytes % 16) emulator::fault = true;
    auto& copied = emulator::self->program->copied;
    for (int i = 0; i < bytes / 16; i++) {
        auto found = copied.find((uintptr_t)to / 16 + i);
        if (found == copied.end()) continue;
        if (found->second > emulator::self->fenced) emulator::fault = true;
        copied.erase(found);
    }
    emulator::self->copies.push_back({to, from, bytes, at, emulator::Copy::BULK});
}
inline void copy_bulk_once(void* to, const void* from, int bytes, u64* at) { copy_bulk(to, from, bytes, at); }

namespace emulator {

// This place of shared memory in a program of the cluster.
template <class T>
T* there(T* at, int rank) {
    Program* other = self->program->cluster[rank];
    if (other == self->program) return at;
    auto start = [](Program* p) { return ((uintptr_t)p->memory.data() + 1023) / 1024 * 1024; };
    return (T*)((uintptr_t)at - start(self->program) + start(other));
}

inline void copy_tile(void* to, const TensorMap* map, int column, int row, u64* at) {
    if ((uintptr_t)to % 1024) fault = true;
    for (int r = 0; r < map->high; r++)
        for (int piece = 0; piece < 8; piece++) {
            int from = column + piece * 8;
            bool live = row + r < map->rows && from < map->columns;
            const char* source = live ? map->start + (row + r) * map->stride + from * 2 : nullptr;
            self->copies.push_back({(char*)to + r * 128 + ((piece ^ (r & 7)) << 4), source, 16, at, Copy::BULK});
        }
}

inline float swizzled(const char* at, int row, int column) {
    uintptr_t start = (uintptr_t)at & ~(uintptr_t)127;
    int piece = (((uintptr_t)at & 127) + column * 2) >> 4;
    return number((unsigned)*(const u16*)(start + row * 128 + ((piece ^ (row & 7)) << 4) + column % 8 * 2) << 16);
}

inline void multiply(const Product& p) {
    int thread = self->thread & 127, own = (thread >> 5) * 16 + ((thread & 31) >> 2), quarter = thread & 3;
    for (int lower = 0; lower < 2; lower++) {
        float a[16];
        for (int k = 0; k < 16; k++) a[k] = swizzled(p.a, own + lower * 8, k);
        for (int j = 0; j < p.columns / 8; j++)
            for (int i = 0; i < 2; i++) {
                float& d = p.d[j * 4 + lower * 2 + i];
                float sum = p.adds ? d : 0;
                for (int k = 0; k < 16; k++) sum += a[k] * swizzled(p.b, j * 8 + quarter * 2 + i, k);
                d = sum;
            }
    }
}

}  // namespace emulator

inline void copy_tile(void* to, const TensorMap* map, int column, int row, u64* at) { emulator::copy_tile(to, map, column, row, at); }
inline void copy_tile_to_both(void* to, const TensorMap* map, int column, int row, u64* at) {
    for (int rank = 0; rank < 2; rank++) emulator::copy_tile(emulator::there(to, rank), map, column, row, emulator::there(at, rank));
}
inline void store_tile(const TensorMap* map, const void* from, int column, int row) {
    bool swizzled = map->wide == 64;
    if ((uintptr_t)from % (swizzled ? 1024 : 128)) emulator::fault = true;
    for (int r = 0; r < map->high && row + r < map->rows; r++)
        for (int piece = 0; piece < map->wide / 8 && column + piece * 8 < map->columns; piece++) {
            char* to = (char*)map->start + (row + r) * map->stride + (column + piece * 8) * 2;
            int at = r * map->wide * 2 + ((swizzled ? piece ^ (r & 7) : piece) << 4);
            emulator::self->copies.push_back({to, (const char*)from + at, 16, nullptr, emulator::Copy::STORE});
        }
}
inline void stores_sent() {}
inline void stores_read() {
    while (!emulator::self->copies.empty()) emulator::yield();
}
inline void ask_map(const TensorMap*) {}
inline void cluster_together() {
    emulator::Program* p = emulator::self->program;
    emulator::pass(*p->all, 32 * (int)(p->warps.size() * p->cluster.size()));
}
inline void barriers_begun() {}
inline void arrive_at(u64* at, int program) { emulator::change(emulator::there(at, program), 1, 0); }

inline void arrive_at_own(u64* at) { emulator::change(at, 1, 0); }
inline float4 load_from(const float* at, int program) { return *(const float4*)emulator::there(at, program); }

// Products are taken as late as they may be, by the four warps together.
inline void products_begin() {}
template <int COUNT>
void products(float (&d)[COUNT], const void* a, const void* b, bool adds) {
    emulator::self->products.push_back({d, 2 * COUNT, (const char*)a, (const char*)b, adds});
}
inline void products_sent() { emulator::self->products.back().last = true; }
template <int COUNT>
void products_done() {
    auto& all = emulator::self->products;
    int groups = 0;
    for (const auto& p : all) groups += p.last;
    size_t i = 0;
    for (; groups > COUNT; i++) {
        emulator::multiply(all[i]);
        groups -= all[i].last;
    }
    all.erase(all.begin(), all.begin() + i);
    emulator::pass(emulator::self->program->warpgroups[emulator::self->thread / 128], 128);
}

inline float half_of(u64 pair, int which) { return which ? high_of((unsigned)pair) : low_of((unsigned)pair); }

inline void mma(float (&d)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    const emulator::Lane* all = emulator::gathered({{a0, a1, a2, a3, b0, b1}});
    int own = (emulator::self->thread & 31) >> 2, quarter = emulator::self->thread & 3;
    for (int i = 0; i < 4; i++) {
        int row = own + (i >> 1) * 8, column = quarter * 2 + (i & 1);
        float sum = d[i];
        for (int k = 0; k < 16; k++) {
            float a = half_of(all[(row & 7) * 4 + (k & 7) / 2].words[(row >> 3) + 2 * (k >> 3)], k & 1);
            float b = half_of(all[column * 4 + (k & 7) / 2].words[4 + (k >> 3)], k & 1);
            sum += a * b;
        }
        d[i] = sum;
    }
}
inline void load_matrices(unsigned (&v)[4], const void* at) {
    const emulator::Lane* all = emulator::gathered({{(u64)at}});
    int own = (emulator::self->thread & 31) >> 2, quarter = emulator::self->thread & 3;
    for (int i = 0; i < 4; i++) v[i] = ((const unsigned*)all[i * 8 + own].words[0])[quarter];
}
inline void store_matrices(void* at, const unsigned (&v)[4]) {
    const emulator::Lane* all = emulator::gathered({{(u64)at}});
    int own = (emulator::self->thread & 31) >> 2, quarter = emulator::self->thread & 3;
    for (int i = 0; i < 4; i++) ((unsigned*)all[i * 8 + own].words[0])[quarter] = v[i];
}
inline void load_transposed(unsigned (&v)[4], const void* at) {
    const emulator::Lane* all = emulator::gathered({{(u64)at}});
    int own = (emulator::self->thread & 31) >> 2, quarter = emulator::self->thread & 3;
    for (int i = 0; i < 4; i++) {
        const u16* first = (const u16*)all[i * 8 + quarter * 2].words[0];
        const u16* second = (const u16*)all[i * 8 + quarter * 2 + 1].words[0];
        v[i] = first[own] | (unsigned)second[own] << 16;
    }
}
inline unsigned transposed(unsigned v) {
    const emulator::Lane* all = emulator::gathered({{v}});
    int own = (emulator::self->thread & 31) >> 2, quarter = emulator::self->thread & 3;
    auto element = [&](int row, int column) {
        return (unsigned)(all[row * 4 + column / 2].words[0] >> (column & 1) * 16) & 0xffff;
    };
    return element(quarter * 2, own) | element(quarter * 2 + 1, own) << 16;
}

namespace emulator {

// Runs `body` as every thread of `programs` programs, in clusters of so many, on each of `devices` devices with the arguments of
// its own.
template <class Arguments>
bool run(void (*body)(const Arguments), const Arguments* arguments, int devices, int programs, int threads, int bytes, unsigned seed,
         int cluster = 1) {
    static void (*chosen)(const Arguments);
    static const Arguments* given;
    chosen = body;
    std::mt19937 random(seed);
    fault = false;
    std::vector<std::unique_ptr<Program>> all;
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<const Arguments*> whose;
    std::vector<Gate> clusters(devices * programs);
    for (int device = 0; device < devices; device++)
        for (int p = 0; p < programs; p++) {
            all.push_back(std::make_unique<Program>());
            all.back()->index = p;
            all.back()->of = programs;
            all.back()->memory.resize(bytes + 1024);
            for (char& c : all.back()->memory) c = (char)0xff;  // not numbers
            all.back()->warps.resize(threads / 32);
            for (int t = 0; t < threads; t++) {
                fibers.push_back(std::make_unique<Fiber>());
                Fiber& f = *fibers.back();
                f.program = all.back().get();
                f.thread = t;
                f.stack.reset(new char[1 << 16]);
                getcontext(&f.context);
                f.context.uc_stack.ss_sp = f.stack.get();
                f.context.uc_stack.ss_size = 1 << 16;
                f.context.uc_link = &home;
                makecontext(&f.context, (void (*)()) +[] {
                    chosen(*given);
                    self->over = true;
                }, 0);
                whose.push_back(arguments + device);
            }
        }
    for (size_t i = 0; i < all.size(); i++) {
        all[i]->all = &clusters[i / cluster];
        for (int rank = 0; rank < cluster; rank++) all[i]->cluster.push_back(all[i / cluster * cluster + rank].get());
    }
    size_t left = fibers.size();
    for (long long round = 0; left; round++) {
        size_t begin = random() % fibers.size();
        bool back = random() & 1, moved = false;
        for (size_t i = 0; i < fibers.size(); i++) {
            size_t at = (begin + (back ? fibers.size() - i : i)) % fibers.size();
            Fiber& f = *fibers[at];
            if (!f.copies.empty() && (random() & 1 || !moved)) {
                land(f);
                moved = true;
            }
            if (f.over || (f.word && *f.word == f.old)) continue;
            self = &f;
            given = whose[at];
            swapcontext(&home, &f.context);
            moved = true;
            left -= f.over;
        }
        if (!moved || round > 2000000) return false;  // nobody can go on
    }
    for (auto& f : fibers) land(*f);
    return !fault;
}

}  // namespace emulator
