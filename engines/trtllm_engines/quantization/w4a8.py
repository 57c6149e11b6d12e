"""int4 weights in groups, fp8 inputs (W4A8): an int4 code is exact in E4M3, so that the fp8 tensor cores multiply both.

Inputs have one static scale per tensor, as fp8's, or one per token, as fp8_rowwise's: what the checkpoint was made for.
"""

from __future__ import annotations

from torch.fx import Node

from trtllm_engines.compiler.graph import ModelGraph, call
from trtllm_engines.quantization.by_row import quantized_rows
from trtllm_engines.quantization.codes import GROUP_SCALE, RECIPES, WEIGHT_SCALE, WEIGHT_ZERO, arranged_input, quantize_weight
from trtllm_engines.quantization.fp8 import quantized_input
from trtllm_engines.quantization.registry import FUSIONS, SchemeDefinition, SharedInputs, register
from trtllm_engines.quantization.scheme import Codes, Inputs, QuantScheme


def _quantize_product(graph: ModelGraph, product: Node, scheme: QuantScheme, shared: SharedInputs) -> Node:
    x, label = arranged_input(graph, product, scheme), str(product.meta["label"])
    _, weight, bias = product.args[:3]
    assert isinstance(weight, Node)
    if scheme.inputs.scaling == "static":
        codes, scale = quantized_input(graph, x, weight, scheme, shared, label)
    else:
        codes, scale = quantized_rows(graph, x, scheme, shared, label)
    parameters = quantize_weight(graph, product, scheme)
    scales = parameters.get(WEIGHT_SCALE), None, parameters.get(GROUP_SCALE), parameters.get(WEIGHT_ZERO)
    return call(graph.fx, "linear", codes, weight, bias, scale, *scales, label=label)


register(
    SchemeDefinition(
        scheme=QuantScheme("w4a8", Codes("int4", "group", 128, scale_dtype="fp16"), Inputs("fp8", "static")),
        wide_dtype="bf16",
        kv_dtype="fp8",
        quantize_product=_quantize_product,
        recipes=RECIPES,
        fusions=FUSIONS,
        algorithms=("W4A8_AWQ", "W4A8"),
    )
)
