"""fp4 weights in groups of 32 whose scales are powers of two (OCP Microscaling Formats 1.0), wide inputs."""

from __future__ import annotations

from trtllm_engines.quantization.codes import RECIPES, quantize_weight_only
from trtllm_engines.quantization.registry import FUSIONS, SchemeDefinition, register
from trtllm_engines.quantization.scheme import Codes, QuantScheme

register(
    SchemeDefinition(
        scheme=QuantScheme("mxfp4_wo", Codes("fp4", "group", 32, scale_dtype="e8m0")),
        wide_dtype="bf16",
        kv_dtype="bf16",
        quantize_product=quantize_weight_only,
        recipes=RECIPES,
        fusions=FUSIONS,
        algorithms=("MXFP4", "W4A16_MXFP4"),
    )
)
