"""Lowerings of what ranks exchange: reductions, sampling over a split vocabulary, and the residual stream between stages.

Each in two ways (`dialect.group.Way`). Through memory, reductions are one of two kernels, chosen by the step's tokens. By NCCL, the library
reduces, sends and receives, and the kernels of ops that a single GPU has do the rest.
"""

from __future__ import annotations

from dataclasses import replace

from trtllm_kernels.dialect.dtypes import bytes_of
from trtllm_kernels.dialect.expr import ceil_div
from trtllm_kernels.dialect.group import ONE_SHOT_ROWS, TWO_SHOT_BLOCKS, ranks_of, way_of
from trtllm_kernels.dialect.types import Arg, Dim, Launch, Lowered
from trtllm_kernels.errors import KernelError
from trtllm_kernels.lowering.call import F32, I32, Builder, OpCall, Operand, Parameter
from trtllm_kernels.lowering.gemm import linear_launches, publish
from trtllm_kernels.lowering.registry import lowers
from trtllm_kernels.lowering.rows import add, norm, split
from trtllm_kernels.lowering.space import Choice

_CANDIDATES = 2048
_PIPE_THREADS, _PIPE_BLOCKS = 512, 64
_PIPE_VECTORS = 1024
"""Vectors of 16 bytes that make a block worth its start."""
_EXCHANGED = 256
"""Rows a block exchanges the words of."""


def _no_space(call: OpCall) -> tuple[Choice, ...]:
    return ()


@lowers("all_reduce", "all_reduce_add", "all_reduce_add_rms_norm", space=_no_space, capabilities=(90,))
def all_reduce(call: OpCall) -> Lowered:
    """Steps of up to `ONE_SHOT_ROWS` tokens exchange rows whole, larger ones by owners. Each kernel has no blocks in the other's steps."""
    if way_of(call["group"].spec) == "nccl":
        return _reduced_by_nccl(call)
    x, group, y = call["x"], call["group"], call.outputs[0]
    if x.dtype not in ("bf16", "fp16"):
        raise KernelError(f"op {call.op} has kernels for bf16 and fp16, not for {x.dtype}; choose another --precision, or --tp 1")
    normed, adds = call.op == "all_reduce_add_rms_norm", call.op != "all_reduce"
    ranks, hidden = ranks_of(group.spec), x.size(1)
    out_scale = call.get("out_scale")
    parameters: dict[str, Parameter] = {
        "X": x,
        "Residual": call["residual"] if adds else x,
        "Weight": call["weight"] if normed else x,
        "OutScale": out_scale or x,
        "Group": group,
        "Y": y,
        "Total": call.outputs[1] if normed else y,
        "eps": F32(call.number("eps") if normed else 0.0),
        "num_rows": I32(x.shape[0]),
    }
    half = int(x.dtype == "fp16")
    threads = _threads(hidden)
    constexprs = {
        "WORLD": ranks,
        "H": hidden,
        "THREADS": threads,
        "NORM": int(normed),
        "QUANTIZE": int(out_scale is not None),
        "HALF": half,
        "OUT_HALF": half,
        "SHARED_BYTES": 0,
        **({"ADD": 1} if adds and not normed else {}),
    }
    rows = x.shape[0]
    builder = Builder(call)
    for kernel, grid in (("all_reduce_one_shot", _few(rows)), ("all_reduce_two_shot", _many(rows))):
        builder.launch(f"{kernel}.{kernel}", parameters, grid=(grid,), constexprs=constexprs, warps=threads // 32, cuda=True)
    return builder.finish()


def _reduced_by_nccl(call: OpCall) -> Lowered:
    """NCCL's sum of the ranks' rows, then what follows it by the kernel of one GPU. Sums of two ranks are rounded once, as by our kernels;
    those of more are rounded wherever NCCL adds."""
    x, group = call["x"], call["group"]
    if call.op == "all_reduce":
        return Lowered((by_nccl("nccl_sum", group, x, call.outputs[0]),))
    builder = Builder(call)
    total = builder.workspace("sum", x.shape, x.dtype)
    builder.launches.append(by_nccl("nccl_sum", group, x, total))
    if call.op == "all_reduce_add":
        rest = add(replace(call, op="add", inputs={"a": call["residual"], "b": total}))
    else:
        given = {name: call.inputs.get(name) for name in ("residual", "weight", "out_scale")}
        rest = norm(replace(call, op="add_rms_norm", inputs={"x": total, **given}))
    return Lowered((*builder.launches, *rest.launches), rest.kernels, builder.workspaces)


def by_nccl(routine: str, place: Operand, *tensors: Operand) -> Launch:
    """A call of NCCL on whole rows of `tensors` (`launch/nccl.py`)."""
    x = tensors[0]
    columns = x.size(1) if len(x.shape) > 1 else 1
    return Launch(library=routine, grid=(x.shape[0], columns, 1), args=tuple(Arg("tensor", one.name) for one in (*tensors, place)))


def _few(rows: Dim) -> Dim:
    """A block a row in steps of up to `ONE_SHOT_ROWS`, else none."""
    if isinstance(rows, int):
        return rows if rows <= ONE_SHOT_ROWS else 0
    return f"{rows} * max(0, min(1, {ONE_SHOT_ROWS + 1} - {rows}))"


def _many(rows: Dim) -> Dim:
    if isinstance(rows, int):
        return TWO_SHOT_BLOCKS if rows > ONE_SHOT_ROWS else 0
    return f"{TWO_SHOT_BLOCKS} * max(0, min(1, {rows} - {ONE_SHOT_ROWS}))"


def _threads(hidden: int) -> int:
    """As many threads as make a row of whole 16-byte vectors each, at most 512. Two H200: 1,024 are no faster, 256 are slower."""
    vectors = hidden // 8
    threads = next((n for n in range(512, 31, -32) if vectors % n == 0), 0)
    if hidden % 8 or not threads:
        raise KernelError(f"rows of {hidden} elements cannot be reduced over ranks on a GPU; they must be a multiple of 256")
    return threads


@lowers("send", "receive", space=_no_space, capabilities=(90,))
def between_stages(call: OpCall) -> Lowered:
    """A copy by few blocks of small steps, and by up to `_PIPE_BLOCKS`, which keep the link busy, of large ones."""
    sends, pipe, y = call.op == "send", call["pipe"], call.outputs[0]
    if way_of(pipe.spec) == "nccl":
        kept = split(replace(call, op="split")) if sends and not call.in_place else Lowered(())
        passed = by_nccl(f"nccl_{call.op}", pipe, call["x"] if sends else y)
        return replace(kept, launches=(passed, *kept.launches))
    rows, row_bytes = y.shape[0], bytes_of(y.size(1), y.dtype)
    if row_bytes % 16:
        raise KernelError(f"rows of {row_bytes} bytes cannot be sent between GPUs; they must be whole vectors of 16 bytes, or use --tp")
    vectors = f"{rows} * {row_bytes // 16}"
    builder = Builder(call)
    builder.launch(
        f"{call.op}.{call.op}",
        {**({"X": call["x"]} if sends else {}), "Pipe": pipe, "Y": y, "num_rows": I32(rows)},
        grid=(f"min({_PIPE_BLOCKS}, ceil_div({vectors}, {_PIPE_VECTORS}))",),
        constexprs={
            "THREADS": _PIPE_THREADS,
            "ROW_BYTES": row_bytes,
            "HALF": 0,
            "OUT_HALF": 0,
            "SHARED_BYTES": 0,
            **({"KEEP": int(not call.in_place)} if sends else {}),
        },
        warps=_PIPE_THREADS // 32,
        cuda=True,
    )
    return builder.finish()


@lowers("sharded_linear_sample", space=_no_space, capabilities=(90,))
def sharded_linear_sample(call: OpCall) -> Lowered:
    """The product of this rank's rows of the vocabulary, the best of its columns as a word a row, and the best word of all ranks."""
    builder, _ = linear_launches(replace(call, op="linear"))
    logits, tokens = call.outputs
    rows, ring, group = call["x"].shape[0], call["token_ring"], call["group"]
    columns = logits.size(1)
    words = call["argmax_scratch"]
    builder.launch(
        "sampling.rank_candidates",
        {"Logits": logits, "ArgmaxScratch": words, "SamplingWords": call["sampling_words"], "Group": group, "num_rows": I32(rows)},
        grid=(rows, ceil_div(columns, _CANDIDATES)),
        constexprs={"N": columns, "BLOCK": _CANDIDATES},
        warps=8,
    )
    if way_of(group.spec) == "nccl":
        builder.launches.append(replace(by_nccl("nccl_largest", group, words), grid=(rows, 1, 1)))
        publish(builder, call)
        return builder.finish()
    ends: dict[str, Operand] = {
        "ArgmaxScratch": words,
        "Group": group,
        "Slots": call["sample_slots"],
        "RingSlot": call["ring_slot"],
        "Tokens": tokens,
        "LastTokens": call["last_tokens"],
        "Ring": ring,
    }
    builder.launch(
        "exchange_words.exchange_words",
        {**ends, "num_rows": I32(rows), "ring_stride": I32(ring.size(1))},
        grid=(f"ceil_div({rows}, {_EXCHANGED})",),
        constexprs={
            "WORLD": ranks_of(group.spec),
            "THREADS": _EXCHANGED,
            "MOST_ROWS": ring.size(1),
            "HALF": 0,
            "OUT_HALF": 0,
            "SHARED_BYTES": 0,
        },
        warps=_EXCHANGED // 32,
        cuda=True,
    )
    return builder.finish()
