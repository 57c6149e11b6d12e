"""Launch of the skinny GEMM in CUDA C++ (`cuda_kernels/skinny_gemm.cu`): how much of the weight and of x its blocks keep in flight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trtllm_kernels.dialect.dtypes import bytes_of, elements_in
from trtllm_kernels.dialect.expr import ceil_div
from trtllm_kernels.dialect.types import Dim
from trtllm_kernels.errors import KernelError
from trtllm_kernels.lowering.call import F32, I32, Builder, Normed, OpCall, Parameter, Tma

CUDA_ROWS = 64
"""Rows of a tensor core's tile, the most of the weight that one warpgroup multiplies."""
_LONG_STEPS = 64
"""Largest number of tokens for which a block that has an SM of its own takes two lines of K per step."""
_X_IN_FLIGHT_BYTES = 2048
"""Bytes of each row of x in flight at once, if there is room."""
HEIGHTS = (40, 48, 56, 64, 80, 96, 112, 128)
"""Rows per block that are taken where they share the weight more evenly among the SMs than 64 do."""
SAMPLED_HEIGHTS = (64, 128)
"""Rows per block where sampling follows: the threads that share a token's rows are a part of a warp."""
_SM_BYTES, _RESERVED_BYTES, _BARRIER_BYTES = 228 * 1024, 1024, 1024


def sampling_parameters(call: OpCall) -> dict[str, Parameter]:
    """What a GEMM kernel takes to find candidates among its logits (`triton_kernels/sampling.py`); arbitrary pointers if it does not."""
    return {"ArgmaxScratch": call.get("argmax_scratch") or call["x"], "SamplingWords": call.get("sampling_words") or call["x"]}


@dataclass(frozen=True)
class CudaTile:
    """Tile in CUDA C++: `blocks` share an SM (0: Triton's tile is taken), `parts` split K, each block has `height` rows of the weight."""

    tokens: int
    blocks: int
    parts: int
    height: int


@dataclass(frozen=True)
class _Rings:
    """What a block has in flight of the weight and of x: steps of K of so many panels of 128 bytes."""

    panels: int
    w_stages: int
    x_stages: int
    shared_bytes: int


def _rings(call: OpCall, tile: CudaTile, keeps_x: bool) -> _Rings:
    """`keeps_x`: the block has all that it reads of x, and no ring for it."""
    groups, weight = _groups(tile), call["weight"]
    panels = 2 if tile.blocks == 1 and tile.tokens <= _LONG_STEPS else 1
    step = 128 * panels
    share = ceil_div(ceil_div(bytes_of(weight.size(1), weight.dtype), step), tile.parts)
    received = 4 * groups * CUDA_ROWS * tile.tokens // 2 if tile.parts > 1 else 0
    room = _SM_BYTES // tile.blocks - _RESERVED_BYTES - _BARRIER_BYTES - received
    x_stages = share if keeps_x else min(share, _X_IN_FLIGHT_BYTES // step, room // 2 // (step * tile.tokens))
    w_stages = min(share, (room - x_stages * step * tile.tokens) // (step * tile.height))
    behind = 128 * (CUDA_ROWS - tile.height // groups)
    rings = step * w_stages * tile.height + max(step * x_stages * tile.tokens, behind)
    sums = 4 * (tile.height + 4) * tile.tokens // tile.parts
    return _Rings(panels, w_stages, x_stages, max(rings, sums) + received + _BARRIER_BYTES)


def _groups(tile: CudaTile) -> int:
    """Warpgroups that multiply."""
    return 1 if tile.height <= CUDA_ROWS else 2


def keeps_rows(call: OpCall, tile: CudaTile) -> bool:
    """Whether all that a block reads of x takes no more room than its weights, of which several steps are in flight."""
    rings = _rings(call, tile, keeps_x=True)
    return rings.w_stages >= min(2, rings.x_stages) and tile.tokens * rings.x_stages <= tile.height * rings.w_stages


def launch_cuda(builder: Builder, tile: CudaTile, scales: Mapping[str, Parameter], here: Dim, normed: Normed | None = None) -> None:
    """`here`: 1 in steps that this tile serves, else 0. `normed`: the norm of x that it takes itself.

    Raises `KernelError` for more than two parts and for heights that do not divide.
    """
    call = builder.call
    x, weight, bias, residual, y = call["x"], call["weight"], call.get("bias"), call.get("residual"), call.outputs[0]
    n = weight.size(0)
    if tile.parts > 2:
        raise KernelError(f"skinny{tile.tokens}_parts is {tile.parts}, but at most two blocks split K")
    unit = 16 if call.op == "gate_up_silu" else 8
    groups = _groups(tile)
    if call.op == "linear_sample" and tile.height not in SAMPLED_HEIGHTS:
        raise KernelError(f"skinny{tile.tokens}_height is {tile.height}; where sampling follows it is one of {SAMPLED_HEIGHTS}")
    if not unit <= tile.height <= 2 * CUDA_ROWS or tile.height % unit or tile.height % (8 * groups):
        raise KernelError(f"skinny{tile.tokens}_height is {tile.height}; it must be a multiple of {unit} up to {2 * CUDA_ROWS}")
    rings = _rings(call, tile, keeps_x=normed is not None)
    wide = bias or residual or (y if call.get("out_scale") is None else None)
    builder.launch(
        "skinny_gemm.skinny_gemm",
        {
            "X": Tma(x, tile.tokens, elements_in(128, x.dtype)),
            "W": Tma(weight, tile.height, elements_in(128, weight.dtype)),
            "Bias": bias or x,
            "Residual": residual or x,
            "XScale": scales["XScale"],
            "WScale": scales["WScale"],
            "OutScale": call.get("out_scale") or x,
            "Y": y,
            **sampling_parameters(call),
            "Rows": normed.x if normed else x,
            "NormWeight": normed.weight if normed else x,
            "NormScale": normed.out_scale or x if normed else x,
            "eps": F32(normed.eps if normed else 0.0),
            "num_tokens": I32(x.shape[0]),
        },
        grid=(f"{ceil_div(n, tile.height)} * {here}", tile.parts),
        constexprs={
            "N": n,
            "K": weight.size(1),
            "TOKENS": tile.tokens,
            "TILE_ROWS": tile.height,
            "BLOCKS": tile.blocks,
            "PANELS": rings.panels,
            "W_STAGES": rings.w_stages,
            "X_STAGES": rings.x_stages,
            "SPLITS": tile.parts,
            "FP8": x.dtype == "fp8",
            "INT8": x.dtype == "int8",
            "HALF": x.dtype == "fp16",
            "OUT_HALF": wide is not None and wide.dtype == "fp16",
            "ACT": call.activation,
            "SCALED": call.quantized and not call.by_row,
            "SCALED_ROWS": call.by_row,
            "BIASED": bias is not None,
            "ADDED": residual is not None,
            "QUANTIZE": call.get("out_scale") is not None,
            "SAMPLED": call.op == "linear_sample",
            "NORMED": normed is not None,
            "NORM_HALF": normed is not None and normed.x.dtype == "fp16",
            "SHARED_BYTES": rings.shared_bytes,
        },
        warps=4 * groups + 2,
        cuda=True,
    )
