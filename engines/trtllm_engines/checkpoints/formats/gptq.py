"""GPTQ's layout: AutoGPTQ, GPTQModel, and auto-round where it writes that (Frantar et al. 2023, arXiv 2210.17323).

qweight int32 [K * bits / 32, N] along K, lowest first (3 bits: a stream over three words); qzeros [groups, N * bits / 32], stored less one
in the first version of the format; scales [groups, N]; g_idx [K] is the group of each column, out of order where columns were quantized by
falling importance (act-order). Codes of 2 and 3 bits become int4. Modules may have settings of their own: in GPTQModel's `dynamic`, where
names after `-:` stay wide, and in auto-round's `extra_config`, where modules of 16 bits do.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated

from pydantic import Field
from torch import Tensor

from trtllm_engines.checkpoints.formats.config import (
    AUTO_ROUND,
    WIDE_BITS,
    GroupSize,
    ModuleSettings,
    Name,
    Names,
    Stated,
    beginning,
    checked_config,
    module_of_extra_config,
    within_name,
)
from trtllm_engines.checkpoints.formats.format import GROUP_SCALES, SCALES, Format, Rule, column_order, groups_of, words_to_codes
from trtllm_engines.checkpoints.stored_codes import StoredCodes
from trtllm_engines.errors import EngineError
from trtllm_engines.quantization.module_names import expression
from trtllm_engines.quantization.registry import definition
from trtllm_engines.quantization.scheme import Codes, Inputs, QuantScheme

_PACKED_AS = {"auto_round:auto_gptq": "gptq", "auto_round:gptq": "gptq", "auto_round:gptqmodel": "gptq_v2", "auto_round": "gptq_v2"}
"""The version of the format, by auto-round's name of the packing."""
_Bits = Annotated[int, Field(ge=1, le=32)]


class _Settings(ModuleSettings):
    bits: _Bits | None = None
    sym: bool | None = None
    desc_act: bool | None = None


class _Config(Stated):
    bits: _Bits
    group_size: GroupSize = -1
    sym: bool = True
    desc_act: bool = False
    checkpoint_format: Name | None = None
    format: Name | None = None
    packing_format: Name | None = None
    modules_to_not_convert: Names | None = None
    lm_head: bool = False
    dynamic: dict[Name, _Settings] | None = None
    extra_config: dict[Name, _Settings] | None = None

    @property
    def layout(self) -> str:
        return self.checkpoint_format or self.format or _PACKED_AS.get(self.packing_format or "", "gptq")

    def with_settings(self, settings: _Settings) -> _Config:
        return self.model_copy(update=settings.model_dump(exclude_none=True))


class Gptq(Format):
    @staticmethod
    def reads(file: str, method: str) -> bool:
        return method == "gptq" or (method.startswith(AUTO_ROUND) and method.removeprefix(AUTO_ROUND) in _PACKED_AS)

    @cached_property
    def _config(self) -> _Config:
        config = checked_config(_Config, self)
        if config.layout not in ("gptq", "gptq_v2"):
            raise self.unknown(f"GPTQ in the layout {config.layout[:60]}")
        return config

    @cached_property
    def _particular(self) -> list[tuple[str, _Config | None]]:
        """(pattern of names, settings, or None for wide) of modules with settings of their own. The first pattern that matches counts."""
        config = self._config
        particular: list[tuple[str, _Config | None]] = []
        for name, settings in (config.dynamic or {}).items():
            sign = name[:2] if name[:2] in ("+:", "-:") else ""
            particular.append((beginning(name.removeprefix(sign)), None if sign == "-:" else config.with_settings(settings)))
        for name, settings in (config.extra_config or {}).items():
            own = config.with_settings(settings)
            particular.append((module_of_extra_config(name), None if own.bits >= WIDE_BITS else own))
        return particular

    def _settings(self, module: str) -> _Config:
        fitting = (config for pattern, config in self._particular if expression(pattern).matches(module))
        return next(fitting, None) or self._config

    def rules(self) -> Sequence[Rule]:
        everything = self._scheme_of(self._config)
        wide = definition(definition(everything.name).wide_dtype).scheme
        particular = [(pattern, wide if config is None else self._scheme_of(config)) for pattern, config in self._particular]
        return [*particular, (".*", everything)]

    def _scheme_of(self, config: _Config) -> QuantScheme:
        self._check_bits(config.bits)
        dtype = "int8" if config.bits == 8 else "int4"
        grouped = config.group_size > 0
        kind = Codes(dtype, "group" if grouped else "row", max(0, config.group_size), not config.sym, "fp16" if grouped else "fp32")
        return self.scheme(kind, Inputs(), f"GPTQ with {config.bits} bits")

    def _check_bits(self, bits: int) -> None:
        if bits not in (2, 3, 4, 8):
            raise self.unknown(f"GPTQ with {bits} bits")

    def wide(self) -> Sequence[str]:
        return [within_name(name) for name in self._config.modules_to_not_convert or ()]

    def stored(self, module: str) -> StoredCodes | None:
        qweight, qzeros, scales, g_idx = (f"{module}.{leaf}" for leaf in ("qweight", "qzeros", "scales", "g_idx"))
        if not self.has(qweight):
            return None
        config = self._settings(module)
        bits = config.bits
        self._check_bits(bits)
        words, rows = self.matrix(qweight, ("I32",))
        columns = words * 32 // bits
        groups, _ = self.matrix(scales, GROUP_SCALES)
        self.need(scales, GROUP_SCALES, (groups, rows))
        self.need(qzeros, ("I32",), (groups, rows * bits // 32))
        grouping = groups_of(f"{module}.weight", columns, groups, self.folder, config.group_size)
        if self.has(g_idx):
            self.need(g_idx, ("I32", "I64"), (columns,))
        elif config.desc_act and groups > 1:
            raise EngineError(
                f"weight {module}.weight in {self.folder} was quantized with its columns in another order (desc_act), and {g_idx} is "
                f"missing; download it again"
            )
        order = column_order(g_idx, self.tensors.tensor(g_idx), grouping, self.folder) if self.has(g_idx) else None
        middle = 1 << (bits - 1)
        shift = 8 - middle if config.sym and bits < 8 else 0  # codes of few bits, moved so that zero is int4's own
        stored_as = {8: "int8"}.get(bits, "int4")
        granular = ("group", grouping.size) if groups > 1 else ("row", 0)
        scale_dtype = SCALES[self.tensors.header(scales)[0]] if groups > 1 else "fp32"
        kind = Codes(stored_as, granular[0], granular[1], not config.sym, scale_dtype)  # type: ignore[arg-type]

        def codes() -> Tensor:
            if config.sym and not bool((zero_codes() == middle).all()):
                raise EngineError(f"tensor {qzeros} in {self.folder} has zero points other than {middle}, and its configuration says sym")
            unsigned = words_to_codes(self.tensors.tensor(qweight).T.contiguous(), bits)
            unsigned = unsigned if order is None else unsigned[:, order.long()]
            return unsigned + shift if bits < 8 else (unsigned.short() - 128).char()

        def zero_codes() -> Tensor:
            """[N, groups]; 0 is stored as the largest code where zero points are stored less one."""
            stored_less = 1 if config.layout == "gptq" else 0
            return (words_to_codes(self.tensors.tensor(qzeros), bits).T.short() + stored_less) & ((1 << bits) - 1)

        return StoredCodes(
            f"{module}.weight",
            kind,
            (rows, columns),
            codes,
            lambda: grouping.spread(self.tensors.tensor(scales).T.contiguous()),
            (lambda: grouping.spread(zero_codes().float() - (128 if bits == 8 else 0))) if kind.zero_point else None,
            order=None if order is None else lambda: order,
        )
