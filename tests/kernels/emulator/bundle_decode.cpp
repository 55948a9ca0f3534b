// bundle_decode.cu as a library for a CPU.

#include <device.h>  // before the other one is found
#include <bundle_decode.cu>

extern "C" int run(const Args* arguments, int devices, unsigned seed) {
    return emulator::run<Args>(bundle_decode, arguments, devices, PROGRAMS, CONSUMERS + WARPGROUP, SHARED_BYTES, seed);
}

// What the source lays out, of what the host gave.
extern "C" int shared_bytes() { return LAYOUT.end; }
