"""Lowerings of matrix products: which routine multiplies depends on how many tokens a step has, so several are launched and one has a grid.

One token: our own kernel, bound by reading the weight. More: cuBLASLt through torch (measured on an H100, docs/facts.md: nothing of ours is
faster from two tokens up). A product that ends in SwiGLU: our fused kernel from `fused_from` tokens, where its tiles fill the chip, below
it cuBLASLt and an activation kernel.
"""

from __future__ import annotations

from trtllm_kernels.expr import product
from trtllm_kernels.lowering.call import ELEMENT_BYTES, I32, Builder, OpCall, Operand, Tma
from trtllm_kernels.types import Arg, Dim, Launch, Lowered


def _only_one(tokens: Dim) -> Dim:
    """1 when there is one token, else 0 or less."""
    return int(tokens == 1) if isinstance(tokens, int) else f"2 - {tokens}"


def _unless_one(tokens: Dim) -> Dim:
    return int(tokens != 1) if isinstance(tokens, int) else f"min(1, {tokens} - 1)"


def _matmul(call: OpCall, x: Operand, weight: Operand, bias: Operand | None, y: Operand, rows: Dim) -> Launch:
    grid = (rows, weight.size(0), weight.size(1))
    if x.dtype != "fp8":
        operands = (x, weight, *([bias] if bias else []), y)
        return Launch(library="matmul", grid=grid, args=tuple(Arg("tensor", o.name) for o in operands))
    operands = (x, weight, call["x_scale"], call["weight_scale"], *([bias] if bias else []), y)
    return Launch(library="scaled_matmul", grid=grid, args=tuple(Arg("tensor", o.name) for o in operands))


def _gemv_tile(weight: Operand) -> tuple[int, int]:
    """(rows, columns) a program: 4 x 2048 in fp8, and as many bytes in wider types."""
    columns = 2048
    while columns > 256 and weight.size(1) % columns:
        columns //= 2
    return max(2, 8192 // columns // ELEMENT_BYTES[weight.dtype]), columns


def _gemv_fits(call: OpCall, weight: Operand, rows: int, columns: int) -> bool:
    return call.capability >= (89 if weight.dtype == "fp8" else 80) and weight.size(0) % rows == 0 and weight.size(1) % columns == 0


def linear(call: OpCall) -> Lowered:
    x, weight, bias, y = call["x"], call["weight"], call.get("bias"), call.outputs[0]
    rows, columns = _gemv_tile(weight)
    tuned = call.tuned(gemv_rows=rows, gemv_columns=columns, gemv_warps=4)
    rows, columns = tuned["gemv_rows"], tuned["gemv_columns"]
    tokens = x.shape[0]
    builder = Builder(call)
    fits = x.dtype != "fp32" and _gemv_fits(call, weight, rows, columns)
    if fits:
        builder.launch(
            "gemv.gemv",
            {
                "X": x,
                "W": weight,
                "Bias": bias or x,
                "XScale": call.get("x_scale") or x,
                "WScale": call.get("weight_scale") or x,
                "Y": y,
            },
            grid=(product(weight.size(0) // rows, _only_one(tokens)),),
            constexprs={
                "K": weight.size(1),
                "ROWS": rows,
                "COLS": columns,
                "SCALED": x.dtype == "fp8",
                "BIASED": bias is not None,
            },
            warps=tuned["gemv_warps"],
        )
    count = product(tokens, _unless_one(tokens)) if fits else tokens
    builder.launches.append(_matmul(call, x, weight, bias, y, count))
    return builder.finish()


def gate_up_silu(call: OpCall) -> Lowered:
    x, weight, y = call["x"], call["weight"], call.outputs[0]
    rows, columns = _gemv_tile(weight)
    fused = call.capability == 90 and weight.size(0) % 256 == 0 and weight.size(1) % 128 == 0
    wide = x.dtype != "fp8"
    tuned = call.tuned(
        gemv_rows=rows,
        gemv_columns=columns,
        gemv_warps=4,
        fused_from=192 if fused else 1 << 30,
        block_m=128,
        block_n=256,
        block_k=64 if wide else 128,
        group=8,
        warps=8,
        stages=4,
    )
    rows, columns, first_fused = tuned["gemv_rows"], tuned["gemv_columns"], tuned["fused_from"]
    tokens = x.shape[0]
    builder = Builder(call)
    scales = {"XScale": call.get("x_scale") or x, "WScale": call.get("weight_scale") or x, "OutScale": call.get("out_scale") or x}
    flags = {"SCALED": not wide, "QUANTIZE": call.get("out_scale") is not None}
    gemv = x.dtype != "fp32" and _gemv_fits(call, weight, rows, columns)
    if gemv:
        builder.launch(
            "gemv.gemv_gate_up_silu",
            {"X": x, "W": weight, **scales, "Y": y},
            grid=(product(weight.size(0) // rows, _only_one(tokens)),),
            constexprs={"K": weight.size(1), "ROWS": rows, "COLS": columns, **flags},
            warps=tuned["gemv_warps"],
        )
    few = f"{tokens} * max(0, min(1, {first_fused} - {tokens}))"
    if gemv:
        few = f"{few} * {_unless_one(tokens)}"
    both = builder.workspace("gate_up", (f"min({tokens}, {first_fused})", weight.size(0)), y.dtype if wide else "bf16")
    builder.launches.append(_matmul(call, x, weight, None, both, few))
    block = 1024
    while block > 16 and weight.size(0) // 2 % block:
        block //= 2
    builder.launch(
        "elementwise.silu_mul_interleaved",
        {"GateUp": both, "OutScale": scales["OutScale"], "Y": y},
        grid=(few, -(-(weight.size(0) // 2) // block)),
        constexprs={"N": weight.size(0) // 2, "BLOCK": block, "QUANTIZE": flags["QUANTIZE"]},
        warps=max(1, min(8, block // 256)),
    )
    if fused:
        builder.launch(
            "gate_up.gate_up_silu",
            {
                "X": Tma(x, tuned["block_m"], tuned["block_k"]),
                "W": Tma(weight, tuned["block_n"], tuned["block_k"]),
                "Y": Tma(y, tuned["block_m"], tuned["block_n"] // 2),
                **scales,
                "num_tokens": I32(tokens),
            },
            grid=(f"{call.sm_count} * max(0, min(1, {tokens} - {first_fused - 1}))",),
            constexprs={
                "N": weight.size(0),
                "K": weight.size(1),
                "BLOCK_M": tuned["block_m"],
                "BLOCK_N": tuned["block_n"],
                "BLOCK_K": tuned["block_k"],
                "GROUP": tuned["group"],
                "PROGRAMS": call.sm_count,
                **flags,
            },
            warps=tuned["warps"],
            stages=tuned["stages"],
        )
    return builder.finish()
