"""The quantization plan of a checkpoint, read from what the quantizing tool left beside the weights.

ModelOpt writes `hf_quant_config.json` (or the same under `quantization_config` in config.json); compressed-tensors (llm-compressor) and the
`fp8` methods of transformers, vLLM and FBGEMM write `quantization_config`. All say which modules they left wide, each in its own way: names
and `re:` expressions (`ignore`), wildcards (`exclude_modules`), names or their beginnings or ends (`modules_to_not_convert`). Where that
misses a module whose weight is stored wide beside others in codes, what is stored decides. Modules left wide stay wide in the engine,
under a precision that is asked for too: whoever quantized the model had a reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtllm_engines.errors import EngineError
from trtllm_engines.quantization import named_plan
from trtllm_engines.quantization.registry import HEAD, SchemeDefinition, by_algorithm, definition
from trtllm_engines.quantization.scheme import ModuleRule, QuantPlan

if TYPE_CHECKING:
    from trtllm_engines.checkpoints.checkpoint import SafetensorsWeights

MODELOPT_CONFIG = "hf_quant_config.json"
_CONFIG = "config.json"
_EVERY_LINEAR = "Linear"
"""compressed-tensors' target for all products: the class of their modules."""


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
        schemes = _modelopt(folder, config)
        wide = [_wildcards(pattern) for pattern in _names(config, "exclude_modules", "ignore")]
    elif method == "compressed-tensors":
        schemes = _compressed_tensors(folder, config)
        wide = [_target(name) for name in _names(config, "ignore")]
    elif method in ("fp8", "fbgemm_fp8") and not config.get("weight_block_size"):
        static = method == "fp8" and config.get("activation_scheme") == "static"
        schemes = [(".*", definition("fp8" if static else "fp8_rowwise"))]
        wide = [_part_of_name(name) for name in _names(config, "modules_to_not_convert", "ignored_layers")]
    else:
        raise _unknown(folder, stated_method(folder))
    if not schemes:
        return None
    # what is found as tokens come needs no calibration, so it is what the whole goes by
    chosen = next((scheme for _, scheme in schemes if scheme.scheme.inputs.scaling == "dynamic"), schemes[0][1])
    wide_scheme = definition(chosen.wide_dtype).scheme
    rules = (ModuleRule("|".join([HEAD, *wide]), wide_scheme), *(ModuleRule(pattern, scheme.scheme) for pattern, scheme in schemes))
    for rule in rules:
        _check_expression(folder / file, rule.pattern)
    plan = replace(named_plan(chosen.name), rules=rules, source=file)
    unstated = [module for module in _stored_wide(folder) if plan.scheme_of(module).weights is not None]
    return replace(plan, rules=(ModuleRule("|".join(map(re.escape, unstated)), wide_scheme), *rules)) if unstated else plan


def stated_method(model: Path) -> str:
    """How folder `model` says it is quantized, in a few words for an error message."""
    file, config = _quantization_config(model)
    if config is None:
        return "a method it does not state"
    method = str(config.get("quant_method", "an unnamed method"))
    if file == MODELOPT_CONFIG or method == "modelopt":
        return f"ModelOpt's {config.get('quant_algo')}"
    if blocks := config.get("weight_block_size"):
        return f"{method} in blocks of {'x'.join(map(str, blocks)) if isinstance(blocks, list) else blocks}"
    return f"{method} ({config['format']})" if "format" in config else method


def _quantization_config(folder: Path) -> tuple[str, Mapping[str, Any] | None]:
    """(name of the file, what it says of the quantization)."""
    if not folder.is_dir():
        return "", None
    for file, key in ((MODELOPT_CONFIG, "quantization"), (_CONFIG, "quantization_config")):
        config = _read(folder / file).get(key)
        if isinstance(config, dict):
            return file, config
    return "", None


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise EngineError(f"{path} is not readable JSON ({error})") from None
    return content if isinstance(content, dict) else {}


def _modelopt(folder: Path, config: Mapping[str, Any]) -> list[tuple[str, SchemeDefinition]]:
    algorithm = config.get("quant_algo")
    if algorithm is None:
        return []
    scheme = by_algorithm(str(algorithm))
    if scheme is None:
        raise _unknown(folder, stated_method(folder))
    return [(".*", scheme)]


def _compressed_tensors(folder: Path, config: Mapping[str, Any]) -> list[tuple[str, SchemeDefinition]]:
    """(modules, scheme) of each target, named modules before expressions before whole classes, as compressed-tensors looks them up."""
    groups = config.get("config_groups")
    targets: list[tuple[int, str, SchemeDefinition]] = []
    for group in groups.values() if isinstance(groups, dict) else ():
        if not isinstance(group, dict):
            raise _unknown(folder, "compressed-tensors with a config_group that is not an object")
        scheme = _compressed_tensors_scheme(folder, group)
        for target in _names(group, "targets") if group.get("targets") else [_EVERY_LINEAR]:
            rank = 2 if target == _EVERY_LINEAR else 1 if target.startswith("re:") else 0
            targets.append((rank, _target(target), scheme))
    if not targets:
        raise _unknown(folder, "compressed-tensors without config_groups")
    return [(pattern, scheme) for _, pattern, scheme in sorted(targets, key=lambda one: one[0])]


def _compressed_tensors_scheme(folder: Path, group: Mapping[str, Any]) -> SchemeDefinition:
    weights, inputs = group.get("weights") or {}, group.get("input_activations") or {}
    bits, kind = weights.get("num_bits"), weights.get("type")
    if (bits, kind) != (8, "float"):
        raise _unknown(folder, f"compressed-tensors with {bits}-bit {kind} weights")
    if (inputs.get("num_bits"), inputs.get("type")) != (8, "float"):
        read_as = f"{inputs.get('num_bits')}-bit {inputs.get('type')}" if inputs else "16-bit"
        raise _unknown(folder, f"compressed-tensors with {bits}-bit {kind} weights and {read_as} inputs")
    if weights.get("strategy") not in ("tensor", "channel"):
        raise _unknown(folder, f"compressed-tensors with one weight scale per {weights.get('strategy')}")
    return definition("fp8_rowwise" if inputs.get("dynamic") else "fp8")


def _names(config: Mapping[str, Any], *keys: str) -> Iterator[str]:
    for key in keys:
        names = config.get(key)
        if isinstance(names, Iterable) and not isinstance(names, str):
            yield from map(str, names)


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


def _check_expression(path: Path, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise EngineError(f"{path}: the names of modules hold an expression that cannot be read ({error}): {pattern}") from None


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


def _weights(folder: Path) -> SafetensorsWeights | None:
    """The folder's tensors, where there are any yet: a configuration alone can be asked about, too."""
    from trtllm_engines.checkpoints.checkpoint import SafetensorsWeights

    try:
        return SafetensorsWeights(folder)
    except EngineError:
        return None
