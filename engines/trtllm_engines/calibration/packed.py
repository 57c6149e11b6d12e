"""A checkpoint in the layout of compressed-tensors (llm-compressor's), which transformers, vLLM and our engines read.

    pack-quantized    <module>.weight_packed      int32 [N, ceil(K * bits / 32)]: code + 2^(bits - 1), lowest bits first
                      <module>.weight_scale       bf16 [N, G]
                      <module>.weight_zero_point  int32 [ceil(N * bits / 32), G], of an asymmetric grid: packed likewise, along the rows
                      <module>.weight_g_idx       int32 [K]: group of each column, where they are out of order
                      <module>.weight_shape       int64 [2]
    int-quantized     <module>.weight             int8 [N, K] with weight_scale bf16 [N, 1], where inputs are int8 as well

config.json says so under `quantization_config`. Everything else is bf16, under its own name.

Shards are written as layers come, each as soon as it is large enough, and named when it is known how many there are.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trtllm_engines.calibration.gptq import ActOrder
from trtllm_engines.calibration.grid import Grid, Rounded
from trtllm_engines.calibration.new_folder import write_config
from trtllm_engines.checkpoints.checkpoint import INDEX
from trtllm_engines.checkpoints.write import write_safetensors
from trtllm_engines.engine.folder import COPIED
from trtllm_engines.quantization.registry import HEAD
from trtllm_kernels.dialect.specs import spec_of

SHARD_BYTES = 2 << 30


@dataclass(frozen=True)
class Layout:
    """How every product of a checkpoint but the head is stored; `inputs`: what readers round its input to, one scale per token
    (`int8`, `fp8`; "" for wide ones)."""

    grid: Grid
    inputs: str = ""
    act_order: ActOrder = "none"

    @property
    def format(self) -> str:
        return "int-quantized" if self.inputs == "int8" else "pack-quantized"

    def tensors(self, module: str, rounded: Rounded) -> dict[str, Tensor]:
        """What is stored of a module."""
        scale = rounded.scales.scale.bfloat16()
        if self.format == "int-quantized":
            return {f"{module}.weight": rounded.codes, f"{module}.weight_scale": scale}
        stored = {
            f"{module}.weight_packed": pack(rounded.codes, self.grid.bits),
            f"{module}.weight_scale": scale,
            f"{module}.weight_shape": torch.tensor(rounded.codes.shape, dtype=torch.int64),
        }
        if rounded.scales.zero is not None:
            stored[f"{module}.weight_zero_point"] = pack(rounded.scales.zero.to(torch.int8).T, self.grid.bits).T
        if rounded.group_of is not None:
            stored[f"{module}.weight_g_idx"] = rounded.group_of.to(torch.int32)
        return stored

    def config(self) -> dict[str, Any]:
        """`quantization_config` of config.json."""
        inputs = None
        if self.inputs:
            kind = "int" if self.inputs == "int8" else "float"
            inputs = {"num_bits": 8, "type": kind, "symmetric": True, "strategy": "token", "dynamic": True}
        weights = {
            "num_bits": self.grid.bits,
            "type": "int",
            "symmetric": self.grid.symmetric,
            "strategy": "group" if self.grid.group else "channel",
            "group_size": self.grid.group or None,
            "dynamic": False,
            "actorder": {"none": None, "static": "static", "group": "group"}[self.act_order],
        }
        group = {
            "targets": ["Linear"],
            "weights": weights,
            "input_activations": inputs,
            "output_activations": None,
            "format": self.format,  # without it the library reads w4a8 as `int-quantized`, whatever the outer `format` says
        }
        return {
            "quant_method": "compressed-tensors",
            "format": self.format,
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": [HEAD],
            "kv_cache_scheme": None,
        }


def pack(codes: Tensor, bits: int) -> Tensor:
    """int8 [N, K] as int32 [N, ceil(K * bits / 32)] for bits that divide 32, offset to be positive, the first code lowest."""
    per_word, per_byte = 32 // bits, 8 // bits
    offset = codes.contiguous().view(torch.uint8) + (1 << (bits - 1))  # modulo 256
    several = torch.nn.functional.pad(offset, (0, -codes.shape[1] % per_word)).view(len(codes), -1, per_byte)
    octets = several[..., 0].clone()
    for place in range(1, per_byte):
        octets |= several[..., place] << (place * bits)
    return octets.view(torch.int32)


class ShardWriter:
    """Writes a checkpoint into `folder`, which exists and is empty."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting: dict[str, Tensor] = {}
        self._waiting_bytes = 0
        self._places: list[list[str]] = []
        """Names of the tensors of each shard."""
        self.nbytes = 0

    def __contains__(self, name: str) -> bool:
        return name in self._waiting or any(name in names for names in self._places)

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if self._waiting_bytes > SHARD_BYTES:
                self._flush()
            self._waiting[name] = tensor.to("cpu").contiguous()
            self._waiting_bytes += tensor.nbytes

    def _flush(self) -> None:
        by_width = sorted(self._waiting.items(), key=lambda one: -one[1].element_size())  # so that each begins at a multiple of it
        specs = {name: spec_of(tensor) for name, tensor in by_width}
        write_safetensors(self._folder / f"{len(self._places)}.safetensors", specs, self._waiting.__getitem__)
        self._places.append(list(self._waiting))
        self.nbytes += self._waiting_bytes
        self._waiting, self._waiting_bytes = {}, 0

    def finish(self, model: Path, layout: Layout) -> None:
        """Names the shards and writes what goes with them, from the folder of the wide model."""
        self._flush()
        count = len(self._places)
        names = ["model.safetensors"] if count == 1 else [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
        for number, name in enumerate(names):
            (self._folder / f"{number}.safetensors").rename(self._folder / name)
        if count > 1:
            weight_map = {tensor: name for name, tensors in zip(names, self._places, strict=True) for tensor in tensors}
            index = {"metadata": {"total_size": self.nbytes}, "weight_map": weight_map}
            (self._folder / INDEX).write_text(json.dumps(index, indent=1))
        for copied in COPIED:
            if (model / copied).is_file():
                shutil.copyfile(model / copied, self._folder / copied)
        write_config(model, self._folder, layout.config())
