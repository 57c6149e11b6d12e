"""Quantization of activations, to FP8 with a given scale or to FP8 or int8 with a scale per row."""

from __future__ import annotations

from trtllm_kernels.dialect.op_spec import OpSpec, Trait, register
from trtllm_kernels.dialect.work import elementwise

register(
    OpSpec(
        "quantize(Tensor x, Tensor scale) -> Tensor",
        "x / scale, clamped and rounded to E4M3",
        work=elementwise(2),
        traits=frozenset({Trait.COLUMNWISE, Trait.ROWWISE}),
        examples=lambda t: [((t.hidden, t.scale), (t.hidden_codes,), {})] if t.scale else [],
    )
)
register(
    OpSpec(
        'quantize_rows(Tensor x, str dtype="fp8") -> (Tensor, Tensor)',
        "(codes, scales) of x in fp8 or int8, each row scaled by its own largest magnitude",
        work=elementwise(0),
        traits=frozenset({Trait.COLUMNWISE, Trait.ROWWISE}),
        examples=lambda t: [((t.hidden,), (t.hidden_codes, t.row_scales), {"dtype": t.precision})] if t.quantized else [],
    )
)
