"""A GGUF file as a source of weights: wide numbers, or the codes that its quantizer left, and the plan that keeps these."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trtllm_engines.checkpoints import check_finite, check_shape
from trtllm_engines.checkpoints.formats.gguf import Blocks, common, kind_of, unpacked
from trtllm_engines.checkpoints.stored_codes import SCALE_DTYPES, StoredCodes
from trtllm_engines.errors import EngineError
from trtllm_engines.models.config import ModelConfig
from trtllm_engines.models.gguf_file import GgufFile
from trtllm_engines.quantization.precision import kv_scheme
from trtllm_engines.quantization.registry import HEAD, definition, scheme_for
from trtllm_engines.quantization.scheme import Codes, Inputs, ModuleRule, QuantPlan, QuantScheme


class GgufWeights:
    """A GGUF file as a source of weights."""

    def __init__(self, path: Path) -> None:
        self._file = GgufFile(path)

    @property
    def description(self) -> Mapping[str, Any]:
        return {"kind": "gguf", "path": str(self._file.path)}

    @property
    def config(self) -> ModelConfig:
        return self._file.config

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        stored = stored_name(name, self._file.format.names)
        shape_in_file = None if stored is None else self._file.shape(stored)
        if shape_in_file is None:
            raise EngineError(f"weight {name} ({stored} in GGUF) is missing from {self._file.path} (expected shape {list(shape)})")
        check_shape(name, shape, shape_in_file, str(self._file.path))
        self._file.check_numbers(str(stored))

    def unread(self, read: Collection[str]) -> Iterator[str]:
        stored = {stored_name(name, self._file.format.names) for name in read}
        blocks = tuple(f"blk.{layer}." for layer in range(self._file.config.num_layers))
        of_blocks = (name for name in self._file.names() if name.startswith(blocks) and name.endswith((".weight", ".bias")))
        return (name for name in of_blocks if name not in stored)

    def codes(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        return None

    def stored(self, name: str, shape: tuple[int, ...], kind: Codes, device: torch.device) -> StoredCodes | None:
        self.check(name, shape)
        stored_as = str(stored_name(name, self._file.format.names))
        own = _kind(self._file, stored_as)
        if own is None:
            return None

        @cache
        def blocks() -> Blocks:
            read = _blocks(self._file, stored_as)
            assert read is not None
            return read

        def converted(values: Any) -> Tensor:
            """Rows in the model's order."""
            return torch.from_numpy(np.ascontiguousarray(self._file.format.convert(name, values, self._file.config)))

        def scale() -> Tensor:
            values = blocks().zero_and_scale()[1] if own.zero_point else blocks().scale
            return converted(values).to(SCALE_DTYPES[own.scale_dtype])

        rows, columns = shape
        codes = StoredCodes(
            name,
            own,
            (rows, columns),
            lambda: converted(blocks().kept_codes()),
            scale,
            (lambda: converted(blocks().zero_and_scale()[0]).float()) if own.zero_point else None,
        ).on(device)
        return codes.as_kind(kind) if (own.dtype, kind.dtype) == ("int4", "int8") and codes.gives(kind) else codes

    def largest(self, name: str, shape: tuple[int, ...]) -> None:
        return None

    def kv_scale(self, name: str) -> float:
        return 1.0

    def input_scale(self, name: str) -> float:
        raise EngineError("a GGUF file has no activation scales, which an fp8 engine needs; calibrate first: trtllm-bench quantize")

    def read(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        self.check(name, shape)
        stored = str(stored_name(name, self._file.format.names))
        with np.errstate(all="ignore"):
            blocks = _blocks(self._file, stored)
            values = self._file.tensor(stored) if blocks is None else blocks.values()
        assert values is not None
        check_finite(name, torch.from_numpy(values), dtype, str(self._file.path))
        values = self._file.format.convert(name, values, self._file.config)
        return torch.from_numpy(np.ascontiguousarray(values)).to(device=device, dtype=dtype)


def _kind(file: GgufFile, name: str) -> Codes | None:
    """What the codes of matrix `name` are; None for one that is wide, or in codes that are read as wide numbers only."""
    stored = file.stored(name)
    return None if stored is None or len(stored.shape) != 2 else kind_of(stored.tensor_type)


def _blocks(file: GgufFile, name: str) -> Blocks | None:
    """The codes of matrix `name`, where `_kind` says that it has some."""
    stored = file.stored(name)
    return None if stored is None or _kind(file, name) is None else unpacked(np.asarray(stored.data), stored.tensor_type)


def gguf_plan(path: Path) -> QuantPlan | None:
    """The plan that keeps every product's codes as they are stored; None for a file of wide numbers.

    It goes by the scheme that most weights have. Query, key and value projections, which run as one GEMM, take codes that all of theirs
    are exactly. Raises `EngineError` as `GgufFile` does.
    """
    file = GgufFile(path)
    kinds: dict[str, Codes] = {}
    elements: Counter[str] = Counter()
    for module, layer in itertools.product(file.format.names, range(file.config.num_layers)):
        if "{n}" in module:
            name = module.replace("{n}", str(layer))
            stored = str(stored_name(f"{name}.weight", file.format.names))
            if (kind := _kind(file, stored)) is not None and (scheme := scheme_for(kind, Inputs())) is not None:
                kinds[name] = kind
                elements[scheme.name] += math.prod(file.shape(stored) or ())
    if not kinds:
        return None
    chosen = definition(elements.most_common(1)[0][0])
    for name in [name for name in kinds if name.endswith(".q_proj")]:
        parts = [f"{name.removesuffix('q_proj')}{part}_proj" for part in "qkv"]
        if all(part in kinds for part in parts):
            kinds.update(dict.fromkeys(parts, common([kinds[part] for part in parts])))
    modules: dict[Codes, list[str]] = {}
    for name, kind in kinds.items():
        modules.setdefault(kind, []).append(re.escape(name))
    named = {kind: scheme.name for kind in modules if (scheme := scheme_for(kind, Inputs())) is not None}
    rules = tuple(ModuleRule("|".join(modules[kind]), QuantScheme(name, kind)) for kind, name in named.items())
    wide = ModuleRule(HEAD, definition(chosen.wide_dtype).scheme)
    return QuantPlan(chosen.name, chosen.wide_dtype, kv_scheme(chosen.name, "auto"), (wide, *rules), path.name)


def stored_name(name: str, names: Mapping[str, str]) -> str | None:
    """llama.cpp's name of weight `name` (`model.layers.3.mlp.up_proj.weight`), by a family's `GgufFormat.names`; None when it has none."""
    module, _, kind = name.rpartition(".")
    layer = re.search(r"\.(\d+)\.", module)
    number = "" if layer is None else layer.group(1)
    stored = names.get(module if layer is None else f"{module[: layer.start(1)]}{{n}}{module[layer.end(1) :]}")
    return None if stored is None or kind not in ("weight", "bias") else f"{stored.replace('{n}', number)}.{kind}"
