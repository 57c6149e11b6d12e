"""From an op to launches: `lower` is all the compiler needs of the kernels. Pure data in and out; no GPU, no Triton.

    lower("rms_norm", [x_spec, weight_spec], [y_spec], {"eps": 1e-5}, "sm_90", input_names=["x.3", "norm.weight"], output_names=["y.3"])

Leading dimensions may be symbols (`T`, `S`); everything else must be a number. Names default to the op's argument names and `out0`, `out1`.
Without a `tactic`, the one recorded for the architecture's GPU is used if there is one, else the stated default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from trtllm_kernels import tactics
from trtllm_kernels.dialect.types import Attr, Lowered, TensorSpec
from trtllm_kernels.errors import KernelError
from trtllm_kernels.lowering import attention, gemm, rows
from trtllm_kernels.lowering.call import OpCall, Operand
from trtllm_kernels.lowering.space import Choice, choices

ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "embedding": ("ids", "weight"),
    "quantize": ("x", "scale"),
    "quantize_rows": ("x",),
    "rms_norm": ("x", "weight", "out_scale"),
    "layer_norm": ("x", "weight", "bias", "out_scale"),
    "linear": ("x", "weight", "bias", "x_scale", "weight_scale", "residual"),
    "linear_sample": ("x", "weight", "bias", "sampling_words", "sample_slots", "ring_slot", "argmax_scratch", "last_tokens", "token_ring"),
    "gate_up_silu": ("x", "weight", "x_scale", "weight_scale", "out_scale"),
    "linear_gelu": ("x", "weight", "bias", "x_scale", "weight_scale", "out_scale"),
    "split": ("x",),
    "rope": ("x", "positions", "cos_sin"),
    "silu_mul": ("gate", "up"),
    "silu_mul_packed": ("gate_up", "out_scale"),
    "gelu": ("x", "out_scale"),
    "add": ("a", "b"),
    "gather_rows": ("x", "rows"),
    "add_rms_norm": ("x", "residual", "weight", "addend", "out_scale"),
    "add_layer_norm": ("x", "residual", "weight", "bias", "addend", "out_scale"),
    "prepare_step": ("context_tokens", "seq_slots", "query_start", "kv_lens", "last_tokens", "block_table"),
    "rope_kv_write": ("qkv", "positions", "cos_sin", "kv_cache", "kv_slots", "q_norm", "k_norm", "k_scale", "v_scale"),
    "paged_attention": (
        "qkv",
        "kv_cache",
        "block_table",
        "seq_slots",
        "query_start",
        "kv_lens",
        "k_scale",
        "v_scale",
        "out_scale",
    ),
}
"""Tensor arguments of each op that lowers, in schema order (here, so that lowering needs no torch; a test compares)"""

IN_PLACE: Mapping[str, str] = {"rope_kv_write": "qkv", "linear": "residual"}
"""Ops whose launches may leave the first result in the memory of an argument: where most of it stays as it is, or each element of the
result needs that element of the argument alone. The ops themselves are functional: whether an argument may be given up is for whoever
plans memory to know."""

_LOWERINGS: Mapping[str, Callable[[OpCall], Lowered]] = {
    "embedding": rows.gather,
    "rms_norm": rows.norm,
    "layer_norm": rows.norm,
    "linear": gemm.linear,
    "linear_sample": gemm.linear_sample,
    "gate_up_silu": gemm.gate_up_silu,
    "linear_gelu": gemm.linear_gelu,
    "quantize": rows.quantize,
    "quantize_rows": rows.quantize_rows,
    "split": rows.split,
    "rope": attention.rope,
    "silu_mul": rows.silu_mul,
    "silu_mul_packed": rows.silu_mul,
    "gelu": rows.gelu,
    "add": rows.add,
    "gather_rows": rows.gather,
    "add_rms_norm": rows.norm,
    "add_layer_norm": rows.norm,
    "prepare_step": rows.prepare_step,
    "rope_kv_write": attention.rope_kv_write,
    "paged_attention": attention.paged_attention,
}


def lower(
    op: str,
    inputs: Sequence[TensorSpec | None],
    outputs: Sequence[TensorSpec],
    attrs: Mapping[str, Attr],
    arch: str,
    *,
    tactic: Mapping[str, int] | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    in_place: bool = False,
) -> Lowered:
    """How `op` runs on `arch` (`sm_80`, `sm_89`, `sm_90`...). `inputs` in schema order, None for an absent optional.

    `in_place`: the first result and the argument `IN_PLACE` names are the same memory.
    """
    if in_place and op not in IN_PLACE:
        raise KernelError(f"op {op} has no launches that work in place; those that have: {', '.join(IN_PLACE)}")
    if tactic is None:
        tactic = tactics.recorded(arch, op, inputs, outputs, attrs)
    call = _call(op, inputs, outputs, attrs, arch, tactic or {}, input_names, output_names, in_place)
    return _LOWERINGS[op](call)


def search_space(
    op: str, inputs: Sequence[TensorSpec | None], outputs: Sequence[TensorSpec], attrs: Mapping[str, Attr], arch: str
) -> tuple[Choice, ...]:
    """What tuning may try for `op`; the arguments are those of `lower`."""
    return choices(_call(op, inputs, outputs, attrs, arch, {}, None, None))


def _call(
    op: str,
    inputs: Sequence[TensorSpec | None],
    outputs: Sequence[TensorSpec],
    attrs: Mapping[str, Attr],
    arch: str,
    tactic: Mapping[str, int],
    input_names: Sequence[str] | None,
    output_names: Sequence[str] | None,
    in_place: bool = False,
) -> OpCall:
    if op not in _LOWERINGS:
        raise KernelError(f"op {op!r} has no GPU lowering; those that have: {', '.join(_LOWERINGS)}")
    arguments = ARGUMENTS[op]
    if len(inputs) > len(arguments):
        raise KernelError(f"op {op} takes {len(arguments)} tensors ({', '.join(arguments)}), got {len(inputs)}")
    names = list(input_names) if input_names is not None else list(arguments)
    results = list(output_names) if output_names is not None else [f"out{i}" for i in range(len(outputs))]
    operands = {
        argument: None if spec is None else Operand(name, spec)
        for argument, spec, name in zip(arguments, inputs, names, strict=False)
    }  # fmt: skip
    return OpCall(
        op=op,
        inputs=operands,
        outputs=tuple(Operand(name, spec) for name, spec in zip(results, outputs, strict=True)),
        attrs=attrs,
        arch=arch,
        tactic=tactic,
        in_place=in_place,
    )
