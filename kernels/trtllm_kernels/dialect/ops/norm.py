"""RMS norm and layer norm, alone and after the residual addition."""

from __future__ import annotations

from trtllm_kernels.dialect.op_spec import OpSpec, Trait, register
from trtllm_kernels.dialect.work import elementwise

_EPS = {"eps": 1e-5}

register(
    OpSpec(
        "rms_norm(Tensor x, Tensor weight, float eps, Tensor? out_scale=None) -> Tensor",
        "RMS norm over groups as long as the weight",
        work=elementwise(4),
        examples=lambda t: [((t.hidden, t.norm_weight, t.scale), (t.hidden_codes,), _EPS)],
        traits=frozenset({Trait.LAYER, Trait.COLUMNWISE, Trait.NORM}),
    )
)
register(
    OpSpec(
        "layer_norm(Tensor x, Tensor weight, Tensor bias, float eps, Tensor? out_scale=None) -> Tensor",
        "layer norm",
        work=elementwise(7),
        examples=lambda t: [((t.hidden, t.norm_weight, t.norm_weight, t.scale), (t.hidden_codes,), _EPS)],
        traits=frozenset({Trait.LAYER}),
    )
)
register(
    OpSpec(
        "add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps, Tensor? addend=None, Tensor? out_scale=None) "
        "-> (Tensor, Tensor)",
        "(RMS norm of the sum, the sum) of x, addend and residual",
        work=elementwise(5, summands=("addend",)),
        examples=lambda t: [((t.hidden, t.hidden, t.norm_weight, None, t.scale), (t.hidden_codes, t.hidden), _EPS)],
        same_shape=("x", "residual", "addend"),
    )
)
register(
    OpSpec(
        "add_layer_norm(Tensor x, Tensor residual, Tensor weight, Tensor bias, float eps, Tensor? addend=None, Tensor? out_scale=None) "
        "-> (Tensor, Tensor)",
        "(layer norm of the sum, the sum) of x, addend and residual",
        work=elementwise(8, summands=("addend",)),
        examples=lambda t: [
            ((t.hidden, t.hidden, t.norm_weight, t.norm_weight, t.hidden, t.scale), (t.hidden_codes, t.hidden), _EPS),
        ],
        same_shape=("x", "residual", "addend"),
    )
)
