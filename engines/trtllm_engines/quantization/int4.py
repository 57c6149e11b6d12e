"""int4 weights in groups, wide inputs (W4A16): what AWQ, GPTQ and rounding to nearest all come to.

They differ in how codes were found, which no kernel sees. Where nobody quantized the checkpoint, groups are of 128, without zero points.
"""

from __future__ import annotations

from trtllm_engines.quantization.codes import RECIPES, quantize_weight_only
from trtllm_engines.quantization.registry import FUSIONS, SchemeDefinition, register
from trtllm_engines.quantization.scheme import Codes, QuantScheme

register(
    SchemeDefinition(
        scheme=QuantScheme("int4", Codes("int4", "group", 128, scale_dtype="fp16")),
        wide_dtype="bf16",
        kv_dtype="bf16",
        quantize_product=quantize_weight_only,
        recipes=RECIPES,
        fusions=FUSIONS,
        algorithms=("W4A16", "W4A16_AWQ", "W4A16_GPTQ", "INT4_AWQ", "INT4_GPTQ"),
    )
)
