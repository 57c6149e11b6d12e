"""The compiler's middle: an ordered list of passes, each one file, with the verifier between every two.

Order matters and is this: a pipeline is cut first, while every op is one layer's; sharding sees single projections, so it comes before
merging; quantization comes after merging, so that a merged product is quantized once, and after the fusions whose results it is pushed
into; rows that nothing reads are dropped once what is gathered is quantized. The product of gate and up is fused after that, carrying the
quantization with it. The residual goes into products, quantization by rows into what is left before them, and sampling into the last
product, at the end: what is a plain product is known only then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from trtllm_engines.compiler.graph import ModelGraph
from trtllm_engines.compiler.passes import (
    fuse_add_norm,
    fuse_all_reduce,
    fuse_gate_up,
    fuse_gelu,
    fuse_quantize_rows,
    fuse_residual,
    fuse_sampling,
    fuse_silu_mul,
    gather_early,
    merge_gate_up,
    merge_qkv,
    page_attention,
    push_quantize,
    quantize,
    quantize_context,
    shard,
    stage,
)
from trtllm_engines.compiler.verify import verify

Pass = Callable[[ModelGraph], None]

PASSES: Mapping[str, Pass] = {
    "stage": stage.apply,
    "shard": shard.apply,
    "merge_qkv": merge_qkv.apply,
    "merge_gate_up": merge_gate_up.apply,
    "page_attention": page_attention.apply,
    "fuse_add_norm": fuse_add_norm.apply,
    "fuse_silu_mul": fuse_silu_mul.apply,
    "quantize": quantize.apply,
    "quantize_context": quantize_context.apply,
    "push_quantize": push_quantize.apply,
    "gather_early": gather_early.apply,
    "fuse_all_reduce": fuse_all_reduce.apply,
    "fuse_gate_up": fuse_gate_up.apply,
    "fuse_gelu": fuse_gelu.apply,
    "fuse_residual": fuse_residual.apply,
    "fuse_quantize_rows": fuse_quantize_rows.apply,
    "fuse_sampling": fuse_sampling.apply,
}
EVERY_ROW: Mapping[str, Pass] = {name: apply for name, apply in PASSES.items() if name != "gather_early"}
"""For those who read values inside: of every token, up to the head."""


def run_passes(graph: ModelGraph, passes: Mapping[str, Pass] = PASSES) -> None:
    """Applies the passes in order, verifying the traced graph and after each."""
    verify(graph, "trace")
    for name, apply in passes.items():
        apply(graph)
        verify(graph, name)
