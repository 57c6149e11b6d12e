"""Quantizes every product as its scheme says, and the KV cache.

What that means is the scheme's own (`quantization/<scheme>.py`). Quantization of an input is inserted plainly, before the first product
that reads it; `push_quantize` then moves it into the op that makes the input.
"""

from __future__ import annotations

from trtllm_engines.compiler.graph import ModelGraph
from trtllm_engines.quantization.registry import SharedInputs, definition, kv_definitions


def apply(graph: ModelGraph) -> None:
    shared: SharedInputs = {}
    for product in graph.nodes("linear"):
        scheme = graph.scheme(product.args[1])  # type: ignore[arg-type]
        quantize_product = definition(scheme.name).quantize_product
        if quantize_product is None:
            continue
        with graph.fx.inserting_before(product):
            quantized = quantize_product(graph, product, scheme, shared)
        product.replace_all_uses_with(quantized)
        graph.fx.erase_node(product)
    if graph.kv is not None and graph.kv.dtype in kv_definitions():
        kv_definitions()[graph.kv.dtype].quantize_cache(graph, graph.kv)
