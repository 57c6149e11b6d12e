"""Whether a plan that was read makes sense: its types were checked when it was read, here its names, sizes and offsets are.

So whatever runs it may index by its names and allocate by its sizes. What its ops compute is not judged: an engine is trusted as far as
its checksums are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Set

from trtllm_engines.compiler.plan import LOGITS, NEXT_HIDDEN, Op, Plan
from trtllm_engines.documents import shown
from trtllm_engines.errors import EngineError
from trtllm_engines.models.config import check_sizes
from trtllm_engines.quantization.registry import definition, recipe_kind
from trtllm_kernels.dialect.expr import evaluate
from trtllm_kernels.dialect.ops import OP_SPECS
from trtllm_kernels.dialect.specs import DTYPES, storage_shape
from trtllm_kernels.dialect.types import SYMBOLS, TensorSpec
from trtllm_kernels.errors import KernelError

MOST_ELEMENTS = 2**40
"""Of a tensor."""
MOST_ARENA = 2**44
"""Bytes."""
_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,200}")
_ARCH = re.compile(r"cpu|sm_[0-9]{2,3}")


def check_plan(plan: Plan, source: str) -> None:
    """Raises `EngineError` naming `source` and what in it does not fit."""

    def refuse(said: str) -> EngineError:
        return EngineError(f"{source}: {said}")

    check_sizes(plan.config, source)
    try:
        plan.config.check_sequence_length(plan.profile.max_seq_len)
    except EngineError as error:
        raise refuse(str(error)) from None
    definition(plan.precision)
    stage = plan.stage
    if not (0 <= stage.index < plan.parallel.pp and 0 <= stage.first_layer < stage.end_layer <= plan.config.num_layers):
        raise refuse(f"stage {stage.index} of {plan.parallel.pp} has layers {stage.first_layer} to {stage.end_layer}; the model has others")
    _check_origin(plan, refuse)
    for label, specs in (("weights", plan.weights), ("constants", plan.constants), ("values", plan.values)):
        for name, spec in specs.items():
            _check_spec(f"{label} {name}", spec, plan, label != "values", refuse)
    for name in plan.weights:
        if name not in plan.weight_recipes:
            raise refuse(f"weight {shown(name)} has no recipe")
    for recipe in plan.weight_recipes.values():
        recipe_kind(recipe.kind)
        if not all(1 <= size <= MOST_ELEMENTS for _, shape in recipe.inputs for size in shape):
            raise refuse(f"a recipe of {recipe.inputs[0][0][:60]} has a shape with a size that no tensor has")
    if not 0 <= plan.arena_bytes <= MOST_ARENA:
        raise refuse(f"arena_bytes is {plan.arena_bytes}; it must lie in 0 to {MOST_ARENA}")
    for name, buffer in plan.buffers.items():
        if not (0 <= buffer.offset <= buffer.offset + buffer.nbytes <= plan.arena_bytes):
            raise refuse(f"buffer {shown(name)} lies outside the arena of {plan.arena_bytes} bytes")
    known = {*plan.weights, *plan.constants, *plan.step_inputs}
    for op in plan.ops:
        _check_op(op, plan, known, refuse)
        known |= set(op.outputs)
    moves = {name for name, there in (("receive", stage.index > 0), ("send", not plan.is_last_stage)) if there}
    if lost := moves - {op.op for op in plan.ops}:
        raise refuse(f"stage {stage.index} of {plan.parallel.pp} has no op {min(lost)}, as an earlier release wrote it; rebuild the engine")
    missing = next(
        (name for name in (*plan.outputs, LOGITS if plan.is_last_stage else NEXT_HIDDEN) if name not in plan.values or name not in known),
        None,
    )
    if missing is not None:
        raise refuse(f"output {shown(missing)} is made by none of its ops")


def _check_origin(plan: Plan, refuse: Callable[[str], EngineError]) -> None:
    origin = plan.weights_source
    if origin.get("kind") == "dummy":
        if not isinstance(origin.get("seed"), int):
            raise refuse(f"weights_source.seed is {shown(origin.get('seed'))}; it must be a whole number")
    elif not isinstance(origin.get("kind"), str) or not isinstance(origin.get("path"), str):
        raise refuse(f"weights_source is {shown(dict(origin))}; it must have a kind and a path")
    if not isinstance(plan.fingerprint.provenance.get("model"), str):
        raise refuse("fingerprint.provenance has no model")
    for arch in plan.fingerprint.arches:
        if not _ARCH.fullmatch(arch):
            raise refuse(f"fingerprint.arches has {shown(arch)}; it must be cpu or such as sm_90")


def _check_spec(label: str, spec: TensorSpec, plan: Plan, fixed: bool, refuse: Callable[[str], EngineError]) -> None:
    if spec.dtype not in DTYPES:
        raise refuse(f"{label[:100]} is of dtype {shown(spec.dtype)}; use one of {', '.join(DTYPES)}")
    sizes = [size if isinstance(size, int) else _largest(size, plan, label, refuse) for size in spec.shape]
    if (fixed and any(isinstance(size, str) for size in spec.shape)) or not all(0 <= size <= MOST_ELEMENTS for size in sizes):
        raise refuse(f"{label[:100]} has shape {shown(list(spec.shape))}")
    if math.prod(sizes) > MOST_ELEMENTS:
        raise refuse(f"{label[:100]} has shape {shown(list(spec.shape))}, more than {MOST_ELEMENTS} elements")


def _largest(expression: str, plan: Plan, label: str, refuse: Callable[[str], EngineError]) -> int:
    """The value of a size at the profile's largest step."""
    batch, tokens = plan.profile.max_batch_size, plan.profile.max_num_tokens
    try:
        if len(expression) > 300:
            raise KernelError("it is too long")
        return evaluate(expression, {**dict.fromkeys(SYMBOLS, batch), "T": tokens, "L": plan.profile.max_seq_len})
    except KernelError as error:
        raise refuse(f"{label[:100]} has a size {shown(expression)} that cannot be read ({str(error)[:200]})") from None


def _check_op(op: Op, plan: Plan, known: Set[str], refuse: Callable[[str], EngineError]) -> None:
    spec = OP_SPECS.get(op.op)
    if spec is None:
        raise refuse(f"op {shown(op.name)} is {shown(op.op)}, which is not in this release")
    if len(op.inputs) != len(spec.tensors):
        raise refuse(f"op {shown(op.name)} has {len(op.inputs)} inputs and {op.op} takes {len(spec.tensors)}")
    unknown = next((name for name in op.inputs if name and name not in known), None)
    if unknown is not None:
        raise refuse(f"op {shown(op.name)} reads {shown(unknown)}, which nothing before it makes")
    for argument, name in zip(spec.tensors, op.inputs, strict=True):
        if not name and argument not in spec.optional_tensors:
            raise refuse(f"op {shown(op.name)} has no {argument}, which {op.op} needs")
    if set(op.attrs) != set(spec.attrs):
        raise refuse(f"op {shown(op.name)} has attributes {shown(sorted(op.attrs))} and {op.op} takes {shown(sorted(spec.attrs))}")
    lost = next((name for name in op.outputs if name not in plan.values), None)
    if not op.outputs or lost is not None:
        raise refuse(f"op {shown(op.name)} gives {shown(lost)}, which has no shape")
    for arch, lowered in op.tactics.items():
        names = {kernel.key for kernel in lowered.kernels}
        if not _ARCH.fullmatch(arch) or not all(_NAME.fullmatch(name) for name in names):
            raise refuse(f"op {shown(op.name)} names an unknown kernel or architecture")
        for launch in lowered.launches:
            if not launch.library and launch.kernel not in names:
                raise refuse(f"op {shown(op.name)} launches {shown(launch.kernel)}, which is not among its kernels")
    for arch in plan.fingerprint.arches:
        if arch != "cpu" and arch not in op.tactics:
            raise refuse(f"op {shown(op.name)} has no launches for {arch}")


def check_listed(plan: Plan, listed: Iterable[str], names: Iterable[str], source: str) -> None:
    """Raises `EngineError` for a file that the engine reads and `checksums.json` does not list."""
    there = set(listed)
    kernels = {f"kernels/{arch}/{kernel.key}" for op in plan.ops for arch, one in op.tactics.items() for kernel in one.kernels}
    needed = [*names, *(f"{name}{ending}" for name in sorted(kernels) for ending in (".cubin", ".json"))]
    missing = next((name for name in needed if name not in there), None)
    if missing is not None:
        raise EngineError(f"{source} does not list {missing}, which the engine reads; rebuild the engine or copy it again")


def check_tensors(tensors: Mapping[str, object], specs: Mapping[str, TensorSpec], source: str) -> None:
    """Raises `EngineError` unless the tensors that were loaded are those of the plan, by name, shape and type."""
    for name, spec in specs.items():
        tensor = tensors.get(name)
        shape, dtype = getattr(tensor, "shape", None), getattr(tensor, "dtype", None)
        if shape is None or tuple(shape) != storage_shape([int(size) for size in spec.shape], spec.dtype) or dtype != DTYPES[spec.dtype]:
            state = "is missing" if shape is None else f"is {str(dtype).removeprefix('torch.')} {list(shape)}"
            raise EngineError(f"{source}: tensor {name} {state}; the plan has {spec.dtype} {list(spec.shape)}; rebuild the engine")


def unknown_key(content: object, written: object, place: str = "") -> str | None:
    """Where `content` has a key that `written`, the same document read and written again, has not."""
    if isinstance(content, dict) and isinstance(written, dict):
        for key, value in content.items():
            if key not in written:
                return f"{place}{key}"
            if (inner := unknown_key(value, written[key], f"{place}{key}.")) is not None:
                return inner
    elif isinstance(content, list) and isinstance(written, list):
        for index, pair in enumerate(zip(content, written, strict=False)):
            if (inner := unknown_key(*pair, f"{place}{index}.")) is not None:
                return inner
    return None
