"""GEMMs, alone and with the activation that follows, and the split of a merged one's columns.

A weight of codes [N, K] has the values

    value[n, k] = weight_scale[n or 0] * group_scale[k // group, n] * (decode(code[n, k]) - weight_zero[k // group, n])

with what is absent left out, but for int4, whose zero is then 8. The group is K / group_scale.shape[0] codes of a row. Scales and zeros of
groups are transposed, [K / group, N], so that neighbouring threads of a kernel, which have neighbouring rows, read neighbouring numbers.
`weight_scale` is fp32, [1] or [N, 1]; `group_scale` is fp32, fp16, bf16, fp8, or uint8 for a power of two (E8M0: 2^(s - 127));
`weight_zero` is bf16.
"""

from __future__ import annotations

from collections.abc import Iterator

from trtllm_kernels.dialect.model_shape import ModelTensors
from trtllm_kernels.dialect.op_spec import ExampleCall, OpSpec, Trait, register
from trtllm_kernels.dialect.types import TensorSpec
from trtllm_kernels.dialect.work import elementwise, gemm


def _linear_examples(t: ModelTensors) -> Iterator[ExampleCall]:
    """QKV with a bias; the down projection without, with a residual, with both; with row-wise scales; and of 4-bit codes."""
    h, i = t.model.hidden, t.model.intermediate
    down = t.codes(h, i)
    qkv, scales = t.codes(t.qkv_width, h), (t.x_scale, t.weight_scale(h))
    yield (t.hidden_codes, qkv, t.vector(t.qkv_width), t.x_scale, t.weight_scale(t.qkv_width)), (t.rows(t.qkv_width),), {}
    yield (t.inner_codes, down, None, *scales), (t.hidden,), {}
    yield (t.inner_codes, down, None, *scales, t.hidden), (t.hidden,), {}
    yield (t.inner_codes, down, t.vector(h), *scales, t.hidden), (t.hidden,), {}
    if t.scale:
        yield (t.inner_codes, down, None, t.row_scales, TensorSpec((h, 1), "fp32")), (t.hidden,), {}
    if t.precision in ("bf16", "fp8") and h % 64 == 0 and i % 128 == 0:
        packed, groups = TensorSpec((h, i), "int4"), TensorSpec((i // 128, h), "bf16")
        yield (t.inner_codes, packed, None, t.x_scale, None, t.hidden, groups), (t.hidden,), {}


register(
    OpSpec(
        "linear(Tensor x, Tensor weight, Tensor? bias=None, Tensor? x_scale=None, Tensor? weight_scale=None, Tensor? residual=None, "
        "Tensor? group_scale=None, Tensor? weight_zero=None) -> Tensor",
        "x @ weight.T + bias + residual",
        work=gemm,
        examples=_linear_examples,
        kind="gemm",
        traits=frozenset({Trait.LAYER, Trait.ROWWISE}),
        in_place="residual",
    )
)
register(
    OpSpec(
        "gate_up_silu(Tensor x, Tensor weight, Tensor? x_scale=None, Tensor? weight_scale=None, Tensor? out_scale=None, "
        "Tensor? group_scale=None, Tensor? weight_zero=None) -> Tensor",
        "silu(x @ gate.T) * (x @ up.T), rows of gate and up interleaved in one weight",
        work=gemm,
        examples=lambda t: [
            (
                (
                    t.hidden_codes,
                    t.codes(2 * t.model.intermediate, t.model.hidden),
                    *(t.x_scale, t.weight_scale(2 * t.model.intermediate), t.scale),
                ),
                (t.inner_result,),
                {},
            )
        ],
        kind="gemm",
        traits=frozenset({Trait.ACTIVATION, Trait.ROWWISE}),
    )
)
register(
    OpSpec(
        "linear_gelu(Tensor x, Tensor weight, Tensor? bias=None, Tensor? x_scale=None, Tensor? weight_scale=None, "
        "Tensor? out_scale=None, Tensor? group_scale=None, Tensor? weight_zero=None) -> Tensor",
        "gelu(x @ weight.T + bias), tanh approximation",
        work=gemm,
        examples=lambda t: [
            (
                (
                    t.hidden_codes,
                    t.codes(t.model.intermediate, t.model.hidden),
                    t.vector(t.model.intermediate),
                    *(t.x_scale, t.weight_scale(t.model.intermediate), t.scale),
                ),
                (t.inner_result,),
                {},
            )
        ],
        kind="gemm",
        traits=frozenset({Trait.ACTIVATION, Trait.ROWWISE}),
    )
)
register(
    OpSpec(
        "split(Tensor x, int[] sizes) -> Tensor[]",
        "columns of x as separate tensors",
        work=elementwise(0),
        traits=frozenset({Trait.COLUMNWISE, Trait.ROWWISE}),
        examples=lambda t: [
            ((t.rows(t.qkv_width),), (t.rows(t.q_width), t.rows(t.kv_width)), {"sizes": [t.q_width, t.kv_width]}),
        ],
    )
)
