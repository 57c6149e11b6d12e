"""mixed: a scheme for each product. The plan of a checkpoint that several schemes quantized goes by this name, and so does one that a file
states (`--precision-map`); no product has it itself."""

from __future__ import annotations

from trtllm_engines.quantization.registry import MIXED, SchemeDefinition, register
from trtllm_engines.quantization.scheme import QuantScheme

register(
    SchemeDefinition(scheme=QuantScheme(MIXED), wide_dtype="bf16", kv_dtype="bf16", algorithms=("MIXED_PRECISION",)),
)
