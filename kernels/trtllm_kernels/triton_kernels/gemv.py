"""GEMV, a matrix times one vector: a single decoding sequence, whose time is that of reading the weight.

A program sums ROWS output rows over K in fp32, COLS columns at a time, with 16-byte loads, without tensor cores or shared memory. Its first
two weight tiles (all of them where K is 4096 in fp8) are loaded before it waits for x (`pdl.py`): weights do not depend on the step, so
they are in flight while the kernels before this one end.
Elements that a thread loads at once are summed before they are accumulated, so a thread holds one accumulator per load and not one per
element. That leaves registers for as many threads per SM as keep enough weights in flight.
Faster than cuBLASLt on an H100 in fp8. From two rows of x on, tensor cores are faster, and on an H200 from one on where the weight has rows
for all SMs (`skinny_gemm.cu`, docs/facts/kernels-skinny-gemm.md). Which tile is best is decided by whole steps (`lowering/gemm.py`).

Rejected: prefetching into L2 what comes after those tiles, and the next GEMM's weight, while waiting (docs/facts/decode-steps.md).
"""

import triton
import triton.language as tl

from trtllm_kernels.triton_kernels.activations import swiglu
from trtllm_kernels.triton_kernels.pdl import let_next_start, wait_for_previous
from trtllm_kernels.triton_kernels.quantize import finish, result_scale
from trtllm_kernels.triton_kernels.sampling import keep_best
from trtllm_kernels.triton_kernels.sums import dot4


@triton.jit
def _to_fp32(x):
    if x.dtype.is_fp8():
        return x.to(tl.float16).to(tl.float32)
    else:
        return x.to(tl.float32)


@triton.jit
def _load(at, EVICT_FIRST: tl.constexpr):
    """Loads a tile of the weight, which is read once per step: evicted first, it leaves L2 to data that is read again."""
    return tl.load(at, eviction_policy="evict_first" if EVICT_FIRST else "")


@triton.jit
def _first_tiles(at, K: tl.constexpr, COLS: tl.constexpr, EVICT_FIRST: tl.constexpr):
    """The first two tiles of the row block at `at`, which is all of it where K is short."""
    first = _load(at, EVICT_FIRST)
    return first, _load(at + COLS, EVICT_FIRST) if K > COLS else first


@triton.jit
def _words(at):
    """`at`, of int8 as pointer to words of four."""
    if at.dtype.element_ty == tl.int8:
        return at.to(tl.pointer_type(tl.int32))
    else:
        return at


@triton.jit
def _sums(w, x, ROWS: tl.constexpr, COLS: tl.constexpr):
    """fp32 [ROWS, COLS // n]: w [ROWS, COLS] times x, summed over the n elements that a thread gets with one load. Words of four int8:
    int32, exact."""
    N: tl.constexpr = 128 // w.dtype.primitive_bitwidth
    if w.dtype == tl.int32:
        products = dot4(w, x[None, :] + tl.zeros_like(w) if len(x.shape) == 1 else x)
    elif len(x.shape) == 1:
        products = _to_fp32(w) * _to_fp32(x)[None, :]
    else:
        products = _to_fp32(w) * _to_fp32(x)
    return tl.sum(tl.reshape(products, (ROWS, COLS // N, N)), 2)


@triton.jit
def _rows_dot(
    X, at, first, second, K: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, OWN_X: tl.constexpr, EVICT_FIRST: tl.constexpr
):  # fmt: skip
    """fp32 [ROWS]: the row block at `at`, of which two tiles are already loaded, times x; K is a multiple of COLS.

    Without OWN_X, threads exchange their parts of x through shared memory. OWN_X: each thread loads the x that goes with its weights, from
    the L1 cache. Then no thread waits for others, and since the loop is unrolled, the compiler issues loads of later tiles while it
    multiplies earlier ones. Words of int8 are summed in int32, and rounded to fp32 once.
    """
    x = X + tl.arange(0, COLS)
    if OWN_X:
        x = x[None, :] + tl.zeros((ROWS, COLS), tl.int32)
    acc = _sums(first, tl.load(x), ROWS, COLS)
    if K > COLS:
        acc += _sums(second, tl.load(x + COLS), ROWS, COLS)
    if OWN_X:
        for k in tl.static_range(2 * COLS, K, COLS):
            acc += _sums(_load(at + k, EVICT_FIRST), tl.load(x + k), ROWS, COLS)
    else:
        for k in range(2 * COLS, K, COLS):
            acc += _sums(_load(at + k, EVICT_FIRST), tl.load(x + k), ROWS, COLS)
    return tl.sum(acc, 1).to(tl.float32)


@triton.jit
def gemv(
    X, W, Bias, Residual, XScale, WScale, Y, ArgmaxScratch, SamplingWords,
    K: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, SCALED: tl.constexpr, SCALED_ROWS: tl.constexpr, BIASED: tl.constexpr,
    ADDED: tl.constexpr, SAMPLED: tl.constexpr, OWN_X: tl.constexpr, EVICT_FIRST: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """x [K], W [N, K], y [N]; N is a multiple of ROWS. SCALED_ROWS: each row of W has its own scale. ADDED: a residual [N], which may be y
    itself. SAMPLED: y are logits, of which candidates are kept (`sampling.py`).
    """
    let_next_start(PDL)
    EACH: tl.constexpr = 4 if W.dtype.element_ty == tl.int8 else 1
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at = _words(W) + rows.to(tl.int64)[:, None] * (K // EACH) + tl.arange(0, COLS // EACH)[None, :]
    first, second = _first_tiles(at, K // EACH, COLS // EACH, EVICT_FIRST)
    if SCALED:
        scale = tl.load(WScale + rows) if SCALED_ROWS else tl.load(WScale)
    if BIASED:
        bias = tl.load(Bias + rows)
    wait_for_previous(PDL)
    if SCALED:
        scale *= tl.load(XScale)
    if ADDED:
        residual = tl.load(Residual + rows)
    y = _rows_dot(_words(X), at, first, second, K // EACH, ROWS, COLS // EACH, OWN_X, EVICT_FIRST)
    if SCALED:
        y *= scale
    if BIASED:
        y += bias.to(tl.float32)
    if ADDED:
        y += residual.to(tl.float32)
    y = y.to(Y.dtype.element_ty)
    tl.store(Y + rows, y)
    if SAMPLED:
        keep_best(y[None, :], ArgmaxScratch, SamplingWords, tl.arange(0, 1), rows, 1, 1 << 30)


@triton.jit
def gemv_gate_up_silu(
    X, W, XScale, WScale, OutScale, Y,
    K: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, SCALED: tl.constexpr, SCALED_ROWS: tl.constexpr, QUANTIZE: tl.constexpr,
    OWN_X: tl.constexpr, EVICT_FIRST: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """As `gate_up.gate_up_silu` for one token: W [N, K] with gate and up rows interleaved, y [N // 2]."""
    let_next_start(PDL)
    pid = tl.program_id(0)
    rows = pid.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    EACH: tl.constexpr = 4 if W.dtype.element_ty == tl.int8 else 1
    at = _words(W) + rows[:, None] * (K // EACH) + tl.arange(0, COLS // EACH)[None, :]
    first, second = _first_tiles(at, K // EACH, COLS // EACH, EVICT_FIRST)
    out_scale = result_scale(OutScale, QUANTIZE)
    if SCALED:
        scale = tl.load(WScale + rows) if SCALED_ROWS else tl.load(WScale)
    wait_for_previous(PDL)
    if SCALED:
        scale *= tl.load(XScale)
    both = _rows_dot(_words(X), at, first, second, K // EACH, ROWS, COLS // EACH, OWN_X, EVICT_FIRST)
    if SCALED:
        both *= scale
    gate, up = tl.split(tl.reshape(both, (ROWS // 2, 2)))
    y = swiglu(gate, up)
    tl.store(Y + pid * (ROWS // 2) + tl.arange(0, ROWS // 2), finish(y, out_scale, Y.dtype.element_ty, QUANTIZE))
