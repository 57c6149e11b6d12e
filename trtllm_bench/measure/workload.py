"""From a `WorkloadSpec` to the requests themselves, and the rate they stand for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from trtllm_bench.errors import BenchError
from trtllm_bench.spec.measurement import MeasurementSpec, WorkloadSpec
from trtllm_bench.targets.registry import Tokenize, tokenize_of, vocabulary_of
from trtllm_results.record.cell import FIXED_LENGTHS
from trtllm_workloads.request import NO_LORA, Workload

BYTES_A_REQUEST = 2000
"""What the driver keeps of a request beside its tokens."""


def workload_of(spec: MeasurementSpec) -> Workload:
    """The requests that are asked for, in the form that the target takes. Raises `BenchError`, and the components' errors."""
    workload = make_workload(spec.workload, vocabulary_of(spec), tokenize_of(spec))
    _check_memory(workload)
    return workload


def _check_memory(workload: Workload) -> None:
    """Raises `OutOfMemoryError` where prompts (4 bytes a token) and arrival times (8) would not fit beside each other."""
    from trtllm_engines.errors import OutOfMemoryError
    from trtllm_engines.memory import host_free_bytes

    needed = 4 * int(workload.input_tokens.sum()) + 8 * int(workload.output_tokens.sum()) + BYTES_A_REQUEST * len(workload)
    free = host_free_bytes()
    if needed > free:
        raise OutOfMemoryError(
            f"{len(workload):,} requests of {workload.input_tokens.mean():,.0f} and {workload.output_tokens.mean():,.0f} tokens take about "
            f"{needed / 2**30:,.1f} GiB while they are measured, and {free / 2**30:.1f} GiB are free; ask for fewer with --num-requests"
        )


def notes_of(spec: WorkloadSpec, workload: Workload) -> list[str]:
    """What a reader of the figures should know of the requests, a sentence each."""
    notes = []
    if len(workload) < (spec.num_requests or 0):
        notes.append(f"{spec.dataset} has {len(workload):,} of the {spec.num_requests:,} requests asked for")
    if workload.skipped:
        rows = f"{workload.skipped:,} row{'s' * (workload.skipped > 1)}"
        notes.append(f"{rows} of {spec.dataset} left out, being no requests")
    if not spec.open_loop and len(workload.arrival_s) and np.nanmax(workload.arrival_s) > 0:
        notes.append(
            f"the arrival times of {spec.dataset} are not used: requests go out as fast as they are answered; --replay keeps the times"
        )
    adapted = 0 if workload.lora_id is None else int((workload.lora_id != NO_LORA).sum())
    if adapted:
        notes.append(f"lora_request of {adapted:,} request{'s' * (adapted > 1)} of {spec.dataset} is ignored: adapters are not built yet")
    return notes


def make_workload(spec: WorkloadSpec, vocabulary: int, tokenize: Tokenize | None = None) -> Workload:
    """The requests, their prompts drawn from `vocabulary` token ids, texts of a dataset turned into ids by `tokenize`.

    Raises `BenchError` or `WorkloadError`.
    """
    from trtllm_workloads.arrivals import chosen
    from trtllm_workloads.open_workload import open_workload
    from trtllm_workloads.synthetic import fixed, generator

    if spec.dataset is not None:
        made = open_workload(
            spec.dataset,
            requests=spec.num_requests,
            vocab_size=vocabulary,
            seed=spec.seed,
            time_scale=spec.time_scale,
            skip_bad_rows=spec.skip_bad_rows,
            tokenize=tokenize,
        )
    else:
        made = replace(fixed(spec.num_requests or 1, *spec.lengths, vocab_size=vocabulary, seed=spec.seed), name=FIXED_LENGTHS)
    if spec.replay and not len(made.arrival_s):
        raise BenchError(f"workload {made.name} has no arrival times to replay; give --request-rate, or leave --replay out")
    process = chosen(spec.request_rate or None, spec.burstiness, spec.arrivals)
    return made if process is None else made.with_arrivals(process.times(made.num_arrivals, generator(spec.seed, "arrivals")))


def of_repeat(workload: Workload, spec: WorkloadSpec, repeat: int) -> Workload:
    """The workload as a repeat sends it: the first with the arrivals it has, each later one with its own draw of the process.

    So the spread over repeats has in it what the luck of the arrivals adds. Two sweeps of one seed draw the same, repeat by repeat. Times
    that a dataset brings stay what they are.
    """
    from trtllm_workloads.arrivals import chosen
    from trtllm_workloads.synthetic import generator

    process = chosen(spec.request_rate or None, spec.burstiness, spec.arrivals)
    if not repeat or process is None:
        return workload
    return workload.with_arrivals(process.times(workload.num_arrivals, generator(spec.seed, f"arrivals of repeat {repeat}")))


def rate_of(spec: WorkloadSpec, workload: Workload) -> float:
    """Requests/s asked of an open loop; where times were given that have no one rate, their mean rate; 0 for a closed loop."""
    from trtllm_workloads import arrivals

    if spec.request_rate or not spec.open_loop:
        return spec.request_rate
    asked = arrivals.rate_of(arrivals.parse(spec.arrivals)) if spec.arrivals else None
    if asked is not None:
        return asked
    span = float(np.nanmax(workload.arrival_s)) if len(workload.arrival_s) else 0.0
    return float(f"{workload.num_arrivals / span:.4g}") if span > 0 else 0.0
