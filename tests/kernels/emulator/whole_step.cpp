// whole_step.cu as a library for a CPU.

#include <device.h>  // before the other one is found
#include <whole_step.cu>

extern "C" int run(const Args* arguments, int devices, unsigned seed) {
    return emulator::run<Args>(whole_step, arguments, devices, PROGRAMS, CONSUMERS + FEEDERS, SHARED_BYTES, seed);
}

// What the source lays out, of what the host gave.
extern "C" int shared_bytes() { return LAYOUT.end; }
