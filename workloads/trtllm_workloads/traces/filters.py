"""Parts and variants of a trace. Each takes a trace and gives a trace; order matters where times are concerned, as it does in reading them.

Sampling keeps each row with equal chance independently of the others, so a Poisson-like stream stays one at a lower rate; taking every
k-th row would make it more regular than it was.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from trtllm_workloads.errors import WorkloadError
from trtllm_workloads.traces.trace import Trace


def _timed(trace: Trace, what: str) -> None:
    if not trace.timed:
        raise WorkloadError(f"trace {trace.name} has no timestamps, so {what} has no meaning")


def window(trace: Trace, start_s: float = 0.0, end_s: float = float("inf")) -> Trace:
    """Rows that arrive in [start_s, end_s) from the trace's first arrival."""
    _timed(trace, "a time window")
    if end_s <= start_s:
        raise WorkloadError(f"the window from {start_s:g} s to {end_s:g} s is empty")
    ordered = trace.in_order()
    return ordered.take((ordered.arrival_s >= start_s) & (ordered.arrival_s < end_s)).in_order()


def sample(trace: Trace, share: float, rng: np.random.Generator) -> Trace:
    """Each row kept with probability `share`."""
    if not 0 < share <= 1:
        raise WorkloadError(f"the sampled share is {share:g}; it must lie in (0, 1]")
    return trace.take(rng.random(len(trace)) < share)


def shorter_than(trace: Trace, max_input: int | None = None, max_output: int | None = None, max_total: int | None = None) -> Trace:
    """Rows within these lengths, tokens; longer rows are left out, not cut, as a cut request is one nobody made."""
    keep = np.ones(len(trace), dtype=bool)
    inputs, outputs = trace.input_tokens.astype(np.int64), trace.output_tokens.astype(np.int64)
    for limit, values in ((max_input, inputs), (max_output, outputs), (max_total, inputs + outputs)):
        if limit is not None:
            keep &= values <= limit
    return trace.take(keep)


def time_scale(trace: Trace, factor: float) -> Trace:
    """Arrival times multiplied by `factor`: 0.5 replays twice as fast."""
    _timed(trace, "a time scale")
    if not 0 < factor < np.inf:
        raise WorkloadError(f"the time scale is {factor:g}; it must be above 0")
    return replace(trace, arrival_s=trace.arrival_s * factor)


def length_scale(trace: Trace, factor: float) -> Trace:
    """Lengths multiplied by `factor`, rounded up, and prefix blocks shrunk or grown with them, so that prompts share the same part of
    themselves as before: a replay in miniature, for machines that cannot serve the lengths recorded."""
    if not 0 < factor < np.inf:
        raise WorkloadError(f"the length scale is {factor:g}; it must be above 0")
    block = trace.block_tokens * factor
    if trace.block_tokens and (block < 1 or abs(block - round(block)) > 1e-6):
        raise WorkloadError(f"the length scale {factor:g} makes prefix blocks of {block:g} tokens; take a fraction of {trace.block_tokens}")
    return replace(
        trace,
        input_tokens=np.ceil(trace.input_tokens * factor).astype(np.int32),
        output_tokens=np.ceil(trace.output_tokens * factor).astype(np.int32),
        block_tokens=round(block),
    )


def jitter(trace: Trace, rng: np.random.Generator) -> Trace:
    """Rows that share an instant spread evenly at random over the time until the next instant, for traces recorded on a coarse grid."""
    _timed(trace, "jitter")
    ordered = trace.in_order()
    instants, which = np.unique(ordered.arrival_s, return_inverse=True)
    if len(instants) < 2:
        return ordered
    gaps = np.append(np.diff(instants), np.median(np.diff(instants)))
    return replace(ordered, arrival_s=ordered.arrival_s + rng.random(len(ordered)) * gaps[which]).in_order()
