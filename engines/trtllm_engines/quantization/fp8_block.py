"""fp8 (E4M3) weights with one scale per square of 128 x 128 (DeepSeek-V3, Qwen3-FP8).

Inputs stay wide. Those models quantize them too, one scale per 128 columns of a token, since their kernels multiply fp8; wide inputs cost
the weight's reads, the same, and no rounding. In an engine each row has the scales of its square, so that a rank may have any of the rows.
"""

from __future__ import annotations

from trtllm_engines.quantization.codes import RECIPES, quantize_weight_only
from trtllm_engines.quantization.registry import FUSIONS, SchemeDefinition, register
from trtllm_engines.quantization.scheme import Codes, QuantScheme

register(
    SchemeDefinition(
        scheme=QuantScheme("fp8_block", Codes("fp8", "block", 128)),
        wide_dtype="bf16",
        kv_dtype="bf16",
        quantize_product=quantize_weight_only,
        recipes=RECIPES,
        fusions=FUSIONS,
        algorithms=("FP8_BLOCK_SCALES", "FP8_PB_WO"),
    )
)
