"""The statistics against closed forms, scipy's own answers and simulation."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as reference

from trtllm_results import stats
from trtllm_results.errors import ResultsError

POSITIVE = st.lists(st.floats(0.1, 1e6), min_size=2, max_size=8)


@pytest.mark.filterwarnings("ignore:Precision loss")
@given(POSITIVE, POSITIVE)
@settings(max_examples=50, deadline=None)
def test_log_ratio_is_welch_and_antisymmetric(a: list[float], b: list[float]) -> None:
    forward, backward = stats.log_ratio(a, b), stats.log_ratio(b, a)
    assert forward.mean == pytest.approx(-backward.mean)
    assert forward.error == pytest.approx(backward.error)
    if forward.error > 1e-6:
        p = reference.ttest_ind(np.log(b), np.log(a), equal_var=False, alternative="less").pvalue
        assert forward.p_below(0.0) == pytest.approx(p, abs=1e-9)


def test_paired_interval_is_the_t_interval() -> None:
    values = [0.01, -0.02, 0.015, 0.0, 0.03]
    low, high = reference.t.interval(0.9, 4, np.mean(values), reference.sem(values))
    found = stats.paired(values).interval(0.9)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_too_little_or_bad_data_is_refused() -> None:
    with pytest.raises(ResultsError, match="at least 2 blocks"):
        stats.paired([0.1])
    with pytest.raises(ResultsError, match="at least 2 repeats"):
        stats.log_ratio([1.0], [1.0, 2.0])
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(ResultsError, match="zero, negative or not a number"):
            stats.log_ratio([1.0, bad], [1.0, 2.0])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_holm_lies_between_raw_and_bonferroni_and_keeps_order(p: list[float]) -> None:
    adjusted = stats.holm(p)
    assert all(raw <= new <= min(1.0, raw * len(p)) + 1e-12 for raw, new in zip(p, adjusted, strict=True))
    order = sorted(range(len(p)), key=lambda i: p[i])
    assert [adjusted[i] for i in order] == sorted(adjusted)


def test_holm_known_answer() -> None:
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


@given(st.integers(1, 6), st.sampled_from(["pocock", "obrien_fleming"]), st.floats(0.01, 0.2))
def test_alpha_spending_spends_exactly_alpha(looks: int, shape: str, alpha: float) -> None:
    levels = stats.alpha_spending([(i + 1) / looks for i in range(looks)], alpha, shape)
    assert sum(levels) == pytest.approx(alpha)
    assert all(level >= 0 for level in levels)


def test_alpha_spending_refuses_nonsense() -> None:
    for looks in ([], [0.5], [0.7, 0.5, 1.0]):
        with pytest.raises(ResultsError, match="rising fractions"):
            stats.alpha_spending(looks)
    with pytest.raises(ResultsError, match="not known"):
        stats.alpha_spending([1.0], shape="haybittle")


def test_change_points_finds_planted_shifts_and_none_in_noise() -> None:
    rng = np.random.default_rng(3)
    series = np.concatenate([rng.normal(0, 0.01, 20), rng.normal(-0.05, 0.01, 15), rng.normal(0.02, 0.01, 10)])
    assert stats.change_points(series) == [20, 35]
    false = sum(bool(stats.change_points(rng.normal(0, 0.01, 30))) for _ in range(100))
    assert false <= 15
    assert stats.change_points([1.0, 2.0]) == []
    assert stats.change_points([548.0, 616.0, 625.1, 616.2]) == [], "the first alone differs, and one point shows no level"
    assert stats.change_points([30_690.0, 30_550.0, 30_780.0, 31_560.0]) == [], "the last alone"
    assert stats.change_points([425.0, 421.0, 477.0, 488.0, 482.0]) == [2]


def test_trend_sees_a_slow_slide_and_not_noise() -> None:
    rng = np.random.default_rng(5)
    slide, p = stats.trend(np.linspace(0, -0.05, 12) + rng.normal(0, 0.003, 12))
    assert slide == pytest.approx(-0.05, abs=0.01)
    assert p < 0.001
    assert stats.trend(rng.normal(0, 0.003, 12))[1] > 0.05


def test_a_trends_p_value_is_the_regressions() -> None:
    series = np.random.default_rng(6).normal(0, 1, 15) + 0.1 * np.arange(15)
    fit = reference.linregress(np.arange(15), series)
    assert stats.trend(series) == pytest.approx((14 * fit.slope, fit.pvalue))
    assert stats.trend([3.0, 2.0, 1.0]) == (pytest.approx(-2.0), 0.0)
    assert stats.trend([1.0, 1.0, 1.0]) == (0.0, 1.0)


def test_sd_interval_covers_the_deviation_as_often_as_it_says() -> None:
    draws = np.random.default_rng(5).normal(0.0, 2.0, (2000, 4))
    intervals = [stats.sd_interval(float(sd), 4, confidence=0.9) for sd in draws.std(axis=1, ddof=1)]
    assert np.mean([low <= 2.0 <= high for low, high in intervals]) == pytest.approx(0.9, abs=0.02)


@given(st.integers(1, 12), st.integers(1, 12), st.booleans(), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_mann_whitneys_p_is_scipys(n: int, m: int, ties: bool, seed: int) -> None:
    from scipy.stats import mannwhitneyu

    rng = np.random.default_rng(seed)
    a, b = (rng.integers(0, 5, size).astype(float) if ties else rng.normal(size=size) for size in (n, m))
    if len(set(a) | set(b)) > 1:
        assert stats.mann_whitney(a, b) == pytest.approx(min(1.0, mannwhitneyu(a, b).pvalue), rel=1e-9)
    assert stats.mann_whitney([3.0] * n, [3.0] * m) == 1.0


def test_comparing_does_not_load_scipys_statistics() -> None:
    """Its import takes a second, which every `compare` would wait for."""
    code = "import sys; from trtllm_results import stats; stats.mann_whitney([1, 2, 3], [4, 5, 6]); print('scipy.stats' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_mann_whitney_separates_and_does_not() -> None:
    assert stats.mann_whitney(range(10), range(20, 30)) < 0.001
    assert stats.mann_whitney(range(10), range(10)) > 0.9
