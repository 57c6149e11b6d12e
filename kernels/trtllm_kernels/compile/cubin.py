"""A compiled kernel as an engine stores it: machine code and the few facts needed to launch it. Needs neither Triton nor torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trtllm_kernels.errors import KernelError
from trtllm_kernels.files import write_whole


@dataclass(frozen=True)
class CubinInfo:
    """`entry` is the symbol to launch. `spill_bytes` is stack and local memory per thread (0 in a healthy kernel).

    `tensordesc` describes, in order, the TMA descriptors that the kernel takes: element type, swizzle and block size, as Triton chose them
    or `nvrtc` states them, which says too where a box's rows come in another order (`interleaved`).
    `waits`: the kernel waits for its predecessor itself, so it may begin before that one has ended (`triton_kernels/pdl.py`).
    """

    entry: str
    arch: str
    num_warps: int
    shared_bytes: int
    registers: int
    spill_bytes: int
    tensordesc: tuple[Mapping[str, Any], ...] = ()
    waits: bool = False


@dataclass(frozen=True)
class Cubin:
    info: CubinInfo
    code: bytes

    def save(self, folder: Path, key: str) -> None:
        """Writes `key.cubin` and `key.json`, each whole or not at all; the code first, so that a description implies its code."""
        write_whole(folder / f"{key}.cubin", self.code)
        write_whole(folder / f"{key}.json", json.dumps(asdict(self.info), indent=1, sort_keys=True).encode())

    @staticmethod
    def load(folder: Path, key: str) -> Cubin:
        try:
            fields = json.loads((folder / f"{key}.json").read_text())
            info = CubinInfo(**{**fields, "tensordesc": tuple(fields["tensordesc"])})
            return Cubin(info, (folder / f"{key}.cubin").read_bytes())
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise KernelError(f"kernel {key} cannot be read from {folder}: {error}") from error
