"""Power and projections of the sequential design: against closed forms, and delivered as stated in simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as reference

from trtllm_results.gate import power
from trtllm_results.gate.config import GateConfig
from trtllm_results.gate.power import Component, Design, Plan
from trtllm_results.gate.promises import decided_after, delivered_power, repeats_that_decide


def test_detectable_effect_of_one_look_is_the_t_tests() -> None:
    """The deviation known: the noncentral t distribution has the answer."""
    effect = power.detectable_shift(Design((8.0,), (0.05,)), power.MOST_DF)
    critical = reference.t.ppf(0.95, 7)
    assert 1 - reference.nct.cdf(critical, 7, effect * math.sqrt(8)) == pytest.approx(0.8, abs=0.01)
    samples = np.random.default_rng(1).normal(0.01 * effect, 0.01, (20_000, 8))
    t = samples.mean(1) / (samples.std(1, ddof=1) / math.sqrt(8))
    assert (t > critical).mean() == pytest.approx(0.8, abs=0.015)
    assert power.detectable_shift(Design((), ()), 5.0) == math.inf


@pytest.mark.parametrize("calibration_blocks", [4, 8, 20])
def test_stated_power_is_delivered_by_the_sequential_gate(calibration_blocks: int) -> None:
    """20,000 gates each, of a B that lost what so many A/A blocks stated; one look at full alpha would have promised 0.54 to 0.59."""
    config = GateConfig()
    for look in config.look_blocks:
        assert delivered_power(config, look, calibration_blocks) == pytest.approx(0.8, abs=0.015)


def test_figures_judged_together_share_alpha() -> None:
    design = GateConfig().plan.design
    alone, of_four = (power.detectable_shift(design, power.MOST_DF, tests) for tests in (1, 4))
    shares = [power.verdict_shares(-shift, design, design.shared_by(4), 20_000, seed=5)[0] for shift in (alone, of_four)]
    assert shares[1] == pytest.approx(0.8, abs=0.015)
    assert shares[0] < 0.65, "what one figure could find, one of four cannot"


@pytest.mark.parametrize("loss", [0.0, 0.01, 0.015, 0.0175, 0.0225, 0.025, 0.03])
def test_so_many_more_blocks_decide_in_four_of_five_cases(loss: float) -> None:
    """300 gates that were inconclusive, repeated with as many blocks as they named; an eighth of the margin away or more."""
    share, wrong, _ = decided_after(GateConfig(), loss, machines=300)
    assert share >= 0.8
    assert wrong <= 0.02


def test_so_many_blocks_decide_for_a_single_look_too() -> None:
    assert decided_after(GateConfig(blocks=6, max_blocks=6, looks=1), 0.01, machines=200, sd=0.03)[0] >= 0.8


@pytest.mark.parametrize("loss", [0.01, 0.015, 0.025])
def test_so_many_more_repeats_decide_in_four_of_five_cases(loss: float) -> None:
    assert repeats_that_decide(loss, machines=200)[0] >= 0.8


def test_an_estimate_at_the_bound_names_no_number_of_blocks() -> None:
    plan = GateConfig().plan
    assert power.blocks_to_decide(0.0, 20, plan, limit=1000) is None
    far, near = power.blocks_to_decide(3.0, 20, plan), power.blocks_to_decide(1.5, 20, plan)
    assert far is not None
    assert near is not None
    assert 20 < far < 100 < near


def test_repeats_shrink_only_their_own_part_of_the_error() -> None:
    runs, days = Component(0.005, 4.0), Component(0.01, power.MOST_DF)
    alone = power.repeats_to_decide(0.01, runs, Component(0.0, power.MOST_DF), 5, 0.05)
    assert alone is not None
    assert 5 < alone < 100
    assert power.repeats_to_decide(0.01, runs, days, 5, 0.05) is None, "days alone reach 1.6%"
    assert power.repeats_to_decide(0.028, runs, days, 5, 0.05) is not None


def test_satterthwaites_degrees_of_freedom() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(0, 1, 5), rng.normal(0, 3, 9)
    parts = [Component(float(one.std(ddof=1)) / math.sqrt(len(one)), len(one) - 1.0) for one in (a, b)]
    error, df = power.combined(parts)
    welch = reference.ttest_ind(a, b, equal_var=False)
    assert df == pytest.approx(welch.df)
    assert (a.mean() - b.mean()) / error == pytest.approx(welch.statistic)


def test_a_capped_plan_keeps_its_looks() -> None:
    plan = Plan(6, 20, 4, 0.05, "pocock")
    assert plan.capped(60).counts == (6, 24, 42, 60)
    assert plan.capped(4).counts == (4,)
    assert Plan(6, 20, 1, 0.05, "pocock").capped(50).counts == (50,)
    assert sum(plan.capped(60).levels) == pytest.approx(0.05)
