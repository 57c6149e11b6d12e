"""Lowering of GEMMs: which routine multiplies depends on the number of tokens of a step, so several are launched and one has a non-empty
grid.

One token: our GEMV kernel, bound by reading the weight. Up to `skinny_to` tokens: our skinny GEMM (`skinny_gemm.py`), bound by that too.
More: cuBLASLt. GEMMs that end in an activation are in `activated_gemm.py`.

cuBLASLt proposes several algorithms, the one it expects to be fastest first. A tactic may take another one up to a number of tokens (and
above the size before): number `lt_512`, say, of those proposed for 512. That holds for the library version it was measured with.
"""

from __future__ import annotations

from collections.abc import Mapping

from trtllm_kernels.dialect.dtypes import bits_of, elements_in
from trtllm_kernels.dialect.expr import ceil_div, product
from trtllm_kernels.dialect.types import Arg, Dim, Launch, Lowered
from trtllm_kernels.lowering.call import I32, Builder, OpCall, Operand
from trtllm_kernels.lowering.registry import lowers
from trtllm_kernels.lowering.skinny_gemm import launch_skinny, sampling_parameters, skinny_sizes, skinny_space, skinny_tunables, within
from trtllm_kernels.lowering.space import PREFILL, Choice, grid

ALGORITHM_SIZES = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
"""Numbers of tokens up to which one choice of cuBLASLt's algorithm holds; beyond the last its first proposal is taken."""
LT_VERSION = "cublaslt"
"""Tunable: the library version that the choices were measured with; 0 holds for any."""


def algorithm_of(size: int) -> str:
    """Tunable: which proposal for `size` tokens is taken up to that size; 0 is the first proposal for the actual number of tokens."""
    return f"lt_{size}"


PROPOSALS = (1, 2, 3, 4, 5)
"""Numbers of the proposals that tuning tries, after the first."""

ALGORITHMS = tuple(algorithm_of(size) for size in ALGORITHM_SIZES)


def beyond(tokens: Dim, covered: int) -> Dim:
    """The number of tokens in a step of more than `covered`, else 0 or less."""
    if covered == 0:
        return tokens
    return product(tokens, int(tokens > covered) if isinstance(tokens, int) else f"min(1, {tokens} - {covered})")


def _algorithm(tokens: Dim, tuned: Mapping[str, int]) -> tuple[Arg, ...]:
    """(number of the proposal, tokens it was proposed for, library version) for a library call; empty if no choice was made."""
    ranks, sizes = [], []
    for below, size in zip((0, *ALGORITHM_SIZES), ALGORITHM_SIZES, strict=False):
        if rank := tuned[algorithm_of(size)]:
            here = within(tokens, below, size)
            ranks.append(f"{rank} * {here}")
            sizes.append(f"{size} * {here}")
    if not ranks:
        return ()
    return Arg("i32", " + ".join(ranks)), Arg("i32", " + ".join(sizes)), Arg("i32", tuned[LT_VERSION])


def matmul(call: OpCall, y: Operand, rows: Dim, algorithm: tuple[Arg, ...] = ()) -> Launch:
    x, weight, scaled = call["x"], call["weight"], call["x"].dtype == "fp8"
    added = [operand for operand in (call.get("bias"), call.get("residual")) if operand]
    operands = (x, weight, *((call["x_scale"], call["weight_scale"]) if scaled else ()), *added, y)
    args = (*(Arg("tensor", operand.name) for operand in operands), *algorithm)
    return Launch(library="scaled_matmul" if scaled else "matmul", grid=(rows, weight.size(0), weight.size(1)), args=args)


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
    return call.capability >= (89 if weight.dtype == "fp8" else 80) and weight.size(0) % rows == 0 and weight.size(1) % columns == 0


EVICT_FIRST = "evict_first"
"""Tunable of GEMV: whether a weight, once read, is evicted from L2 first. Not part of the search space: it matters in whole steps, where
other kernels keep something in L2, and tuning times an op alone."""


def one_token_space(call: OpCall) -> tuple[Choice, ...]:
    """GEMV at several tiles, or cuBLASLt: the library first, since a tile that does not fit the shape lowers to it as well."""
    if call.capability >= 90:
        return ()
    wide = 1 if call["weight"].dtype == "fp8" else 2
    tiles = ((2, 2048, 4), (4, 1024, 4), (4, 2048, 2), (4, 2048, 8), (8, 1024, 4), (8, 2048, 8), (2, 4096, 4), (16, 512, 4))
    ours = tuple({"gemv_rows": max(2, rows // wide), "gemv_columns": columns, "gemv_warps": warps} for rows, columns, warps in tiles)
    return (Choice("one token", ({"gemv": 0}, *ours)),)


def _algorithm_choice(size: int) -> Choice:
    """cuBLASLt's other proposals, judged at the largest size they are taken for and at one well below it."""
    return Choice(f"algorithm to {size}", grid(**{algorithm_of(size): PROPOSALS}), (PREFILL,), (size - size // 4, size))


def _space(call: OpCall) -> tuple[Choice, ...]:
    skinny = skinny_space(call)
    covered = skinny_sizes(call)[-1] if skinny else 0
    ours = (*one_token_space(call), *skinny) if call["x"].dtype != "fp32" else ()
    scale = call.get("weight_scale")
    by_torch = scale is not None and len(scale.shape) == 2
    return ours if by_torch else (*ours, *(_algorithm_choice(size) for size in ALGORITHM_SIZES if size > covered))


@lowers("linear", space=_space)
def linear(call: OpCall) -> Lowered:
    builder, _ = linear_launches(call)
    return builder.finish()


_CANDIDATES = 4096
"""Logits of a row per program of `sampling.candidates`."""
_PUBLISHED = 128
"""Rows per program of `sampling.publish`."""


@lowers("linear_sample", space=_space)
def linear_sample(call: OpCall) -> Lowered:
    """As `linear`. Our own kernels find candidates in their epilogues; the library's logits are read once more."""
    builder, covered = linear_launches(call)
    logits, tokens = call.outputs
    rows, ring = call["x"].shape[0], call["token_ring"]
    columns = logits.size(1)
    builder.launch(
        "sampling.candidates",
        {"Logits": logits, "ArgmaxScratch": call["argmax_scratch"], "SamplingWords": call["sampling_words"], "num_rows": I32(rows)},
        grid=(beyond(rows, covered), ceil_div(columns, _CANDIDATES)),
        constexprs={"N": columns, "BLOCK": _CANDIDATES},
        warps=8,
    )
    published = {
        "ArgmaxScratch": call["argmax_scratch"],
        "Slots": call["sample_slots"],
        "RingSlot": call["ring_slot"],
        "Tokens": tokens,
        "LastTokens": call["last_tokens"],
    }
    builder.launch(
        "sampling.publish",
        {**published, "Ring": ring, "num_rows": I32(rows), "ring_stride": I32(ring.size(1))},
        grid=(f"ceil_div({rows}, {_PUBLISHED})",),
        constexprs={"BLOCK": _PUBLISHED},
        warps=1,
    )
    return builder.finish()


def linear_launches(call: OpCall) -> tuple[Builder, int]:
    """The GEMM's launches, and the number of tokens up to which they are our own kernels."""
    x, weight, bias, residual, y = call["x"], call["weight"], call.get("bias"), call.get("residual"), call.outputs[0]
    defaults = {EVICT_FIRST: 1, **skinny_tunables(call), **dict.fromkeys((*ALGORITHMS, LT_VERSION), 0)}
    tuned = call.tuned(gemv=1, **gemv_tile(call), **defaults)
    rows, columns = tuned["gemv_rows"], tuned["gemv_columns"]
    tokens = x.shape[0]
    builder = Builder(call)
    scales = {"XScale": call.get("x_scale") or x, "WScale": call.get("weight_scale") or x}
    fits = bool(tuned["gemv"]) and x.dtype != "fp32" and gemv_fits(call, weight, rows, columns)
    if fits:
        builder.launch(
            "gemv.gemv",
            {
                "X": x,
                "W": weight,
                "Bias": bias or x,
                "Residual": residual or x,
                **scales,
                "Y": y,
                **sampling_parameters(call),
            },
            grid=(product(weight.size(0) // rows, within(tokens, 0, 1)),),
            constexprs={
                "K": weight.size(1),
                "ROWS": rows,
                "COLS": columns,
                "SCALED": x.dtype == "fp8",
                "SCALED_ROWS": x.dtype == "fp8" and len(call["weight_scale"].shape) == 2,
                "BIASED": bias is not None,
                "ADDED": residual is not None,
                "SAMPLED": call.op == "linear_sample",
                "OWN_X": own_x(weight, columns),
                "EVICT_FIRST": bool(tuned[EVICT_FIRST]),
            },
            warps=tuned["gemv_warps"],
        )
    covered = launch_skinny(builder, tuned, scales, int(fits))
    builder.launches.append(matmul(call, y, beyond(tokens, covered), _algorithm(tokens, tuned)))
    return builder, covered
