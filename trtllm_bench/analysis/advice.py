"""What limits a cell in plain words, and what to change, with the gain the step model predicts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from trtllm_bench.analysis.cells import MeasuredCell, constants_of, hardware_of, plans_of
from trtllm_bench.analysis.explain import IDLE, UNKNOWN, Breakdown
from trtllm_bench.analysis.predict import cache_bytes_on
from trtllm_bench.analysis.step_model import PipelineModel, StepModel, step_model
from trtllm_bench.errors import BenchError
from trtllm_bench.profiling.record import CellProfile
from trtllm_bench.roofline.counts import StepShape
from trtllm_engines.errors import EngineError
from trtllm_engines.runtime.memory import page_bytes
from trtllm_kernels.errors import KernelError

NOTABLE = 0.15
"""Share of the time from which a part is worth a sentence."""
WORTH = 0.02
"""Gain from which a change is worth proposing."""


@dataclass(frozen=True)
class Finding:
    """`gain`: predicted relative gain in output tokens/s; None where the model cannot say."""

    limit: str
    change: str = ""
    gain: float | None = None


def findings(cell: MeasuredCell, spent: Breakdown) -> list[Finding]:
    """Most telling first; what is known without ceilings where there are none."""
    try:
        parts = _without_repeats(_from_parts(cell, spent))
    except BenchError as error:
        parts = [Finding(f"what limits the kernels cannot be said: {error}")]
    return [*parts, *_from_figures(cell)]


def _without_repeats(findings: Iterable[Finding]) -> list[Finding]:
    """A change that helps against two limits is proposed once, at the first."""
    proposed: set[str] = set()
    kept = []
    for one in findings:
        flags = one.change.partition(": ")[2] or one.change
        if flags not in proposed or one.limit:
            kept.append(replace(one, change="", gain=None) if flags and flags in proposed else one)
        proposed.add(flags)
    return kept


def rate(model: StepModel | PipelineModel, batch: int, isl: int, osl: int) -> float:
    """Output tokens/s of so many requests in flight: their prompts, then their outputs together, in a step of its share for each stage."""
    prompts_per_step = max(1, min(batch, model.counter.plan.profile.max_num_tokens // max(isl, 1)))
    prefill = model.step(StepShape.prefill(prompts_per_step, isl)).total_us * math.ceil(batch / prompts_per_step)
    share = math.ceil(batch / model.stages)
    decode = model.step(StepShape.decode(share, isl + osl / 2)).total_us * model.stages * (osl - 1)
    return batch * osl / (prefill + decode) * 1e6


def _from_parts(cell: MeasuredCell, spent: Breakdown) -> Iterator[Finding]:
    row = cell.row.cell
    hardware = hardware_of(cell.row.environment)
    model = step_model(plans_of(cell.row), hardware, constants_of(cell.row))
    plan = model.counter.plan
    batch = row.batch or round(cell.row.figures.get("batch_mean", 1.0)) or 1
    now = rate(model, batch, row.isl, row.osl)
    needs = model.step(StepShape.decode(math.ceil(batch / model.stages), row.isl + row.osl / 2)).parts
    measured_us = spent.per_token_us * batch
    # A profile names kernels: which limit they meet is the model's to say, of a step as long as it was measured.
    label = {name: spent.share(name) if spent.source == "step log" else us / measured_us for name, us in needs.items()}
    wide = row.precision in ("bf16", "fp16", "fp32")
    told: list[tuple[float, list[Finding]]] = []

    def limit(share: float, text: str, change: tuple[str, float | None] = ("", None), *more: Iterator[Finding]) -> None:
        if share > NOTABLE:
            told.append((share, [Finding(text, *change), *(one for others in more for one in others)]))

    larger = _gain_of_batch(model, cell, batch, now)
    to_fp8 = (_another(cell, "quantize the model: --precision fp8", now, batch, precision="fp8"),) if wide else ()
    limit(
        label["weights"],
        f"reading the weights takes {label['weights']:.0%}: the batch of {batch} is too small to share that over",
        larger,
        *to_fp8,
    )
    halved = (_another(cell, "halve the cache: --kv-dtype fp8", now, batch, kv_dtype="fp8"),) if plan.kv_dtype != "fp8" else ()
    limit(label["KV cache"], f"reading the KV cache takes {label['KV cache']:.0%}", ("", None), *halved)
    arithmetic = f"matrix products take {label['compute']:.0%} at the rate of the arithmetic units"
    to_fp8 = (_another(cell, "compute in fp8: --precision fp8", now, batch, precision="fp8"),) if wide else ()
    limit(label["compute"], arithmetic + ("" if wide else ", which is this GPU's limit"), ("", None), *to_fp8)
    exchange = f"ranks exchange rows {label['communication']:.0%} of the time: the fewer tokens a step has, the more of it is waiting"
    limit(label["communication"], exchange, larger)
    gaps = spent.share("gaps between kernels", "gaps between steps", "host")
    limit(gaps, f"the GPU waits for the host {gaps:.0%} of the time", larger)
    overhead = f"starting and draining kernels takes {label['kernel overhead']:.0%}: each has little to do"
    limit(label["kernel overhead"] if gaps <= NOTABLE else 0.0, overhead, larger)
    for _, group in sorted(told, key=lambda one: -one[0]):
        yield from group
    if spent.share(IDLE) > NOTABLE:
        yield Finding(f"no step is in flight {spent.share(IDLE):.0%} of the time: the load asks for no more, or the host is late")
    if cell.profile is not None:
        yield from _from_kernels(CellProfile.load(cell.profile))
    unknown = spent.share(UNKNOWN)
    if abs(unknown) > NOTABLE:
        word = f"{unknown:.0%} of the time is more than the model allows" if unknown > 0 else "steps are faster than the model says"
        yield Finding(f"{word}", "see the kernels: trtllm-bench profile with the same flags")


def _from_kernels(profile: CellProfile) -> Iterator[Finding]:
    """The kernel that loses most time against its ceiling, if it loses much."""
    losses = {(row.role, row.kernel): row.share * (1 - row.ceiling_share) for row in profile.kernels if row.ceiling_share is not None}
    if not losses:
        return
    (role, kernel), lost = max(losses.items(), key=lambda item: item[1])
    if lost > NOTABLE:
        op = role.rpartition(".")[2]
        limit = f"the kernel of {op}{'' if kernel == op else f' ({kernel})'} loses {lost:.0%} of the time against its ceiling"
        yield Finding(limit, "a kernel at the ceiling would win that back", lost / (1 - lost))


def _gain_of_batch(model: StepModel | PipelineModel, cell: MeasuredCell, batch: int, now: float) -> tuple[str, float | None]:
    row, plan = cell.row.cell, model.counter.plan
    needed = 2 * batch * math.ceil((row.isl + row.osl) / plan.profile.page_size) * page_bytes(plan)
    try:
        if model.hardware.memory_bytes and needed > cache_bytes_on(plan, model.hardware, 0.9):
            return "a larger batch needs more memory for its KV cache than this GPU has", None
    except BenchError:
        return "", None
    return f"more requests in flight: --concurrency {2 * batch}", rate(model, 2 * batch, row.isl, row.osl) / now - 1


def _another(cell: MeasuredCell, change: str, now: float, batch: int, **kind: str) -> Iterator[Finding]:
    """The same cell with another engine, where there is such an engine and it helps."""
    hardware = hardware_of(cell.row.environment)
    if "fp8" in kind.values() and "fp8" not in hardware.flops_per_s:
        return
    try:
        plans = plans_of(cell.row, **kind)
    except (EngineError, KernelError):
        return
    gain = rate(step_model(plans, hardware, constants_of(cell.row)), batch, cell.row.cell.isl, cell.row.cell.osl) / now - 1
    if gain > WORTH:
        yield Finding("", change, gain)


def _from_figures(cell: MeasuredCell) -> Iterator[Finding]:
    row, figures = cell.row.cell, cell.row.figures
    if figures.get("preemptions", 0) > 0:
        yield Finding(
            f"{figures['preemptions']:.0f} sequences were preempted and computed again: the KV cache was full",
            "fewer requests in flight, a larger --kv-cache-free-gpu-mem-fraction, or --scheduler-policy guaranteed_no_evict",
        )
    mean = figures.get("batch_mean", 0.0)
    if row.batch > 1 and mean and mean < 0.8 * row.batch and not row.request_rate:
        kept = figures.get("kv_used_peak_ratio", 0.0) > 0.95
        why = "the KV cache holds no more" if kept else "ramp-up and tail are a large part of so short a run"
        yield Finding(
            f"a step held {mean:,.1f} sequences of {row.batch} on average: {why}", "" if kept else "more requests: --num-requests"
        )
    if figures.get("power_capped_ratio", 0.0) > 0.5:
        yield Finding(
            f"the power cap held the clocks down in {figures['power_capped_ratio']:.0%} of samples"
            + (f" ({figures['sm_clock_mean_mhz']:,.0f} MHz on average)" if "sm_clock_mean_mhz" in figures else "")
        )
    if figures.get("throttled_ratio", 0.0) > 0:
        yield Finding(
            f"heat or power supply slowed the GPU down in {figures['throttled_ratio']:.0%} of samples", "look at its cooling; measure again"
        )
    if figures.get("queue_p99_ms", 0.0) > 0.5 * figures.get("e2e_p99_ms", math.inf):
        yield Finding("the slowest requests spend most of their time in the queue", "a lower request rate, or more requests per step")
