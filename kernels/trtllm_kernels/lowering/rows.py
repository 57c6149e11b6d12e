"""Lowerings of everything that works row by row: norms, activations, quantization, gathers and slices."""

from __future__ import annotations

from trtllm_kernels.dialect.expr import ceil_div, product
from trtllm_kernels.dialect.types import Lowered
from trtllm_kernels.errors import KernelError
from trtllm_kernels.lowering.call import F32, I32, Builder, OpCall, Operand, next_power_of_2
from trtllm_kernels.lowering.gemm import beyond
from trtllm_kernels.lowering.registry import lowers
from trtllm_kernels.lowering.space import Choice, column_space, grid, row_space

_LONGEST_ROW = 1 << 16


@lowers("rms_norm", "layer_norm", "add_rms_norm", "add_layer_norm", space=row_space)
def norm(call: OpCall) -> Lowered:
    """rms_norm, layer_norm, add_rms_norm, add_layer_norm: one program per row, or per group of a row."""
    x, weight, y = call["x"], call["weight"], call.outputs[0]
    n = weight.size(0)
    if n > _LONGEST_ROW:
        raise KernelError(f"op {call.op}: a row of {n} elements is longer than the {_LONGEST_ROW} that one program can hold")
    block = next_power_of_2(n)
    tuned = call.tuned(warps=max(1, min(16, block // 512)))
    parameters: dict[str, Operand | F32 | I32] = {"X": x}
    adds = call.op.startswith("add_")
    if adds:
        parameters |= {"Addend": call.get("addend") or x, "Residual": call["residual"]}
    parameters["W"] = weight
    if call.op.endswith("layer_norm"):
        parameters["B"] = call["bias"]
    out_scale = call.get("out_scale")
    parameters["OutScale"] = out_scale or weight
    parameters["Y"] = y
    if adds:
        parameters["Total"] = call.outputs[1]
    parameters["eps"] = F32(call.number("eps"))
    builder = Builder(call)
    rows = product(beyond(x.shape[0], call.skip_to), x.size(1) // n)
    constexprs = {"N": n, "BLOCK": block, "QUANTIZE": out_scale is not None}
    if adds:
        constexprs["ADDEND"] = call.get("addend") is not None
    builder.launch(f"norm.{call.op}", parameters, grid=(rows,), constexprs=constexprs, warps=tuned["warps"])
    return builder.finish()


def _whole_row(call: OpCall, n: int, per_thread: int = 16) -> tuple[int, int]:
    """(block, warps) of a kernel whose programs hold a row of n, `per_thread` elements in a thread where it is not long. Raises
    `KernelError` where it is too long."""
    if n > _LONGEST_ROW:
        raise KernelError(f"op {call.op}: a row of {n} elements is longer than the {_LONGEST_ROW} that one program can hold")
    block = next_power_of_2(n)
    return block, call.tuned(warps=max(1, min(16, block // (32 * per_thread))))["warps"]


_BY_ROW_OF = {"silu_mul_packed_quantize_rows": "elementwise", "gelu_quantize_rows": "elementwise", "quantize_rows": "quantize"}


@lowers("quantize_rows", "silu_mul_packed_quantize_rows", "gelu_quantize_rows", space=row_space)
def quantize_rows(call: OpCall) -> Lowered:
    """One program per row, in codes of the result's dtype."""
    codes, scales = call.outputs
    n = codes.size(1)
    block, warps = _whole_row(call, n)
    packed = call.op.startswith("silu_mul_packed")
    source = call["gate_up"] if packed else call["x"]
    builder = Builder(call)
    builder.launch(
        f"{_BY_ROW_OF[call.op]}.{call.op}",
        {"GateUp" if packed else "X": source, "Y": codes, "Scales": scales},
        grid=(source.shape[0],),
        constexprs={"N": n, "BLOCK": block},
        warps=warps,
    )
    return builder.finish()


@lowers(
    "rms_norm_quantize_rows",
    "layer_norm_quantize_rows",
    "add_rms_norm_quantize_rows",
    "add_layer_norm_quantize_rows",
    space=row_space,
)
def norm_quantize_rows(call: OpCall) -> Lowered:
    """As `norm`, over whole rows, in codes of the first result's dtype with their scales."""
    x, weight, n = call["x"], call["weight"], call["weight"].size(0)
    if n != x.size(1):
        raise KernelError(f"op {call.op} normalizes whole rows, and its weight of {n} elements is for groups of a row of {x.size(1)}")
    block, warps = _whole_row(call, n, per_thread=8)
    adds = call.op.startswith("add_")
    parameters: dict[str, Operand | F32 | I32] = {"X": x}
    if adds:
        parameters |= {"Addend": call.get("addend") or x, "Residual": call["residual"]}
    parameters["W"] = weight
    if "layer_norm" in call.op:
        parameters["B"] = call["bias"]
    parameters |= {"Y": call.outputs[0], "Scales": call.outputs[1]}
    if adds:
        parameters["Total"] = call.outputs[2]
    parameters["eps"] = F32(call.number("eps"))
    constexprs = {"N": n, "BLOCK": block} | ({"ADDEND": call.get("addend") is not None} if adds else {})
    builder = Builder(call)
    builder.launch(f"norm.{call.op}", parameters, grid=(x.shape[0],), constexprs=constexprs, warps=warps)
    return builder.finish()


def _columns(n: int, call: OpCall, widest: int = 1024, per_thread: int = 8) -> tuple[int, int, int]:
    """(block, blocks per row, warps) of a kernel over blocks of at most `widest` columns, `per_thread` elements in a thread."""
    tuned = call.tuned(block=min(widest, next_power_of_2(n)), warps=0)
    block = tuned["block"]
    return block, ceil_div(n, block), tuned["warps"] or max(1, min(8, block // (32 * per_thread)))


@lowers("silu_mul", "silu_mul_packed", space=column_space)
def silu_mul(call: OpCall) -> Lowered:
    y = call.outputs[0]
    n = y.size(1)
    block, blocks, warps = _columns(n, call)
    packed = call.op == "silu_mul_packed"
    gate, up = (call["gate_up"], call["gate_up"]) if packed else (call["gate"], call["up"])
    builder = Builder(call)
    constexprs = {"N": n, "STRIDE": 2 * n if packed else n, "UP_OFFSET": n if packed else 0, "BLOCK": block}
    constexprs["QUANTIZE"] = call.get("out_scale") is not None
    parameters = {"Gate": gate, "Up": up, "OutScale": call.get("out_scale") or gate, "Y": y}
    builder.launch("elementwise.silu_mul", parameters, grid=(y.shape[0], blocks), constexprs=constexprs, warps=warps)
    return builder.finish()


@lowers("gelu", space=column_space)
def gelu(call: OpCall) -> Lowered:
    x = call["x"]
    block, blocks, warps = _columns(x.size(1), call)
    builder = Builder(call)
    out_scale = call.get("out_scale")
    constexprs = {"N": x.size(1), "BLOCK": block, "QUANTIZE": out_scale is not None}
    parameters = {"X": x, "OutScale": out_scale or x, "Y": call.outputs[0]}
    builder.launch("elementwise.gelu", parameters, grid=(x.shape[0], blocks), constexprs=constexprs, warps=warps)
    return builder.finish()


@lowers("quantize", space=column_space)
def quantize(call: OpCall) -> Lowered:
    x = call["x"]
    block, blocks, warps = _columns(x.size(1), call, widest=2048, per_thread=16)
    builder = Builder(call)
    parameters = {"X": x, "Scale": call["scale"], "Y": call.outputs[0]}
    builder.launch("quantize.quantize", parameters, grid=(x.shape[0], blocks), constexprs={"N": x.size(1), "BLOCK": block}, warps=warps)
    return builder.finish()


@lowers("add", space=column_space)
def add(call: OpCall) -> Lowered:
    a = call["a"]
    block, blocks, warps = _columns(a.size(1), call)
    builder = Builder(call)
    parameters = {"A": a, "B": call["b"], "Y": call.outputs[0]}
    builder.launch("elementwise.add", parameters, grid=(a.shape[0], blocks), constexprs={"N": a.size(1), "BLOCK": block}, warps=warps)
    return builder.finish()


@lowers("embedding", "gather_rows", space=column_space)
def gather(call: OpCall) -> Lowered:
    """embedding and gather_rows."""
    source, rows = (call["weight"], call["ids"]) if call.op == "embedding" else (call["x"], call["rows"])
    n = source.size(1)
    block, blocks, warps = _columns(n, call)
    builder = Builder(call)
    parameters = {"X": source, "Rows": rows, "Y": call.outputs[0]}
    builder.launch("gather.gather_rows", parameters, grid=(rows.shape[0], blocks), constexprs={"N": n, "BLOCK": block}, warps=warps)
    return builder.finish()


@lowers("arrange_columns", space=column_space)
def arrange_columns(call: OpCall) -> Lowered:
    x, index, factor, out_scale = call["x"], call.get("index"), call.get("factor"), call.get("out_scale")
    n = x.size(1)
    block, blocks, warps = _columns(n, call)
    builder = Builder(call)
    parameters = {"X": x, "Index": index or x, "Factor": factor or x, "OutScale": out_scale or x, "Y": call.outputs[0]}
    constexprs = {"N": n, "BLOCK": block, "INDEXED": index is not None, "SCALED": factor is not None, "QUANTIZE": out_scale is not None}
    builder.launch("gather.arrange_columns", parameters, grid=(x.shape[0], blocks), constexprs=constexprs, warps=warps)
    return builder.finish()


@lowers("split", space=column_space)
def split(call: OpCall) -> Lowered:
    x = call["x"]
    builder = Builder(call)
    first = 0
    for y in call.outputs:
        n = y.size(1)
        block, blocks, warps = _columns(n, call)
        constexprs = {"STRIDE": x.size(1), "FIRST": first, "N": n, "BLOCK": block}
        builder.launch("gather.slice_columns", {"X": x, "Y": y}, grid=(x.shape[0], blocks), constexprs=constexprs, warps=warps)
        first += n
    return builder.finish()


def _prepare_space(call: OpCall) -> tuple[Choice, ...]:
    return (Choice("step", grid(block=(64, 128, 256), warps=(2, 4))),)


@lowers("prepare_step", space=_prepare_space)
def prepare_step(call: OpCall) -> Lowered:
    tokens, slots, table = call["context_tokens"], call["seq_slots"], call["block_table"]
    tuned = call.tuned(block=128, warps=4)
    ids, positions, kv_slots = call.outputs
    builder = Builder(call)
    builder.launch(
        "gather.prepare_step",
        {
            "ContextTokens": tokens,
            "Slots": slots,
            "QueryStart": call["query_start"],
            "KvLens": call["kv_lens"],
            "LastTokens": call["last_tokens"],
            "BlockTable": table,
            "Ids": ids,
            "Positions": positions,
            "KvSlots": kv_slots,
            "num_tokens": I32(tokens.shape[0]),
            "num_seqs": I32(slots.shape[0]),
            "table_stride": I32(table.size(1)),
        },
        grid=(f"ceil_div({tokens.shape[0]}, {tuned['block']})",),
        constexprs={"PAGE": call.integer("page_size"), "STEPS": table.size(0).bit_length(), "BLOCK": tuned["block"]},
        warps=tuned["warps"],
        serialize_next=True,
    )
    return builder.finish()
