"""One cell profiled: an engine loaded for it, the cell's own load, a window of its steps recorded, and the folder written.

The load is the one that `throughput` would send and the window lies within it, so what is seen is the cell and not a rehearsal of it.
"""

from __future__ import annotations

import datetime
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trtllm_bench.errors import BenchError, RunFailure
from trtllm_bench.measure.rows import cell_of
from trtllm_bench.measure.session import TargetSession
from trtllm_bench.profiling.align import AROUND, Placed, place_kernels, place_ranges
from trtllm_bench.profiling.capture import LOG_COLUMNS, Capture
from trtllm_bench.profiling.counters import CountedKernel, collect
from trtllm_bench.profiling.record import TRACE_FILE, CellProfile
from trtllm_bench.profiling.summary import summarise
from trtllm_bench.profiling.window import Collector, SeenStep, StepWindow, Window
from trtllm_bench.roofline.costs import step_seconds
from trtllm_bench.roofline.counts import PlanCounter
from trtllm_bench.roofline.hardware import Hardware, ceilings_for
from trtllm_bench.spec.measurement import MeasurementSpec
from trtllm_bench.targets.native import device_of
from trtllm_bench.targets.native_engine import OpenEngine
from trtllm_bench.targets.registry import OnBuild
from trtllm_bench.tracing.collect import TorchCollector, prime
from trtllm_bench.tracing.ncu_export import as_row
from trtllm_bench.tracing.trace import Event, device_events, merged, ranges, read_json, with_tracks, write_json
from trtllm_engines.compiler.plan import Op, ParallelLayout
from trtllm_engines.engine.folder import load_engine
from trtllm_engines.llm import LLM
from trtllm_engines.runtime.buckets import LARGEST_GRAPH, graph_buckets
from trtllm_engines.runtime.host_ranks import Recorder
from trtllm_engines.runtime.launch_order import LaunchOrder
from trtllm_engines.runtime.ranges import TorchMarker, annotate
from trtllm_engines.runtime.rank_processes import RankProcesses
from trtllm_kernels.dialect.ops import OP_SPECS
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import cell_key
from trtllm_workloads.request import Workload

DEFAULT_STEPS = 32
Tracks = dict[str, list[tuple[str, float, float]]]
"""(name, start, duration) of what is on each track, microseconds."""
ALIKE = 0.03
"""Steps whose tokens and pages differ by less are compared as alike."""


@dataclass(frozen=True)
class ProfileRequest:
    """What to profile. `window` None: some steps in the middle of the run."""

    spec: MeasurementSpec
    workload: Workload
    window: Window | None = None
    command: str = ""

    def __post_init__(self) -> None:
        if (count := self.spec.engine.replicas) > 1:
            raise BenchError(f"--replicas is {count}, and a profile is of one engine; leave --replicas out")
        if (self.spec.engine.nnodes or 1) > 1:
            raise BenchError("--nnodes is for measurements: traces of several hosts are not brought together; leave it out")

    @property
    def layout(self) -> ParallelLayout:
        """Of the engine: as asked for, or as built."""
        engine = self.spec.engine
        return ParallelLayout(engine.tp, engine.pp) if engine.engine_dir is None else load_engine(engine.engine_dir).plan.parallel


def middle(workload: Workload, spec: MeasurementSpec, max_batch: int) -> Window:
    """Steps half-way through the run, from the fewest steps it can take: each wave of requests decodes at least its mean output."""
    in_flight = min(spec.load.concurrency or len(workload), max_batch, len(workload))
    output = max(1, int(np.mean(workload.output_tokens)))
    steps = output if spec.workload.open_loop else math.ceil(len(workload) / in_flight) * output
    first = max(0, steps // 2 - DEFAULT_STEPS // 2)
    return Window(first, first + min(DEFAULT_STEPS, max(1, steps - first - 1)) - 1)


def profile_cell(request: ProfileRequest, folder: Path, on_build: OnBuild | None = None) -> CellProfile:
    """Runs the cell, writes `folder` (profile, trace, page) and returns the profile. Raises the components' errors."""
    device = device_of(request.spec.engine.device)
    if request.layout.ranks > 1:
        return _profile_ranks(request, folder, device, on_build)
    prime(device)
    collector = TorchCollector(device)
    recorded = record(request, collector, on_build)
    content = collector.content()
    name = "torch.profiler (CUPTI)" if device == "cuda" else "torch.profiler (CPU ranges)"
    events = device_events(content) if device == "cuda" else ranges(content)
    profile, tracks = analyse(recorded, events, name, request.command)
    write(profile, folder, with_tracks(content, tracks))
    return profile


def _profile_ranks(request: ProfileRequest, folder: Path, device: str, on_build: OnBuild | None) -> CellProfile:
    """Of an engine whose ranks are processes: each records itself; the first one's kernels are the profile, and the trace has them all."""
    with tempfile.TemporaryDirectory() as traces:
        collector = RankCollector(Path(traces))
        recorded = record(request, collector, on_build)
        contents = [read_json(path) for path in collector.written]
    name = f"torch.profiler ({'CUPTI' if device == 'cuda' else 'CPU ranges'}), in each of {len(contents)} ranks"
    recorded = replace(recorded, notes=(*recorded.notes, f"the kernels are those of rank 0 of {len(contents)}; the trace has every rank"))
    tp = request.layout.tp
    profiles, timelines = [], []
    for rank, content in enumerate(contents):
        events = device_events(content) if device == "cuda" else ranges(content)
        profile, tracks = analyse(recorded, events, name, request.command, stage=rank // tp)
        profiles.append(profile)
        timelines.append(with_tracks(content, tracks, "trtllm-bench"))
    write(profiles[0], folder, merged(timelines))
    return profiles[0]


class RankCollector:
    """Has every rank record its own steps, or tell Nsight Systems when. `written`: what each left (`rank_trace.order`), in order."""

    def __init__(self, folder: Path, recorder: Recorder = "torch") -> None:
        self.folder, self.recorder = folder, recorder
        self.written: list[Path] = []
        self.runner: RankProcesses | None = None

    def start(self) -> None:
        assert self.runner is not None
        self.runner.record()

    def stop(self) -> None:
        assert self.runner is not None
        self.written = self.runner.write_traces(self.folder)


def record(request: ProfileRequest, collector: Collector, on_build: OnBuild | None = None) -> Capture:
    """Runs the cell with `collector` on during its window; that of an engine of several ranks is a `RankCollector`."""
    device = device_of(request.spec.engine.device)
    opened = OpenEngine(request.spec.engine, on_build, collector.recorder if isinstance(collector, RankCollector) else "none")
    try:
        session = TargetSession(opened)
        identity = session.identity()
        llm = opened.engine
        if isinstance(collector, RankCollector):
            assert isinstance(llm.ranks, RankProcesses)
            collector.runner = llm.ranks
        window = request.window or middle(request.workload, request.spec, llm.loop.scheduler.config.max_batch_size)
        hooks = attach(llm, window, collector, device, runs_before=1 if request.spec.load.warmup else 0)
        measurement = session.measure(request.workload, request.spec, lambda done: None)
    finally:
        opened.close()
    if not hooks.seen:
        taken = len(measurement.steps["done_s"])
        raise RunFailure(f"the run took {taken} steps and the window begins at step {window.first}; ask for earlier --steps")
    environment = Environment.capture(use_gpu=device == "cuda")
    hardware, notes = ceilings_for(environment)
    cell = cell_of(request.spec, identity, request.workload)
    return Capture(
        engine=str(llm.engine.path),
        arch=llm.engine.arch,
        device=device,
        device_name=environment.device,
        cell={**asdict(cell), "cell_key": cell_key(cell, environment), "label": cell.label},
        figures=dict(measurement.figures),
        seen=tuple(_padded(llm, hooks.seen) if isinstance(collector, RankCollector) and device == "cuda" else hooks.seen),
        lead_in=hooks.lead_in,
        log={name: np.asarray(measurement.steps[name], np.float64).tolist() for name in LOG_COLUMNS},
        ceilings={} if hardware is None else asdict(hardware),
        notes=tuple(notes),
    )


def _padded(llm: LLM, seen: Sequence[SeenStep]) -> list[SeenStep]:
    """Steps of ranks, which do not say which graph they replay: the smallest that holds the step, as `CudaRunner` chooses it."""
    buckets = graph_buckets(min(llm.plan.profile.max_batch_size, llm.loop.scheduler.config.max_batch_size, LARGEST_GRAPH))
    padded = []
    for step in seen:
        bucket = next((one for one in buckets if step.shape.phase == "decode" and one >= step.shape.sequences), None)
        padded.append(step if bucket is None else replace(step, symbols=step.shape.padded(bucket), graph=True))
    return padded


def analyse(recorded: Capture, events: Sequence[Event], collector: str, command: str, stage: int = 0) -> tuple[CellProfile, Tracks]:
    """The profile, and the tracks of steps and ops to lay beside the trace. `events`: the device's, or a CPU trace's ranges; of a pipeline
    one stage's."""
    plan, seen = load_engine(Path(recorded.engine), stage=stage).plan, recorded.seen
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
    return profile, _tracks(placed, seen, plan.ops)


def with_counters(profile: CellProfile, request: ProfileRequest, kernel: str, folder: Path) -> CellProfile:
    """The profile with Nsight Compute's counters of one kernel, written anew. Raises `BenchError`."""
    cell, settings = profile.cell, profile.cell["settings"]
    engine = request.spec.engine
    model = engine.model
    if engine.engine_dir is not None:
        model = load_engine(engine.engine_dir).plan.fingerprint.provenance["model"]
    types = {"kv_dtype": cell["kv_dtype"], "context_attention": settings.get("context_attention")}
    flags = tuple((name, str(value)) for name, value in types.items() if value is not None)
    sequences = min(cell["batch"] or settings["max_batch_size"], settings["max_batch_size"])
    shape = (cell["isl"], cell["osl"], settings["max_num_tokens"], settings["page_size"])
    target = CountedKernel(str(model), cell["precision"], kernel, sequences, *shape, flags)
    counted = replace(profile, counters=tuple(as_row(one) for one in collect(target, folder)))
    write(counted, folder)
    return counted


def attach(llm: LLM, window: Window, collector: Collector, device: str, runs_before: int) -> StepWindow:
    """Hooks the window into a loaded engine; on a CPU, ranges around its ops too."""
    if device == "cuda" and not isinstance(collector, RankCollector):
        import torch

        return StepWindow(llm.loop, window, collector, runs_before=runs_before, synchronize=torch.cuda.synchronize)
    if not isinstance(collector, RankCollector):
        annotate(llm.loop, "op", marker=TorchMarker())
    return StepWindow(llm.loop, window, collector, runs_before=runs_before)


def write(profile: CellProfile, folder: Path, trace: Mapping[str, Any] | None = None) -> None:
    from trtllm_dashboards.profile_page import PAGE_FILE, render

    profile.save(folder)
    render(asdict(profile), folder / PAGE_FILE)
    if trace is not None:
        write_json(trace, folder / TRACE_FILE)


def _free_steps(recorded: Capture) -> tuple[float | None, float | None]:
    """Median time of recorded steps, and of unrecorded ones like them: same phase, tokens and pages in use within a few percent."""
    log = {name: np.asarray(recorded.log[name]) for name in LOG_COLUMNS}
    done = log["done_s"]
    taken = step_seconds(log) * 1e6
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


def _tracks(placed: Sequence[Placed], seen: Sequence[SeenStep], planned: Sequence[Op]) -> Tracks:
    """A track of steps and one of ops, so that Perfetto shows what each kernel belongs to; where ranks exchange data, one of that."""
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
            ops.append((planned[one.op].name if one.op >= 0 else AROUND[one.op], begin, end - begin))
        previous = (one.step, one.op)
    steps = [
        (f"step {seen[i].number}: {seen[i].shape.phase}, {seen[i].shape.tokens} tokens", low, high - low)
        for i, (low, high) in sorted(spans.items())
        if i < len(seen)
    ]
    exchanges = {op.name for op in planned if OP_SPECS[op.op].kind == "communication"}
    exchanged = [one for one in ops if one[0] in exchanges]
    return {"steps": steps, "ops": ops, **({"communication": exchanged} if exchanged else {})}
