"""Activations, alone and with their result quantized by rows, and the residual addition."""

from __future__ import annotations

from trtllm_kernels.dialect.model_shape import ModelTensors
from trtllm_kernels.dialect.op_spec import ExampleCall, OpSpec, Trait, register
from trtllm_kernels.dialect.types import TensorSpec
from trtllm_kernels.dialect.work import elementwise

register(
    OpSpec(
        "silu_mul(Tensor gate, Tensor up) -> Tensor",
        "silu(gate) * up",
        work=elementwise(5),
        traits=frozenset({Trait.COLUMNWISE, Trait.ROWWISE}),
        examples=lambda t: [((t.inner, t.inner), (t.inner,), {})],
        same_shape=("gate", "up"),
    )
)
register(
    OpSpec(
        "silu_mul_packed(Tensor gate_up, Tensor? out_scale=None) -> Tensor",
        "silu of the left half of the columns, times the right half",
        work=elementwise(5),
        traits=frozenset({Trait.COLUMNWISE, Trait.ROWWISE}),
        examples=lambda t: [((t.rows(2 * t.model.intermediate), t.scale), (t.inner_result,), {})],
        by_row="silu_mul_packed_quantize_rows",
    )
)
register(
    OpSpec(
        "gelu(Tensor x, Tensor? out_scale=None) -> Tensor",
        "GELU, tanh approximation",
        work=elementwise(9),
        traits=frozenset({Trait.COLUMNWISE, Trait.ROWWISE}),
        examples=lambda t: [((t.inner, t.scale), (t.inner_result,), {})],
        by_row="gelu_quantize_rows",
    )
)


def _by_row(t: ModelTensors, x: TensorSpec) -> list[ExampleCall]:
    return [((x,), (t.inner_codes, t.row_scales), {"dtype": t.precision})] if t.quantized else []


register(
    OpSpec(
        'silu_mul_packed_quantize_rows(Tensor gate_up, str dtype="fp8") -> (Tensor, Tensor)',
        "(codes, scales) of silu of the left half of the columns, times the right half",
        work=elementwise(7),
        traits=frozenset({Trait.COLUMNWISE, Trait.ROWWISE}),
        examples=lambda t: _by_row(t, t.rows(2 * t.model.intermediate)),
    )
)
register(
    OpSpec(
        'gelu_quantize_rows(Tensor x, str dtype="fp8") -> (Tensor, Tensor)',
        "(codes, scales) of GELU, tanh approximation",
        work=elementwise(11),
        traits=frozenset({Trait.COLUMNWISE, Trait.ROWWISE}),
        examples=lambda t: _by_row(t, t.inner),
    )
)
register(
    OpSpec(
        "add(Tensor a, Tensor b) -> Tensor",
        "a + b",
        work=elementwise(1),
        traits=frozenset({Trait.ADDITIVE, Trait.COLUMNWISE, Trait.ROWWISE}),
        examples=lambda t: [((t.hidden, t.hidden), (t.hidden,), {})],
        same_shape=("a", "b"),
    )
)
