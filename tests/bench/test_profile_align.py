"""Kernels of a trace matched to the plan's launches: a made-up H100 trace whose truth is known, through the tables that come of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from trtllm_bench.errors import BenchError, RunFailure
from trtllm_bench.profiling.align import INPUTS, READ_BACK, SAMPLE, place_kernels
from trtllm_bench.profiling.summary import summarise
from trtllm_bench.profiling.window import SeenStep, Window
from trtllm_bench.roofline.counts import PlanCounter, StepShape
from trtllm_bench.roofline.hardware import Hardware
from trtllm_bench.tracing.trace import Event, device_events
from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.plan import ParallelLayout, Plan, Profile
from trtllm_engines.models.presets import preset_config
from trtllm_engines.runtime.launch_order import LaunchOrder

KERNEL_US, GAP_US = 5.0, 1.0


@pytest.fixture(scope="module")
def plan() -> Plan:
    source = {"kind": "dummy", "seed": 0}
    return compile_model(preset_config("tiny-llama"), "bf16", Profile(64, 256, 256), arches=("sm_90",), weights_source=source).plan


def seen(number: int, shape: StepShape, bucket: int | None = None) -> SeenStep:
    return SeenStep(number, shape, shape.symbols if bucket is None else shape.padded(bucket), bucket is not None)


STEPS = (
    seen(7, StepShape.decode(3, 40), 4),
    seen(8, StepShape.decode(3, 41) + StepShape.prefill(2, 20)),
    seen(9, StepShape.decode(5, 30), 8),
)


COPIES = "void at::native::vectorized_elementwise_kernel<4, at::native::AUnaryFunctor<int, int, int, at::native::BitwiseOrFunctor<int>>>"


def trace(plan: Plan, split: bool = False, anew: bool = False, by_kernel: bool = True) -> tuple[list[Event], list[tuple[int, int]]]:
    """Device events of STEPS with their truth (step, op). `split`: the library's products come with a fill and a reduction. `anew`: each
    step is sampled once more after the plan. `by_kernel`: and not by the copy engine inputs are copied."""
    order = LaunchOrder(plan, "sm_90")
    events: list[Event] = []
    truth: list[tuple[int, int]] = []
    now = 100.0

    def add(name: str, step: int, op: int, kind: str = "kernel") -> None:
        nonlocal now
        events.append(Event(name, now, KERNEL_US, kind))  # type: ignore[arg-type]
        truth.append((step, op))
        now += KERNEL_US + GAP_US

    for index, step in enumerate(STEPS):
        if by_kernel:
            add(COPIES, index, INPUTS)
        else:
            add("Memcpy HtoD (Pinned -> Device)", index, INPUTS, "memcpy")
        add("void at::native::index_put_kernel<...>", index, INPUTS)
        for launch in order.active(step.symbols):
            if not launch.library:
                add(launch.function, index, launch.op)
                continue
            if split:
                add("Memset (Device)", index, launch.op, "memset")
            add("nvjet_tst_64x8_64x16_4x1_v_bz_TNT", index, launch.op)
            if split:
                add("void cublasLt::splitKreduce_kernel<32, 16, int>", index, launch.op)
        if anew:
            add("void at::native::reduce_kernel<512, 1, at::native::ReduceOp<ArgMaxOps>>", index, SAMPLE)
            add("Memcpy DtoH (Device -> Pinned)", index, READ_BACK, "memcpy")
    return events, truth


@pytest.mark.parametrize("anew", [False, True])
@pytest.mark.parametrize("split", [False, True])
def test_every_kernel_finds_the_op_and_step_that_made_it(plan: Plan, split: bool, anew: bool) -> None:
    events, truth = trace(plan, split, anew)
    placed = place_kernels(events, STEPS, LaunchOrder(plan, "sm_90"))
    assert [one.event for one in placed] == events
    wrong = [(one, t) for one, t in zip(placed, truth, strict=True) if (one.step, one.op) != t]
    # A fill before a product cannot be told from one after the kernel before it.
    assert all(one.event.kind == "memset" for one, _ in wrong)
    assert len(wrong) <= (3 if split else 0)


@pytest.mark.parametrize("by_kernel", [False, True])
def test_a_step_that_samples_nothing_ends_where_the_next_ones_inputs_begin(plan: Plan, by_kernel: bool) -> None:
    events, truth = trace(plan, anew=True, by_kernel=by_kernel)
    kept = [i for i, (event, (step, op)) in enumerate(zip(events, truth, strict=True)) if step != 1 or op != READ_BACK]
    placed = place_kernels([events[i] for i in kept], STEPS, LaunchOrder(plan, "sm_90"))
    assert [(one.step, one.op) for one in placed] == [truth[i] for i in kept]


def test_a_trace_of_another_engine_is_refused(plan: Plan) -> None:
    events, _ = trace(plan)
    lacking = [event for event in events if "rms_norm" not in event.name]
    with pytest.raises(RunFailure, match="another engine"):
        place_kernels(lacking, STEPS, LaunchOrder(plan, "sm_90"))
    _, second, _ = (i for i, event in enumerate(events) if event.name == "prepare_step")
    with pytest.raises(RunFailure, match="ends before step 9"):
        place_kernels(events[:second], STEPS[::2], LaunchOrder(plan, "sm_90"))


def test_kernel_times_and_gaps_sum_to_the_steps(plan: Plan) -> None:
    events, _ = trace(plan)
    placed = place_kernels(events, STEPS, LaunchOrder(plan, "sm_90"))
    hardware = Hardware("test", {"bf16": 1e15}, 3e12)
    kernels, steps, roles, timeline = summarise(placed, STEPS, PlanCounter(plan), hardware, lead_in=1)
    assert [step.number for step in steps] == [8, 9]
    window = sum(step.span_us for step in steps)
    last = [one for one in placed if one.step == 0][-1].event
    assert window == pytest.approx(events[-1].end_us - last.end_us)
    gaps = sum(step.gap_inside_us + step.gap_before_us for step in steps)
    assert sum(roles.values()) + gaps == pytest.approx(window)
    assert sum(row.time_us for row in kernels) == pytest.approx(sum(roles.values()))
    assert sum(row.share for row in kernels) == pytest.approx(1 - gaps / window)
    assert {event["step"] for event in timeline} == {0, 1}


def test_a_mixed_step_divides_attention_between_its_kernels(plan: Plan) -> None:
    events, _ = trace(plan)
    placed = place_kernels(events, STEPS, LaunchOrder(plan, "sm_90"))
    mixed = [one for one in placed if one.step == 1]
    kernels, _, _, _ = summarise(mixed, STEPS, PlanCounter(plan), None, lead_in=0)
    attention = {row.kernel.partition("_")[0]: row for row in kernels if row.op == "paged_attention"}
    decode, context = attention.pop("decode"), next(row for name, row in attention.items() if name != "reduce")
    width, layers = plan.config.num_heads * plan.config.head_dim, plan.config.num_layers
    assert decode.flop == layers * 4 * 3 * 41 * width
    assert context.flop == layers * 4 * 2 * (20 * 21 // 2) * width


def test_kernels_that_ran_at_once_are_one_row(plan: Plan) -> None:
    """Here the second starts soon after the first and ends later: the pair's time is from the first's start to the second's end."""
    events, _ = trace(plan)
    placed = place_kernels(events, STEPS, LaunchOrder(plan, "sm_90"))
    attention = [i for i, one in enumerate(placed) if one.step == 1 and one.op >= 0 and plan.ops[one.op].op == "paged_attention"]
    later = [j for i, j in pairwise(attention) if j == i + 1 and placed[j].event.name.startswith("context_")]
    assert later
    for j in later:
        first, second = placed[j - 1].event, placed[j].event
        first = replace(first, start_us=first.start_us - GAP_US, duration_us=first.duration_us + GAP_US)
        second = replace(second, start_us=first.start_us + 1, duration_us=second.end_us - first.start_us - 1)
        placed[j - 1], placed[j] = replace(placed[j - 1], event=first), replace(placed[j], event=second, beside=True)
    apart = [one for one in placed if one.step == 1]
    hardware = Hardware("test", {"bf16": 1e15}, 3e12)
    kernels, _, _, _ = summarise(apart, STEPS, PlanCounter(plan), hardware, lead_in=0)
    pair = next(row for row in kernels if " + " in row.kernel)
    width, layers = plan.config.num_heads * plan.config.head_dim, plan.config.num_layers
    assert pair.calls == layers == len(later)
    assert pair.time_us == pytest.approx(layers * 2 * (KERNEL_US + GAP_US))
    assert pair.flop == layers * 4 * (3 * 41 + 2 * (20 * 21 // 2)) * width
    assert pair.ceiling_share == pytest.approx(max(pair.bytes / 3e12, pair.flop / 1e15) / (pair.time_us * 1e-6))


def test_counts_turn_into_rates_and_a_bound(plan: Plan) -> None:
    events, _ = trace(plan)
    placed = place_kernels(events, STEPS, LaunchOrder(plan, "sm_90"))
    head = next(op for op in plan.ops if op.name == "lm_head")
    shape = [int(d) for d in plan.weights[next(n for n in head.inputs if n in plan.weights)].shape]
    weight_bytes = 2 * shape[0] * shape[1]
    slow = Hardware("test", {"bf16": 1e18}, weight_bytes / (KERNEL_US * 1e-6) * 1.5)
    kernels, _, _, _ = summarise(placed, STEPS, PlanCounter(plan), slow, lead_in=0)
    row = next(row for row in kernels if row.role == "lm_head")
    assert row.calls == 3
    assert row.flop == 2 * (3 + 5 + 5) * shape[0] * shape[1]
    assert row.flops_per_s == pytest.approx(row.flop / (3 * KERNEL_US * 1e-6))
    assert row.ceiling_share == pytest.approx(row.bytes / slow.bytes_per_s / (3 * KERNEL_US * 1e-6))
    assert row.bound == "memory"


def test_reductions_over_ranks_are_communication_and_have_no_ceiling() -> None:
    config, source = replace(preset_config("llama-3.1-8b"), num_layers=2), {"kind": "dummy", "seed": 0}
    profile = Profile(64, 256, 256)
    rank = compile_model(config, "bf16", profile, arches=("sm_90",), weights_source=source, layout=ParallelLayout(2)).plan
    events, _ = trace(rank)
    placed = place_kernels(events, STEPS, LaunchOrder(rank, "sm_90"))
    hardware = Hardware("fast", {"bf16": 1e18}, 1e18)
    kernels, _, _, _ = summarise(placed, STEPS, PlanCounter(rank), hardware, lead_in=0)
    exchanged = [row for row in kernels if row.bound == "communication"]
    assert {row.op for row in exchanged} == {"all_reduce_add_rms_norm"}
    assert sum(row.calls for row in exchanged) == 4 * len(STEPS), "two a layer"
    assert all(row.ceiling_share is None for row in exchanged)
    assert any(row.bound == "latency" for row in kernels)


def test_kernels_that_begin_early_are_timed_from_the_end_of_the_one_before(plan: Plan) -> None:
    events, _ = trace(plan)
    early = [replace(event, start_us=event.start_us - 3, duration_us=event.duration_us + 3) for event in events]
    placed = place_kernels(early, STEPS, LaunchOrder(plan, "sm_90"))
    kernels, steps, roles, _ = summarise(placed, STEPS, PlanCounter(plan), None, lead_in=0)
    first, last = early[0], early[-1]
    assert sum(row.time_us for row in kernels) == pytest.approx(last.end_us - first.start_us)
    assert sum(row.share for row in kernels) == pytest.approx(1)
    assert sum(roles.values()) == pytest.approx(sum(step.span_us for step in steps))
    head = next(row for row in kernels if row.role == "lm_head")
    assert head.time_us == pytest.approx(head.calls * (KERNEL_US + GAP_US))


def test_a_window_is_written_as_two_numbers() -> None:
    assert Window.parse("100-131") == Window(100, 131)
    assert len(Window.parse("5")) == 1
    for text in ("", "a-b", "9-3", "-4"):
        with pytest.raises(BenchError, match="write A-B"):
            Window.parse(text)


def test_only_what_ran_on_the_device_is_taken_from_a_trace() -> None:
    def event(category: str, at: float, **more: object) -> Mapping[str, object]:
        return {"ph": "X", "cat": category, "name": category, "ts": at, "dur": 2, "args": {"stream": 7}, **more}

    content = {"traceEvents": [event("kernel", 9), event("cuda_runtime", 1), event("gpu_memcpy", 3), {"ph": "f", "cat": "ac2g"}]}
    assert [(e.kind, e.start_us, e.stream) for e in device_events(content)] == [("memcpy", 3, 7), ("kernel", 9, 7)]


def test_step_shapes_pad_to_their_graph() -> None:
    assert StepShape(np.ones(3, np.int64), np.full(3, 40), 3, 3).padded(4) == {"T": 4, "R": 4, "D": 4, "S": 4, "C": 0, "L": 512}
