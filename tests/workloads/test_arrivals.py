"""Arrival processes against their theory: mean, coefficient of variation, Kolmogorov-Smirnov on gaps or on transformed times."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from trtllm_workloads import arrivals
from trtllm_workloads.arrivals import parse, rate_of
from trtllm_workloads.errors import WorkloadError

N = 4_000
RATES = st.floats(0.05, 5_000)
SEEDS = st.integers(0, 2**31)
HYPOTHESIS = settings(max_examples=25, deadline=None, derandomize=True)


def draw(process: arrivals.Arrivals, seed: int, n: int = N) -> np.ndarray:
    return process.times(n, np.random.default_rng(seed))


def unit_gaps(cumulative: np.ndarray) -> np.ndarray:
    """Gaps of a process after its cumulative rate is applied: unit exponentials exactly when the rate is right (time-change theorem)."""
    return np.diff(np.concatenate([[0.0], cumulative]))


@given(rate=RATES, seed=SEEDS)
@HYPOTHESIS
def test_poisson_gaps_are_exponential_with_mean_and_cv(rate: float, seed: int) -> None:
    gaps = np.diff(np.concatenate([[0.0], draw(arrivals.Poisson(rate), seed)]))
    assert stats.kstest(gaps * rate, stats.expon.cdf).pvalue > 1e-5
    assert gaps.mean() * rate == pytest.approx(1, abs=6 / N**0.5)
    assert gaps.std() / gaps.mean() == pytest.approx(1, abs=0.12)


def test_processes_of_one_rate_say_it() -> None:
    assert [rate_of(parse(text)) for text in ("constant:8", "poisson:8", "gamma:8,0.5")] == [8, 8, 8]
    assert [rate_of(parse(text)) for text in ("on-off:30,5,10", "rate-series:4/0/20,5", "linear-ramp:1,8,10", "at-once")] == [None] * 4


def test_every_process_has_a_short_form() -> None:
    assert arrivals.parse("constant:5") == arrivals.Constant(5.0)
    assert arrivals.parse("gamma:5,burstiness=0.5") == arrivals.Gamma(5.0, 0.5)
    assert arrivals.parse("linear-ramp:1,20,60") == arrivals.LinearRamp(1.0, 20.0, 60.0)
    assert arrivals.parse("on-off: 30, 5, 10, off_rate=1") == arrivals.OnOff(30.0, 5.0, 10.0, 1.0)
    assert arrivals.parse("rate-series:5/0/10,3") == arrivals.RateSeries((5.0, 0.0, 10.0), 3.0)
    for text in ("gamma:5.0,burstiness=0.5", "on-off:30,5,10,0", "rate-series:rates=5/0.0/10,step_s=3", "at-once"):
        assert arrivals.parse(arrivals.spelling(text)) == arrivals.parse(text)
    assert arrivals.spelling("on-off:off_s=10.0,rate=30,on_s=5,off_rate=0") == arrivals.spelling("on-off: 30,5,10") == "on-off:30,5,10"
    assert arrivals.spelling({"kind": "gamma", "rate": 5.5, "burstiness": 0.84}) == "gamma:5.5,0.84"
    assert arrivals.spelling({"kind": "rate-series", "rates": [5, 0.5], "step_s": 3}) == "rate-series:5/0.5,3"
    assert arrivals.spelling("at-once") == "at-once"
    assert arrivals.parse("at-once") == arrivals.AtOnce()
    with pytest.raises(WorkloadError, match="at-once takes nothing more, not '3'"):
        arrivals.parse("at-once:3")


def test_poisson_is_not_rescaled_to_its_expected_end() -> None:
    ends = [draw(arrivals.Poisson(10.0), seed, 100)[-1] for seed in range(400)]
    assert np.std(ends) == pytest.approx(1.0, rel=0.15)  # a gamma of shape 100 and rate 10 has stdev 1; rescaling would make it 0
    assert np.mean(ends) == pytest.approx(10.0, abs=0.25)


@given(rate=RATES, burstiness=st.floats(0.2, 20), seed=SEEDS)
@HYPOTHESIS
def test_gamma_gaps_have_the_cv_burstiness_says(rate: float, burstiness: float, seed: int) -> None:
    gaps = np.diff(np.concatenate([[0.0], draw(arrivals.Gamma(rate, burstiness), seed)]))
    assert stats.kstest(gaps * rate * burstiness, stats.gamma(burstiness).cdf).pvalue > 1e-5
    assert gaps.std() / gaps.mean() == pytest.approx(burstiness**-0.5, rel=0.25)


@given(start=st.floats(0, 50), end=st.floats(0.5, 50), duration=st.floats(1, 200), seed=SEEDS)
@HYPOTHESIS
def test_linear_ramp_follows_its_cumulative_rate(start: float, end: float, duration: float, seed: int) -> None:
    times = draw(arrivals.LinearRamp(start, end, duration), seed)
    inside = np.minimum(times, duration)
    cumulative = start * inside + (end - start) / duration * inside**2 / 2 + end * np.maximum(times - duration, 0)
    assert stats.kstest(unit_gaps(cumulative), stats.expon.cdf).pvalue > 1e-5


@given(start=st.floats(0.1, 50), end=st.floats(0.1, 50), duration=st.floats(1, 200), seed=SEEDS)
@HYPOTHESIS
def test_exponential_ramp_follows_its_cumulative_rate(start: float, end: float, duration: float, seed: int) -> None:
    times = draw(arrivals.ExponentialRamp(start, end, duration), seed)
    inside = np.minimum(times, duration)
    growth = np.log(end / start) / duration
    ramp = start * np.expm1(growth * inside) / growth if abs(growth * duration) > 1e-9 else start * inside
    assert stats.kstest(unit_gaps(ramp + end * np.maximum(times - duration, 0)), stats.expon.cdf).pvalue > 1e-5


@given(rates=st.lists(st.sampled_from([0.0, 0.5, 3.0, 40.0]), min_size=1, max_size=6), step=st.floats(0.5, 30), seed=SEEDS)
@HYPOTHESIS
def test_rate_series_follows_each_step_and_is_silent_in_steps_of_rate_zero(rates: list[float], step: float, seed: int) -> None:
    if sum(rates) == 0:
        return
    times = draw(arrivals.RateSeries(tuple(rates), step), seed)
    edges = np.arange(len(rates) + 1) * step
    totals = np.concatenate([[0.0], np.cumsum(rates)]) * step
    period, phase = np.divmod(times, edges[-1])
    assert stats.kstest(unit_gaps(period * totals[-1] + np.interp(phase, edges, totals)), stats.expon.cdf).pvalue > 1e-5
    steps = np.minimum((phase / step).astype(int), len(rates) - 1)
    on_edge = np.minimum(phase % step, step - phase % step) < 1e-6
    assert all(rates[k] > 0 for k in steps[~on_edge])


def test_on_off_is_silent_between_bursts_and_keeps_its_rate_inside() -> None:
    times = draw(arrivals.OnOff(rate=20.0, on_s=2.0, off_s=8.0), 3)
    phase = times % 10.0
    assert phase.max() < 2.0
    assert N / times[-1] == pytest.approx(4.0, rel=0.08)
    assert stats.kstest(phase / 2.0, stats.uniform.cdf).pvalue > 1e-5


def test_on_off_with_a_background_rate() -> None:
    times = draw(arrivals.OnOff(rate=20.0, on_s=2.0, off_s=8.0, off_rate=5.0), 3)
    assert (times % 10.0 < 2.0).mean() == pytest.approx(0.5, abs=0.04)


def test_constant_and_at_once_are_exact() -> None:
    assert draw(arrivals.Constant(4.0), 0, 5).tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert draw(arrivals.AtOnce(), 0, 3).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "process",
    [
        arrivals.Poisson(3.0),
        arrivals.Gamma(3.0, 0.4),
        arrivals.LinearRamp(0.0, 9.0, 20.0),
        arrivals.OnOff(9.0, 1.0, 2.0),
        arrivals.RateSeries((1.0, 0.0, 5.0), 3.0),
    ],
    ids=lambda process: type(process).__name__,
)
def test_more_requests_leave_the_first_ones_where_they_were(process: arrivals.Arrivals) -> None:
    short, long = draw(process, 11, 50), draw(process, 11, 500)
    np.testing.assert_allclose(long[:50], short, rtol=1e-12)
    assert (np.diff(long) >= 0).all()
    assert short[0] >= 0


def test_flags_pick_the_process_vllm_users_expect() -> None:
    assert arrivals.from_flags(None) == arrivals.AtOnce()
    assert arrivals.from_flags(float("inf")) == arrivals.AtOnce()
    assert arrivals.from_flags(5.0) == arrivals.Poisson(5.0)
    assert arrivals.from_flags(5.0, 0.5) == arrivals.Gamma(5.0, 0.5)
    with pytest.raises(WorkloadError, match="rate is 0"):
        arrivals.from_flags(0.0)


def test_a_burstiness_that_nothing_would_use_is_refused() -> None:
    assert arrivals.chosen(None) is None
    assert arrivals.chosen(5.0, 0.5) == arrivals.Gamma(5.0, 0.5)
    assert arrivals.chosen(None, 1.0, "constant:4") == arrivals.Constant(4.0)
    for given_flags, message in (
        (
            (None, 0.25, "poisson:10"),
            "--burstiness shapes the gaps of --request-rate, and --arrivals is given; write --arrivals gamma:RATE,0.25",
        ),
        ((None, 0.25, None), "give both"),
        ((5.0, 1.0, "poisson:10"), "give one of them"),
    ):
        with pytest.raises(WorkloadError, match=message):
            arrivals.chosen(*given_flags)


@pytest.mark.parametrize(
    "text", ["poisson:nan", "poisson:1e-300", "constant:1e300", "gamma:5,1e-9", "linear-ramp:nan,5,5", "on-off:5,1,1,nan"]
)
@pytest.mark.parametrize("more", [[], ["rate-series:nan/1,5"]])
def test_rates_that_give_no_times_are_refused(text: str, more: list[str]) -> None:
    for process in (text, *more):
        with pytest.raises(WorkloadError, match="it must"):
            arrivals.parse(process)
