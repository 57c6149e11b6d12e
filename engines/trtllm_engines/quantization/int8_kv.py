"""A KV cache in int8, one fp32 scale per token and head: found as keys and values are written, so nothing is calibrated.

Twice the precision of fp8 where a head's values are alike, for 3% more bytes (at 128 dimensions).
"""

from __future__ import annotations

from dataclasses import replace

from trtllm_engines.compiler.graph import ModelGraph, set_arguments
from trtllm_engines.compiler.plan import KV_SCALES
from trtllm_engines.quantization.registry import KvDefinition, register_kv
from trtllm_engines.quantization.scheme import KvScheme
from trtllm_kernels.dialect.types import TensorSpec


def _quantize_cache(graph: ModelGraph, scheme: KvScheme) -> None:
    cache = replace(graph.inputs["kv_cache"], dtype=scheme.dtype)
    graph.inputs |= {"kv_cache": cache, KV_SCALES: TensorSpec(cache.shape[:-1], "fp32")}
    with graph.fx.inserting_before(next(node for node in graph.fx.nodes if node.op != "placeholder")):
        scales = graph.fx.placeholder(KV_SCALES)
    for write, read in zip(graph.nodes("rope_kv_write"), graph.nodes("paged_attention"), strict=True):
        for node in (write, read):
            set_arguments(node, kv_scales=scales)


INT8_KV = register_kv(KvDefinition(scheme=KvScheme("int8", "row"), quantize_cache=_quantize_cache, recipes={}))
