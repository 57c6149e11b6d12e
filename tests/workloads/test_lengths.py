"""Length distributions against their theory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from trtllm_workloads import lengths
from trtllm_workloads.errors import WorkloadError

N = 20_000


def draw(distribution: lengths.Lengths, seed: int = 1, n: int = N) -> np.ndarray:
    return distribution.at(np.random.default_rng(seed).random(n))


@given(low=st.integers(1, 500), span=st.integers(0, 500), seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_uniform_covers_exactly_its_range_evenly(low: int, span: int, seed: int) -> None:
    values = draw(lengths.Uniform(low, low + span), seed)
    assert values.min() >= low
    assert values.max() <= low + span
    counts = np.bincount(values - low, minlength=span + 1)
    assert span == 0 or stats.chisquare(counts).pvalue > 1e-6


def test_uniform_reaches_both_ends() -> None:
    assert set(lengths.Uniform(3, 5).at(np.array([0.0, 0.4, np.nextafter(1.0, 0.0)])).tolist()) == {3, 4, 5}


@given(mean=st.floats(200, 4000), cv=st.floats(0.02, 0.2), seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_normal_has_its_mean_and_stdev(mean: float, cv: float, seed: int) -> None:
    values = draw(lengths.Normal(mean, mean * cv), seed)
    assert values.mean() == pytest.approx(mean, abs=6 * mean * cv / N**0.5 + 0.5)
    assert values.std() == pytest.approx(mean * cv, rel=0.04, abs=0.5)


@given(mean=st.floats(300, 3000), cv=st.floats(0.2, 1.0), seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_lognormal_mean_is_of_the_length_not_of_its_logarithm(mean: float, cv: float, seed: int) -> None:
    values = draw(lengths.LogNormal(mean, mean * cv), seed)
    assert values.mean() == pytest.approx(mean, rel=6 * cv / N**0.5 + 0.01)
    sigma2 = np.log1p(cv**2)
    reference = stats.lognorm(s=sigma2**0.5, scale=mean * np.exp(-sigma2 / 2))
    assert stats.kstest(values + np.random.default_rng(0).uniform(-0.5, 0.5, N), reference.cdf).pvalue > 1e-6


def test_exponential_has_its_mean_and_shape() -> None:
    values = draw(lengths.Exponential(5000.0))
    assert values.mean() == pytest.approx(5000, rel=0.03)
    assert np.median(values) == pytest.approx(5000 * np.log(2), rel=0.03)


@given(alpha=st.floats(0.0, 2.5), low=st.integers(1, 20), seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_zipf_follows_its_mass(alpha: float, low: int, seed: int) -> None:
    high = low + 15
    values = draw(lengths.Zipf(alpha, low, high), seed)
    mass = np.arange(low, high + 1.0) ** -alpha
    expected = mass / mass.sum() * N
    assert stats.chisquare(np.bincount(values - low, minlength=16), expected).pvalue > 1e-6


def test_empirical_draws_the_values_it_was_given_in_their_proportion() -> None:
    values = draw(lengths.Empirical(np.array([7, 7, 7, 90], dtype=np.int32)))
    assert set(values.tolist()) == {7, 90}
    assert (values == 7).mean() == pytest.approx(0.75, abs=0.02)


def test_histogram_weights_bins_and_spreads_within_them() -> None:
    values = draw(lengths.Histogram((1, 11, 21, 31), (1.0, 0.0, 3.0)))
    assert not ((values >= 11) & (values < 21)).any()
    assert (values < 11).mean() == pytest.approx(0.25, abs=0.02)
    assert values.max() == 30
    assert stats.chisquare(np.bincount(values[values < 11] - 1, minlength=10)).pvalue > 1e-6


def test_mixture_gives_each_component_its_weight() -> None:
    mixture = lengths.Mixture((lengths.Fixed(10), lengths.Uniform(100, 199)), (3.0, 1.0))
    values = draw(mixture)
    assert (values == 10).mean() == pytest.approx(0.75, abs=0.02)
    assert stats.chisquare(np.bincount(values[values > 10] - 100, minlength=100)).pvalue > 1e-6


@pytest.mark.parametrize("correlation", [-0.8, 0.0, 0.6, 0.95])
def test_copula_has_the_rank_correlation_of_its_formula_and_keeps_the_marginals(correlation: float) -> None:
    pair = lengths.Correlated(lengths.LogNormal(2000, 1500), lengths.Uniform(1, 5000), correlation)
    isl, osl = pair.sample(N, np.random.default_rng(5))
    assert stats.spearmanr(isl, osl).statistic == pytest.approx(6 / np.pi * np.arcsin(correlation / 2), abs=0.03)
    assert stats.kstest(osl, stats.randint(1, 5001).cdf).pvalue > 1e-6


def test_pairs_of_a_trace_stay_together() -> None:
    isl, osl = np.arange(1, 101, dtype=np.int32), np.arange(1001, 1101, dtype=np.int32)
    drawn_isl, drawn_osl = lengths.FromPairs(isl, osl).sample(500, np.random.default_rng(0))
    assert (drawn_osl - drawn_isl == 1000).all()
    assert len(set(drawn_isl.tolist())) > 80


def test_range_ratio_means_what_vllm_means() -> None:
    assert lengths.around(1000, 0.25) == lengths.Uniform(750, 1250)
    assert lengths.around(1000, 0.0) == lengths.Fixed(1000)
    with pytest.raises(WorkloadError, match=r"\[0, 1\)"):
        lengths.around(1000, 1.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("128", lengths.Fixed(128)),
        ("uniform:64,256", lengths.Uniform(64, 256)),
        ("normal:mean=512,stdev=64,high=600", lengths.Normal(512.0, 64.0, high=600)),
        ("zipf:1.1,1,100", lengths.Zipf(1.1, 1, 100)),
    ],
)
def test_flag_form(text: str, expected: lengths.Lengths) -> None:
    assert lengths.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("long", "is not a length"),
        ("gauss:1,2", "no length distribution"),
        ("uniform:64", "needs high"),
        ("uniform:64,2.5", "not a whole number"),
        ("uniform:9,3", "below the smallest"),
        ("normal:mean=5,sigma=2", "takes mean, stdev"),
        ("0", "at least 1"),
        ("normal:10,nan", "stdev is nan"),
        ("exponential:inf", "mean is inf"),
    ],
)
def test_flag_errors_say_what_is_wrong(text: str, complaint: str) -> None:
    with pytest.raises(WorkloadError, match=complaint):
        lengths.parse(text)
