"""auto-round's own configuration of tensors in compressed-tensors' layout: NVFP4 and MXFP4 (github.com/intel/auto-round).

It says the numbers of all weights and inputs, and in `extra_config` what some modules have of their own. What it writes in AutoGPTQ's and
AutoAWQ's layouts, and in fp8, the readers of those take.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated

from pydantic import Field

from trtllm_engines.checkpoints.formats.compressed_tensors import CompressedTensors, Config, Group, StatedCodes
from trtllm_engines.checkpoints.formats.config import (
    AUTO_ROUND,
    EVERY_LINEAR,
    WIDE_BITS,
    GroupSize,
    Name,
    Stated,
    checked_config,
    module_of_extra_config,
)


class _Numbers(Stated):
    """What auto-round says of weights and inputs, of all modules or, where it differs, of one."""

    bits: Annotated[int, Field(ge=1, le=64)] | None = None
    data_type: Name | None = None
    group_size: GroupSize | None = None
    sym: bool | None = None
    act_bits: Annotated[int, Field(ge=1, le=64)] | None = None
    act_data_type: Name | None = None
    act_dynamic: bool | None = None


class _Config(_Numbers):
    extra_config: dict[Name, _Numbers] | None = None

    def as_groups(self) -> Config:
        """The same as groups and modules to ignore."""
        own, ignored = {}, []
        for name, numbers in (self.extra_config or {}).items():
            merged = self.model_copy(update=numbers.model_dump(exclude_none=True))
            pattern = f"re:{module_of_extra_config(name)}$"
            if (merged.bits or 0) >= WIDE_BITS:
                ignored.append(pattern)
            else:
                own[name] = merged.as_group(pattern)
        return Config(config_groups={**own, "": self.as_group(EVERY_LINEAR)}, ignore=ignored)

    def as_group(self, modules: str) -> Group:
        weights = StatedCodes(num_bits=self.bits, type=_kind_of_number(self.data_type), group_size=self.group_size, symmetric=self.sym)
        grouped = "tensor_group" if (self.data_type or "").startswith("nv_fp") else "group"
        weights.strategy = grouped if (self.group_size or 0) > 0 else "channel"
        if (self.act_bits or WIDE_BITS) >= WIDE_BITS:
            return Group(targets=[modules], weights=weights)
        inputs = StatedCodes(num_bits=self.act_bits, type=_kind_of_number(self.act_data_type or self.data_type), dynamic=self.act_dynamic)
        return Group(targets=[modules], weights=weights, input_activations=inputs)


def _kind_of_number(data_type: str | None) -> str:
    return "float" if data_type and ("fp" in data_type or "float" in data_type) else "int"


class AutoRound(CompressedTensors):
    @staticmethod
    def reads(file: str, method: str) -> bool:
        return method == f"{AUTO_ROUND}auto_round:llm_compressor"

    @cached_property
    def _config(self) -> Config:
        return checked_config(_Config, self).as_groups()
