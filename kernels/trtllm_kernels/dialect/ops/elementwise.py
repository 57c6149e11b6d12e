"""Activations and the residual addition."""

from __future__ import annotations

from trtllm_kernels.dialect.op_spec import OpSpec, Trait, register
from trtllm_kernels.dialect.work import elementwise

register(
    OpSpec(
        "silu_mul(Tensor gate, Tensor up) -> Tensor",
        "silu(gate) * up",
        work=elementwise(5),
        traits=frozenset({Trait.COLUMNWISE}),
        examples=lambda t: [((t.inner, t.inner), (t.inner,), {})],
        same_shape=("gate", "up"),
    )
)
register(
    OpSpec(
        "silu_mul_packed(Tensor gate_up, Tensor? out_scale=None) -> Tensor",
        "silu of the left half of the columns, times the right half",
        work=elementwise(5),
        traits=frozenset({Trait.COLUMNWISE}),
        examples=lambda t: [((t.rows(2 * t.model.intermediate), t.scale), (t.inner_codes,), {})],
    )
)
register(
    OpSpec(
        "gelu(Tensor x, Tensor? out_scale=None) -> Tensor",
        "GELU, tanh approximation",
        work=elementwise(9),
        traits=frozenset({Trait.COLUMNWISE}),
        examples=lambda t: [((t.inner, t.scale), (t.inner_codes,), {})],
    )
)
register(
    OpSpec(
        "add(Tensor a, Tensor b) -> Tensor",
        "a + b",
        work=elementwise(1),
        traits=frozenset({Trait.ADDITIVE, Trait.COLUMNWISE}),
        examples=lambda t: [((t.hidden, t.hidden), (t.hidden,), {})],
        same_shape=("a", "b"),
    )
)
