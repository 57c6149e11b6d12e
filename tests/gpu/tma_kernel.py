"""A kernel over host-made TMA descriptors, to test the driver's descriptors apart from any real kernel."""

import triton
import triton.language as tl


@triton.jit
def tma_matmul(A, B, C, k_size, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """C = A @ B.T tile by tile."""
    m = tl.program_id(0) * BM
    n = tl.program_id(1) * BN
    acc = tl.zeros((BM, BN), tl.float32)
    for k in range(0, k_size, BK):
        acc = tl.dot(A.load([m, k]), B.load([n, k]).T, acc)
    C.store([m, n], acc.to(tl.bfloat16))
