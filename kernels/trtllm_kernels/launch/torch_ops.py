"""CUDA implementations of the dialect in torch: lower, compile (cached), bind and launch, exactly as an engine does.

They serve tests and running a graph op by op; an engine binds once and does none of this in a step. No engine runs `attention` (without a
cache), so its reference serves on every device.
"""

from __future__ import annotations

from typing import Any

import torch

from trtllm_kernels.dialect.expr import evaluate
from trtllm_kernels.dialect.group import HEADER_WORDS, PIPE_HEADER_WORDS
from trtllm_kernels.dialect.registry import LIBRARY, OpDef
from trtllm_kernels.dialect.specs import DTYPES, spec_of
from trtllm_kernels.dialect.types import SYMBOLS, Attr, Lowered, TensorSpec, rounded_keys
from trtllm_kernels.errors import KernelError
from trtllm_kernels.lowering import LOWERINGS, lower


def bound_arguments(op: OpDef, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Every argument of the op by name, including defaults."""
    arguments = op.overload._schema.arguments
    named = {a.name: a.default_value for a in arguments if a.has_default_value()}
    named.update(zip((a.name for a in arguments), args, strict=False))
    named.update(kwargs)
    return named


def num_decodes(query_start: torch.Tensor) -> int:
    """Number of leading sequences with one token: the batch's order makes them decode rows."""
    many = torch.nonzero(query_start.diff() != 1)
    return int(many[0]) if len(many) else len(query_start) - 1


def step_sizes(named: dict[str, Any]) -> dict[str, int]:
    """The symbols that the launches of one call need. Leading dimensions are numbers there, so only what the batch's order decides is
    left."""
    if "query_start" not in named:
        return dict.fromkeys(SYMBOLS, 0)
    decodes = num_decodes(named["query_start"])
    lengths = named["query_start"].diff()
    kv_lens = named.get("kv_lens", lengths)
    longest = int(kv_lens[:decodes].max()) if decodes else 0
    continued = (kv_lens > lengths)[decodes:]
    return {**dict.fromkeys(SYMBOLS, 0), "D": decodes, "C": int(continued.sum()), "L": rounded_keys(longest)}


def lower_call(op: OpDef, named: dict[str, Any], outputs: list[torch.Tensor], arch: str, in_place: bool = False) -> Lowered:
    inputs: list[TensorSpec | None] = [None if named[name] is None else spec_of(named[name]) for name in op.tensors]
    attrs: dict[str, Attr] = {name: list(v) if isinstance(v := named[name], tuple | list) else v for name in op.attrs}
    return lower(op.name, inputs, [spec_of(y) for y in outputs], attrs, arch, in_place=in_place)


def as_list(result: Any) -> list[torch.Tensor]:
    return list(result) if isinstance(result, tuple | list) else [result]


_FIRST_ADDRESS = {"group": HEADER_WORDS, "pipe": PIPE_HEADER_WORDS}


def _check_addresses(op: OpDef, named: dict[str, Any]) -> None:
    """Raises `KernelError` where ranks would meet at address 0: a group or pipe made for ops on a CPU has a number and no addresses. The
    kernel would break the process's CUDA context."""
    for name, first in _FIRST_ADDRESS.items():
        if named.get(name) is not None and not bool(named[name][first:].any()):
            raise KernelError(f"op {op.name}: its {name} holds no addresses of GPU memory, so it is of a CPU; let `launch.peers` make it")


def execute(op: OpDef, named: dict[str, Any], outputs: list[torch.Tensor]) -> None:
    """Launches `op` on CUDA tensors, writing `outputs`. Raises `KernelError` for a `group` or `pipe` of a CPU."""
    from trtllm_kernels.compile.aot import compile_all
    from trtllm_kernels.launch.driver import BoundProgram

    _check_addresses(op, named)
    device = outputs[0].device
    major, minor = torch.cuda.get_device_capability(device)
    arch = f"sm_{major}{minor}"
    lowered = lower_call(op, named, outputs, arch)
    tensors: dict[str, torch.Tensor] = {name: named[name] for name in op.tensors if named[name] is not None}
    for name, tensor in tensors.items():
        if name not in op.mutates:
            tensors[name] = tensor.contiguous() if tensor.data_ptr() % 16 == 0 else tensor.clone(memory_format=torch.contiguous_format)
    tensors.update({f"out{i}": y for i, y in enumerate(outputs)})
    symbols = step_sizes(named)
    for name, spec in lowered.workspaces.items():
        shape = [max(1, evaluate(dim, symbols)) for dim in spec.shape]
        tensors[name] = torch.empty(shape, dtype=DTYPES[spec.dtype], device=device)
    with torch.cuda.device(device):
        program = BoundProgram([lowered], tensors.__getitem__, compile_all(lowered.kernels, arch))
        program.set_symbols(**symbols)
        program.run()


def _run(op: OpDef, *args: Any, **kwargs: Any) -> Any:
    named = bound_arguments(op, args, kwargs)
    result = op.fake(**named)
    execute(op, named, as_list(result))
    return result


def register(op: OpDef) -> None:
    """Gives an op its CUDA implementation: the launches of its lowering or, where it has none, the reference."""
    if op.name in LOWERINGS:
        LIBRARY.impl(op.name, lambda *args, **kwargs: _run(op, *args, **kwargs), "CUDA")  # type: ignore[no-untyped-call]
    else:
        LIBRARY.impl(op.name, op.reference, "CUDA")  # type: ignore[no-untyped-call]
