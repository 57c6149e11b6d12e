"""From checkpoint tensors to the plan's weights: stacked, cast, and written to a safetensors file one at a time.

Own writer, because the library's wants every tensor in memory at once: an 8-billion-parameter engine would need its whole size twice.
The format is eight bytes of header length, a JSON header, and the tensors back to back.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from trtllm_engines.plan import Plan
from trtllm_engines.weights import WeightSource
from trtllm_engines.weights.dummy import DummyWeights, draw
from trtllm_kernels.specs import DTYPES
from trtllm_kernels.types import TensorSpec

Progress = Callable[[int, int], None]
_SAFETENSORS_NAMES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16", "fp8": "F8_E4M3", "int8": "I8", "uint8": "U8", "int32": "I32"}


def weight_bytes(specs: Mapping[str, TensorSpec]) -> int:
    return sum(math.prod(int(d) for d in spec.shape) * DTYPES[spec.dtype].itemsize for spec in specs.values())


def assemble(plan: Plan, name: str, source: WeightSource, device: torch.device) -> Tensor:
    """Weight `name` of the plan, its parts stacked along the first dimension."""
    spec = plan.weights[name]
    out = torch.empty([int(d) for d in spec.shape], dtype=DTYPES[spec.dtype], device=device)
    first = 0
    for part, shape in plan.weight_parts[name]:
        rows = out[first : first + shape[0]]
        if isinstance(source, DummyWeights):
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
