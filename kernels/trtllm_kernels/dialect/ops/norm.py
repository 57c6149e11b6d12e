"""RMS norm and layer norm, alone and after the residual addition, and with their result quantized by rows."""

from __future__ import annotations

from trtllm_kernels.dialect.model_shape import ModelTensors
from trtllm_kernels.dialect.op_spec import ExampleCall, OpSpec, Trait, register
from trtllm_kernels.dialect.types import TensorSpec
from trtllm_kernels.dialect.work import elementwise

_EPS = {"eps": 1e-5}

register(
    OpSpec(
        "rms_norm(Tensor x, Tensor weight, float eps, Tensor? out_scale=None) -> Tensor",
        "RMS norm over groups as long as the weight",
        work=elementwise(4),
        examples=lambda t: [((t.hidden, t.norm_weight, t.scale), (t.hidden_result,), _EPS)],
        traits=frozenset({Trait.LAYER, Trait.COLUMNWISE, Trait.NORM, Trait.ROWWISE}),
        by_row="rms_norm_quantize_rows",
        of_sum="add_rms_norm",
    )
)
register(
    OpSpec(
        "layer_norm(Tensor x, Tensor weight, Tensor bias, float eps, Tensor? out_scale=None) -> Tensor",
        "layer norm",
        work=elementwise(7),
        examples=lambda t: [((t.hidden, t.norm_weight, t.norm_weight, t.scale), (t.hidden_result,), _EPS)],
        traits=frozenset({Trait.LAYER, Trait.ROWWISE}),
        by_row="layer_norm_quantize_rows",
        of_sum="add_layer_norm",
    )
)
register(
    OpSpec(
        "add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps, Tensor? addend=None, Tensor? out_scale=None) "
        "-> (Tensor, Tensor)",
        "(RMS norm of the sum, the sum) of x, addend and residual",
        work=elementwise(5, summands=("addend",)),
        traits=frozenset({Trait.ROWWISE}),
        examples=lambda t: [((t.hidden, t.hidden, t.norm_weight, None, t.scale), (t.hidden_result, t.hidden), _EPS)],
        same_shape=("x", "residual", "addend"),
        by_row="add_rms_norm_quantize_rows",
    )
)
register(
    OpSpec(
        "add_layer_norm(Tensor x, Tensor residual, Tensor weight, Tensor bias, float eps, Tensor? addend=None, Tensor? out_scale=None) "
        "-> (Tensor, Tensor)",
        "(layer norm of the sum, the sum) of x, addend and residual",
        work=elementwise(8, summands=("addend",)),
        traits=frozenset({Trait.ROWWISE}),
        examples=lambda t: [
            ((t.hidden, t.hidden, t.norm_weight, t.norm_weight, t.hidden, t.scale), (t.hidden_result, t.hidden), _EPS),
        ],
        same_shape=("x", "residual", "addend"),
        by_row="add_layer_norm_quantize_rows",
    )
)


def _by_row(t: ModelTensors, *inputs: TensorSpec | None, rest: tuple[TensorSpec, ...] = ()) -> list[ExampleCall]:
    return [(inputs, (t.hidden_codes, t.row_scales, *rest), {**_EPS, "dtype": t.precision})] if t.quantized else []


register(
    OpSpec(
        'rms_norm_quantize_rows(Tensor x, Tensor weight, float eps, str dtype="fp8") -> (Tensor, Tensor)',
        "(codes, scales) of an RMS norm over whole rows",
        work=elementwise(6),
        traits=frozenset({Trait.ROWWISE}),
        examples=lambda t: _by_row(t, t.hidden, t.norm_weight),
    )
)
register(
    OpSpec(
        'layer_norm_quantize_rows(Tensor x, Tensor weight, Tensor bias, float eps, str dtype="fp8") -> (Tensor, Tensor)',
        "(codes, scales) of a layer norm",
        work=elementwise(9),
        traits=frozenset({Trait.ROWWISE}),
        examples=lambda t: _by_row(t, t.hidden, t.norm_weight, t.norm_weight),
    )
)
register(
    OpSpec(
        "add_rms_norm_quantize_rows(Tensor x, Tensor residual, Tensor weight, float eps, Tensor? addend=None, "
        'str dtype="fp8") -> (Tensor, Tensor, Tensor)',
        "(codes, scales) of the RMS norm of the sum, and the sum",
        work=elementwise(7, summands=("addend",)),
        traits=frozenset({Trait.ROWWISE}),
        examples=lambda t: _by_row(t, t.hidden, t.hidden, t.norm_weight, None, rest=(t.hidden,)),
        same_shape=("x", "residual", "addend"),
    )
)
register(
    OpSpec(
        "add_layer_norm_quantize_rows(Tensor x, Tensor residual, Tensor weight, Tensor bias, float eps, Tensor? addend=None, "
        'str dtype="fp8") -> (Tensor, Tensor, Tensor)',
        "(codes, scales) of the layer norm of the sum, and the sum",
        work=elementwise(10, summands=("addend",)),
        traits=frozenset({Trait.ROWWISE}),
        examples=lambda t: _by_row(t, t.hidden, t.hidden, t.norm_weight, t.norm_weight, t.hidden, rest=(t.hidden,)),
        same_shape=("x", "residual", "addend"),
    )
)
