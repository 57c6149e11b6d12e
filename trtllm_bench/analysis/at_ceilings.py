"""The rate that a measured cell would have if each of its ops took only the longer of its bytes at the measured bandwidth and its FLOP at
the measured rate of its number format.

Ops follow each other, so this is less than the bytes and FLOP of the whole run allow. Time in which no step ran stays; what ranks send
each other is left out.

It is not an upper bound. The rate of a format is what the library's GEMM sustains under the power limit, so kernels that need less energy
per FLOP exceed it, as ours in int8 do. And activations count as bytes of memory even where they stay in L2.
"""

from __future__ import annotations

from trtllm_bench.analysis.cells import MeasuredCell, hardware_of, plans_of
from trtllm_bench.analysis.explain import read_steps, sampled_steps, shape_of, step_times
from trtllm_bench.roofline.counts import PlanCounter, StepShape
from trtllm_bench.roofline.hardware import Hardware


def step_at_ceilings_us(counter: PlanCounter, hardware: Hardware, shape: StepShape) -> float:
    """Microseconds of a step whose ops run one after the other, each for the longer of the times of its bytes and its FLOP."""
    return sum(count * max(hardware.ceiling_us(cost)) for cost, count in counter.classes(shape))


def rate_at_ceilings(cell: MeasuredCell) -> float:
    """Output tokens/s at the ceilings; each step of a pipeline takes as long as its slowest stage. Raises `BenchError` for a row without a
    step log, or whose device has no known ceilings."""
    steps, hardware, plans = read_steps(cell), hardware_of(cell.row.environment), plans_of(cell.row)
    counters, page = [PlanCounter(plan) for plan in plans], plans[0].profile.page_size
    taken, idle = step_times(steps)
    least = 0.0
    for same, chosen in sampled_steps(steps):
        shapes = [shape_of(steps, index, page, len(plans)) for index in chosen]
        each = [max(step_at_ceilings_us(counter, hardware, shape) for counter in counters) for shape in shapes]
        least += sum(each) * len(same) / len(chosen)
    return float(cell.row.figures["output_tokens_per_s"] * (taken.sum() + idle.sum()) / (least + idle.sum()))
