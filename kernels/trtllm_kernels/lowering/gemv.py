"""Lowering of GEMV: a GEMM of one token, bound by reading the weight (`triton_kernels/gemv.py`)."""

from __future__ import annotations

from collections.abc import Mapping

from trtllm_kernels.dialect.dtypes import bits_of, elements_in, least_capability
from trtllm_kernels.dialect.expr import product
from trtllm_kernels.lowering.call import Builder, OpCall, Operand, Parameter
from trtllm_kernels.lowering.skinny_gemm import within
from trtllm_kernels.lowering.skinny_gemm_cuda import sampling_parameters
from trtllm_kernels.lowering.space import Choice, table


def gemv_tile(call: OpCall) -> dict[str, int]:
    """Rows and columns per program, and its warps: 4 x 2048 in fp8, and as many bytes in wider types.

    Where kernels overlap, what counts is how the kernels of a step follow each other. If a weight has few and short rows, so that one
    program per SM holds all of its rows, the whole weight is on its way while the kernels before it end, and few programs read the same x
    at once. Chosen by whole steps of Llama-3.1-8B in fp8 on an H100 (docs/facts/decode-steps.md).
    """
    weight = call["weight"]
    n, k = weight.size(0), weight.size(1)
    columns = 2048
    while columns > 256 and k % columns:
        columns //= 2
    rows, warps = max(2, elements_in(8192 // columns, weight.dtype)), 4
    if call.capability >= 90 and bits_of(weight.dtype) == 8 and columns == 2048:
        rows, warps = (2, 4) if k <= 2 * columns else (4, 8)
        if k <= 2 * columns and n % 32 == 0 and n <= 32 * call.sm_count:
            rows, warps = 32, 16
    return {"gemv_rows": rows, "gemv_columns": columns, "gemv_warps": warps}


def own_x(weight: Operand, columns: int) -> bool:
    """Whether a row is long enough that the loop is unrolled (`gemv._rows_dot`), and short enough that its code fits the instruction
    cache."""
    return 2 * columns < weight.size(1) <= 16 * columns


def gemv_fits(call: OpCall, weight: Operand, rows: int, columns: int) -> bool:
    return call.capability >= least_capability(weight.dtype) and weight.size(0) % rows == 0 and weight.size(1) % columns == 0


EVICT_FIRST = "evict_first"
"""Tunable of GEMV: whether a weight, once read, is evicted from L2 first. Only whole steps try it: there other kernels keep something in
L2."""


def one_token_space(call: OpCall) -> tuple[Choice, ...]:
    """GEMV at several tiles, or cuBLASLt: the library first, since a tile that does not fit the shape lowers to it as well."""
    if call.capability >= 90:
        return ()
    wide = bits_of(call["weight"].dtype) // 8
    tiles = ((2, 2048, 4), (4, 1024, 4), (4, 2048, 2), (4, 2048, 8), (8, 1024, 4), (8, 2048, 8), (2, 4096, 4), (16, 512, 4))
    ours = tuple({"gemv_rows": max(2, rows // wide), "gemv_columns": columns, "gemv_warps": warps} for rows, columns, warps in tiles)
    return (Choice("one token", ({"gemv": 0}, *ours)),)


STEP_TILES = (
    *((2, 2048, 4), (4, 2048, 4), (4, 2048, 8), (8, 2048, 8), (16, 2048, 16), (32, 2048, 16)),
    *((8, 1024, 4), (16, 1024, 8), (32, 1024, 16), (2, 4096, 4), (4, 4096, 8)),
)
"""(rows of codes, columns, warps) of a GEMV that whole steps may try."""


def one_token_step_space(call: OpCall) -> tuple[Choice, ...]:
    """For whole decode steps: no GEMV, so that what follows it takes one token too, or a tile of it; and whether weights leave L2 first."""
    wide = bits_of(call["weight"].dtype) // 8
    tiles = {(max(2, rows // wide), columns, warps): None for rows, columns, warps in STEP_TILES}
    ours = table(("gemv", "gemv_rows", "gemv_columns", "gemv_warps"), *((1, *tile) for tile in tiles))
    fitting = tuple(one for one in ours if gemv_fits(call, call["weight"], one["gemv_rows"], one["gemv_columns"]))
    return (Choice("one token", ({"gemv": 0}, *fitting)), Choice("evict first", ({EVICT_FIRST: 0},)))


def takes_one_token(call: OpCall, tuned: Mapping[str, int]) -> bool:
    """Whether one token is GEMV's."""
    fits = call["x"].dtype != "fp32" and gemv_fits(call, call["weight"], tuned["gemv_rows"], tuned["gemv_columns"])
    return bool(tuned["gemv"]) and fits


def launch_gemv(builder: Builder, tuned: Mapping[str, int], scales: Mapping[str, Parameter]) -> bool:
    """Adds the launch for one token, alone or with SwiGLU. Returns whether there is one for the shape.

    `scales`: XScale, WScale and, for SwiGLU, OutScale.
    """
    call = builder.call
    x, weight, bias, residual = call["x"], call["weight"], call.get("bias"), call.get("residual")
    rows, columns = tuned["gemv_rows"], tuned["gemv_columns"]
    if not takes_one_token(call, tuned):
        return False
    gate_up = call.op == "gate_up_silu"
    parameters: dict[str, Parameter] = {"X": x, "W": weight}
    if not gate_up:
        parameters |= {"Bias": bias or x, "Residual": residual or x}
    parameters |= {**scales, "Y": call.outputs[0], **({} if gate_up else sampling_parameters(call))}
    flags = {"SCALED": call.quantized, "SCALED_ROWS": call.by_row}
    if gate_up:
        flags |= {"QUANTIZE": call.get("out_scale") is not None}
    else:
        flags |= {"BIASED": bias is not None, "ADDED": residual is not None, "SAMPLED": call.op == "linear_sample"}
    builder.launch(
        "gemv.gemv_gate_up_silu" if gate_up else "gemv.gemv",
        parameters,
        grid=(product(weight.size(0) // rows, within(x.shape[0], 0, 1)),),
        constexprs={
            "K": weight.size(1),
            "ROWS": rows,
            "COLS": columns,
            **flags,
            "OWN_X": own_x(weight, columns),
            "EVICT_FIRST": bool(tuned[EVICT_FIRST]),
        },
        warps=tuned["gemv_warps"],
    )
    return True
