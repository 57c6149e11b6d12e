"""Checks against a stored baseline: wrong verdicts stay within alpha when days differ, and what nobody measured is said to be assumed."""

from __future__ import annotations

import numpy as np
import pytest

from trtllm_results.gate.promises import check_verdicts
from trtllm_results.gate.sessions import ASSUMED_SD, SessionNoise, compared, session_noise

LOSS_AT_MARGIN = 0.02


@pytest.mark.parametrize("states", [(1,), (3,), (6,), (1, 1, 1, 1), (1,) * 8], ids=str)
@pytest.mark.parametrize(("session_sd", "run_sd"), [(0.0, 0.01), (0.005, 0.005), (0.01, 0.005), (0.01, 0.002)])
def test_wrong_verdicts_stay_within_alpha_whatever_days_differ(states: tuple[int, ...], session_sd: float, run_sd: float) -> None:
    """2,000 checks each, at a true loss of the margin: 0.065 is three standard errors above alpha. Repeats alone gave 0.27 to 0.40."""
    failed, passed = check_verdicts(LOSS_AT_MARGIN, session_sd, run_sd, states, machines=2000)
    assert max(failed, passed) <= 0.065


def test_sessions_make_the_check_decide() -> None:
    assert check_verdicts(0.05, 0.005, 0.005, (5,), machines=500)[0] > 0.9
    assert check_verdicts(0.0, 0.005, 0.005, (5,), machines=500)[1] > 0.7


@pytest.mark.parametrize("count", [1, 3, 6])
def test_arrivals_that_all_sessions_met_cost_no_power_and_no_wrong_verdict(count: int) -> None:
    """600 checks: 0.075 is three standard errors above alpha. The k-th runs share what arrivals add, ten times the noise of a run."""
    rng, wrong, right = np.random.default_rng(count), 0, 0
    for _ in range(600):
        arrivals = rng.normal(0, 0.05, 3)
        met = [np.exp(rng.normal(0, 0.005) + arrivals + rng.normal(0, 0.005, 3)) for _ in range(count + 1)]
        for loss in (LOSS_AT_MARGIN, 0.06):
            comparison = compared(met[:-1], met[-1] * (1 - loss), session_noise([met[:-1]]), in_pairs=True)
            assert comparison is not None
            failed = comparison.evidence.p_below(np.log1p(-LOSS_AT_MARGIN)) < 0.05
            wrong, right = (wrong + failed, right) if loss == LOSS_AT_MARGIN else (wrong, right + failed)
    assert wrong / 600 <= 0.075
    assert right / 600 > 0.85


def sessions(*levels: float) -> list[list[float]]:
    return [[float(np.exp(level + wiggle)) for wiggle in (-0.001, 0.0, 0.001)] for level in levels]


def test_the_noise_comes_from_the_best_source_there_is() -> None:
    assumed = session_noise([sessions(0.0)])
    assert (assumed.sd, "1.0% is assumed" in assumed.sentence) == (ASSUMED_SD, True)
    assert session_noise([sessions(0.0, 0.05)]).sd == pytest.approx(0.05 / np.sqrt(2)), "two sessions may raise what is assumed"
    three = session_noise([sessions(0.0, 0.01, -0.01)])
    assert (three.sd, three.df, three.sentence) == (pytest.approx(0.01), 2.0, "")
    history = session_noise([sessions(level) for level in (0.0, 0.01, 0.0, 0.01, 0.0)])
    assert history.sd == pytest.approx(0.01 / np.sqrt(2))
    assert history.df == pytest.approx(2 * 16 / 11)
    assert "4 accepted" not in history.sentence
    assert "5 accepted states" in history.sentence
    from_file = SessionNoise(0.03)
    assert session_noise([sessions(0.0, 0.01, -0.01)], from_file) is from_file, "the larger one"


def test_equal_sessions_do_not_hide_what_their_runs_explain() -> None:
    noisy = [[0.98, 1.0, 1.02]] * 3
    comparison = compared(noisy, [0.99, 1.0, 1.01], session_noise([noisy]))
    assert comparison is not None
    assert comparison.evidence.error > 0.01
    assert comparison.evidence.df == pytest.approx(2.0)
    assert compared(noisy, [1.0], session_noise([noisy])) is None
