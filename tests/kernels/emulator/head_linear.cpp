// head_linear.cu as a library for a CPU.

#include <device.h>  // before the other one is found
#include <head_linear.cu>

extern "C" int run(const Args* arguments, int programs, unsigned seed) {
    return emulator::run<Args>(head_linear, arguments, 1, programs, THREADS, SHARED_BYTES, seed);
}

// What the source lays out, of what the host gave.
extern "C" int shared_bytes() { return END; }
