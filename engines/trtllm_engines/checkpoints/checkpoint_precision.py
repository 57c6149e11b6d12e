"""The quantization plan of a checkpoint, read from what the quantizing tool left beside the weights.

ModelOpt writes `hf_quant_config.json` (or the same under `quantization_config` in config.json); compressed-tensors (llm-compressor) and the
`fp8` methods of transformers, vLLM and FBGEMM write `quantization_config`. All say which modules they left wide, each in its own way: names
and `re:` expressions (`ignore`), wildcards (`exclude_modules`), names or their beginnings or ends (`modules_to_not_convert`). Where that
misses a module whose weight is stored wide beside others in codes, what is stored decides. Modules left wide stay wide in the engine,
under a precision that is asked for too: whoever quantized the model had a reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from trtllm_engines.documents import SHOWN, checked, read_object_if_there, shown
from trtllm_engines.errors import EngineError
from trtllm_engines.quantization import named_plan
from trtllm_engines.quantization.module_names import check_counted, expression
from trtllm_engines.quantization.registry import HEAD, SchemeDefinition, by_algorithm, definition
from trtllm_engines.quantization.scheme import ModuleRule, QuantPlan

if TYPE_CHECKING:
    from trtllm_engines.checkpoints.checkpoint import FolderWeights

MODELOPT_CONFIG = "hf_quant_config.json"
_CONFIG = "config.json"
_EVERY_LINEAR = "Linear"
"""compressed-tensors' target for all products: the class of their modules."""


_Name = Annotated[str, Field(max_length=1000)]
_Names = Annotated[list[_Name], Field(max_length=100_000)]


class _Stated(BaseModel):
    """What a tool says of a quantization; what it says besides is not used."""

    model_config = ConfigDict(strict=True)


class _ModelOpt(_Stated):
    quant_algo: _Name | None = None
    exclude_modules: _Names | None = None
    ignore: _Names | None = None


class _Codes(_Stated):
    """What compressed-tensors says of a weight or an input."""

    num_bits: Annotated[int, Field(ge=1, le=64)] | None = None
    type: _Name | None = None
    strategy: _Name | None = None
    dynamic: bool | _Name | None = None


class _Group(_Stated):
    targets: _Names | None = None
    weights: _Codes | None = None
    input_activations: _Codes | None = None


class _CompressedTensors(_Stated):
    config_groups: dict[str, _Group] | None = None
    ignore: _Names | None = None


class _Fp8(_Stated):
    activation_scheme: _Name | None = None
    modules_to_not_convert: _Names | None = None
    ignored_layers: _Names | None = None


class UnknownQuantization(EngineError):
    """A checkpoint is quantized in a way that no scheme here has."""


def default_precision(model: str | Path, gpu: bool) -> str:
    """What a model runs in when nobody says: what its checkpoint was quantized for, else bf16 on a GPU and fp32 on a CPU.

    Raises `EngineError` for a checkpoint quantized in a way that no engine here has.
    """
    return checkpoint_precision(model) or ("bf16" if gpu else "fp32")


def checkpoint_precision(model: str | Path) -> str | None:
    """`fp8`, `fp8_rowwise`, or None for a preset, a GGUF file or a folder that says nothing. Raises `EngineError` as above."""
    plan = checkpoint_plan(model)
    return None if plan is None else plan.name


def plan_for(weights: str | Path | None, precision: str, kv_dtype: str = "auto") -> QuantPlan:
    """The plan of an engine in `precision` of the checkpoint `weights` (None where there is none: a preset).

    The checkpoint's own plan where it goes by that name. Else the named plan, but for the modules that the checkpoint leaves wide. A
    checkpoint in an unknown form decides nothing here: its tensors are looked at before they are read. Raises `EngineError` for types that
    do not go together.
    """
    named = named_plan(precision, kv_dtype)
    try:
        stated = None if weights is None else checkpoint_plan(weights)
    except UnknownQuantization:
        return named
    scheme = definition(precision).scheme
    if stated is None or scheme.weights is None:
        return named
    if stated.name == precision:
        return replace(stated, kv=named.kv)
    rules = tuple(replace(rule, scheme=scheme) if rule.scheme.weights is not None else rule for rule in stated.rules)
    return replace(named, rules=rules, source=f"{named.source}, of what {stated.source} quantizes")


def checkpoint_plan(model: str | Path) -> QuantPlan | None:
    """The plan that folder `model` states; None for a preset, a GGUF file or a folder that states none. Raises `UnknownQuantization`."""
    folder = Path(model)
    file, config = _quantization_config(folder)
    if config is None:
        return None
    method = config.get("quant_method")
    if file == MODELOPT_CONFIG or method == "modelopt":
        modelopt = checked(_ModelOpt, config, str(folder / file))
        schemes = _modelopt(folder, modelopt)
        wide = [_wildcards(pattern) for pattern in (*(modelopt.exclude_modules or ()), *(modelopt.ignore or ()))]
    elif method == "compressed-tensors":
        compressed = checked(_CompressedTensors, config, str(folder / file))
        schemes = _compressed_tensors(folder, compressed)
        wide = [_target(name) for name in compressed.ignore or ()]
    elif method in ("fp8", "fbgemm_fp8") and not config.get("weight_block_size"):
        fp8 = checked(_Fp8, config, str(folder / file))
        static = method == "fp8" and fp8.activation_scheme == "static"
        schemes = [(".*", definition("fp8" if static else "fp8_rowwise"))]
        wide = [_part_of_name(name) for name in (*(fp8.modules_to_not_convert or ()), *(fp8.ignored_layers or ()))]
    else:
        raise _unknown(folder, stated_method(folder))
    if not schemes:
        return None
    # what is found as tokens come needs no calibration, so it is what the whole goes by
    chosen = next((scheme for _, scheme in schemes if scheme.scheme.inputs.scaling == "dynamic"), schemes[0][1])
    wide_scheme = definition(chosen.wide_dtype).scheme
    patterns = [*wide, *(pattern for pattern, _ in schemes)]
    rules = (ModuleRule("|".join([HEAD, *wide]), wide_scheme), *(ModuleRule(pattern, scheme.scheme) for pattern, scheme in schemes))
    plan = replace(named_plan(chosen.name), rules=rules, source=file)
    stored_wide = _stored_wide(folder)
    try:
        for pattern in patterns:
            check_counted(pattern)
        for rule in rules:
            expression(rule.pattern)
        unstated = [module for module in stored_wide if plan.scheme_of(module).weights is not None]
    except EngineError as error:
        raise EngineError(f"{folder / file}: {error}") from None
    return replace(plan, rules=(ModuleRule("|".join(map(re.escape, unstated)), wide_scheme), *rules)) if unstated else plan


def stated_method(model: Path) -> str:
    """How folder `model` says it is quantized, in a few words for an error message."""
    file, config = _quantization_config(model)
    if config is None:
        return "a method it does not state"
    method = str(config.get("quant_method", "an unnamed method"))[:SHOWN]
    if file == MODELOPT_CONFIG or method == "modelopt":
        return f"ModelOpt's {str(config.get('quant_algo'))[:SHOWN]}"
    if blocks := config.get("weight_block_size"):
        return f"{method} in blocks of {('x'.join(map(str, blocks)) if isinstance(blocks, list) else str(blocks))[:SHOWN]}"
    return f"{method} ({str(config['format'])[:SHOWN]})" if "format" in config else method


def _quantization_config(folder: Path) -> tuple[str, Mapping[str, Any] | None]:
    """(name of the file, what it says of the quantization)."""
    if not folder.is_dir():
        return "", None
    for file, key in ((MODELOPT_CONFIG, "quantization"), (_CONFIG, "quantization_config")):
        config = read_object_if_there(folder / file).get(key)
        if isinstance(config, dict):
            return file, config
        if config is not None:
            raise EngineError(f"{folder / file}: {key} is {shown(config)}; it must be an object")
    return "", None


def _modelopt(folder: Path, config: _ModelOpt) -> list[tuple[str, SchemeDefinition]]:
    if config.quant_algo is None:
        return []
    scheme = by_algorithm(config.quant_algo)
    if scheme is None:
        raise _unknown(folder, stated_method(folder))
    return [(".*", scheme)]


def _compressed_tensors(folder: Path, config: _CompressedTensors) -> list[tuple[str, SchemeDefinition]]:
    """(modules, scheme) of each target, named modules before expressions before whole classes, as compressed-tensors looks them up."""
    targets: list[tuple[int, str, SchemeDefinition]] = []
    for group in (config.config_groups or {}).values():
        scheme = _compressed_tensors_scheme(folder, group)
        for target in group.targets or [_EVERY_LINEAR]:
            rank = 2 if target == _EVERY_LINEAR else 1 if target.startswith("re:") else 0
            targets.append((rank, _target(target), scheme))
    if not targets:
        raise _unknown(folder, "compressed-tensors without config_groups")
    return [(pattern, scheme) for _, pattern, scheme in sorted(targets, key=lambda one: one[0])]


def _compressed_tensors_scheme(folder: Path, group: _Group) -> SchemeDefinition:
    weights, inputs = group.weights or _Codes(), group.input_activations or _Codes()
    if (weights.num_bits, weights.type) != (8, "float"):
        raise _unknown(folder, f"compressed-tensors with {weights.num_bits}-bit {weights.type} weights")
    if (inputs.num_bits, inputs.type) != (8, "float"):
        read_as = f"{inputs.num_bits}-bit {inputs.type}" if group.input_activations else "16-bit"
        raise _unknown(folder, f"compressed-tensors with 8-bit float weights and {read_as} inputs")
    if weights.strategy not in ("tensor", "channel"):
        raise _unknown(folder, f"compressed-tensors with one weight scale per {weights.strategy}")
    return definition("fp8_rowwise" if inputs.dynamic else "fp8")


def _wildcards(pattern: str) -> str:
    """ModelOpt's: a name with `*` and `?`; one of a module stands for all within it."""
    return re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".") + r"(?:\..*)?"


def _target(target: str) -> str:
    """compressed-tensors': a name, `re:` and an expression that the name begins with, or the class of every product."""
    if target == _EVERY_LINEAR:
        return ".*"
    return f"(?:{target.removeprefix('re:')}).*" if target.startswith("re:") else re.escape(target) + r"(?:\..*)?"


def _part_of_name(name: str) -> str:
    """transformers': an expression that the name begins with, or what it ends with."""
    try:
        beginning = re.compile(name).pattern
    except re.error:
        beginning = re.escape(name)
    return f"(?:{beginning}).*|.*{re.escape(name)}"


def _unknown(folder: Path, how: str) -> UnknownQuantization:
    return UnknownQuantization(
        f"{folder} is quantized by {how}{_example(folder)}, which no engine here runs; "
        f"use the original checkpoint, or one in fp8 with one scale per tensor or row"
    )


def _example(folder: Path) -> str:
    weights = _weights(folder)
    codes = None if weights is None else weights.first_codes()
    return f" (such as {codes})" if codes else ""


def _stored_wide(folder: Path) -> list[str]:
    """Modules whose weights are wide in a folder where others are codes; none where all are wide, to be quantized when they are read."""
    weights = _weights(folder)
    return weights.wide_modules() if weights is not None and weights.first_codes() else []


def _weights(folder: Path) -> FolderWeights | None:
    """The folder's tensors, where there are any yet: a configuration alone can be asked about, too."""
    from trtllm_engines.checkpoints.checkpoint import open_folder

    try:
        return open_folder(folder)
    except EngineError:
        return None
