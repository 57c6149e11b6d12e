"""nf4 weights (bitsandbytes' NormalFloat) in groups of 64, wide inputs."""

from __future__ import annotations

from trtllm_engines.quantization.codes import RECIPES, quantize_weight_only
from trtllm_engines.quantization.registry import FUSIONS, SchemeDefinition, register
from trtllm_engines.quantization.scheme import Codes, QuantScheme

register(
    SchemeDefinition(
        scheme=QuantScheme("nf4", Codes("nf4", "group", 64)),
        wide_dtype="bf16",
        kv_dtype="bf16",
        quantize_product=quantize_weight_only,
        recipes=RECIPES,
        fusions=FUSIONS,
    )
)
