"""An fp8 checkpoint as NVIDIA's ModelOpt writes it: Hugging Face names, fp8 matrices, and their scales beside them.

    <module>.weight         F8_E4M3 [out, in]      <module>.weight_scale   F32: weight is about weight_scale * codes
    <module>.input_scale    F32                    <k_proj>.k_scale, <v_proj>.v_scale   F32, of the KV cache
    hf_quant_config.json    what is quantized and what is not, as config.json says too

`fp8_rowwise` has a weight_scale of [out] and no input_scale: inputs are scaled token by token as they come. Everything else (embeddings,
norms, biases, the head) is bf16. Projections that an engine merges into one product share one weight scale where it is per tensor, the
largest of theirs: the engine can then keep the codes as they are, instead of rounding them a second time onto a common scale.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trtllm_engines.calibration.new_folder import write_config
from trtllm_engines.calibration.probe import Progress
from trtllm_engines.calibration.ranges import Ranges, modules, quantized_gemms
from trtllm_engines.checkpoints import WeightSource
from trtllm_engines.checkpoints.checkpoint import INDEX
from trtllm_engines.checkpoints.checkpoint_precision import MODELOPT_CONFIG
from trtllm_engines.checkpoints.write import weight_bytes, write_safetensors
from trtllm_engines.compiler.plan import Plan
from trtllm_engines.engine.folder import COPIED
from trtllm_engines.errors import EngineError
from trtllm_engines.quantization.registry import HEAD, SchemeDefinition
from trtllm_kernels.dialect.types import TensorSpec
from trtllm_kernels.references.quantize import FP8_MAX, SMALLEST_SCALE, finish, row_scales

SHARD_BYTES = 5 << 30
_CPU = torch.device("cpu")


class Fp8Checkpoint:
    """The tensors of a checkpoint yet to be written: what there is (`specs`), and each when it is asked for (`tensor`)."""

    def __init__(self, plan: Plan, source: WeightSource, ranges: Ranges, definition: SchemeDefinition, *, quantize_cache: bool) -> None:
        """`plan` is of the wide engine that was measured; `definition` the scheme of the checkpoint to come."""
        self.source, self.ranges, self.definition, self.quantize_cache = source, ranges, definition, quantize_cache
        weights = definition.scheme.weights
        self._by_row = weights is not None and weights.granularity == "row"
        self._static = definition.scheme.inputs.scaling == "static"
        self._shapes = {name: shape for recipe in plan.weight_recipes.values() for name, shape in recipe.inputs}
        self._group_of = {module: tuple(group) for group in (modules(plan, op) for op in quantized_gemms(plan)) for module in group}
        self._weight_scales: dict[tuple[str, ...], Tensor] = {}

    @property
    def quantized(self) -> list[str]:
        """Modules whose weights are fp8."""
        return list(self._group_of)

    @property
    def specs(self) -> dict[str, TensorSpec]:
        specs: dict[str, TensorSpec] = {}
        for name, shape in sorted(self._shapes.items()):
            module = name.removesuffix(".weight")
            if name.endswith(".weight") and module in self._group_of:
                specs[name] = TensorSpec(shape, "fp8")
                specs[f"{module}.weight_scale"] = TensorSpec((shape[0],) if self._by_row else (), "fp32")
                if self._static:
                    specs[f"{module}.input_scale"] = TensorSpec((), "fp32")
            else:
                specs[name] = TensorSpec(shape, "bf16")
        if self.quantize_cache:
            specs |= {name: TensorSpec((), "fp32") for name in self.ranges.cache}
        return specs

    def tensor(self, name: str) -> Tensor:
        """Raises `EngineError` when the source lacks it."""
        module, _, leaf = name.rpartition(".")
        if name in self.ranges.cache:
            return _scale(self.ranges.cache[name])
        if leaf == "input_scale":
            return _scale(self.ranges.inputs[module])
        if leaf == "weight_scale":
            return self._weight_scale(module)
        if leaf == "weight" and module in self._group_of:
            scale = self._weight_scale(module)
            return finish(self._read(name, torch.float32), torch.float32, scale[:, None] if self._by_row else scale)
        return self._read(name, torch.bfloat16)

    def _read(self, name: str, dtype: torch.dtype) -> Tensor:
        return self.source.read(name, self._shapes[name], dtype, _CPU)

    def _weight_scale(self, module: str) -> Tensor:
        if self._by_row:
            return row_scales(self._read(f"{module}.weight", torch.float32)).flatten()
        group = self._group_of[module]
        if group not in self._weight_scales:
            largest = max(float(self._read(f"{part}.weight", torch.float32).abs().amax()) for part in group)
            if not math.isfinite(largest):
                raise EngineError(f"{module}.weight holds values that are not finite; the checkpoint is damaged")
            self._weight_scales[group] = _scale(largest)
        return self._weight_scales[group]


def _scale(largest: float) -> Tensor:
    return torch.tensor(max(largest / FP8_MAX, SMALLEST_SCALE), dtype=torch.float32)


def write(checkpoint: Fp8Checkpoint, model: Path, folder: Path, progress: Progress | None = None) -> int:
    """Writes the checkpoint of `model` into the existing, empty `folder`; returns its bytes."""
    specs = checkpoint.specs
    shards = list(_shards(specs))
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))] if len(shards) > 1 else ["model.safetensors"]
    written = 0
    for name, shard in zip(names, shards, strict=True):
        before = written
        write_safetensors(
            folder / name,
            shard,
            checkpoint.tensor,
            lambda done, _, before=before: progress("checkpoint", before + done, len(specs)) if progress else None,  # type: ignore[misc]
        )
        written += len(shard)
    if len(shards) > 1:
        places = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": weight_bytes(specs)}, "weight_map": places}, indent=1))
    for name in COPIED:
        if (model / name).is_file():
            shutil.copyfile(model / name, folder / name)
    described = _description(checkpoint)
    write_config(model, folder, _in_config(described))
    (folder / MODELOPT_CONFIG).write_text(json.dumps(described, indent=2) + "\n")
    return weight_bytes(specs)


def _description(checkpoint: Fp8Checkpoint) -> dict[str, Any]:
    try:
        made_by = version("trtllm-bench")
    except PackageNotFoundError:
        made_by = "0"
    return {
        "producer": {"name": "trtllm-bench", "version": made_by},
        "quantization": {
            "quant_algo": checkpoint.definition.algorithms[0],
            "kv_cache_quant_algo": "FP8" if checkpoint.quantize_cache else None,
            "exclude_modules": [HEAD],
        },
    }


def _in_config(described: Mapping[str, Any]) -> dict[str, Any]:
    """The same for config.json, where ModelOpt says it as well: whoever reads no other file sees that weights are codes."""
    quantization = described["quantization"]
    cache = {"kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"}} if quantization["kv_cache_quant_algo"] else {}
    return {
        "quant_method": "modelopt",
        "quant_algo": quantization["quant_algo"],
        "ignore": quantization["exclude_modules"],
        **cache,
        "producer": described["producer"],
    }


def _shards(specs: Mapping[str, TensorSpec]) -> Iterator[dict[str, TensorSpec]]:
    shard: dict[str, TensorSpec] = {}
    for name, spec in specs.items():
        if shard and weight_bytes(shard) + weight_bytes({name: spec}) > SHARD_BYTES:
            yield shard
            shard = {}
        shard[name] = spec
    yield shard
