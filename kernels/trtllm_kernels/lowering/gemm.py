"""Lowering of GEMMs: which routine multiplies depends on the number of tokens of a step, so several are launched and one has a non-empty
grid.

Up to `skinny_to` tokens: our skinny GEMM (`skinny_gemm.py`), bound by reading the weight. One token: our GEMV kernel, where the skinny
GEMM's blocks would not fill the GPU or it does not fit.
More: cuBLASLt. GEMMs that end in an activation are in `activated_gemm.py`, those of int8 in `row_scaled.py`.

cuBLASLt proposes several algorithms, the one it expects to be fastest first. A tactic may take another one up to a number of tokens (and
above the size before): number `lt_512`, say, of those proposed for 512. That holds for the library version it was measured with.
"""

from __future__ import annotations

from collections.abc import Mapping

from trtllm_kernels.dialect.expr import ceil_div, product
from trtllm_kernels.dialect.types import Arg, Dim, Launch, Lowered
from trtllm_kernels.lowering.call import I32, Builder, OpCall, Operand
from trtllm_kernels.lowering.gemv import EVICT_FIRST, gemv_tile, launch_gemv, one_token_space, one_token_step_space, takes_one_token
from trtllm_kernels.lowering.packed_call import has_packed_weight
from trtllm_kernels.lowering.packed_gemm import lower_packed, packed_norms_to, packed_space, packed_step_space
from trtllm_kernels.lowering.registry import lowers
from trtllm_kernels.lowering.row_scaled import row_scaled_gemm, row_scaled_space, takes_row_scaled
from trtllm_kernels.lowering.skinny_gemm import (
    fills_sms,
    launch_skinny,
    skinny_normed_to,
    skinny_sizes,
    skinny_space,
    skinny_step_space,
    skinny_tunables,
    within,
)
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


def _algorithm_choice(size: int) -> Choice:
    """cuBLASLt's other proposals, judged at the largest size they are taken for and at one well below it."""
    return Choice(f"algorithm to {size}", grid(**{algorithm_of(size): PROPOSALS}), (PREFILL,), (size - size // 4, size))


def _space(call: OpCall) -> tuple[Choice, ...]:
    if takes_row_scaled(call):
        return row_scaled_space(call)
    if has_packed_weight(call):
        return packed_space(call)
    skinny = skinny_space(call)
    covered = skinny_sizes(call)[-1] if skinny else 0
    ours = (*one_token_space(call), *skinny) if call["x"].dtype != "fp32" else ()
    scale = call.get("weight_scale")
    by_torch = scale is not None and len(scale.shape) == 2
    return ours if by_torch else (*ours, *(_algorithm_choice(size) for size in ALGORITHM_SIZES if size > covered))


def step_space(call: OpCall) -> tuple[Choice, ...]:
    """Of GEMMs, with or without an activation, in whole decode steps. Tiles for few tokens come before the choice for one, which may be to
    leave it to them."""
    if has_packed_weight(call):
        return packed_step_space(call)
    if call["x"].dtype == "fp32":
        return ()
    return (*skinny_step_space(call), *(one_token_step_space(call) if call.op != "linear_gelu" else ()))


def _normed_to(call: OpCall) -> int:
    if has_packed_weight(call):
        return packed_norms_to(call)
    if takes_row_scaled(call):
        return 0
    tuned = _tuned(call)
    return 0 if takes_one_token(call, tuned) else skinny_normed_to(call, tuned)


@lowers("linear", space=_space, step_space=step_space, normed_to=_normed_to)
def linear(call: OpCall) -> Lowered:
    if takes_row_scaled(call):
        return row_scaled_gemm(call)
    if has_packed_weight(call):
        return lower_packed(call, linear)
    builder, _ = linear_launches(call)
    return builder.finish()


_CANDIDATES, _CANDIDATE_BLOCKS = 1024, 16
"""Logits of a row that a program of `sampling.candidates` compares at once, and how often it does."""
_PUBLISHED = 128
"""Rows per program of `sampling.publish`."""


@lowers("linear_sample", space=_space, step_space=step_space, normed_to=_normed_to)
def linear_sample(call: OpCall) -> Lowered:
    """As `linear`. Our own kernels find candidates in their epilogues; the library's logits are read once more."""
    builder, covered = linear_launches(call)
    logits, _ = call.outputs
    rows, columns = call["x"].shape[0], logits.size(1)
    builder.launch(
        "sampling.candidates",
        {"Logits": logits, "ArgmaxScratch": call["argmax_scratch"], "SamplingWords": call["sampling_words"], "num_rows": I32(rows)},
        grid=(beyond(rows, covered), ceil_div(columns, _CANDIDATES * _CANDIDATE_BLOCKS)),
        constexprs={"N": columns, "BLOCK": _CANDIDATES, "BLOCKS": _CANDIDATE_BLOCKS},
        warps=4,
    )
    publish(builder, call)
    return builder.finish()


def publish(builder: Builder, call: OpCall) -> None:
    """Words of sampling to tokens, for the next step and for the host."""
    rows, ring = call["x"].shape[0], call["token_ring"]
    published = {
        "ArgmaxScratch": call["argmax_scratch"],
        "Slots": call["sample_slots"],
        "RingSlot": call["ring_slot"],
        "Tokens": call.outputs[1],
        "LastTokens": call["last_tokens"],
    }
    builder.launch(
        "sampling.publish",
        {**published, "Ring": ring, "num_rows": I32(rows), "ring_stride": I32(ring.size(1))},
        grid=(f"ceil_div({rows}, {_PUBLISHED})",),
        constexprs={"BLOCK": _PUBLISHED},
        warps=1,
    )


def _tuned(call: OpCall) -> dict[str, int]:
    defaults = {EVICT_FIRST: 1, **skinny_tunables(call), **dict.fromkeys((*ALGORITHMS, LT_VERSION), 0)}
    return call.tuned(gemv=int(not fills_sms(call)), **gemv_tile(call), **defaults)


def linear_launches(call: OpCall) -> tuple[Builder, int]:
    """The GEMM's launches, and the number of tokens up to which they are our own kernels."""
    x, y = call["x"], call.outputs[0]
    tuned = _tuned(call)
    tokens = x.shape[0]
    builder = Builder(call)
    scales = {"XScale": call.get("x_scale") or x, "WScale": call.get("weight_scale") or x}
    fits = launch_gemv(builder, tuned, scales)
    covered = launch_skinny(builder, tuned, scales, int(fits))
    builder.launches.append(matmul(call, y, beyond(tokens, covered), _algorithm(tokens, tuned)))
    return builder, covered
