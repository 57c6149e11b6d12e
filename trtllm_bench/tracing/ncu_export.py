"""Counters of single kernels, read from the CSV that Nsight Compute prints, either page of it.

`--page raw` has one row per kernel and one column per metric, with a second header row of units; `--page details` has one row per metric of
a kernel. Metric names differ between chips and versions, so each figure has a list of names, and is absent where the file has none of them.
Source of the names: Nsight Compute documentation, "Metrics Guide" and "CLI: --csv, --page".
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trtllm_bench.errors import BenchError

_SCALES = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_UNITS = ("byte", "second", "hz", "s")
METRICS: Mapping[str, tuple[str, ...]] = {
    "duration_s": ("gpu__time_duration.sum", "gpu__time_duration.avg", "Duration"),
    "dram_share": (
        "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
        "dram__throughput.avg.pct_of_peak_sustained_elapsed",
        "DRAM Throughput",
    ),
    "dram_bytes_per_s": ("dram__bytes.sum.per_second", "Memory Throughput"),
    "memory_share": ("gpu__compute_memory_throughput.avg.pct_of_peak_sustained_elapsed", "Memory Throughput %"),
    "sm_share": ("sm__throughput.avg.pct_of_peak_sustained_elapsed", "Compute (SM) Throughput"),
    "l2_hit": ("lts__t_sector_hit_rate.pct", "L2 Hit Rate"),
    "l1_hit": ("l1tex__t_sector_hit_rate.pct", "L1/TEX Hit Rate"),
    "occupancy": ("sm__warps_active.avg.pct_of_peak_sustained_active", "Achieved Occupancy"),
    "occupancy_limit": ("sm__maximum_warps_per_active_cycle_pct", "Theoretical Occupancy"),
    "registers": ("launch__registers_per_thread", "Registers Per Thread"),
    "shared_bytes": ("launch__shared_mem_per_block", "launch__shared_mem_per_block_dynamic", "Dynamic Shared Memory Per Block"),
    "waves": ("launch__waves_per_multiprocessor", "Waves Per SM"),
}
_STALL = "smsp__average_warps_issue_stalled_"
_IDENTITY = ("ID", "Kernel Name", "Block Size", "Grid Size")


@dataclass(frozen=True)
class Counters:
    """One kernel launch. Shares and hit rates are ratios. `stalls`: warps per issued instruction that wait, by reason, the four largest
    first."""

    kernel: str
    grid: str
    block: str
    figures: Mapping[str, float]
    stalls: Mapping[str, float]


def read_ncu(text: str) -> list[Counters]:
    """Raises `BenchError` when the text holds no kernel, with the tool's own error when it gives one."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        error_line = next((line for line in lines if "ERR" in line), "")
        if "ERR_NVGPUCTRPERM" in text:
            raise BenchError(
                "Nsight Compute may not read this GPU's counters: run as root, or have the driver loaded with "
                "NVreg_RestrictProfilingToAdminUsers=0"
            )
        detail = f": {error_line.strip('= ')}" if error_line else ""
        raise BenchError(f"Nsight Compute measured no kernel{detail}; does the cell run the kernel named?")
    rows = _complete(line for line in lines[start:] if not line.startswith("=="))
    launches = _of_details(rows) if "Metric Name" in rows[0] else _of_raw(rows)
    return [_counters(identity, metrics) for identity, metrics in launches]


def _complete(lines: Iterable[str]) -> list[dict[str, str]]:
    """Rows by column. Refuses a file that is cut short, since its last number may lack digits."""
    try:
        rows = list(csv.DictReader(io.StringIO("\n".join(lines)), strict=True))
    except csv.Error:
        rows = []
    if not rows or "Kernel Name" not in rows[0] or any(None in row.values() for row in rows):
        raise BenchError("the CSV of Nsight Compute is cut short or damaged; record it again")
    return rows


def _of_raw(rows: list[dict[str, str]]) -> Iterable[tuple[dict[str, str], dict[str, float]]]:
    units = rows[0] if not rows[0]["ID"] else {}
    for row in rows[1 if units else 0 :]:
        metrics = {name: _number(value, units.get(name, "")) for name, value in row.items() if name not in _IDENTITY}
        yield row, {name: value for name, value in metrics.items() if value is not None}


def _of_details(rows: list[dict[str, str]]) -> Iterable[tuple[dict[str, str], dict[str, float]]]:
    launches: dict[str, tuple[dict[str, str], dict[str, float]]] = {}
    for row in rows:
        _, metrics = launches.setdefault(row["ID"], (row, {}))
        unit = row.get("Metric Unit", "")
        value = _number(row.get("Metric Value", ""), unit)
        if value is not None:
            name = row["Metric Name"]
            metrics[f"{name} %" if name == "Memory Throughput" and unit == "%" else name] = value
    return launches.values()


def _number(text: str | None, unit: str) -> float | None:
    """In base units; a percentage as a ratio."""
    try:
        value = float((text or "").replace(",", ""))
    except ValueError:
        return None
    if unit == "%":
        return value / 100
    first = unit.split("/")[0]
    if first[:1] in _SCALES and first[1:].lower() in _UNITS:
        return value * _SCALES[first[0]]
    return value


def _counters(identity: Mapping[str, str], metrics: Mapping[str, float]) -> Counters:
    figures = {}
    for figure, names in METRICS.items():
        value = next((metrics[name] for name in names if name in metrics), None)
        if value is not None:
            ratio = figure.endswith(("share", "hit")) or figure.startswith("occupancy")
            figures[figure] = value / 100 if ratio and value > 1.5 else value
    stalls = {
        name.removeprefix(_STALL).partition("_per_")[0].replace("_", " "): value
        for name, value in metrics.items()
        if name.startswith(_STALL) and name.endswith("_per_issue_active.ratio") and "not_issued" not in name and "_selected_" not in name
    }
    largest = dict(sorted(stalls.items(), key=lambda item: -item[1])[:4])
    return Counters(identity["Kernel Name"], identity.get("Grid Size", ""), identity.get("Block Size", ""), figures, largest)


def as_row(one: Counters) -> dict[str, Any]:
    """For a table and the page."""
    return {"kernel": one.kernel, "grid": one.grid, "block": one.block, **one.figures, "stalls": dict(one.stalls)}
