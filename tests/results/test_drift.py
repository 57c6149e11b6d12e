"""Drift over accepted states: its stated false-alarm rate, its delay, and the exact null distribution behind it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats as reference

from trtllm_results.gate import drift
from trtllm_results.gate.promises import first_alarms

FloatArray = npt.NDArray[np.float64]
Levels = Callable[[np.random.Generator, int], FloatArray]


@pytest.mark.parametrize(
    "levels",
    [
        pytest.param(lambda rng, n: rng.normal(0, 0.015, n), id="level noise 1.5%"),
        pytest.param(lambda rng, n: rng.normal(0, 0.003, n) - 0.05 * (rng.random(n) < 0.1), id="one accept in ten 5% slow"),
    ],
)
def test_unchanged_machines_raise_an_alarm_as_rarely_as_stated(levels: Levels) -> None:
    """250 histories of 50 accepts, checked after each: at most 5% is stated, 3% is true (35% and 99% it was)."""
    assert np.mean(first_alarms(levels, histories=250, seed=1) > 0) <= drift.FALSE_ALARMS


@pytest.mark.parametrize(
    ("levels", "accepts", "latest"),
    [
        pytest.param(lambda rng, n: rng.normal(0, 0.002, n) - 0.003 * np.arange(n), 20, 8, id="0.3% lost at every accept"),
        pytest.param(lambda rng, n: rng.normal(0, 0.005, n) - 0.003 * np.arange(n), 25, 11, id="the same at 0.5% noise"),
        pytest.param(lambda rng, n: rng.normal(0, 0.002, n) - 0.003 * np.maximum(0, np.arange(n) - 30), 45, 38, id="after 30 flat"),
        pytest.param(
            lambda rng, n: rng.normal(0, 0.002, n) + 0.2 * (np.arange(n) >= 15) - 0.003 * np.maximum(0, np.arange(n) - 15),
            30,
            24,
            id="after a gain of 20%",
        ),
        pytest.param(lambda rng, n: rng.normal(0, 0.002, n) - 0.03 * (np.arange(n) >= 20), 30, 22, id="one drop of 3%"),
    ],
)
def test_a_real_loss_is_told_as_early_as_before(levels: Levels, accepts: int, latest: int) -> None:
    """Median over 30 histories, of the accept at which it is told. A loss of the margin itself takes 7 accepts of 0.3%."""
    alarms = first_alarms(levels, accepts, histories=30)
    assert np.all(alarms > 0)
    assert np.median(alarms) <= latest


def test_a_dip_that_was_regained_is_not_told_for_ever() -> None:
    rng = np.random.default_rng(4)
    levels = rng.normal(0, 0.002, 30)
    levels[5:10] -= 0.03
    names = [str(index) for index in range(30)]
    assert "shift at 5" in drift.find_loss(levels[:9].tolist(), names, 0.02)
    assert drift.find_loss(levels.tolist(), names, 0.02) == ""


def test_the_shifts_p_value_is_scipys_exact_one() -> None:
    values = np.random.default_rng(5).normal(0, 1, 17)
    wins = drift._wins(values)
    for start, split in ((0, 12), (3, 9), (0, 15)):
        exact = reference.mannwhitneyu(values[start:split], values[split:], alternative="greater", method="exact").pvalue
        assert drift._shift_p(wins, start, split) == pytest.approx(exact)
