"""AutoAWQ's layout, its version `gemm`, which auto-round writes too (Lin et al. 2024, arXiv 2306.00978).

qweight int32 [K, N / 8], whose nibbles from the lowest are columns 0 2 4 6 1 3 5 7; qzeros [groups, N / 8] likewise; scales [groups, N].
The factors of activations are folded into the layers before.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from torch import Tensor

from trtllm_engines.checkpoints.formats.config import (
    AUTO_ROUND,
    WIDE_BITS,
    GroupSize,
    ModuleSettings,
    Name,
    Names,
    Stated,
    checked_config,
    module_of_extra_config,
    within_name,
)
from trtllm_engines.checkpoints.formats.format import GROUP_SCALES, SCALES, Format, Rule, groups_of, words_to_codes
from trtllm_engines.checkpoints.stored_codes import StoredCodes
from trtllm_engines.errors import EngineError
from trtllm_engines.quantization.module_names import expression
from trtllm_engines.quantization.scheme import Codes, Inputs, QuantScheme

_NIBBLE_OF_COLUMN = (0, 4, 1, 5, 2, 6, 3, 7)
_MIDDLE = 8
"""The zero point of symmetric codes: it is stored without `zero_point`, too (auto-round and GPTQModel write such)."""


class _Config(Stated):
    bits: int | None = None
    w_bit: int | None = None
    group_size: GroupSize | None = None
    q_group_size: GroupSize | None = None
    zero_point: bool = True
    version: Name = "gemm"
    modules_to_not_convert: Names | None = None
    extra_config: dict[Name, ModuleSettings] | None = None


class Awq(Format):
    @staticmethod
    def reads(file: str, method: str) -> bool:
        return method == "awq" or (method.startswith(AUTO_ROUND) and method.endswith((":auto_awq", ":awq")))

    @cached_property
    def _config(self) -> _Config:
        config = checked_config(_Config, self)
        bits = config.bits or config.w_bit
        if bits != 4 or config.version.lower() != "gemm":
            raise self.unknown(f"AWQ with {bits} bits in the layout {config.version[:60]}")
        for name, settings in (config.extra_config or {}).items():
            if settings.bits not in (None, 4) and settings.bits < WIDE_BITS:
                raise self.unknown(f"AWQ with {settings.bits} bits in {name[:60]}")
        return config

    @cached_property
    def _group_sizes(self) -> list[tuple[str, int]]:
        """(modules, columns of a group); the first pattern that matches counts."""
        config = self._config
        size = config.group_size or config.q_group_size or 128
        own = [(module_of_extra_config(name), settings.group_size or size) for name, settings in (config.extra_config or {}).items()]
        return [*own, (".*", size)]

    def _group_size(self, module: str) -> int:
        return next(size for pattern, size in self._group_sizes if expression(pattern).matches(module))

    def rules(self) -> Sequence[Rule]:
        return [(pattern, self._of_groups(size)) for pattern, size in self._group_sizes]

    def _of_groups(self, size: int) -> QuantScheme:
        zero = self._config.zero_point
        kind = Codes("int4", "group", size, zero, "fp16") if size > 0 else Codes("int4", "row", zero_point=zero)
        return self.scheme(kind, Inputs(), "AWQ")

    def wide(self) -> Sequence[str]:
        settings = (self._config.extra_config or {}).items()
        own = [module_of_extra_config(name) for name, one in settings if (one.bits or 0) >= WIDE_BITS]
        return [*(within_name(name) for name in self._config.modules_to_not_convert or ()), *own]

    def stored(self, module: str) -> StoredCodes | None:
        qweight, qzeros, scales = (f"{module}.{leaf}" for leaf in ("qweight", "qzeros", "scales"))
        if not self.has(qweight):
            return None
        columns, words = self.matrix(qweight, ("I32",))
        rows = 8 * words
        groups, _ = self.matrix(scales, GROUP_SCALES)
        self.need(scales, GROUP_SCALES, (groups, rows))
        self.need(qzeros, ("I32",), (groups, words))
        grouping = groups_of(f"{module}.weight", columns, groups, self.folder, self._group_size(module))
        zero = self._config.zero_point
        if groups > 1:
            kind = Codes("int4", "group", grouping.size, zero, SCALES[self.tensors.header(scales)[0]])
        else:
            kind = Codes("int4", "row", zero_point=zero)

        def codes() -> Tensor:
            if not zero and not bool((self._unpacked(qzeros) == _MIDDLE).all()):
                raise EngineError(
                    f"tensor {qzeros} in {self.folder} has zero points other than {_MIDDLE}, and {self.file} says none; "
                    f"set zero_point to true there"
                )
            return self._unpacked(qweight).T.contiguous()

        return StoredCodes(
            f"{module}.weight",
            kind,
            (rows, columns),
            codes,
            lambda: grouping.spread(self.tensors.tensor(scales).T.contiguous()),
            (lambda: grouping.spread(self._unpacked(qzeros).T.float())) if zero else None,
        )

    def _unpacked(self, name: str) -> Tensor:
        """uint8 [K, N] or [groups, N], columns in order."""
        by_nibble = words_to_codes(self.tensors.tensor(name), 4)
        return by_nibble.view(len(by_nibble), -1, 8)[:, :, list(_NIBBLE_OF_COLUMN)].flatten(1)
