"""Activations of fp32 values, for every kernel that ends in one."""

import triton
import triton.language as tl


@triton.jit
def swiglu(gate, up):
    """silu(gate) * up (Shazeer 2020)."""
    return gate / (1.0 + tl.exp2(gate * -1.4426950408889634)) * up


@triton.jit
def gelu_tanh(x):
    """0.5 x (1 + tanh u) written as x * sigmoid(2u), which loses no precision where tanh is near -1."""
    u = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    return x / (1.0 + tl.exp2(u * -2.8853900817779268))
