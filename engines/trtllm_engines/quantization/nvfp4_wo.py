"""fp4 weights in NVIDIA's groups of 16, wide inputs: scales are E4M3 codes, with one scale for the tensor.

Hopper multiplies no fp4, so inputs that a checkpoint would have in fp4 stay wide. Every product of a code and its scale is exact in bf16.
"""

from __future__ import annotations

from trtllm_engines.quantization.codes import RECIPES, quantize_weight_only
from trtllm_engines.quantization.registry import FUSIONS, SchemeDefinition, register
from trtllm_engines.quantization.scheme import Codes, QuantScheme

register(
    SchemeDefinition(
        scheme=QuantScheme("nvfp4_wo", Codes("fp4", "group", 16, scale_dtype="fp8", tensor_scale=True)),
        wide_dtype="bf16",
        kv_dtype="bf16",
        quantize_product=quantize_weight_only,
        recipes=RECIPES,
        fusions=FUSIONS,
        algorithms=("NVFP4", "NVFP4_AWQ", "W4A16_NVFP4"),
    )
)
