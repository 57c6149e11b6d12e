"""The quantization plan of a checkpoint: what its tool's configuration says, corrected by what is stored.

Each tool has a reader (`formats`). It says which scheme the configuration gives each module, and what is stored of one. Where a weight is
stored wide beside others in codes, or its codes have other groups, columns out of order or factors of their own, what is stored decides.
Modules left wide stay wide in the engine, under a precision that is asked for too: whoever quantized the model had a reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from trtllm_engines.checkpoints.formats import UnknownQuantization, format_of, stated_method, states_quantization
from trtllm_engines.checkpoints.formats.format import WIDE_DTYPE, Format
from trtllm_engines.checkpoints.formats.modelopt import MODELOPT_CONFIG
from trtllm_engines.errors import EngineError
from trtllm_engines.quantization import named_plan
from trtllm_engines.quantization.module_names import check_counted, expression
from trtllm_engines.quantization.precision import automatic_cache, default_unquantized, kv_scheme, with_context_attention
from trtllm_engines.quantization.precision_map import read_precision_map
from trtllm_engines.quantization.registry import (
    EMBEDDING,
    EXACT_CODES,
    HEAD,
    MIXED,
    SchemeDefinition,
    definition,
    kv_definitions,
    scheme_for,
)
from trtllm_engines.quantization.scheme import WIDE, ModuleRule, QuantPlan, QuantScheme

if TYPE_CHECKING:
    from trtllm_engines.checkpoints.checkpoint import FolderWeights

__all__ = ["MODELOPT_CONFIG", "UnknownQuantization", "checkpoint_plan", "checkpoint_precision", "default_precision", "plan_for"]


def default_precision(model: str | Path, gpu: bool) -> str:
    """What a model runs in when nobody says: what its checkpoint was quantized for, else bf16 on a GPU and fp32 on a CPU.

    Raises `EngineError` for a checkpoint quantized in a way that no engine here has.
    """
    return checkpoint_precision(model) or default_unquantized(gpu)


def checkpoint_precision(model: str | Path) -> str | None:
    """The precision that a folder states, such as `fp8` or `int4`, or None for a preset, a GGUF file or a folder that states none. Raises
    `EngineError` as above."""
    plan = checkpoint_plan(model)
    return None if plan is None else plan.name


def plan_for(
    weights: str | Path | None,
    precision: str,
    kv_dtype: str = "auto",
    precision_map: str | Path | None = None,
    arches: Sequence[str] = (),
    context_attention: str = WIDE,
) -> QuantPlan:
    """The plan of an engine in `precision` of the checkpoint `weights` (None where there is none: a preset), for the GPUs `arches`.

    The checkpoint's own plan where it goes by that name. Else the named plan, but for the modules that the checkpoint leaves wide; codes
    that `precision` has too are kept as they are. A checkpoint in an unknown form decides nothing here: its tensors are looked at before
    they are read. `precision_map`: a file that says the precision of each module, in place of `precision`. `context_attention`: what
    attention of prompts multiplies. Raises `EngineError` for types that do not go together.
    """
    return with_context_attention(_plan_for(weights, precision, kv_dtype, precision_map, arches), context_attention)


def _plan_for(
    weights: str | Path | None, precision: str, kv_dtype: str, precision_map: str | Path | None, arches: Sequence[str]
) -> QuantPlan:
    chosen = definition(precision)
    try:
        stated = None if weights is None else _codes_plan(Path(weights), chosen)
    except UnknownQuantization:
        stated = None
    if precision_map is not None:
        mapped = read_precision_map(precision_map, kv_dtype, arches)
        return mapped if stated is None or weights is None else _with_codes_of(mapped, stated, Path(weights))
    if stated is not None and stated.name == chosen.name:
        automatic = automatic_cache(stated.kv, stated.wide_dtype, arches)
        return replace(stated, kv=automatic if kv_dtype == "auto" else kv_scheme(chosen.name, kv_dtype))
    named = named_plan(precision, kv_dtype, arches)
    if stated is None or chosen.scheme.weights is None:
        return named
    rules = tuple(replace(rule, scheme=_translated(rule.scheme, chosen)) for rule in stated.rules)
    return replace(named, rules=rules, source=f"{named.source}, of what {stated.source} quantizes")


def _with_codes_of(mapped: QuantPlan, stated: QuantPlan, folder: Path) -> QuantPlan:
    """`mapped`, but that codes of a checkpoint are kept where its scheme has such, and modules left wide stay so."""
    weights = _weights(folder)
    kept: dict[QuantScheme, list[str]] = {}
    for module in weights.modules() if weights is not None else ():
        asked, own = mapped.scheme_of(module), stated.scheme_of(module)
        scheme = asked if asked.weights is None else _translated(own, definition(asked.name))
        if scheme != asked:
            kept.setdefault(scheme, []).append(re.escape(module))
    rules = tuple(ModuleRule("|".join(names), scheme) for scheme, names in kept.items())
    return replace(mapped, rules=(*rules, *mapped.rules))


def _codes_plan(weights: Path, chosen: SchemeDefinition) -> QuantPlan | None:
    """The plan of a checkpoint's codes; that of a GGUF file only where it goes by the name of the precision that is asked for."""
    if weights.suffix != ".gguf":
        return checkpoint_plan(weights)
    if chosen.scheme.weights is None or not weights.is_file():
        return None
    from trtllm_engines.checkpoints.gguf_weights import gguf_plan

    plan = gguf_plan(weights)
    return plan if plan is not None and plan.name == chosen.name else None


def _translated(scheme: QuantScheme, chosen: SchemeDefinition) -> QuantScheme:
    """What a module stored under `scheme` has in an engine of `chosen`."""
    asked = chosen.scheme
    if scheme.weights is None or asked.weights is None:
        return scheme
    if EXACT_CODES not in chosen.recipes or not asked.weights.is_like(scheme.weights):
        return asked
    inputs = replace(asked.inputs, ordered=scheme.inputs.ordered, factored=scheme.inputs.factored)
    return QuantScheme(asked.name, scheme.weights, inputs)


def checkpoint_plan(model: str | Path) -> QuantPlan | None:
    """The plan that folder `model` states; None for a preset, a GGUF file or a folder that states none. Raises `UnknownQuantization`, and
    `EngineError` for codes that lack a part."""
    folder = Path(model)
    if not states_quantization(folder):
        return None
    weights = _weights(folder)
    reader = format_of(folder, weights)
    try:
        if reader is None:
            raise _unknown(folder, stated_method(folder))
        plan = _stated_plan(reader, weights)
        return None if plan is None else _as_stored(plan, reader, weights)
    except UnknownQuantization as error:
        raise _with_example(error, weights) from None


def _stated_plan(reader: Format, weights: FolderWeights | None) -> QuantPlan | None:
    schemes = list(reader.rules())
    if not schemes and reader.kv_dtype() in kv_definitions():
        schemes = [(".*", definition(WIDE_DTYPE).scheme)]
    if not schemes:
        return None
    chosen = definition(_name_of([scheme for _, scheme in schemes]))
    wide_scheme = definition(chosen.wide_dtype).scheme
    patterns = [*reader.wide(), *(pattern for pattern, _ in schemes)]
    rules = (
        ModuleRule("|".join([HEAD, EMBEDDING, *reader.wide()]), wide_scheme),
        *(ModuleRule(pattern, scheme) for pattern, scheme in schemes),
    )
    quantized = kv_definitions()
    cache = quantized[reader.kv_dtype()].scheme if reader.kv_dtype() in quantized else kv_scheme(chosen.name, "auto")
    plan = QuantPlan(chosen.name, chosen.wide_dtype, cache, rules, reader.file)
    try:
        for pattern in patterns:
            check_counted(pattern)
        for rule in rules:
            expression(rule.pattern)
        for module in weights.modules() if weights is not None else ():
            plan.scheme_of(module)
    except EngineError as error:
        raise EngineError(f"{reader.path}: {error}") from None
    return plan


def _name_of(schemes: Sequence[QuantScheme]) -> str:
    """What the whole goes by: the one scheme there is; of several with static and dynamic inputs of one dtype the dynamic, which needs no
    calibration; else `mixed`."""
    names = {scheme.name: scheme for scheme in schemes if scheme.weights is not None}
    if len(names) < 2:
        return next(iter(names), schemes[0].name)
    alike = {(scheme.weights and scheme.weights.dtype, scheme.inputs.dtype) for scheme in names.values()}
    return next((scheme.name for scheme in names.values() if scheme.inputs.scaling == "dynamic"), MIXED) if len(alike) == 1 else MIXED


def _as_stored(plan: QuantPlan, reader: Format, weights: FolderWeights | None) -> QuantPlan:
    """`plan` with rules before its own for what is stored otherwise than it says."""
    if weights is None or weights.first_codes() is None:
        return plan
    differing: dict[str, QuantScheme] = {}
    alike: dict[str, set[QuantScheme]] = {}
    for module, scheme in _stored_schemes(plan, reader, weights):
        alike.setdefault(_any_layer(module), set()).add(scheme)
        if scheme != plan.scheme_of(module):
            differing[module] = scheme
    patterns: dict[QuantScheme, dict[str, None]] = {}
    for module, scheme in differing.items():
        every_layer = _any_layer(module)
        patterns.setdefault(scheme, {})[every_layer if len(alike[every_layer]) == 1 else re.escape(module)] = None
    rules = tuple(ModuleRule("|".join(names), scheme) for scheme, names in patterns.items())
    quantized = [scheme for schemes in alike.values() for scheme in schemes if scheme.weights is not None]
    return replace(plan, name=_name_of(quantized) if quantized else plan.name, rules=(*rules, *plan.rules))


def _stored_schemes(plan: QuantPlan, reader: Format, weights: FolderWeights) -> Iterator[tuple[str, QuantScheme]]:
    """(module, scheme) of every matrix of the checkpoint but those that stay wide whatever is stored."""
    for module in weights.modules():
        stated = plan.scheme_of(module)
        if stated.weights is None:
            continue
        stored = reader.stored(module)
        if stored is None:
            yield module, plan.wide
            continue
        inputs = replace(stated.inputs, ordered=stored.order is not None, factored=stored.factor is not None)
        if EXACT_CODES not in definition(stated.name).recipes:
            keeps = stored.kind.granularity == "tensor" and not inputs.factored
            scheme = stated if keeps else _of_rows(stated)
            yield module, replace(scheme, inputs=replace(scheme.inputs, ordered=inputs.ordered, factored=inputs.factored))
            continue
        how = f"{stated_method(reader.folder)}, with {stored.kind} and {inputs} inputs in {module}"
        yield module, reader.scheme(stored.kind, inputs, how)


def _of_rows(stated: QuantScheme) -> QuantScheme:
    """`stated` for codes with one scale per row, or with factors: where it has one scale for the tensor, which would round them again, the
    scheme that keeps them. Its inputs have one scale per token in place of the static one, and round less."""
    if stated.weights is None or stated.weights.granularity != "tensor":
        return stated
    by_row = scheme_for(replace(stated.weights, granularity="row"), replace(stated.inputs, scaling="dynamic"))
    return stated if by_row is None else by_row.scheme


def _any_layer(module: str) -> str:
    """An expression for the module and those of other layers that are called like it."""
    return re.sub(r"\\\.\d+\\\.", lambda _: r"\.\d+\.", re.escape(module))


def _unknown(folder: Path, how: str) -> UnknownQuantization:
    return UnknownQuantization(
        f"{folder} is quantized by {how}, which no engine here runs; "
        f"use the original checkpoint, or one quantized in a way that docs/quantization.md lists"
    )


def _with_example(error: UnknownQuantization, weights: FolderWeights | None) -> UnknownQuantization:
    codes = None if weights is None else weights.first_codes()
    text = str(error)
    if not codes or "such as" in text:
        return error
    return UnknownQuantization(text.replace(", which no engine", f" (such as {codes}), which no engine", 1))


def _weights(folder: Path) -> FolderWeights | None:
    """The folder's tensors, where there are any yet: a configuration alone can be asked about, too."""
    from trtllm_engines.checkpoints.checkpoint import open_folder

    try:
        return open_folder(folder)
    except EngineError:
        return None
