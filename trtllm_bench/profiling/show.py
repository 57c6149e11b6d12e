"""The profile in the terminal: the kernel table, where the step's time went, and what recording cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console

from trtllm_bench.profiling.record import CellProfile, KernelRow
from trtllm_dashboards.tables import Column, show

ROWS = 24
WIDE = 110
"""Columns of a terminal in which the kernels' names, which are long, find room."""
COLUMNS = (
    Column("op", hoist=False),
    Column("kernel", hoist=False, priority=2),
    Column("calls", kind="number", priority=3),
    Column("call_us", "a call", unit="us", kind="number", places=1),
    Column("share", "time", unit="%", kind="number", places=1),
    Column("rate", "memory", unit="TB/s", kind="number"),
    Column("speed", "compute", unit="TFLOP/s", kind="number"),
    Column("ceiling", "of ceiling", unit="%", kind="number", places=0),
    Column("bound", "bound by", hoist=False),
)


def print_profile(profile: CellProfile, console: Console) -> None:
    shown = profile.kernels[:ROWS]
    scale, columns = (1e12, COLUMNS) if max((row.bytes_per_s for row in shown), default=0) > 1e11 else (1e9, _giga(COLUMNS))
    unknown = set() if any(row.ceiling_share for row in shown) else {"ceiling", "bound"}
    narrow = {"kernel", "calls"} if console.width < WIDE else set()
    used = [column for column in columns if column.key not in unknown | narrow]
    console.print(f"{profile.cell['label']} on {profile.device or 'this machine'}, {profile.collector}", style="bold", soft_wrap=True)
    show([_line(row, scale) for row in shown], used, console=console)
    if len(profile.kernels) > ROWS:
        console.print(f"and {len(profile.kernels) - ROWS} more in the page", style="dim")
    console.print()
    steps, total = len(profile.steps), profile.window_us
    parts = (("kernels", profile.busy_us), ("gaps between kernels", profile.gap_inside_us), ("gaps between steps", profile.gap_before_us))
    console.print(f"{steps} steps of {total / max(steps, 1):,.1f} us: " + ", ".join(f"{n} {us / total:.1%}" for n, us in parts))
    if profile.free_step_us and profile.recorded_step_us:
        cost = profile.recorded_step_us / profile.free_step_us - 1
        console.print(
            f"steps like these took {profile.recorded_step_us:,.1f} us recorded, {profile.free_step_us:,.1f} us unrecorded ({cost:+.1%})"
        )
    for one in profile.counters:
        _print_counters(one, console)
    for note in profile.notes:
        console.print(f"note: {note}", style="yellow", soft_wrap=True)


def _print_counters(one: Mapping[str, Any], console: Console) -> None:
    """One kernel as Nsight Compute saw it."""
    parts = [f"{one['duration_s'] * 1e6:,.1f} us"] if "duration_s" in one else []
    shares = {"dram_share": "DRAM", "sm_share": "SM", "l2_hit": "L2 hits", "occupancy": "occupancy", "occupancy_limit": "of at most"}
    parts += [f"{label} {one[name]:.0%}" for name, label in shares.items() if name in one]
    parts += [f"{one[name]:,.0f} {label}" for name, label in (("registers", "registers"), ("shared_bytes", "B shared")) if name in one]
    waits = ", ".join(f"{name} {value:.1f}" for name, value in one["stalls"].items())
    console.print(f"\n{one['kernel']} {one['grid']}, Nsight Compute: {', '.join(parts)}", soft_wrap=True)
    if waits:
        console.print(f"  warps wait for (warps a cycle): {waits}", soft_wrap=True)


def _giga(columns: Sequence[Column]) -> list[Column]:
    """The same in billions: a CPU's rates."""
    return [replace(column, unit=column.unit.replace("T", "G", 1)) if column.key in ("rate", "speed") else column for column in columns]


def short(role: str) -> str:
    """`layers.*.mlp.down_proj` as `down_proj`, `layers.*.o_proj.gather_rows.*` (several of that name) as `gather_rows`."""
    return role.removesuffix(".*").rpartition(".")[2]


def _line(row: KernelRow, scale: float) -> dict[str, Any]:
    return {
        "op": short(row.role),
        "kernel": row.kernel,
        "calls": row.calls,
        "call_us": row.time_us / row.calls,
        "share": 100 * row.share,
        "rate": row.bytes_per_s / scale,
        "speed": row.flops_per_s / scale,
        "ceiling": None if row.ceiling_share is None else 100 * row.ceiling_share,
        "bound": row.bound,
    }
