"""What makes a run void, and what it warns of."""

from __future__ import annotations

import numpy as np
import pytest

from trtllm_bench.load.clock import FakeClock
from trtllm_bench.load.driver import Drive, LoadResult, run_load
from trtllm_bench.measure import validity
from trtllm_bench.measure.validity import empty_places
from trtllm_bench.targets.scripted import Script, VirtualTarget
from trtllm_workloads.arrivals import Poisson
from trtllm_workloads.lengths import Correlated, Fixed
from trtllm_workloads.synthetic import synthetic

LENGTHS = Correlated(Fixed(8), Fixed(28))


def virtual(script: Script, rate: float = 20.0, n: int = 400, send_cost_s: float = 0.0, concurrency: int = 0) -> LoadResult:
    clock = FakeClock(send_cost_s=send_cost_s)
    workload = synthetic(n, LENGTHS, arrivals=Poisson(rate))
    return run_load(workload.requests(), VirtualTarget(clock, script), Drive(concurrency, open_loop=concurrency == 0), clock)


def test_a_healthy_open_loop_is_neither_void_nor_warned_of_and_mostly_steady() -> None:
    verdict = validity.verdict(virtual(Script(ttft_s=0.2, itl_s=0.02)), open_loop=True)
    assert (verdict.void, verdict.warnings) == ("", ())
    assert verdict.window is not None
    assert verdict.window.rule == "slope"
    assert verdict.window.share > 0.7


def test_a_closed_loop_is_steady_between_ramp_up_and_drain() -> None:
    verdict = validity.verdict(virtual(Script(ttft_s=0.2, itl_s=0.02), concurrency=8), open_loop=False)
    assert verdict.window is not None
    assert verdict.window.rule == "concurrency"
    assert verdict.window.share > 0.9


def test_short_outputs_are_said_first() -> None:
    verdict = validity.verdict(virtual(Script(short_by=10, fail_every=7)), open_loop=True)
    assert verdict.warnings[0] == "outputs were shorter than asked: 18.0 tokens a request instead of 28.0"
    assert verdict.warnings[1] == "57 of 400 requests failed: the script says so"


def test_a_late_driver_voids_the_run_and_the_limit_can_be_set() -> None:
    result = virtual(Script(), rate=1000.0, send_cost_s=0.002)
    assert "the driver sent" in validity.verdict(result, open_loop=True).void
    assert validity.verdict(result, open_loop=True, max_lag_ms=1e6).void == ""


@pytest.mark.parametrize("concurrency", [0, 300])
def test_filling_a_large_batch_at_the_start_is_not_lag(concurrency: int) -> None:
    clock = FakeClock(send_cost_s=0.0005)
    workload = synthetic(600, LENGTHS)
    result = run_load(workload.requests(), VirtualTarget(clock, Script(ttft_s=0.2, itl_s=0.02)), Drive(concurrency), clock)
    assert np.nanmax(result.log.sent_s - result.log.columns["due_s"]) > 0.1
    assert validity.verdict(result, open_loop=False).void == ""


def closed(itl_s: float, send_cost_s: float) -> LoadResult:
    clock = FakeClock(send_cost_s=send_cost_s)
    target = VirtualTarget(clock, Script(ttft_s=0.2, itl_s=itl_s))
    return run_load(synthetic(900, LENGTHS).requests(), target, Drive(300), clock)


def test_a_closed_loop_is_void_when_a_slow_driver_leaves_places_empty() -> None:
    starved = closed(itl_s=0.0, send_cost_s=0.005)  # 200 sends/s where 300 places turn over in 0.2 s
    assert empty_places(starved) > 0.5
    assert "the driver sent" in validity.verdict(starved, open_loop=False).void
    fed = closed(itl_s=1.0, send_cost_s=0.005)
    assert empty_places(fed) < 0.05
    assert validity.verdict(fed, open_loop=False).void == ""


def test_overload_is_warned_of_and_not_void() -> None:
    verdict = validity.verdict(virtual(Script(ttft_s=0.2, itl_s=0.0, slots=1), rate=50.0), open_loop=True)
    assert verdict.void == ""
    assert any("grew to the end" in warning for warning in verdict.warnings)


@pytest.mark.parametrize("rate", [2.0, 4.0])
def test_load_below_capacity_is_not_called_growing(rate: float) -> None:
    verdict = validity.verdict(virtual(Script(ttft_s=0.2, itl_s=0.0, slots=1), rate=rate, n=2000), open_loop=True)
    assert not any("grew" in warning for warning in verdict.warnings)
