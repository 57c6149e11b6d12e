"""fp8 (E4M3) by rows: weights with one scale per output channel, inputs with one scale per token, found as the tokens come.

Nothing is calibrated; the price is that a row's scale is found in every step.
"""

from __future__ import annotations

from trtllm_engines.quantization.by_row import quantize_product, recipes
from trtllm_engines.quantization.registry import FUSIONS, SchemeDefinition, register
from trtllm_engines.quantization.scheme import Codes, Inputs, QuantScheme

CODES, SCALE = "fp8_row_codes", "fp8_row_scale"


FP8_ROWWISE = register(
    SchemeDefinition(
        scheme=QuantScheme("fp8_rowwise", Codes("fp8", "row"), Inputs("fp8", "dynamic")),
        wide_dtype="bf16",
        kv_dtype="fp8",
        quantize_product=quantize_product(CODES, SCALE),
        recipes=recipes("fp8", CODES, SCALE),
        fusions=FUSIONS,
        algorithms=("FP8_PER_CHANNEL_PER_TOKEN",),
    )
)
