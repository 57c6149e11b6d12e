"""From checkpoint tensors to the plan's weights: stacked, cast, and written to a safetensors file one at a time.

Own writer, because the library's wants every tensor in memory at once: an 8-billion-parameter engine would need its whole size twice.
The format is eight bytes of header length, a JSON header, and the tensors back to back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from trtllm_engines.checkpoints import WeightSource
from trtllm_engines.checkpoints.dummy import DummyWeights, draw
from trtllm_engines.compiler.plan import Plan
from trtllm_kernels.dialect.dtypes import nbytes
from trtllm_kernels.dialect.specs import DTYPES
from trtllm_kernels.dialect.types import TensorSpec
from trtllm_kernels.references.quantize import FP8_MAX, finish, row_scales

Progress = Callable[[int, int], None]
_SAFETENSORS_NAMES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16", "fp8": "F8_E4M3", "int8": "I8", "uint8": "U8", "int32": "I32"}


def weight_bytes(specs: Mapping[str, TensorSpec]) -> int:
    return sum(map(nbytes, specs.values()))


def assemble(plan: Plan, name: str, source: WeightSource, device: torch.device) -> Tensor:
    """Weight `name` of the plan: its parts stacked (or interleaved) and cast, or quantized, or a scale (`Plan.weight_recipes`)."""
    spec, recipe = plan.weights[name], plan.weight_recipes.get(name, "")
    if recipe in ("weight_scale", "weight_row_scale"):
        return weight_scale(plan, name.removesuffix("_scale"), source, device)
    if recipe.endswith("scale"):
        scales = [source.scale(part, recipe) for part, _ in plan.weight_parts[name]]
        return torch.tensor([max(scales)], dtype=torch.float32, device=device)
    if spec.dtype != "fp8":
        return _stack(plan, name, source, device, DTYPES[spec.dtype])
    wide = _stack(plan, name, source, device, torch.float32 if _by_row(plan, name) else torch.bfloat16)
    return finish(wide.float(), wide.dtype, weight_scale(plan, name, source, device, wide))


def _by_row(plan: Plan, name: str) -> bool:
    return plan.weight_recipes.get(f"{name}_scale") == "weight_row_scale"


def weight_scale(plan: Plan, name: str, source: WeightSource, device: torch.device, wide: Tensor | None = None) -> Tensor:
    """fp32 [1], or [rows, 1]: what maps the largest magnitude of weight `name`, or of each row, to E4M3's.

    One scale is taken from the checkpoint where it says, so that its codes are kept. Of rows it need not be: the largest code of each is
    448 in any checkpoint, so that what was divided by is found again.
    """
    if _by_row(plan, name):
        if isinstance(source, DummyWeights):
            bound = max(source.largest(part, shape) for part, shape in plan.weight_parts[name])
            return torch.full((int(plan.weights[name].shape[0]), 1), bound / FP8_MAX, device=device)
        return row_scales(_stack(plan, name, source, device, torch.float32) if wide is None else wide)
    stated = [source.largest(part, shape) for part, shape in plan.weight_parts[name]]
    if all(value is not None for value in stated):
        largest = max(value for value in stated if value is not None)
        return torch.tensor([largest / FP8_MAX], dtype=torch.float32, device=device)
    tensor = _stack(plan, name, source, device, torch.bfloat16) if wide is None else wide
    return (tensor.abs().amax().float() / FP8_MAX).clamp_min(1e-12).view(1)


def _stack(plan: Plan, name: str, source: WeightSource, device: torch.device, dtype: torch.dtype) -> Tensor:
    out = torch.empty([int(d) for d in plan.weights[name].shape], dtype=dtype, device=device)
    parts = plan.weight_parts[name]
    interleave = plan.weight_recipes.get(name) == "interleave"
    first = 0
    for index, (part, shape) in enumerate(parts):
        rows = out[index :: len(parts)] if interleave else out[first : first + shape[0]]
        if isinstance(source, DummyWeights) and not interleave:
            draw(rows, part, source.seed)
        else:
            rows.copy_(source.read(part, shape, out.dtype, device))
        first += shape[0]
    return out


def write_safetensors(
    path: Path, specs: Mapping[str, TensorSpec], tensor: Callable[[str], Tensor], progress: Progress | None = None
) -> None:
    """Writes `tensor(name)` for each of `specs`, in order."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, spec in specs.items():
        begin, end = end, end + weight_bytes({name: spec})
        header[name] = {"dtype": _SAFETENSORS_NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for done, name in enumerate(specs, start=1):
            file.write(tensor(name).contiguous().view(-1).view(torch.uint8).numpy().data)
            if progress is not None:
                progress(done, len(specs))
