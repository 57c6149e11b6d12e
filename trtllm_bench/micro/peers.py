"""What others need for the same work: cuBLASLt for products (through torch), torch's scaled-dot-product attention for attention.

A peer does no more than its part: of a product fused with an activation it is the product alone, of one with a scale for each row the
product of the codes, and of attention it reads keys and values that lie densely instead of in pages. So a fused kernel that is as fast as
its peer has its fusion for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from trtllm_bench.micro.bound_op import BoundOp
from trtllm_bench.roofline.counts import StepShape

LEAST_INT8_ROWS = 17
"""Of a product in int8 by torch on a GPU; its other sizes must be multiples of 8."""


@dataclass(frozen=True)
class Peer:
    name: str
    call: Callable[[], Any]


def peer_of(bound: BoundOp, shape: StepShape, heads: int, kv_heads: int, head_dim: int) -> Peer | None:
    """The peer of an op at a step's shape, on the GPU; None where there is none."""
    if bound.cost.kind == "gemm":
        return _product(bound)
    if bound.op.op == "paged_attention" and len({*zip(shape.query_lens.tolist(), shape.kv_lens.tolist(), strict=True)}) == 1:
        return _attention(bound, shape, heads, kv_heads, head_dim)
    return None


def _product(bound: BoundOp) -> Peer | None:
    arguments = bound.arguments()
    x, weight = arguments["x"], arguments["weight"]
    if x.dtype != weight.dtype:
        return None
    if x.dtype == torch.float8_e4m3fn:
        if len(x) == 1:
            return None
        one = torch.ones((), device=x.device)
        a, b = (scale.view(()) if scale.numel() == 1 else one for scale in (arguments["x_scale"], arguments["weight_scale"]))
        return Peer("cuBLASLt", lambda: torch._scaled_mm(x, weight.t(), a, b, out_dtype=torch.bfloat16, use_fast_accum=True))
    if x.dtype == torch.int8:
        if len(x) < LEAST_INT8_ROWS or any(size % 8 for size in weight.shape):
            return None
        return Peer("cuBLASLt", lambda: torch._int_mm(x, weight.t()))
    out = torch.empty(len(x), len(weight), dtype=x.dtype, device=x.device)
    return Peer("cuBLASLt", lambda: torch.mm(x, weight.t(), out=out))


def _attention(bound: BoundOp, shape: StepShape, heads: int, kv_heads: int, head_dim: int) -> Peer:
    """Queries and caches in bf16: torch's kernels take no fp8."""
    count, queries, length = shape.sequences, int(shape.query_lens[0]), int(shape.kv_lens[0])
    device = next(iter(bound.memory.values())).device

    def draw(n: int, rows: int) -> torch.Tensor:
        return torch.randn(count, n, rows, head_dim, dtype=torch.bfloat16, device=device)

    q, k, v = draw(heads, queries), draw(kv_heads, length), draw(kv_heads, length)
    attend = torch.nn.functional.scaled_dot_product_attention
    if 1 < queries < length:  # is_causal would let the first query see the first key alone; this mask's kernel takes no groups
        from torch.nn.attention.bias import causal_lower_right  # loads torch's compiler, a second

        mask = causal_lower_right(queries, length)
        each_k, each_v = (x.repeat_interleave(heads // kv_heads, 1) for x in (k, v))
        return Peer("SDPA bf16", lambda: attend(q, each_k, each_v, attn_mask=mask))
    return Peer("SDPA bf16", lambda: attend(q, k, v, is_causal=queries > 1, enable_gqa=heads != kv_heads))
