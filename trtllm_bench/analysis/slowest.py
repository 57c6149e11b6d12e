"""The request that decides a percentile, and the steps it went through: where it waited, and what those steps were doing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trtllm_bench.analysis.cells import MeasuredCell
from trtllm_bench.analysis.explain import read_steps
from trtllm_bench.errors import BenchError
from trtllm_results.metrics.requests import RequestLog, e2e


@dataclass(frozen=True)
class Stage:
    """`queue`, `prefill` or `decode`: seconds, and the first and last of the run's steps that ended within it (None where none did)."""

    name: str
    seconds: float
    first: int | None
    last: int | None
    decode_tokens: float
    """Mean per step."""
    context_tokens: float


@dataclass(frozen=True)
class SlowRequest:
    index: int
    percentile: float
    input_tokens: int
    output_tokens: int
    e2e_s: float
    preemptions: int
    stages: tuple[Stage, ...]


def slow_request(cell: MeasuredCell, percentile: float = 99.0) -> SlowRequest:
    """The request at this percentile of end-to-end time. Raises `BenchError` when the store has no table of the
    run's requests or steps."""
    table = None if cell.store is None else cell.store.read_side("requests", cell.row)
    if table is None:
        raise BenchError(f"{cell.label} has no table of its requests; give the store folder the run was kept in (--out)")
    log = RequestLog.from_side(table)
    times = np.where(log.ok, e2e(log), -np.inf)
    order = np.argsort(times)[-int(log.ok.sum()) :]
    index = int(order[min(len(order) - 1, int(np.ceil(percentile / 100 * len(order))) - 1)])
    steps = read_steps(cell)
    start = float(log.intended_s[index])
    scheduled = float(log.scheduled_s[index]) if log.scheduled_s is not None and np.isfinite(log.scheduled_s[index]) else start
    bounds = (start, scheduled, float(log.first_token_s[index]), float(log.end_s[index]))
    stages = [_stage(name, bounds[i], bounds[i + 1], steps) for i, name in enumerate(("queue", "prefill", "decode"))]
    preempted = int(table.column("preemptions")[index].as_py() or 0) if "preemptions" in table.column_names else 0
    sizes = int(log.input_tokens[index]), int(log.output_tokens[index])
    return SlowRequest(index, percentile, *sizes, float(times[index]), preempted, tuple(stages))


def _stage(name: str, begin: float, end: float, steps: Mapping[str, Any]) -> Stage:
    done = np.asarray(steps["done_s"])
    inside = np.flatnonzero((done > begin) & (done <= end + 1e-9))
    if not len(inside):
        return Stage(name, end - begin, None, None, 0.0, 0.0)
    means = (float(np.asarray(steps[column])[inside].mean()) for column in ("decode_tokens", "context_tokens"))
    return Stage(name, end - begin, int(inside[0]), int(inside[-1]), *means)
