"""From checkpoint tensors to the plan's weights: made by their recipes and written to a safetensors file one at a time.

The writer is our own because the library's needs every tensor in memory at once: an 8-billion-parameter engine would take its whole size
twice. (And a full disk is a text to it.) The format is eight bytes of header length, a JSON header, and the tensors back to back.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from trtllm_engines.checkpoints import WeightSource
from trtllm_engines.checkpoints.dummy import DummyWeights, part_of
from trtllm_engines.checkpoints.shard import take
from trtllm_engines.compiler.plan import Plan
from trtllm_engines.documents import shown
from trtllm_engines.errors import EngineError
from trtllm_engines.models.config import ModelConfig
from trtllm_engines.models.rope import inverse_frequencies
from trtllm_engines.quantization.registry import recipe_kind
from trtllm_engines.quantization.scheme import WeightRecipe
from trtllm_kernels.dialect.dtypes import nbytes
from trtllm_kernels.dialect.specs import DTYPES, storage_shape
from trtllm_kernels.dialect.types import TensorSpec

Progress = Callable[[int, int], None]
_SAFETENSORS_NAMES = {
    "fp32": "F32",
    "fp16": "F16",
    "bf16": "BF16",
    "fp8": "F8_E4M3",
    "int8": "I8",
    "uint8": "U8",
    "int32": "I32",
    "int64": "I64",
}
"""Of types that safetensors has; 4-bit codes are bytes to it."""
_FP32 = 1e-5
"""How far numbers that were rounded to fp32, and what is computed of them, may be apart."""


def weight_bytes(specs: Mapping[str, TensorSpec]) -> int:
    return sum(map(nbytes, specs.values()))


def assemble(plan: Plan, name: str, source: WeightSource, device: torch.device, rank: int = 0) -> Tensor:
    """Weight `name` of the plan, made by its recipe: the part of it that `rank` of the tensor-parallel group has."""
    recipe, spec = plan.weight_recipes[name], plan.weights[name]
    kind = recipe_kind(recipe.kind)
    if kind.by_element and isinstance(source, DummyWeights) and _is_split(recipe):
        drawn, of_part = part_of(source, recipe, rank)
        return kind.make(of_part, drawn, DTYPES[spec.dtype], device)
    whole = kind.make(recipe, source, DTYPES[spec.dtype], device)
    part = take(recipe, whole, rank) if recipe.shards else whole
    made = part if kind.finish is None else kind.finish(recipe, part)
    return made.contiguous()  # one scale for many rows may be a view of one number


def _is_split(recipe: WeightRecipe) -> bool:
    """Whether ranks have parts of a matrix."""
    return any(shard is not None and shard.dim is not None for shard in recipe.shards) and all(
        len(shape) == 2 for _, shape in recipe.inputs
    )


def check_weights(source: WeightSource, *plans: Plan) -> None:
    """Raises `EngineError` for the first tensor of the plans, which are all stages of one model, that `source` lacks or has in unknown
    codes, and for one that it has and no stage reads though it would change the results. Reads no data but such a tensor's. Raises it, too,
    where what the configuration beside the weights says of the model is not what the plans compute: shapes alone would not tell."""
    recipes = [recipe for plan in plans for recipe in plan.weight_recipes.values()]
    weights = [recipe for recipe in recipes if not recipe_kind(recipe.kind).is_scale]
    shapes = {name: shape for recipe in weights for name, shape in recipe.inputs}
    check_tensors(source, shapes, plans[0].config.architecture, {name for recipe in recipes for name, _ in recipe.inputs})
    if (stated := source.config) is not None:
        _check_same_model(plans[0].config, stated, str(source.description["path"]))


def _check_same_model(config: ModelConfig, stated: ModelConfig, path: str) -> None:
    """Raises `EngineError` where weights of `stated` mean something else in an engine of `config`. Numbers of one may have been rounded to
    fp32. Rotary embeddings are compared by their frequencies: a GGUF file says how they are scaled in another way than a config.json,
    and it may say nothing of a sliding window."""
    fields = ["num_layers", "num_heads", "num_kv_heads", "head_dim", "norm_eps"]
    if stated.sliding_window is not None:
        fields.append("sliding_window")
    sides = [{name: getattr(one, name) for name in fields} | dict(one.options) for one in (config, stated)]
    for name in sides[0].keys() | sides[1].keys():
        ours, theirs = (side.get(name) for side in sides)
        rounded = isinstance(ours, float) and isinstance(theirs, float) and math.isclose(ours, theirs, rel_tol=_FP32)
        if ours != theirs and not rounded:
            raise _other_model(path, f"{name} {theirs}", f"{ours}")
    ours, theirs = inverse_frequencies(config.rope), inverse_frequencies(stated.rope)
    alike = config.rope.interleaved == stated.rope.interleaved and ours.shape == theirs.shape
    if not (alike and torch.allclose(ours, theirs, rtol=_FP32, atol=0)):
        of_each = [asdict(one.rope) for one in (stated, config)]
        theirs, ours = ({name: side[name] for name in side if of_each[0][name] != of_each[1][name]} for side in of_each)
        raise _other_model(path, f"other rotary embeddings ({shown(theirs)})", shown(ours))


def _other_model(path: str, theirs: str, ours: str) -> EngineError:
    return EngineError(
        f"the weights in {path} are of a model with {theirs}, and the engine is of one with {ours}, so that results would be wrong; "
        f"build an engine of that model itself"
    )


def check_tensors(
    source: WeightSource, shapes: Mapping[str, tuple[int, ...]], architecture: str, read: Collection[str] | None = None
) -> None:
    """As `check_weights`, of the tensors `shapes` of a model. `read`: the names of all that it reads, where there are others."""
    for name, shape in shapes.items():
        source.check(name, shape)
    unread = next(iter(source.unread(shapes.keys() if read is None else read)), None)
    if unread is not None:
        raise EngineError(
            f"{source.description['path']} has a tensor {unread}, which {architecture} with this configuration does not read, so that its "
            f"results would be wrong; see whether configuration and weights are of the same model"
        )


def write_safetensors(
    path: Path, specs: Mapping[str, TensorSpec], tensor: Callable[[str], Tensor], progress: Progress | None = None
) -> None:
    """Writes `tensor(name)` for each of `specs`, in order."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, spec in specs.items():
        begin, end = end, end + weight_bytes({name: spec})
        shape = storage_shape([int(size) for size in spec.shape], spec.dtype)
        header[name] = {"dtype": _SAFETENSORS_NAMES.get(spec.dtype, "U8"), "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for done, name in enumerate(specs, start=1):
            file.write(tensor(name).contiguous().view(-1).view(torch.uint8).numpy().data)
            if progress is not None:
                progress(done, len(specs))
