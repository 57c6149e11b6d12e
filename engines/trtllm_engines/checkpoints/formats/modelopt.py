"""NVIDIA's ModelOpt, as its Hugging Face export writes it (github.com/NVIDIA/Model-Optimizer), in `hf_quant_config.json` or config.json.

INT4: uint8 [N / 2, K], two rows a byte, two's complement; W4A8's `weight_scale` is already that of the codes, and `weight_scale_2` says
only how they were mapped to fp8. NVFP4: `weight_scale` E4M3 [N, K / 16] times `weight_scale_2`. MXFP4: powers of two [N, K / 32].
`pre_quant_scale` [K] multiplies inputs that no norm before could take it from. A model that auto-quantize made says what each layer has
(`quantized_layers`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from trtllm_engines.checkpoints.formats.config import CacheCodes, Name, Names, Stated, checked_config, wildcards
from trtllm_engines.checkpoints.formats.format import GROUP_SCALES, SCALES, WIDE, Format, Rule, groups_of, nibbles
from trtllm_engines.checkpoints.formats.fp8 import stored_fp8
from trtllm_engines.checkpoints.stored_codes import StoredCodes
from trtllm_engines.errors import EngineError
from trtllm_engines.quantization.registry import by_algorithm
from trtllm_engines.quantization.scheme import Codes, QuantScheme

MODELOPT_CONFIG = "hf_quant_config.json"
_BLOCK = 128
_LOW_RANK = "svdquant_lora_a"
"""Half of what SVDQuant (Li et al. 2024, arXiv 2411.05007) takes out of a weight: without it the codes are only the rest."""


class _Layer(Stated):
    quant_algo: Name | None = None
    group_size: Annotated[int, Field(ge=1, le=2**20)] | None = None
    has_zero_point: bool | None = None


class _Config(_Layer):
    kv_cache_quant_algo: Name | None = None
    kv_cache_scheme: CacheCodes | Name | None = None
    exclude_modules: Names | None = None
    ignore: Names | None = None
    quantized_layers: dict[Name, _Layer] | None = None


class ModelOpt(Format):
    @staticmethod
    def reads(file: str, method: str) -> bool:
        return file == MODELOPT_CONFIG or method == "modelopt"

    @cached_property
    def _config(self) -> _Config:
        return checked_config(_Config, self)

    def rules(self) -> Sequence[Rule]:
        config = self._config
        if config.quantized_layers is not None:
            modules: dict[QuantScheme, list[str]] = {}
            for name, layer in config.quantized_layers.items():
                if layer.quant_algo:
                    modules.setdefault(self._scheme(layer), []).append(re.escape(name))
            return [("|".join(names), scheme) for scheme, names in modules.items()]
        return [] if config.quant_algo is None else [(".*", self._scheme(config))]

    def _scheme(self, layer: _Layer) -> QuantScheme:
        definition = by_algorithm(layer.quant_algo or "")
        if definition is None:
            raise self.unknown(f"ModelOpt's {(layer.quant_algo or 'unnamed method')[:60]}")
        scheme, size = definition.scheme, layer.group_size
        if scheme.weights is None or scheme.weights.granularity != "group" or size is None:
            return scheme
        codes = Codes(scheme.weights.dtype, "group", size, bool(layer.has_zero_point), "fp32")
        kept = scheme.weights if scheme.weights.dtype == "fp4" else codes
        return QuantScheme(scheme.name, kept, scheme.inputs)

    def wide(self) -> Sequence[str]:
        return [wildcards(pattern) for pattern in (*(self._config.exclude_modules or ()), *(self._config.ignore or ()))]

    def kv_dtype(self) -> str:
        config = self._config
        algorithm = config.kv_cache_quant_algo or (config.kv_cache_scheme if isinstance(config.kv_cache_scheme, str) else "")
        if isinstance(config.kv_cache_scheme, CacheCodes):
            return config.kv_cache_scheme.dtype
        return {"FP8": "fp8", "INT8": "int8"}.get(algorithm.upper(), "")

    def stored(self, module: str) -> StoredCodes | None:
        if self.has(f"{module}.{_LOW_RANK}"):
            raise self.unknown(f"ModelOpt with a product of low rank beside its weights (such as {module}.{_LOW_RANK})")
        name, scale = f"{module}.weight", f"{module}.weight_scale"
        dtype = self.tensors.header(name)[0] if self.has(name) else ""
        if dtype == "I8":
            return self._factored(module, self._int8(module))
        if dtype == "U8":
            if self.has(scale) and self.tensors.header(scale)[0] in ("F8_E4M3", "U8"):
                return self._factored(module, self._fp4(module))
            return self._factored(module, self._int4(module))
        stored = stored_fp8(self.tensors, module, _BLOCK) if dtype == "F8_E4M3" else None
        return None if stored is None else self._factored(module, stored)

    def _factored(self, module: str, stored: StoredCodes) -> StoredCodes:
        name = f"{module}.pre_quant_scale"
        if not self.has(name):
            return stored
        self.need(name, WIDE, (stored.shape[1],))
        return StoredCodes(**{**vars(stored), "factor": lambda: self.tensors.tensor(name).float()})

    def _int8(self, module: str) -> StoredCodes:
        name, scale = f"{module}.weight", f"{module}.weight_scale"
        rows, columns = self.matrix(name, ("I8",))
        self.need(scale, WIDE, (rows,))
        return StoredCodes(
            name,
            Codes("int8", "row"),
            (rows, columns),
            lambda: self.tensors.tensor(name),
            lambda: self.tensors.tensor(scale).float().view(rows, 1),
        )

    def _int4(self, module: str) -> StoredCodes:
        name, scale = f"{module}.weight", f"{module}.weight_scale"
        half, columns = self.matrix(name, ("U8",))
        scale_shape = self.matrix(scale, GROUP_SCALES)
        if scale_shape[0] != 2 * half:
            raise EngineError(
                f"tensor {scale} in {self.folder} has shape {list(scale_shape)}; it must have {2 * half} rows, one per output"
            )
        grouping = groups_of(name, columns, scale_shape[1], self.folder, self._config.group_size or 0)

        def codes() -> Tensor:
            packed = self.tensors.tensor(name)
            both = torch.stack((packed & 15, packed >> 4), dim=1).flatten(0, 1)
            return both ^ 8  # two's complement -> counted from -8

        return StoredCodes(
            name,
            Codes("int4", "group", grouping.size, scale_dtype=SCALES[self.tensors.header(scale)[0]]),
            (2 * half, columns),
            codes,
            lambda: grouping.spread(self.tensors.tensor(scale)),
        )

    def _fp4(self, module: str) -> StoredCodes:
        name, scale, whole = f"{module}.weight", f"{module}.weight_scale", f"{module}.weight_scale_2"
        rows, half = self.matrix(name, ("U8",))
        scale_shape = self.need(scale, ("F8_E4M3", "U8"))
        groups = math.prod(scale_shape) // rows
        if groups * rows != math.prod(scale_shape) or scale_shape[:1] not in ((rows,), (groups * rows,)):
            raise EngineError(f"tensor {scale} in {self.folder} does not have as many scales for each of {rows} rows; download it again")
        size = groups_of(name, 2 * half, groups, self.folder).size
        nvidias = self.fp4_scales(scale, whole)
        return StoredCodes(
            name,
            Codes("fp4", "group", size, scale_dtype="fp8" if nvidias else "e8m0", tensor_scale=nvidias),
            (rows, 2 * half),
            lambda: nibbles(self.tensors.tensor(name)),
            lambda: self.tensors.tensor(scale).view(rows, groups),
            tensor_scale=(lambda: self.positive(whole)) if nvidias else None,
        )
