"""int8 weights with one scale per row, or per group where a checkpoint has groups; wide inputs (W8A16)."""

from __future__ import annotations

from trtllm_engines.quantization.codes import RECIPES, quantize_weight_only
from trtllm_engines.quantization.registry import FUSIONS, SchemeDefinition, register
from trtllm_engines.quantization.scheme import Codes, QuantScheme

register(
    SchemeDefinition(
        scheme=QuantScheme("int8_wo", Codes("int8", "row")),
        wide_dtype="bf16",
        kv_dtype="bf16",
        quantize_product=quantize_weight_only,
        recipes=RECIPES,
        fusions=FUSIONS,
        algorithms=("W8A16", "W8A16_GPTQ"),
    )
)
