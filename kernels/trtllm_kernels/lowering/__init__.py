"""From an op to launches: `lower` is all that the compiler needs of the kernels. Pure data in and out; no GPU, no Triton, no torch.

    lower("rms_norm", [x_spec, weight_spec], [y_spec], {"eps": 1e-5}, "sm_90", input_names=["x.3", "norm.weight"], output_names=["y.3"])

Leading dimensions may be symbols (`T`, `S`); everything else must be a number. Names default to the op's argument names and `out0`, `out1`.
Without a `tactic`, the one recorded for `gpu`, or for the architecture's GPU, is used if there is one, else the lowering's default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ParamSpec

from trtllm_kernels import tactics
from trtllm_kernels.dialect.ops import OP_SPECS
from trtllm_kernels.dialect.types import Attr, Lowered, TensorSpec
from trtllm_kernels.discovery import import_modules
from trtllm_kernels.errors import KernelError
from trtllm_kernels.lowering.call import OpCall, Operand
from trtllm_kernels.lowering.normed import norm_in_product, normed_to
from trtllm_kernels.lowering.registry import LOWERINGS, Lowering, Phase, has_kernels
from trtllm_kernels.lowering.rotation import rotate_in_attention, rotated_to
from trtllm_kernels.lowering.space import Choice, of_decode_steps

import_modules(__name__, __path__)

__all__ = [
    "LOWERINGS",
    "Lowering",
    "Phase",
    "describe",
    "kernel_phase",
    "lower",
    "norm_in_product",
    "normed_to",
    "rotate_in_attention",
    "rotated_to",
    "search_space",
    "step_space",
]

_Arguments = ParamSpec("_Arguments")


def describe(
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
    gpu: str = "",
) -> OpCall:
    """`op` on `arch` (`sm_80`, `sm_89`, `sm_90`...), as its lowering sees it. `inputs` in schema order, None for an absent optional.

    `gpu`: whose recorded tactics to take (`tactics.files_for`).
    `in_place`: the first result and the argument `OpSpec.in_place` share memory. Raises `KernelError` for an op, a shape or a tactic that
    cannot be lowered.
    """
    if in_place and not OP_SPECS[op].in_place:
        able = ", ".join(name for name, spec in OP_SPECS.items() if spec.in_place)
        raise KernelError(f"op {op} has no launches that work in place; those that have: {able}")
    if tactic is None:
        tactic = tactics.recorded(arch, op, inputs, outputs, attrs, gpu)
    call = _call(op, inputs, outputs, attrs, arch, tactic or {}, input_names, output_names, in_place)
    if not has_kernels(op, arch):
        only = ", ".join(f"sm_{number}" for number in LOWERINGS[op].capabilities)
        cure = (
            "; run an engine on one GPU there (--tp 1 --pp 1), and several with --replicas" if OP_SPECS[op].kind == "communication" else ""
        )
        raise KernelError(f"op {op} has kernels for {only} only, not for {arch}{cure}")
    return call


def _lowered(describe: Callable[_Arguments, OpCall]) -> Callable[_Arguments, Lowered]:
    def lower(*arguments: _Arguments.args, **options: _Arguments.kwargs) -> Lowered:
        call = describe(*arguments, **options)
        return LOWERINGS[call.op].lower(call)

    return lower


lower = _lowered(describe)
"""How an op runs: its launches. The arguments are those of `describe`, and so are the errors."""


def search_space(
    op: str, inputs: Sequence[TensorSpec | None], outputs: Sequence[TensorSpec], attrs: Mapping[str, Attr], arch: str
) -> tuple[Choice, ...]:
    """What tuning may try for `op`. The arguments are those of `describe`."""
    return LOWERINGS[op].space(_call(op, inputs, outputs, attrs, arch, {}, None, None))


def step_space(
    op: str, inputs: Sequence[TensorSpec | None], outputs: Sequence[TensorSpec], attrs: Mapping[str, Attr], arch: str
) -> tuple[Choice, ...]:
    """What tuning may try for `op` where whole decode steps are measured. The arguments are those of `describe`."""
    call, lowering = _call(op, inputs, outputs, attrs, arch, {}, None, None), LOWERINGS[op]
    return of_decode_steps((lowering.step_space or lowering.space)(call))


def kernel_phase(op: str, kernel: str) -> Phase | None:
    """Which sequences of a step kernel function `kernel` of `op` serves; None: all of them."""
    return LOWERINGS[op].kernel_phases.get(kernel) if op in LOWERINGS else None


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
    if op not in LOWERINGS:
        raise KernelError(f"op {op!r} has no GPU lowering; those that have: {', '.join(LOWERINGS)}")
    arguments = OP_SPECS[op].tensors
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
