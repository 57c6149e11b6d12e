// Activations of fp32 values, for every kernel that ends in one. ACT says which: neither of these is none.
#pragma once
#include "hopper.cuh"

#define SWIGLU 1
#define GELU 2

// silu(gate) * up (Shazeer 2020).
INLINE float swiglu(float gate, float up) { return quotient(gate, 1.0f + exp2_of(gate * -1.4426950408889634f)) * up; }

// 0.5 x (1 + tanh u) written as x * sigmoid(2u), which loses no precision where tanh is near -1.
INLINE float gelu_tanh(float x) {
    float u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
    return quotient(x, 1.0f + exp2_of(u * -2.8853900817779268f));
}
