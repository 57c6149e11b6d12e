"""What others need for the same work: cuBLASLt for products (through torch), torch's scaled-dot-product attention for attention.

A peer does no more than its part: of a product fused with an activation it is the product alone, and of attention it reads keys and values
that lie densely instead of in pages. So a fused kernel that is as fast as its peer has its fusion for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from trtllm_bench.micro.bound_op import BoundOp
from trtllm_bench.roofline.counts import StepShape


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
    if x.dtype == torch.float8_e4m3fn:
        if len(x) == 1 or weight.dtype != x.dtype:
            return None
        scales = (arguments["x_scale"].view(()), arguments["weight_scale"].view(()))
        return Peer("cuBLASLt", lambda: torch._scaled_mm(x, weight.t(), *scales, out_dtype=torch.bfloat16, use_fast_accum=True))
    if x.dtype != weight.dtype:
        return None
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
