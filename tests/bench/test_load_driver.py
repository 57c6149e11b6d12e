"""The driver in virtual time, where what should happen is known to the instant; and briefly in real time."""

from __future__ import annotations

import gc
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtllm_bench.load.clock import FakeClock
from trtllm_bench.load.driver import START_DELAY_S, TOO_LATE, Drive, LoadResult, run_load
from trtllm_bench.targets.scripted import NullTarget, Script, ScriptedTarget, VirtualTarget
from trtllm_results.metrics import requests as metrics
from trtllm_results.metrics.requests import FloatArray
from trtllm_workloads.arrivals import Constant, Poisson
from trtllm_workloads.lengths import Correlated, Fixed, Uniform
from trtllm_workloads.request import RequestSpec, Workload
from trtllm_workloads.structure import Conversations
from trtllm_workloads.synthetic import fixed, synthetic

LENGTHS = Correlated(Uniform(4, 30), Uniform(1, 12))


def lag_s(result: LoadResult) -> FloatArray:
    """[sent requests] sent - due."""
    lag = result.log.sent_s - result.log.columns["due_s"]
    return np.asarray(lag[np.isfinite(lag)])


def virtual(workload: Workload, drive: Drive, script: Script, send_cost_s: float = 0.0) -> tuple[LoadResult, VirtualTarget]:
    clock = FakeClock(send_cost_s=send_cost_s)
    target = VirtualTarget(clock, script)
    return run_load(workload.requests(), target, drive, clock), target


@given(
    rate=st.floats(0.5, 500),
    slots=st.sampled_from([0, 1, 4]),
    ttft=st.floats(0.0, 2.0),
    itl=st.floats(0.0, 0.2),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_open_loop_sends_at_the_intended_time_whatever_the_target_does(rate: float, slots: int, ttft: float, itl: float, seed: int) -> None:
    workload = synthetic(60, LENGTHS, arrivals=Poisson(rate), seed=seed)
    result, _ = virtual(workload, Drive(open_loop=True), Script(ttft, itl, slots))
    np.testing.assert_array_equal(result.log.sent_s, result.start_s + workload.arrival_s)
    np.testing.assert_array_equal(result.log.intended_s, result.log.sent_s)
    assert result.log.ok.all()


@given(concurrency=st.integers(1, 9), ttft=st.floats(0.001, 2.0), itl=st.floats(0.0, 0.2), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_closed_loop_holds_exactly_its_concurrency(concurrency: int, ttft: float, itl: float, seed: int) -> None:
    workload = synthetic(40, LENGTHS, seed=seed)
    result, target = virtual(workload, Drive(concurrency=concurrency), Script(ttft, itl))
    assert target.peak_in_flight == concurrency
    sent, ended = np.sort(result.log.sent_s), np.sort(result.log.end_s)
    np.testing.assert_array_equal(sent[:concurrency], result.start_s)
    np.testing.assert_array_equal(sent[concurrency:], ended[: 40 - concurrency])
    np.testing.assert_array_equal(result.log.columns["due_s"], result.log.sent_s)


def test_latency_counts_from_the_intended_arrival_when_the_target_queues() -> None:
    workload = synthetic(4, Correlated(Fixed(8), Fixed(1)), arrivals=Constant(10.0))
    result, _ = virtual(workload, Drive(open_loop=True), Script(ttft_s=1.0, itl_s=0.0, slots=1))
    np.testing.assert_allclose(metrics.ttft(result.log), [1.0, 1.9, 2.8, 3.7])


def test_a_bound_on_an_open_loop_delays_sending_and_the_wait_is_latency_not_lag() -> None:
    workload = synthetic(4, Correlated(Fixed(8), Fixed(1)), arrivals=Constant(10.0))
    result, target = virtual(workload, Drive(open_loop=True, concurrency=1), Script(ttft_s=1.0, itl_s=0.0))
    assert target.peak_in_flight == 1
    np.testing.assert_allclose(metrics.ttft(result.log), [1.0, 1.9, 2.8, 3.7])
    np.testing.assert_allclose(lag_s(result), 0.0, atol=1e-12)
    assert metrics.figures(result.log)["lag_max_ms"] == pytest.approx(0.0, abs=1e-9)


def test_a_slow_driver_is_recorded_as_lag_and_counted_as_latency() -> None:
    workload = synthetic(100, Correlated(Fixed(8), Fixed(1)), arrivals=Constant(1000.0))
    result, _ = virtual(workload, Drive(open_loop=True), Script(ttft_s=0.5, itl_s=0.0), send_cost_s=0.003)
    np.testing.assert_allclose(lag_s(result), np.arange(100) * 0.002, atol=1e-9)
    np.testing.assert_allclose(metrics.ttft(result.log), 0.503 + np.arange(100) * 0.002, atol=1e-9)


@pytest.mark.parametrize("open_loop", [True, False])
def test_a_turn_is_sent_think_time_after_the_one_before_ended(open_loop: bool) -> None:
    talk = Conversations(Uniform(2, 4), think_mean_s=0.7)
    workload = synthetic(40, LENGTHS, conversations=talk, arrivals=Poisson(3.0))
    result, _ = virtual(workload, Drive(open_loop=open_loop, concurrency=0), Script(0.3, 0.01))
    for request in workload.requests():
        if request.after >= 0:
            assert result.log.intended_s[request.id] == pytest.approx(result.log.end_s[request.after] + request.think_s)
            assert result.log.sent_s[request.id] == result.log.intended_s[request.id]


def test_a_closed_loop_prefers_waiting_turns_to_new_sessions() -> None:
    workload = synthetic(12, LENGTHS, conversations=Conversations(Fixed(3)))
    _, target = virtual(workload, Drive(concurrency=1), Script(0.1, 0.01))
    assert [place for _, place in target.sent] == list(range(12))


def test_a_failed_turn_fails_the_rest_of_its_session_and_nothing_else() -> None:
    workload = synthetic(9, LENGTHS, conversations=Conversations(Fixed(3)))
    result, _ = virtual(workload, Drive(concurrency=2), Script(0.1, 0.01, fail_every=5))
    assert [(place, why.split(":")[0]) for place, why in result.failures] == [(4, "the script says so"), (5, "not sent")]
    assert np.isnan(result.log.sent_s[5])
    assert result.log.ok.sum() == 7


class _Refusing(NullTarget):
    def submit(self, request: RequestSpec, arrival_s: float) -> None:
        if request.id == 1:
            raise RuntimeError("prompt too long")
        super().submit(request, arrival_s)


def test_an_exception_of_submit_fails_that_request_only() -> None:
    result = run_load(fixed(3, 4, 2).requests(), _Refusing(), Drive(concurrency=1))
    assert result.failures == ((1, "RuntimeError: prompt too long"),)
    assert result.log.ok.tolist() == [True, False, True]


class _Silent(NullTarget):
    stopped = False

    def submit(self, request: RequestSpec, arrival_s: float) -> None:
        if request.id == 0:
            super().submit(request, arrival_s)

    def stop(self) -> None:
        self.stopped = True


def test_a_target_that_goes_silent_ends_the_run_and_says_so() -> None:
    target = _Silent()
    result = run_load(fixed(3, 4, 2).requests(), target, Drive(concurrency=2, stall_s=0.2))
    assert result.stalled
    assert target.stopped
    assert [place for place, _ in result.failures] == [1, 2]
    assert "nothing moved for 0.2 s" in result.failures[0][1]


def test_a_silence_between_arrivals_is_no_stall() -> None:
    workload = fixed(2, 4, 2).with_arrivals(np.array([0.0, 50.0]))
    result, _ = virtual(workload, Drive(open_loop=True, stall_s=10.0), Script(0.1, 0.01))
    assert not result.stalled
    assert result.log.ok.all()


def test_warm_up_by_count_and_by_time_is_marked_and_left_out() -> None:
    workload = synthetic(20, LENGTHS, arrivals=Constant(2.0))
    by_count, _ = virtual(workload, Drive(open_loop=True, warmup_requests=5), Script())
    by_time, _ = virtual(workload, Drive(open_loop=True, warmup_s=4.0), Script())
    assert by_count.log.columns["warmup"].sum() == 5
    assert by_time.log.columns["warmup"].sum() == 8
    assert len(by_count.measured) == 15
    assert by_count.measured.intended_s[0] == by_count.start_s + 2.5


def test_token_times_reach_the_log_in_order_of_requests() -> None:
    workload = synthetic(10, LENGTHS, arrivals=Constant(50.0))
    result, _ = virtual(workload, Drive(open_loop=True), Script(0.5, 0.02))
    log = result.log
    assert log.token_times_s is not None
    assert log.token_offsets is not None
    for k in range(10):
        times = log.token_times_s[log.token_offsets[k] : log.token_offsets[k + 1]]
        np.testing.assert_allclose(times, log.intended_s[k] + 0.5 + 0.02 * np.arange(workload.output_tokens[k]))
        assert log.first_token_s[k] == times[0]
        assert log.end_s[k] == times[-1]


def test_real_time_agrees_with_the_script() -> None:
    workload = synthetic(40, Correlated(Fixed(8), Fixed(5)), arrivals=Constant(100.0))
    seen: list[int] = []
    target = ScriptedTarget(Script(ttft_s=0.05, itl_s=0.01))
    result = run_load(workload.requests(), target, Drive(open_loop=True), on_requests=seen.append)
    assert np.median(metrics.ttft(result.log)) == pytest.approx(0.05, abs=0.02)
    np.testing.assert_allclose(metrics.tpot(result.log), 0.01)
    assert (lag_s(result) >= 0).all()
    assert seen[-1] == 40
    assert result.log.intended_s[0] == result.start_s
    assert result.log.intended_s[-1] - result.start_s > START_DELAY_S


def test_the_interpreter_is_left_as_it_was() -> None:
    before = (gc.isenabled(), sys.getswitchinterval())
    run_load(fixed(2, 4, 2).requests(), NullTarget(), Drive())
    assert (gc.isenabled(), sys.getswitchinterval()) == before


def test_goodput_counts_each_request_against_its_own_limits() -> None:
    workload = fixed(4, 8, 11)
    limits = np.full((4, 3), np.nan)
    limits[:, 2] = [650, 550, np.nan, 650]
    limits[3, 0] = 400
    result, _ = virtual(replace(workload, slo_ms=limits), Drive(), Script(ttft_s=0.5, itl_s=0.01))
    assert metrics.goodput_mask(result.log, result.own_slo_ms).tolist() == [True, False, True, False]
    assert metrics.figures(result.log, result.own_slo_ms)["goodput_ratio"] == 0.5
    assert virtual(workload, Drive(), Script())[0].own_slo_ms == {}


def test_request_numbers_need_not_start_at_zero() -> None:
    shifted = [replace(request, id=request.id + 100) for request in fixed(4, 4, 2).requests()]
    result = run_load(shifted, NullTarget(), Drive(concurrency=2))
    assert result.log.ok.all()


class _Late(VirtualTarget):
    """Its answers stay open for `tail_s` after their last token; requests in `hang` are never answered."""

    def __init__(self, clock: FakeClock, script: Script, tail_s: float = 0.0, hang: tuple[int, ...] = ()) -> None:
        super().__init__(clock, script)
        self._own_clock, self._tail_s, self._hang = clock, tail_s, hang
        self.cancelled: list[int] = []
        self.heard: dict[int, float] = {}

    def submit(self, request: RequestSpec, arrival_s: float) -> None:
        if request.id in self._hang:
            self.heard[request.id] = float("nan")
            return
        answer = self._script.answer(request, self._own_clock.now())
        answer.closed_s = answer.end_s + self._tail_s
        self.heard[request.id] = answer.end_s
        self._own_clock.at(answer.closed_s, lambda: self._deliver(answer))

    def heard_s(self, request_id: int) -> float:
        heard = self.heard[request_id]
        return heard if heard <= self._own_clock.now() else float("nan")

    def cancel(self, request_id: int) -> None:
        self.cancelled.append(request_id)


def late(workload: Workload, drive: Drive, **how: Any) -> tuple[LoadResult, _Late]:
    clock = FakeClock()
    target = _Late(clock, Script(ttft_s=0.1, itl_s=0.0), **how)
    return run_load(workload.requests(), target, drive, clock), target


def test_a_place_is_free_when_the_answer_is_closed_and_the_tail_is_nobodys_latency_or_lag() -> None:
    result, _ = late(fixed(5, 4, 1), Drive(concurrency=1), tail_s=0.4)
    np.testing.assert_allclose(result.log.sent_s - result.start_s, np.arange(5) * 0.5)
    np.testing.assert_allclose(metrics.ttft(result.log), 0.1)
    np.testing.assert_allclose(result.log.sent_s - result.log.columns["due_s"], 0.0, atol=1e-12)
    np.testing.assert_allclose(result.log.columns["closed_s"] - result.log.end_s, 0.4)


def test_a_hung_request_fails_alone_and_its_place_goes_on() -> None:
    result, target = late(fixed(12, 4, 1), Drive(concurrency=2, stall_s=5.0), hang=(4,))
    assert [place for place, _ in result.failures] == [4] == target.cancelled
    assert not result.stalled
    assert result.log.ok.sum() == 11


def test_every_place_may_hang_once_and_the_rest_is_still_measured() -> None:
    result, _ = late(fixed(12, 4, 1), Drive(concurrency=2, stall_s=5.0), hang=(4, 5))
    assert [place for place, _ in result.failures] == [4, 5]
    assert not result.stalled
    assert result.log.ok.sum() == 10


def test_a_target_that_stays_silent_ends_the_run_after_twice_its_patience() -> None:
    result, _ = late(fixed(100, 4, 1), Drive(concurrency=2, stall_s=5.0), hang=tuple(range(10, 100)))
    assert result.stalled
    assert result.log.ok.sum() == 10
    assert np.isfinite(result.log.sent_s).sum() == 14
    assert dict(result.failures)[99] == "not sent: the run stalled"


def test_tokens_are_progress_and_the_limit_of_a_request_counts_all_its_time() -> None:
    slow = Script(ttft_s=1.0, itl_s=1.0)

    def run(**limits: float) -> LoadResult:
        clock = FakeClock()
        target = _Late(clock, slow)
        target.heard_s = lambda request_id: np.floor(clock.now())  # type: ignore[method-assign]
        return run_load(fixed(2, 4, 640).requests(), target, replace(Drive(concurrency=2), **limits), clock)

    assert run(stall_s=3.0).log.ok.all()
    assert run(stall_s=3.0, request_limit_s=100.0).failures == tuple(
        (place, "given up: it took longer than its limit of 100 s") for place in (0, 1)
    )


def test_a_tail_that_can_be_no_good_is_given_up_and_changes_nothing_before() -> None:
    workload = fixed(40, 4, 2).with_arrivals(np.arange(40) * 0.1)
    script = Script(ttft_s=0.5, itl_s=0.01, slots=1)
    whole, _ = virtual(workload, Drive(open_loop=True), script)
    cut, _ = virtual(workload, Drive(open_loop=True, tail_s=2.0), script)
    ended = cut.log.ok
    assert cut.log.end_s[ended] == pytest.approx(whole.log.end_s[ended])
    assert {reason for _, reason in cut.failures} == {TOO_LATE}
    late = whole.log.end_s > whole.start_s + 3.9 + 2.0
    assert (ended == ~late).all()
    assert cut.log.columns["closed_s"].max() == pytest.approx(cut.start_s + 5.9, abs=0.1), "the run ends then"


def test_a_standstill_of_the_driver_is_seen_whatever_it_waits_for() -> None:
    clock = FakeClock()
    clock.stand_still(clock.now() + 3.0, 1.0)
    workload = fixed(200, 4, 1)
    result = run_load(workload.requests(), VirtualTarget(clock, Script(ttft_s=0.1, itl_s=0.0)), Drive(concurrency=2), clock)
    ((since, until),) = result.standstills
    assert until - since == pytest.approx(1.0, abs=0.021)
    assert virtual(workload, Drive(concurrency=2), Script(ttft_s=0.1, itl_s=0.0))[0].standstills == ()
