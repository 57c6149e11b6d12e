"""One cell profiled: an engine loaded for it, the cell's own load, a window of its steps recorded, and the folder written.

The load is the one that `throughput` would send and the window lies within it, so what is seen is the cell and not a rehearsal of it.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trtllm_bench import ceilings
from trtllm_bench.analysis.counts import PlanCounter
from trtllm_bench.analysis.hardware import Hardware, published_for
from trtllm_bench.errors import RunFailure
from trtllm_bench.measure import Identity, Load
from trtllm_bench.native import NativeSession, device_of
from trtllm_bench.profiling.align import AROUND, Placed, place_kernels, place_ranges
from trtllm_bench.profiling.collect import TorchCollector, prime
from trtllm_bench.profiling.record import PAGE_FILE, TRACE_FILE, Profile, StepRow
from trtllm_bench.profiling.summary import summarise
from trtllm_bench.profiling.trace import device_events, ranges, with_tracks, write_json
from trtllm_bench.profiling.window import SeenStep, StepWindow, Window
from trtllm_bench.rows import cell_of
from trtllm_bench.wish import EngineWish, Report, mean_lengths
from trtllm_engines.llm import LLM
from trtllm_engines.runtime.launch_order import LaunchOrder
from trtllm_engines.runtime.ranges import TorchMarker, annotate
from trtllm_results.environment import Environment
from trtllm_results.record import Cell, cell_key
from trtllm_workloads.request import Workload

DEFAULT_STEPS = 32
ALIKE = 0.1
"""Steps whose token counts differ by less are compared as alike."""


@dataclass(frozen=True)
class Wanted:
    """What to profile. `window` None: some steps in the middle of the run."""

    engine: EngineWish
    workload: Workload
    load: Load
    window: Window | None = None
    request_rate: float = 0.0
    command: str = ""


def middle(workload: Workload, load: Load, max_batch: int) -> Window:
    """Steps half-way through the run, from the fewest steps it can take: each wave of requests decodes at least its mean output."""
    in_flight = min(load.concurrency or len(workload), max_batch, len(workload))
    output = max(1, int(np.mean(workload.output_tokens)))
    steps = output if load.open_loop else math.ceil(len(workload) / in_flight) * output
    first = max(0, steps // 2 - DEFAULT_STEPS // 2)
    return Window(first, first + min(DEFAULT_STEPS, max(1, steps - first - 1)) - 1)


def profile_cell(wanted: Wanted, folder: Path, report: Report | None = None) -> Profile:
    """Runs the cell, writes `folder` (profile, trace, page) and returns the profile. Raises the components' errors."""
    device = device_of(wanted.engine.device)
    prime(device)
    session = NativeSession(wanted.engine, report)
    try:
        identity = session.identity()
        llm = session.engine
        window = wanted.window or middle(wanted.workload, wanted.load, llm.loop.scheduler.config.max_batch_size)
        collector = TorchCollector(device)
        hooks = attach(llm, window, collector, device, runs_before=1 if wanted.load.warmup else 0)
        measurement = session.measure(wanted.workload, wanted.load, lambda done: None)
    finally:
        session.close()
    if not hooks.seen:
        taken = len(measurement.steps["done_s"])
        raise RunFailure(f"the run took {taken} steps and the window begins at step {window.first}; ask for earlier --steps")
    content = collector.content()
    environment = Environment.capture(use_gpu=device == "cuda")
    plan = llm.plan
    placed = _place(content, hooks.seen, llm, device)
    hardware, note = ceilings_for(environment)
    kernels, steps, roles, timeline = summarise(placed, hooks.seen, PlanCounter(plan), hardware, hooks.lead_in)
    cell = _cell(wanted, identity)
    profile = Profile(
        cell={**asdict(cell), "cell_key": cell_key(cell, environment), "label": cell.label},
        collector="torch.profiler (CUPTI)" if device == "cuda" else "torch.profiler (CPU ranges)",
        device=environment.device,
        ceilings={} if hardware is None else asdict(hardware),
        kernels=kernels,
        steps=steps,
        timeline=timeline,
        roles=roles,
        **_free_steps(steps, measurement.steps, hooks.seen),
        notes=tuple(note),
        command=wanted.command,
        started_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        figures=measurement.figures,
    )
    write(profile, folder, _with_our_tracks(content, placed, hooks.seen, [op.name for op in plan.ops]))
    return profile


def attach(llm: LLM, window: Window, collector: TorchCollector, device: str, runs_before: int) -> StepWindow:
    """Hooks the window into a loaded engine; on a CPU, ranges around its ops too."""
    if device == "cuda":
        import torch

        return StepWindow(llm.loop, window, collector, runs_before=runs_before, synchronize=torch.cuda.synchronize)
    annotate(llm.loop, "op", marker=TorchMarker())
    return StepWindow(llm.loop, window, collector, runs_before=runs_before)


def write(profile: Profile, folder: Path, trace: Mapping[str, Any] | None = None) -> None:
    from trtllm_dashboards.profile_page import render

    profile.save(folder)
    render(asdict(profile), folder / PAGE_FILE)
    if trace is not None:
        write_json(trace, folder / TRACE_FILE)


def ceilings_for(environment: Environment) -> tuple[Hardware | None, list[str]]:
    """What this device can do at best, and what is to be said of how that is known."""
    measured = ceilings.cached(environment)
    if measured is not None:
        return Hardware.of(measured), []
    hardware = published_for(environment.gpu)
    if hardware is None:
        return None, ["no ceilings are known for this device; measure them with trtllm-bench ceilings"]
    return hardware, [
        f"ceilings are the {hardware.name} data sheet's, reduced to what such a GPU reaches; trtllm-bench ceilings measures them"
    ]


def _place(content: Mapping[str, Any], seen: Sequence[SeenStep], llm: LLM, device: str) -> list[Placed]:
    if device == "cuda":
        return place_kernels(device_events(content), seen, LaunchOrder(llm.plan, llm.engine.arch))
    return place_ranges(ranges(content), seen, llm.plan.ops)


def _cell(wanted: Wanted, identity: Identity) -> Cell:
    isl, osl = mean_lengths(wanted.workload)
    load = wanted.load
    return cell_of(
        identity.model or wanted.engine.model or "",
        identity.precision or wanted.engine.precision or "",
        identity,
        wanted.workload,
        batch=load.concurrency,
        isl=isl,
        osl=osl,
        request_rate=wanted.request_rate,
        settings={"warmup": load.warmup, "open_loop": load.open_loop or None},
    )


def _free_steps(steps: Sequence[StepRow], log: Mapping[str, Any], seen: Sequence[SeenStep]) -> dict[str, Any]:
    """Median time of steps like the window's commonest, within it and outside it, where nothing is recorded."""
    if not steps:
        return {}
    done, launched = np.asarray(log["done_s"]), np.asarray(log["launched_s"])
    taken = (done - np.maximum(np.concatenate([[-np.inf], done[:-1]]), launched)) * 1e6
    tokens = np.asarray(log["decode_tokens"]) + np.asarray(log["context_tokens"])
    kinds = np.where(np.asarray(log["context_tokens"]) == 0, "decode", np.where(np.asarray(log["decode_tokens"]) == 0, "prefill", "mixed"))
    phases = [step.phase for step in steps]
    phase = max(set(phases), key=phases.count)
    inside = [step for step in steps if step.phase == phase]
    middle_tokens = float(np.median([step.tokens for step in inside]))
    alike = [step.span_us for step in inside if abs(step.tokens - middle_tokens) <= ALIKE * middle_tokens]
    outside = np.ones(len(done), bool)
    outside[max(0, seen[0].number - 1) : seen[-1].number + 2] = False
    free = taken[outside & (kinds == phase) & (np.abs(tokens - middle_tokens) <= ALIKE * middle_tokens)]
    if not len(free) or not alike:
        return {}
    return {"free_step_us": float(np.median(free)), "recorded_step_us": float(np.median(alike))}


def _with_our_tracks(content: dict[str, Any], placed: Sequence[Placed], seen: Sequence[SeenStep], names: Sequence[str]) -> dict[str, Any]:
    """The trace with a track of steps and one of ops, so that Perfetto shows what each kernel belongs to."""
    ops: list[tuple[str, float, float]] = []
    spans: dict[int, tuple[float, float]] = {}
    previous = None
    for one in placed:
        begin, end = one.event.start_us, one.event.end_us
        low, high = spans.get(one.step, (begin, end))
        spans[one.step] = (min(low, begin), max(high, end))
        if previous == (one.step, one.op):
            name, at, _ = ops[-1]
            ops[-1] = (name, at, end - at)
        else:
            ops.append((names[one.op] if one.op >= 0 else AROUND[one.op], begin, end - begin))
        previous = (one.step, one.op)
    steps = [
        (f"step {seen[i].number}: {seen[i].shape.phase}, {seen[i].shape.tokens} tokens", low, high - low)
        for i, (low, high) in sorted(spans.items())
        if i < len(seen)
    ]
    return with_tracks(content, {"steps": steps, "ops": ops})
