"""GPUs by class: data sheets, and the share of a data sheet that is reached. One entry of `SHEETS` makes a GPU known everywhere.

Data-sheet rates are at clocks and power a board does not hold. Dense rates, no sparsity. Sources: NVIDIA A100 80GB SXM, L40S, H100 SXM5 and
H200 SXM data sheets, and that of the DGX B200 over its eight GPUs. Memory is what drivers report (nvidia-smi's total), since sheets round:
an H200 of "141 GB" has 150.8e9 bytes. Network adapters: one per GPU of a DGX (data sheets of DGX A100, H100, H200 and B200: ConnectX-6 at
200 Gb/s, ConnectX-7 at 400 Gb/s). Hosts with L40S differ, so its entry has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ACHIEVABLE_BYTES = 3.06 / 3.35
"""Read bandwidth measured on an H100 80GB HBM3 over its data sheet's."""
ACHIEVABLE_FLOPS: Mapping[str, float] = {
    "fp8": 1280 / 1979,
    "bf16": 677 / 989.4,
    "fp16": 646 / 989.4,
    "int8": 867 / 1979,
    "fp32": 50.5 / 67,
}
"""GEMM rates measured on an H100 80GB HBM3 over a second, at its power limit, over its data sheet's (results/recorded/h100)."""


@dataclass(frozen=True)
class Sheet:
    """`flops_per_s` by number format; formats the GPU lacks are left out. `measured`: `ACHIEVABLE_*` are of this die."""

    arch: str
    memory_mib: int
    """What the driver reports in all."""
    bytes_per_s: float
    flops_per_s: Mapping[str, float]
    sms: int = 0
    boost_mhz: float = 0.0
    power_w: float = 0.0
    """Most that the board may draw."""
    measured: bool = False
    adapter_bytes_per_s: float = 0.0
    """Rate of its network adapter, one way; 0 where hosts with this GPU differ."""
    sheet_only: bool = False
    """No run on this GPU, ours or published, is known here: nothing but the data sheet stands behind a prediction."""

    @property
    def memory_bytes(self) -> int:
        return self.memory_mib << 20


_HOPPER = {"bf16": 989.4e12, "fp16": 989.4e12, "fp8": 1979e12, "int8": 1979e12, "fp32": 67e12}
_BLACKWELL = {"bf16": 2250e12, "fp16": 2250e12, "fp8": 4500e12, "int8": 4500e12, "fp32": 75e12}
SHEETS: Mapping[str, Sheet] = {
    "a100": Sheet(
        "sm_80",
        81920,
        2.039e12,
        {"bf16": 312e12, "fp16": 312e12, "int8": 624e12, "fp32": 19.5e12},
        108,
        1410,
        400,
        adapter_bytes_per_s=25e9,
    ),
    "l40s": Sheet(
        "sm_89", 46068, 0.864e12, {"bf16": 362e12, "fp16": 362e12, "fp8": 733e12, "int8": 733e12, "fp32": 91.6e12}, 142, 2520, 350
    ),
    "h100": Sheet("sm_90", 81559, 3.35e12, _HOPPER, 132, 1980, 700, measured=True, adapter_bytes_per_s=50e9),
    "h200": Sheet("sm_90", 143771, 4.8e12, _HOPPER, 132, 1980, 700, measured=True, adapter_bytes_per_s=50e9),
    "b200": Sheet("sm_100", 183359, 8e12, _BLACKWELL, 148, 1965, 1000, adapter_bytes_per_s=50e9, sheet_only=True),
}
"""By class, in lower case. A class is words of the names that drivers and files give its boards, joined by hyphens: `rtx-6000-ada` of
`NVIDIA RTX 6000 Ada Generation`."""


FASTER_MEMORY = frozenset({"NVL"})
"""Words in the names of boards whose memory is faster than the sheet of their class says: an H100 NVL reads 3.9 TB/s and not 3.35."""
OTHER_BOARDS = frozenset({"PCIE", "40GB", "MIG"}) | FASTER_MEMORY
"""Words in the names of boards that have a sheet's die and other rates: an H100 PCIe reads 2.0 TB/s and not 3.35, an A100 of 40 GB 1.56. A
MIG instance is a part of a board."""


def gpu_class(name: str) -> str:
    """`NVIDIA H100 80GB HBM3` -> `H100`: the class whose words are all in the name; the name itself where no data sheet is known."""
    words = set(_words(name))
    return next((gpu.upper() for gpu in SHEETS if words.issuperset(_words(gpu))), name)


def has_sheet_rates(name: str) -> bool:
    """Whether the data sheet of the GPU's class gives the rates of this board, by the name that its driver gives it."""
    return gpu_class(name).lower() in SHEETS and not OTHER_BOARDS.intersection(_words(name))


def reads_faster_than_sheet(name: str) -> bool:
    """Whether the board's memory may be faster than the data sheet of its class says."""
    return bool(FASTER_MEMORY.intersection(_words(name)))


def _words(name: str) -> list[str]:
    return name.upper().replace("-", " ").replace("_", " ").split()


def sheet_of(name: str) -> Sheet | None:
    """The data sheet of a GPU by any of its names, or None."""
    return SHEETS.get(gpu_class(name).lower())
