"""Matrix times one vector: a single decoding sequence, where reading the weight is all the time there is.

A program sums ROWS output rows over K in fp32, COLS columns at a time, 16-byte loads, no tensor cores, no shared memory. Its first weight
tile is loaded before anything of x, so weights are in flight while the previous kernel's result arrives.
The tile is the fastest tried on an H100 in fp8, and faster there than cuBLASLt; from two rows of x on cuBLASLt is as good and stays
(docs/facts.md).
"""

import triton
import triton.language as tl

from trtllm_kernels.triton_kernels.quantize import finish


@triton.jit
def _to_fp32(x):
    if x.dtype.is_fp8():
        return x.to(tl.float16).to(tl.float32)
    else:
        return x.to(tl.float32)


@triton.jit
def _rows_dot(X, W, pid, K: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """fp32 [ROWS]: rows [pid * ROWS, + ROWS) of W times x; K a multiple of COLS."""
    rows = pid.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, COLS)
    at = W + rows[:, None] * K + cols[None, :]
    first = tl.load(at)
    acc = _to_fp32(first) * _to_fp32(tl.load(X + cols))[None, :]
    for k in range(COLS, K, COLS):
        acc += _to_fp32(tl.load(at + k)) * _to_fp32(tl.load(X + k + cols))[None, :]
    return tl.sum(acc, 1)


@triton.jit
def gemv(
    X, W, Bias, Residual, XScale, WScale, Y,
    K: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, SCALED: tl.constexpr, SCALED_ROWS: tl.constexpr, BIASED: tl.constexpr,
    ADDED: tl.constexpr,
):  # fmt: skip
    """x [K], W [N, K], y [N]; N a multiple of ROWS. SCALED_ROWS: each row of W has its own scale. ADDED: a residual [N], maybe y itself."""
    pid = tl.program_id(0)
    y = _rows_dot(X, W, pid, K, ROWS, COLS)
    rows = pid * ROWS + tl.arange(0, ROWS)
    if SCALED_ROWS:
        y *= tl.load(XScale) * tl.load(WScale + rows)
    elif SCALED:
        y *= tl.load(XScale) * tl.load(WScale)
    if BIASED:
        y += tl.load(Bias + rows).to(tl.float32)
    if ADDED:
        y += tl.load(Residual + rows).to(tl.float32)
    tl.store(Y + rows, y.to(Y.dtype.element_ty))


@triton.jit
def gemv_gate_up_silu(
    X, W, XScale, WScale, OutScale, Y,
    K: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, SCALED: tl.constexpr, QUANTIZE: tl.constexpr,
):  # fmt: skip
    """As `gate_up.gate_up_silu` for one token: W [N, K] with gate and up rows interleaved, y [N // 2]."""
    pid = tl.program_id(0)
    both = _rows_dot(X, W, pid, K, ROWS, COLS)
    if SCALED:
        both *= tl.load(XScale) * tl.load(WScale)
    gate, up = tl.split(tl.reshape(both, (ROWS // 2, 2)))
    y = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(Y + pid * (ROWS // 2) + tl.arange(0, ROWS // 2), finish(y, OutScale, Y.dtype.element_ty, QUANTIZE))
