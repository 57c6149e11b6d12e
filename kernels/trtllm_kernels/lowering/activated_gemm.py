"""Lowerings of GEMMs that end in an activation: one token, a skinny GEMM, cuBLASLt and an activation kernel, or one fused kernel.

The fused kernel is taken from `fused_from` tokens, where its tiles fill the chip; between the skinny GEMM and that it is cuBLASLt into
scratch memory and the activation. In its place narrower tiles are taken where they divide more evenly among the SMs (`tile_gemm.py`). Of
int8 it is `row_scaled.py` from the skinny GEMM on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from trtllm_kernels.dialect.dtypes import bytes_of
from trtllm_kernels.dialect.expr import product
from trtllm_kernels.dialect.types import Dim, Lowered
from trtllm_kernels.lowering.call import I32, Builder, OpCall, Tma
from trtllm_kernels.lowering.gemm import beyond, matmul, step_space
from trtllm_kernels.lowering.gemv import EVICT_FIRST, gemv_tile, launch_gemv, one_token_space, takes_one_token
from trtllm_kernels.lowering.packed_call import has_packed_weight
from trtllm_kernels.lowering.packed_gemm import lower_packed, packed_norms_to, packed_space
from trtllm_kernels.lowering.registry import lowers
from trtllm_kernels.lowering.row_scaled import row_scaled_gemm, row_scaled_space, takes_row_scaled
from trtllm_kernels.lowering.skinny_gemm import NO_LIMIT, fills_sms, launch_skinny, skinny_normed_to, skinny_space, skinny_tunables, within
from trtllm_kernels.lowering.space import NEVER, PREFILL, TOKENS, Choice, table
from trtllm_kernels.lowering.tile_gemm import launch_some_tiles, tile_space, tile_tunables

_GROUP_BYTES = 1 << 24
"""Of the tokens whose tiles follow each other, which share the weight's in L2 (docs/facts/kernels-gemm.md)."""


def fused_fits(call: OpCall) -> bool:
    """Whether the fused kernel's tiles divide the weight."""
    weight = call["weight"]
    return call.capability == 90 and call["x"].dtype != "fp32" and weight.size(0) % 256 == 0 and weight.size(1) % 128 == 0


def _space(call: OpCall) -> tuple[Choice, ...]:
    if takes_row_scaled(call):
        return row_scaled_space(call)
    if has_packed_weight(call):
        return packed_space(call)
    if call["x"].dtype == "fp32":
        return ()
    below_fused = (one_token_space(call) if call.op == "gate_up_silu" else ()) + skinny_space(call)
    if not fused_fits(call):
        return below_fused
    names = ("block_m", "block_n", "block_k", "group", "warps", "stages")
    k, group = 64 if call["x"].dtype != "fp8" else 128, _group(call)
    rows: tuple[tuple[int, ...], ...] = (
        (128, 256, k, 16, 8, 4),
        (128, 256, k, 2 * group, 8, 4),
        (128, 256, k, group, 8, 3),
        (128, 256, k // 2, group, 8, 4),
        (128, 128, k, group, 8, 4),
        (128, 128, k, group, 4, 4),
        (256, 128, k, group // 2, 8, 3),
        (64, 256, k, 2 * group, 4, 4),
        (64, 256, k, 2 * group, 8, 4),
    )
    tiles = Choice("tiles", table(names, *rows), (PREFILL,))
    halves = Choice("halves", ({"halves": 1},), (PREFILL,))
    threshold = Choice("fused from", tuple({"fused_from": n} for n in (*TOKENS, NEVER)), (PREFILL,), TOKENS)
    return (*below_fused, tiles, halves, threshold, *tile_space(call))


def _group(call: OpCall) -> int:
    """Blocks of 128 tokens whose tiles follow each other: 32 of rows of 4 KB, at least 8."""
    weight = call["weight"]
    return max(8, _GROUP_BYTES // (128 * bytes_of(weight.size(1), weight.dtype)))


def _without(here: Dim, others: Sequence[Dim]) -> Dim:
    """1 where `here` is and none of `others`, else 0."""
    if isinstance(here, int):
        return here - sum(one for one in others if isinstance(one, int))
    return " - ".join(map(str, (here, *others)))


class _ActivatedGemm:
    """A GEMM followed by an activation: `gate_up` (SwiGLU of interleaved rows, half as wide) or `gelu`."""

    def __init__(self, call: OpCall, activation: Literal["gate_up", "gelu"]) -> None:
        x = call["x"]
        self.call, self.gate_up, self.wide = call, activation == "gate_up", x.dtype != "fp8"
        self.tokens, self.width = x.shape[0], call.outputs[0].size(1)
        self.tuned = call.tuned(
            **({"gemv": int(not fills_sms(call)), **gemv_tile(call), EVICT_FIRST: 1} if self.gate_up else {}),
            **skinny_tunables(call),
            **(tile_tunables(call) if fused_fits(call) else {}),
            fused_from=192 if fused_fits(call) else NO_LIMIT,
            block_m=128,
            block_n=256,
            block_k=64 if self.wide else 128,
            group=_group(call),
            warps=8,
            halves=0,
            stages=4 if self.gate_up or not self.wide else 3,
        )
        self.scales = {
            "XScale": call.get("x_scale") or x,
            "WScale": call.get("weight_scale") or x,
            "OutScale": call.get("out_scale") or x,
        }
        self.quantize = call.get("out_scale") is not None
        self.builder = Builder(call)

    @property
    def normed_to(self) -> int:
        if self.gate_up and takes_one_token(self.call, self.tuned):
            return 0
        return min(skinny_normed_to(self.call, self.tuned), self.tuned["fused_from"] - 1)

    def lower(self) -> Lowered:
        by_gemv = self.gate_up and launch_gemv(self.builder, self.tuned, self.scales)
        covered = launch_skinny(self.builder, self.tuned, self.scales, int(by_gemv), self.tuned["fused_from"] - 1)
        self._launch_separate(covered)
        if self.tuned["fused_from"] < NO_LIMIT:
            self._launch_fused(launch_some_tiles(self.builder, self.tuned, self.tuned["fused_from"] - 1))
        return self.builder.finish()

    def _launch_separate(self, covered: int) -> None:
        """From `covered` + 1 tokens: cuBLASLt into scratch memory, then the activation."""
        call, tokens, first_fused = self.call, self.tokens, self.tuned["fused_from"]
        weight, y = call["weight"], call.outputs[0]
        rows = product(beyond(tokens, covered), within(tokens, -1, first_fused - 1))
        raw = self.builder.workspace("gemm", (f"min({tokens}, {first_fused})", weight.size(0)), call["x"].dtype if self.wide else "bf16")
        self.builder.launches.append(matmul(call, raw, rows))
        block = 1024
        while block > 16 and self.width % block:
            block //= 2
        self.builder.launch(
            "elementwise.silu_mul_interleaved" if self.gate_up else "elementwise.gelu",
            {"GateUp" if self.gate_up else "X": raw, "OutScale": self.scales["OutScale"], "Y": y},
            grid=(rows, -(-self.width // block)),
            constexprs={"N": self.width, "BLOCK": block, "QUANTIZE": self.quantize},
            warps=max(1, min(8, block // 256)),
        )

    def _launch_fused(self, others: Sequence[Dim]) -> None:
        """From `fused_from` tokens: one kernel, but in steps in which one of `others` is 1."""
        call, tuned = self.call, self.tuned
        x, weight, bias, y = call["x"], call["weight"], call.get("bias"), call.outputs[0]
        self.builder.launch(
            "gate_up.gate_up_silu" if self.gate_up else "linear_gelu.linear_gelu",
            {
                "X": Tma(x, tuned["block_m"], tuned["block_k"]),
                "W": Tma(weight, tuned["block_n"], tuned["block_k"]),
                "WHalf": Tma(weight, tuned["block_n"] // 2, tuned["block_k"]),
                "Y": Tma(y, tuned["block_m"], tuned["block_n"] // 2),
                **({"YHalf": Tma(y, tuned["block_m"], tuned["block_n"] // 4)} if self.gate_up else {"Bias": bias or x}),
                **self.scales,
                "num_tokens": I32(self.tokens),
            },
            grid=(product(call.sm_count, _without(within(self.tokens, tuned["fused_from"] - 1, NO_LIMIT), others)),),
            constexprs={
                "N": weight.size(0),
                "K": weight.size(1),
                "BLOCK_M": tuned["block_m"],
                "BLOCK_N": tuned["block_n"],
                "BLOCK_K": tuned["block_k"],
                "GROUP": tuned["group"],
                "PROGRAMS": call.sm_count,
                "HALVES": bool(tuned["halves"]),
                "SCALED": not self.wide,
                **({} if self.gate_up else {"BIASED": bias is not None}),
                "QUANTIZE": self.quantize,
            },
            warps=tuned["warps"],
            stages=tuned["stages"],
        )


def _gate_up_normed_to(call: OpCall) -> int:
    if has_packed_weight(call):
        return packed_norms_to(call)
    return 0 if takes_row_scaled(call) else _ActivatedGemm(call, "gate_up").normed_to


@lowers("gate_up_silu", space=_space, step_space=step_space, normed_to=_gate_up_normed_to)
def gate_up_silu(call: OpCall) -> Lowered:
    if has_packed_weight(call):
        return lower_packed(call, gate_up_silu)
    return row_scaled_gemm(call) if takes_row_scaled(call) else _ActivatedGemm(call, "gate_up").lower()


@lowers("linear_gelu", space=_space, step_space=step_space)
def linear_gelu(call: OpCall) -> Lowered:
    if has_packed_weight(call):
        return lower_packed(call, linear_gelu)
    return row_scaled_gemm(call) if takes_row_scaled(call) else _ActivatedGemm(call, "gelu").lower()
