"""What makes a run void, and what it warns of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trtllm_bench.load.clock import FakeClock
from trtllm_bench.load.driver import Drive, LoadResult, run_load
from trtllm_bench.measure import validity
from trtllm_bench.measure.validity import empty_places
from trtllm_bench.targets.scripted import Script, VirtualTarget
from trtllm_results.metrics.requests import FloatArray
from trtllm_workloads.arrivals import Poisson
from trtllm_workloads.lengths import Correlated, Fixed, Uniform
from trtllm_workloads.synthetic import fixed, synthetic

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
    assert verdict.warnings[0] == "outputs were shorter than asked: 18.0 tokens per request instead of 28.0"
    assert verdict.warnings[1] == "57 of 400 requests failed: the script says so"


def test_long_outputs_are_said_too() -> None:
    """Of a server that takes no notice of the length asked for."""
    verdict = validity.verdict(virtual(Script(short_by=-28)), open_loop=True)
    assert verdict.warnings[0] == "outputs were longer than asked: 56.0 tokens per request instead of 28.0"


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


def stopped(concurrency: int, n: int, rate: float = 20.0, seconds: float = 1.0, at: float = 3.0, process: bool = True) -> LoadResult:
    """A run whose client stands still once. `process`: with it the stamps of what came meanwhile are late too."""
    clock = FakeClock()
    clock.stand_still(clock.now() + at, seconds)
    workload = synthetic(n, Correlated(Fixed(8), Fixed(8)), arrivals=Poisson(rate))
    target = VirtualTarget(clock, Script(ttft_s=0.05, itl_s=0.005))
    result = run_load(workload.requests(), target, Drive(concurrency, open_loop=concurrency == 0), clock)
    if not process:
        return result
    since, until = result.standstills[0]

    def stamped(times: FloatArray) -> FloatArray:
        return np.where((times > since) & (times < until), until, times)

    log = result.log
    assert log.token_times_s is not None
    columns = {**log.columns, "closed_s": stamped(log.columns["closed_s"]), "due_s": stamped(log.columns["due_s"])}
    if concurrency == 0:
        columns["due_s"] = log.columns["due_s"]
    return replace(
        result,
        log=replace(
            log,
            first_token_s=stamped(log.first_token_s),
            end_s=stamped(log.end_s),
            token_times_s=stamped(log.token_times_s),
            columns=columns,
            intended_s=stamped(log.intended_s) if concurrency else log.intended_s,
        ),
    )


def test_a_client_that_stood_still_for_a_second_of_eleven_voids_a_closed_loop() -> None:
    result = stopped(concurrency=8, n=900)
    assert result.log.end_s.max() - result.start_s == pytest.approx(900 / 8 * 0.085 + 1, abs=0.3)
    judged = validity.verdict(result, open_loop=False)
    assert judged.void.startswith("the client stood still for ")
    assert "output may be off by 10%" in judged.void
    assert validity.verdict(result, open_loop=False, max_lag_ms=5000).void == ""


@pytest.mark.parametrize("process", [True, False])
def test_a_second_in_two_minutes_of_an_open_loop_is_not_hidden(process: bool) -> None:
    """12 of 1,500 requests are touched: fewer than one in a hundred, and the 99th percentile of TTFT still moves."""
    judged = validity.verdict(stopped(concurrency=0, n=1500, rate=12.0, at=20.0, process=process), open_loop=True)
    assert "the client stood still" in judged.void + " ".join(judged.warnings)


def test_a_standstill_that_moves_nothing_is_not_spoken_of() -> None:
    judged = validity.verdict(stopped(concurrency=0, n=6000, rate=20.0, seconds=0.03), open_loop=True)
    assert (judged.void, judged.warnings) == ("", ())


def test_a_short_standstill_that_moves_a_figure_is_a_warning() -> None:
    judged = validity.verdict(stopped(concurrency=8, n=160, seconds=0.1, at=0.5), open_loop=False)
    assert judged.void == ""
    assert any("the client stood still for " in warning for warning in judged.warnings)


def test_several_reasons_of_failures_are_told_with_their_counts() -> None:
    result = virtual(Script(fail_every=7))
    why = ["a"] * 30 + ["b"] * 20 + ["c"] * 5 + ["d", "e"]
    mixed = replace(result, failures=tuple((place, reason) for (place, _), reason in zip(result.failures, why, strict=True)))
    assert "57 of 400 requests failed: a (30); b (20); c (5); 2 other reasons" in validity.verdict(mixed, open_loop=True).warnings


def test_a_closed_loop_too_short_to_be_steady_says_so() -> None:
    def warned(n: int) -> bool:
        workload = synthetic(n, Correlated(Fixed(8), Uniform(1, 400)))
        clock = FakeClock()
        result = run_load(workload.requests(), VirtualTarget(clock, Script(ttft_s=0.2, itl_s=0.02)), Drive(20), clock)
        return any("of the run was steady" in warning for warning in validity.verdict(result, open_loop=False).warnings)

    assert warned(20)
    assert not warned(80)


def test_a_concurrency_that_was_never_reached_is_told() -> None:
    def warnings(n: int, drive: Drive, open_loop: bool = False) -> tuple[str, ...]:
        clock = FakeClock()
        result = run_load(fixed(n, 8, 4).requests(), VirtualTarget(clock, Script(ttft_s=0.2, itl_s=0.02)), drive, clock)
        return validity.verdict(result, open_loop=open_loop).warnings

    assert warnings(4, Drive(8)) == ("a concurrency of 8 was never reached: there were 4 requests; give more",)
    assert warnings(8, Drive(8)) == warnings(4, Drive(0)) == ()
    assert not any("never reached" in one for one in warnings(4, Drive(8, open_loop=True), open_loop=True))
