// The activation of a gate, which GATE names: its place in ACTIVATIONS (kernels/activation.py).

#pragma once

#include <device.h>

__device__ inline float activated(float x) {
    if (GATE == 0) return x * reciprocal(1 + power_of_two(-LOG2E * x));
    if (GATE == 1) return 0.5f * x * (1 + erff(x * 0.7071067811865476f));
    float z = 1.5957691216057308f * (x + 0.044715f * x * x * x);
    return x * reciprocal(1 + power_of_two(-LOG2E * z));  // 0.5 (1 + tanh z) is sigmoid(2 z)
}
