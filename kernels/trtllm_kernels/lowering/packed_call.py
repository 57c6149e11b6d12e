"""What a call with a packed weight (`formats`) is to its kernels: groups of scales, operands and macros they share, in which steps a launch
runs."""

from __future__ import annotations

from dataclasses import replace

from trtllm_kernels.dialect.dtypes import bytes_of, elements_in
from trtllm_kernels.dialect.expr import ceil_div, product
from trtllm_kernels.dialect.packing import TILE, is_packed
from trtllm_kernels.dialect.types import Dim, Launch
from trtllm_kernels.lowering.call import I32, OpCall, Parameter

_WIDE = ("bf16", "fp16")
_CODES = {"int4": 0, "int8": 1, "fp4": 2, "nf4": 3, "fp8": 4}
_SCALES = {"fp32": 0, "fp16": 1, "bf16": 2, "fp8": 3, "uint8": 4}
"""Numbers of `cuda_kernels/decode.cuh`; uint8 scales are powers of two."""
SM_BYTES, RESERVED_BYTES = 228 * 1024, 1024
NF4_TABLE_BYTES = 32 * 1024
"""Of nf4's numbers."""


def has_packed_weight(call: OpCall) -> bool:
    """Whether an op's weight is codes in tiles."""
    return is_packed(call["weight"].dtype, call["x"].dtype)


def group_of(call: OpCall) -> int:
    """Columns that have a scale in common; 0 if only rows have scales."""
    scale = call.get("group_scale")
    return 0 if scale is None else call["weight"].size(1) // scale.size(0)


def step_fits(call: OpCall, columns: int) -> bool:
    """Whether the groups of scales divide a step or are whole numbers of steps."""
    group, k = group_of(call), call["weight"].size(1)
    shortest = 32 if call["x"].dtype == "fp8" else 16
    return group in (0, k) or (group >= shortest and (group % columns == 0 or columns % group == 0))


def few_fit(call: OpCall) -> bool:
    """Whether `packed_gemm.cu` can multiply."""
    x, y = call["x"], call.outputs[0]
    zero = call.get("weight_zero")
    wide = {operand.dtype for operand in (call.get("bias"), call.get("residual")) if operand}
    wide |= set() if call.get("out_scale") else {y.dtype}
    return (
        call.capability == 90
        and call["weight"].dtype in _CODES
        and x.dtype in (*_WIDE, "fp8")
        and len(wide) <= 1
        and wide <= {*_WIDE}
        and (zero is None or (call.get("group_scale") is not None and zero.dtype == "bf16" and call["weight"].dtype in ("int4", "int8")))
        and step_fits(call, 128)
    )


def row_tiles(call: OpCall) -> int:
    """Tiles of 64 rows that the weight has."""
    return ceil_div(call["weight"].size(0), TILE)


def few_scales(call: OpCall) -> bool:
    """Whether a step of 128 columns has one scale per row and no zero points, which leaves registers for more blocks or rows."""
    return (group_of(call) == 0 or group_of(call) >= 128) and call.get("weight_zero") is None


def many_rows(call: OpCall) -> bool:
    """Whether each SM has more than two times 64 rows."""
    return row_tiles(call) > 2 * call.sm_count


def panel(call: OpCall) -> int:
    """Columns of x in 128 bytes: a step of the kernel of many tokens."""
    return elements_in(128, call["x"].dtype)


def within(tokens: Dim, below: int, most: int) -> Dim:
    """1 from `below` + 1 to `most` tokens, else 0."""
    if isinstance(tokens, int):
        return int(below < tokens <= most)
    return f"max(0, min(1, {tokens} - {below}, {most + 1} - {tokens}))"


def some_beyond(tokens: Dim, covered: int) -> Dim:
    """1 in a step of more than `covered` tokens, else 0."""
    return int(tokens > covered) if isinstance(tokens, int) else f"max(0, min(1, {tokens} - {covered}))"


def beyond(launch: Launch, tokens: Dim, covered: int) -> Launch:
    """The launch in steps of more than `covered` tokens only."""
    x, y, z = launch.grid
    return launch if covered == 0 else replace(launch, grid=(product(x, some_beyond(tokens, covered)), y, z))


def operands_of(call: OpCall) -> dict[str, Parameter]:
    """Those behind x."""
    x = call["x"]
    return {
        "W": call["weight"],
        "GroupScale": call.get("group_scale") or x,
        "WeightZero": call.get("weight_zero") or x,
        "Bias": call.get("bias") or x,
        "Residual": call.get("residual") or x,
        "XScale": call.get("x_scale") or x,
        "WScale": call.get("weight_scale") or x,
        "OutScale": call.get("out_scale") or x,
        "Y": call.outputs[0],
        "num_tokens": I32(x.shape[0]),
    }


def flags_of(call: OpCall) -> dict[str, int]:
    """Macros that do not depend on a tile."""
    x, weight, scale, bias, residual = call["x"], call["weight"], call.get("group_scale"), call.get("bias"), call.get("residual")
    x_scale, w_scale, quantize = call.get("x_scale"), call.get("weight_scale"), call.get("out_scale") is not None
    wide = bias or residual or (None if quantize else call.outputs[0])
    return {
        "N": weight.size(0),
        "K": weight.size(1),
        "FP8": x.dtype == "fp8",
        "HALF": x.dtype == "fp16",
        "OUT_HALF": wide is not None and wide.dtype == "fp16",
        "ACT": call.activation,
        "CODES": _CODES[weight.dtype],
        "GROUP": group_of(call),
        "ZEROS": call.get("weight_zero") is not None,
        "SCALE_TYPE": _SCALES[scale.dtype] if scale else 0,
        "X_SCALES": len(x_scale.shape) if x_scale and x.dtype == "fp8" else 0,
        "W_SCALES": len(w_scale.shape) if w_scale else 0,
        "BIASED": bias is not None,
        "ADDED": residual is not None,
        "QUANTIZE": quantize,
    }


def scales_in_range(call: OpCall) -> bool:
    """Whether scales of groups are numbers of the inputs' format, but for their last bits."""
    return call["x"].dtype == "bf16" or call["group_scale"].dtype in ("fp16", "fp8")


def tables_bytes(call: OpCall, rows: int, groups: int) -> int:
    """Scales and zero points of a step, as `Tables` of the kernels lays them out."""
    scale = call.get("group_scale")
    return rows * ((bytes_of(1, scale.dtype) if scale else 4) * groups + (2 * groups if call.get("weight_zero") else 1))


def layout_of(call: OpCall) -> str:
    """Name of the order of codes, as `triton_kernels/packed.py` knows it."""
    dtype, inputs = call["weight"].dtype, call["x"].dtype
    if dtype == "int4" and inputs == "fp8":
        return "int4_fp8"
    return "fp4_fp16" if dtype == "fp4" and inputs == "fp16" else dtype
