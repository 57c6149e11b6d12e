"""int8 weights with one scale per output channel and int8 inputs with one per token (W8A8), as SmoothQuant leaves them.

SmoothQuant (Xiao et al. 2023) moves the range of input channels into the weights before they are quantized: its factors are folded into the
norms and the rows before, in the checkpoint, so nothing is left to do here. Sums of int8 products are exact, so results do not depend on
how a kernel divides K.
"""

from __future__ import annotations

from trtllm_engines.quantization.by_row import quantize_product, recipes
from trtllm_engines.quantization.registry import FUSIONS, SchemeDefinition, register
from trtllm_engines.quantization.scheme import Codes, Inputs, QuantScheme

CODES, SCALE = "int8_row_codes", "int8_row_scale"

INT8_SQ = register(
    SchemeDefinition(
        scheme=QuantScheme("int8_sq", Codes("int8", "row"), Inputs("int8", "dynamic")),
        wide_dtype="bf16",
        kv_dtype="fp8",
        quantize_product=quantize_product(CODES, SCALE),
        recipes=recipes("int8", CODES, SCALE),
        fusions=FUSIONS,
        algorithms=("W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN", "W8A8_SQ_PER_CHANNEL"),
    )
)
