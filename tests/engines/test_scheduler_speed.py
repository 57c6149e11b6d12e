"""What a step costs the host: recorded by pytest-benchmark, not asserted (machines differ), and only where tests run in one process."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trtllm_engines.runtime.batch import StepBatch, StepOutput
from trtllm_engines.runtime.engine_loop import EngineLoop
from trtllm_engines.runtime.sampling_params import SamplingParams
from trtllm_engines.runtime.scheduler import SchedulerConfig


class InstantHandle:
    def __init__(self, count: int) -> None:
        self.count = count

    def done(self) -> bool:
        return True

    def result(self) -> StepOutput:
        return StepOutput(np.full(self.count, 7, np.int32))


class InstantRunner:
    def launch(self, batch: StepBatch) -> InstantHandle:
        return InstantHandle(int(batch.sampled.sum()))


@pytest.mark.parametrize("running", [1024, 2048])
def test_step_cost_of_a_pure_decode_step(benchmark: Any, running: int) -> None:
    """Schedule, launch on nothing, and take in the previous step, with every slot decoding."""
    config = SchedulerConfig(running, 65536, 2048, 32, running * 64 + 1)
    loop = EngineLoop(InstantRunner(), config, vocab_size=1000, eos_ids=(3,))
    for _ in range(running):
        loop.add_request(np.full(128, 5, np.int32), SamplingParams(max_tokens=1900, ignore_eos=True))
    while loop.scheduler.num_waiting or loop.idle or len(loop.log) < 10:
        loop.step()
    assert loop.scheduler.num_running == running
    benchmark.pedantic(loop.step, rounds=300, iterations=1)
    for _ in range(200):  # where tests run in several processes nothing is timed, and one step was made
        loop.step()
    rows = loop.log.rows()
    assert (rows["decode_tokens"][-200:] == running).all()


def test_step_cost_of_a_saturated_mixed_step(benchmark: Any) -> None:
    """128/128 at 1,024 slots: every step ends and admits about eight requests."""
    config = SchedulerConfig(1024, 3072, 2048, 32, 1024 * 9)
    loop = EngineLoop(InstantRunner(), config, vocab_size=1000, eos_ids=(3,))
    for _ in range(8000):
        loop.add_request(np.full(128, 5, np.int32), SamplingParams(max_tokens=128, ignore_eos=True))
    for _ in range(200):
        loop.step()
    assert loop.scheduler.num_running > 900
    benchmark.pedantic(loop.step, rounds=200, iterations=1)
    assert loop.scheduler.num_waiting > 0
