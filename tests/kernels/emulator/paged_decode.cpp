// paged_decode.cu as a library for a CPU.

#include <device.h>  // before the other one is found
#include <paged_decode.cu>

extern "C" int run(const Args* arguments, int devices, unsigned seed) {
    return emulator::run<Args>(paged_decode, arguments, devices, PROGRAMS, CONSUMERS + FEEDERS, SHARED_BYTES, seed);
}

extern "C" int cut(const CutArgs* arguments, int devices, unsigned seed) {
    return emulator::run<CutArgs>(cut_contexts, arguments, devices, 3, CONSUMERS, 8 * CONSUMERS, seed);
}

// What the source lays out, of what the host gave.
extern "C" int shared_bytes() { return LAYOUT.end; }
