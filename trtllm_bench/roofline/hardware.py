"""Ceilings of GPUs: measured here (`trtllm-bench ceilings`) or, for a GPU that is not, from its maker's data sheet.

Data-sheet rates (`trtllm_results.gpus`) are at clocks and power a board does not hold, so a prediction from them takes the share of the
data sheet that was measured on an H100 (`ACHIEVABLE_*`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from trtllm_bench.errors import BenchError
from trtllm_bench.roofline.ceilings import Ceilings, cached
from trtllm_bench.roofline.counts import OpCost
from trtllm_results.gpus import ACHIEVABLE_BYTES, ACHIEVABLE_FLOPS, SHEETS, gpu_class, has_sheet_rates
from trtllm_results.record.environment import Environment

LINK_ROW_ELEMENTS = 8192
"""Width of the rows whose reduction `ceilings` measures."""


@dataclass(frozen=True)
class Hardware:
    """`flops_per_s` by number format, `bytes_per_s` of device memory: what a kernel can reach at best."""

    name: str
    flops_per_s: Mapping[str, float]
    bytes_per_s: float
    memory_bytes: float = 0.0
    arch: str = ""
    measured: bool = True
    link_gpus: int = 0
    """GPUs between which links were measured; 0 where they were not."""
    peer_copy_bytes_per_s: float = 0.0
    all_reduce_us: Mapping[str, float] = field(default_factory=dict)
    """By bytes of rows of `LINK_ROW_ELEMENTS`, as `Ceilings` has it."""
    adapter_bytes_per_s: float = 0.0
    """Rate of its network adapter, as in `Sheet`."""
    sms: int = 0
    boost_mhz: float = 0.0
    power_w: float = 0.0
    """Limit of the board; 0 where it is not known."""
    sheet_only: bool = False
    """As `Sheet` has it: no run on this GPU is known here."""

    def flops(self, kind: str) -> float:
        """The ceiling of a number format; of the next wider one where it is not known, 0 where nothing is."""
        wider = {"fp8": ("fp8", "fp16", "bf16"), "int8": ("int8", "fp16", "bf16"), "bf16": ("bf16", "fp16"), "fp16": ("fp16", "bf16")}
        return next((self.flops_per_s[one] for one in wider.get(kind, (kind,)) if one in self.flops_per_s), 0.0)

    def ceiling_us(self, cost: OpCost) -> tuple[float, float]:
        """(microseconds of the bytes, of the FLOP) of `cost` at the ceilings. Ops on rows take none for their FLOP, nor do formats whose
        ceiling is not known."""
        peak = self.flops(cost.compute) if cost.kind != "rows" else 0.0
        return cost.bytes / self.bytes_per_s * 1e6, cost.flop / peak * 1e6 if peak else 0.0

    @classmethod
    def of(cls, ceilings: Ceilings) -> Hardware:
        """As measured; what its architecture is, its name tells, where that is known here."""
        known = published_for(ceilings.device)
        return cls(
            ceilings.device,
            dict(ceilings.flops_per_s),
            ceilings.bytes_per_s,
            arch=known.arch if known else "",
            sms=known.sms if known else 0,
            boost_mhz=known.boost_mhz if known else 0.0,
            power_w=known.power_w if known else 0.0,
            link_gpus=ceilings.link_gpus,
            peer_copy_bytes_per_s=ceilings.peer_copy_bytes_per_s,
            all_reduce_us=dict(ceilings.all_reduce_us),
            adapter_bytes_per_s=known.adapter_bytes_per_s if known else 0.0,
        )


GPUS = tuple(SHEETS)


def published(name: str) -> Hardware:
    """What is to be expected of a GPU known by its data sheet (`h200`, or `NVIDIA H200` as its driver says). Raises `BenchError` for
    another."""
    if not has_sheet_rates(name):
        raise BenchError(f"no data sheet of GPU '{name}' is known here; choose from {', '.join(GPUS)}")
    name = gpu_class(name).lower()
    sheet = SHEETS[name]
    reachable = {kind: rate * ACHIEVABLE_FLOPS[kind] for kind, rate in sheet.flops_per_s.items()}
    bandwidth = sheet.bytes_per_s * ACHIEVABLE_BYTES
    return Hardware(
        name,
        reachable,
        bandwidth,
        sheet.memory_bytes,
        sheet.arch,
        measured=False,
        sms=sheet.sms,
        boost_mhz=sheet.boost_mhz,
        power_w=sheet.power_w,
        adapter_bytes_per_s=sheet.adapter_bytes_per_s,
        sheet_only=sheet.sheet_only,
    )


def published_for(device: str) -> Hardware | None:
    """The data sheet of a device by the name its driver gives it (`NVIDIA H100 80GB HBM3`), or None."""
    name = gpu_class(device).lower()
    return published(name) if name in SHEETS else None


def ceilings_for(environment: Environment) -> tuple[Hardware | None, list[str]]:
    """What this device can do at best, and what is to be said of how that is known."""
    measured = cached(environment)
    if measured is not None:
        return Hardware.of(measured), []
    hardware = published_for(environment.gpu) if has_sheet_rates(environment.gpu) else None
    if hardware is None:
        return None, ["no ceilings are known for this device; measure them with trtllm-bench ceilings"]
    return hardware, [
        f"ceilings are the {hardware.name} data sheet's, reduced to what such a GPU reaches; trtllm-bench ceilings measures them"
    ]
