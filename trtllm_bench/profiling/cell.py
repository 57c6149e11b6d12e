"""One cell profiled: an engine loaded for it, the cell's own load, a window of its steps recorded, and the folder written.

The load is the one that `throughput` would send and the window lies within it, so what is seen is the cell and not a rehearsal of it.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trtllm_bench.errors import RunFailure
from trtllm_bench.measure.rows import cell_of
from trtllm_bench.measure.session import Identity, Load
from trtllm_bench.measure.spec import EngineWish, Report, mean_lengths
from trtllm_bench.profiling.align import AROUND, Placed, place_kernels, place_ranges
from trtllm_bench.profiling.capture import LOG_COLUMNS, Capture
from trtllm_bench.profiling.counters import CountedKernel, collect
from trtllm_bench.profiling.record import TRACE_FILE, CellProfile
from trtllm_bench.profiling.summary import summarise
from trtllm_bench.profiling.window import Collector, SeenStep, StepWindow, Window
from trtllm_bench.roofline import ceilings
from trtllm_bench.roofline.counts import PlanCounter
from trtllm_bench.roofline.hardware import Hardware, published_for
from trtllm_bench.targets.native import NativeSession, device_of
from trtllm_bench.tracing.collect import TorchCollector, prime
from trtllm_bench.tracing.ncu_export import as_row
from trtllm_bench.tracing.trace import Event, device_events, ranges, with_tracks, write_json
from trtllm_engines.engine.folder import load_engine
from trtllm_engines.llm import LLM
from trtllm_engines.runtime.launch_order import LaunchOrder
from trtllm_engines.runtime.ranges import TorchMarker, annotate
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Cell, cell_key
from trtllm_workloads.request import Workload

DEFAULT_STEPS = 32
Tracks = dict[str, list[tuple[str, float, float]]]
"""(name, start, duration) of what is on each track, microseconds."""
ALIKE = 0.03
"""Steps whose tokens and pages differ by less are compared as alike."""


@dataclass(frozen=True)
class ProfileRequest:
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


def profile_cell(wanted: ProfileRequest, folder: Path, report: Report | None = None) -> CellProfile:
    """Runs the cell, writes `folder` (profile, trace, page) and returns the profile. Raises the components' errors."""
    device = device_of(wanted.engine.device)
    prime(device)
    collector = TorchCollector(device)
    recorded = record(wanted, collector, report)
    content = collector.content()
    name = "torch.profiler (CUPTI)" if device == "cuda" else "torch.profiler (CPU ranges)"
    events = device_events(content) if device == "cuda" else ranges(content)
    profile, tracks = analyse(recorded, events, name, wanted.command)
    write(profile, folder, with_tracks(content, tracks))
    return profile


def record(wanted: ProfileRequest, collector: Collector, report: Report | None = None) -> Capture:
    """Runs the cell with `collector` on during its window."""
    device = device_of(wanted.engine.device)
    session = NativeSession(wanted.engine, report)
    try:
        identity = session.identity()
        llm = session.engine
        window = wanted.window or middle(wanted.workload, wanted.load, llm.loop.scheduler.config.max_batch_size)
        hooks = attach(llm, window, collector, device, runs_before=1 if wanted.load.warmup else 0)
        measurement = session.measure(wanted.workload, wanted.load, lambda done: None)
    finally:
        session.close()
    if not hooks.seen:
        taken = len(measurement.steps["done_s"])
        raise RunFailure(f"the run took {taken} steps and the window begins at step {window.first}; ask for earlier --steps")
    environment = Environment.capture(use_gpu=device == "cuda")
    hardware, notes = ceilings_for(environment)
    cell = _cell(wanted, identity)
    return Capture(
        engine=str(llm.engine.path),
        arch=llm.engine.arch,
        device=device,
        device_name=environment.device,
        cell={**asdict(cell), "cell_key": cell_key(cell, environment), "label": cell.label},
        figures=dict(measurement.figures),
        seen=tuple(hooks.seen),
        lead_in=hooks.lead_in,
        log={name: np.asarray(measurement.steps[name], np.float64).tolist() for name in LOG_COLUMNS},
        ceilings={} if hardware is None else asdict(hardware),
        notes=tuple(notes),
    )


def analyse(recorded: Capture, events: Sequence[Event], collector: str, command: str) -> tuple[CellProfile, Tracks]:
    """The profile, and the tracks of steps and ops to lay beside the trace. `events`: the device's, or a CPU trace's ranges."""
    plan, seen = load_engine(Path(recorded.engine)).plan, recorded.seen
    if recorded.device == "cuda":
        placed = place_kernels(events, seen, LaunchOrder(plan, recorded.arch))
    else:
        placed = place_ranges(events, seen, plan.ops)
    hardware = Hardware(**recorded.ceilings) if recorded.ceilings else None
    kernels, steps, roles, timeline = summarise(placed, seen, PlanCounter(plan), hardware, recorded.lead_in)
    recorded_us, free_us = _free_steps(recorded)
    profile = CellProfile(
        cell=recorded.cell,
        collector=collector,
        device=recorded.device_name,
        ceilings=recorded.ceilings,
        kernels=kernels,
        steps=steps,
        timeline=timeline,
        roles=roles,
        recorded_step_us=recorded_us,
        free_step_us=free_us,
        notes=recorded.notes,
        command=command,
        started_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        figures=recorded.figures,
    )
    return profile, _tracks(placed, seen, [op.name for op in plan.ops])


def with_counters(profile: CellProfile, wanted: ProfileRequest, kernel: str, folder: Path) -> CellProfile:
    """The profile with Nsight Compute's counters of one kernel, written anew. Raises `BenchError`."""
    cell, settings = profile.cell, profile.cell["settings"]
    model = wanted.engine.model
    if wanted.engine.engine_dir is not None:
        model = load_engine(wanted.engine.engine_dir).plan.fingerprint.provenance["model"]
    flags = (("kv_dtype", str(cell["kv_dtype"])),)
    sequences = min(cell["batch"] or settings["max_batch_size"], settings["max_batch_size"])
    shape = (cell["isl"], cell["osl"], settings["max_num_tokens"], settings["page_size"])
    target = CountedKernel(str(model), cell["precision"], kernel, sequences, *shape, flags)
    found = replace(profile, counters=tuple(as_row(one) for one in collect(target, folder)))
    write(found, folder)
    return found


def attach(llm: LLM, window: Window, collector: Collector, device: str, runs_before: int) -> StepWindow:
    """Hooks the window into a loaded engine; on a CPU, ranges around its ops too."""
    if device == "cuda":
        import torch

        return StepWindow(llm.loop, window, collector, runs_before=runs_before, synchronize=torch.cuda.synchronize)
    annotate(llm.loop, "op", marker=TorchMarker())
    return StepWindow(llm.loop, window, collector, runs_before=runs_before)


def write(profile: CellProfile, folder: Path, trace: Mapping[str, Any] | None = None) -> None:
    from trtllm_dashboards.profile_page import PAGE_FILE, render

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


def _cell(wanted: ProfileRequest, identity: Identity) -> Cell:
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


def _free_steps(recorded: Capture) -> tuple[float | None, float | None]:
    """Median time of recorded steps, and of unrecorded ones like them: same phase, tokens and pages in use within a few percent."""
    log = {name: np.asarray(recorded.log[name]) for name in LOG_COLUMNS}
    done = log["done_s"]
    taken = (done - np.maximum(np.concatenate([[-np.inf], done[:-1]]), log["launched_s"])) * 1e6
    first, last = recorded.seen[0].number, recorded.seen[-1].number
    free = np.ones(len(done), bool)
    free[max(0, first - 1) : last + 2] = False
    pairs = []
    for step in recorded.seen[recorded.lead_in :]:
        alike = free & ((log["context_tokens"] == 0) == (log["context_tokens"][step.number] == 0))
        for name in ("decode_tokens", "context_tokens", "kv_pages_used"):
            alike &= np.abs(log[name] - log[name][step.number]) <= ALIKE * log[name][step.number]
        if alike.any():
            pairs.append((taken[step.number], float(np.median(taken[alike]))))
    if not pairs:
        return None, None
    return float(np.median([a for a, _ in pairs])), float(np.median([b for _, b in pairs]))


def _tracks(placed: Sequence[Placed], seen: Sequence[SeenStep], names: Sequence[str]) -> Tracks:
    """A track of steps and one of ops, so that Perfetto shows what each kernel belongs to."""
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
    return {"steps": steps, "ops": ops}
