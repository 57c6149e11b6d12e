"""fp32, fp16 and bf16: products of wide numbers, as schemes without codes. Any fusion may take them."""

from __future__ import annotations

import torch
from torch import Tensor

from trtllm_engines.checkpoints import WeightSource
from trtllm_engines.checkpoints.stack import stack
from trtllm_engines.quantization.registry import CAST, FUSIONS, RecipeKind, SchemeDefinition, register
from trtllm_engines.quantization.scheme import UNQUANTIZED, QuantScheme, WeightRecipe

ALGORITHMS = {"bf16": ("NO_QUANT",)}
"""NVIDIA's name for no quantization. It is bf16 on a CPU too, so that a name means one thing, also of a checkpoint that states codes."""


def _cast(recipe: WeightRecipe, source: WeightSource, dtype: torch.dtype, device: torch.device) -> Tensor:
    return stack(recipe, source, dtype, device)


for dtype_name in UNQUANTIZED:
    register(
        SchemeDefinition(
            scheme=QuantScheme(dtype_name),
            wide_dtype=dtype_name,
            kv_dtype=dtype_name,
            recipes={CAST: RecipeKind(_cast, by_element=True)},
            fusions=FUSIONS,
            algorithms=ALGORITHMS.get(dtype_name, ()),
        )
    )
