"""What went on within a run, from its side tables, thinned to what a page can show: power and clocks, tokens per second, requests.

Times are seconds from the first intended arrival. Of a cell the last `ok` repeat with side tables is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trtllm_dashboards.points import Point
from trtllm_results.errors import ResultsError
from trtllm_results.record.row import Row
from trtllm_results.store.layout import SideKind
from trtllm_results.store.table import Store

BUCKETS, BINS, REQUESTS = 120, 100, 60
STEPS = ("launched_s", "done_s", "decode_tokens", "context_tokens", "replica")
Floats = npt.NDArray[np.float64]


def run_of(point: Point, stores: Sequence[Store], damaged: list[str]) -> dict[str, Any] | None:
    """Telemetry, throughput and requests of one repeat; None where no store has side tables of it. A side table that cannot be read counts
    as none; `damaged` gets a sentence on it."""
    for row in reversed(point.rows):
        names = ("intended_s", "scheduled_s", "first_token_s", "end_s", "token_times_s", "warmup", "ok")
        requests = _columns(stores, "requests", row, names, damaged)
        if requests is None or "intended_s" not in requests:
            continue
        keep = ~requests["warmup"].astype(bool) if "warmup" in requests else np.ones(len(requests["intended_s"]), bool)
        if "ok" in requests:
            keep &= requests["ok"].astype(bool)
        requests = {name: column[keep] for name, column in requests.items()}
        if not len(requests["intended_s"]):
            continue
        begin, end = float(np.min(requests["intended_s"])), float(np.nanmax(requests["end_s"]))
        if not end > begin:
            continue
        run: dict[str, Any] = {"repeat": row.repeat, "duration_s": _round(end - begin), "requests": _requests(requests, begin)}
        run["rate"] = _rate(requests, begin, end)
        if (samples := _columns(stores, "samples", row, ("time_s", "device", "power_w", "sm_clock_mhz"), damaged)) is not None:
            run["telemetry"] = _telemetry(samples, begin, end)
        if (steps := _columns(stores, "steps", row, STEPS, damaged)) is not None:
            run["phases"] = _phases(steps)
        return run
    return None


def _columns(stores: Sequence[Store], kind: SideKind, row: Row, names: Sequence[str], damaged: list[str]) -> dict[str, Any] | None:
    for store in stores:
        try:
            table = store.read_side(kind, row)
        except ResultsError as error:
            damaged.append(str(error))
            continue
        if table is not None:
            return {name: table.column(name).to_numpy(zero_copy_only=False) for name in names if name in table.column_names}
    return None


def _requests(requests: dict[str, Any], begin: float) -> dict[str, Any]:
    """At most `REQUESTS`, evenly spaced in order of arrival: [intended, scheduled or null, first token, end]."""
    order = np.argsort(requests["intended_s"], kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(REQUESTS, len(order))).astype(int))]
    names = [name for name in ("intended_s", "scheduled_s", "first_token_s", "end_s") if name in requests]
    bars = [[_round(float(requests[name][i]) - begin) for name in names] for i in chosen]
    return {"of": len(order), "names": [name.removesuffix("_s") for name in names], "bars": bars}


def _rate(requests: dict[str, Any], begin: float, end: float) -> dict[str, Any] | None:
    """Output tokens/s in equal bins of the run."""
    times = requests.get("token_times_s")
    if times is None:
        return None
    lists = [one for one in times if one is not None and len(one)]
    if not lists:
        return None
    counts, edges = np.histogram(np.concatenate(lists), bins=BINS, range=(begin, end))
    width = (end - begin) / BINS
    return {"t": [_round(float(e) - begin + width / 2) for e in edges[:-1]], "tokens_per_s": [_round(float(c) / width) for c in counts]}


def _telemetry(samples: dict[str, Any], begin: float, end: float) -> dict[str, Any] | None:
    """Board power summed over devices and mean SM clock, in buckets of the run."""
    time = np.asarray(samples["time_s"], float)
    inside = (time >= begin) & (time <= end)
    if inside.sum() < 2:
        return None
    time, devices = time[inside], np.asarray(samples.get("device", np.zeros(len(inside))), float)[inside]
    count = max(1, len(np.unique(devices)))
    buckets = min(BUCKETS, max(2, int(inside.sum()) // count))
    place = np.minimum(((time - begin) / (end - begin) * buckets).astype(int), buckets - 1)
    held = np.bincount(place, minlength=buckets)
    used = held > 0
    series: dict[str, Any] = {"t": [_round((i + 0.5) * (end - begin) / buckets) for i in np.flatnonzero(used)]}
    for name, scale in (("power_w", count), ("sm_clock_mhz", 1)):
        if name in samples:
            sums = np.bincount(place, np.nan_to_num(np.asarray(samples[name], float)[inside]), minlength=buckets)
            series[name] = [_round(float(v)) for v in sums[used] / held[used] * scale]
    return series


def _phases(steps: dict[str, Any]) -> dict[str, float | int | None] | None:
    """Seconds in steps that decode, that prefill, that do both, and with no step in flight; of one replica where several ran."""
    if len(steps["done_s"]) < 2:
        return None
    if "replica" in steps:
        first = steps.pop("replica")
        steps = {name: column[first == first.min()] for name, column in steps.items()}
    done, launched = np.asarray(steps["done_s"], float), np.asarray(steps["launched_s"], float)
    before = np.concatenate([launched[:1], done[:-1]])
    taken = done - np.maximum(launched, before)
    decodes, prompts = np.asarray(steps["decode_tokens"]) > 0, np.asarray(steps["context_tokens"]) > 0
    return {
        "decode steps": _round(float(taken[decodes & ~prompts].sum())),
        "prefill steps": _round(float(taken[prompts & ~decodes].sum())),
        "mixed steps": _round(float(taken[prompts & decodes].sum())),
        "no step in flight": _round(float(np.maximum(launched - before, 0.0).sum())),
    }


def _round(value: float) -> float | int | None:
    if not np.isfinite(value):
        return None
    number = float(f"{value:.5g}")
    return int(number) if number.is_integer() else number
