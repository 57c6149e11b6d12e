"""The search against targets whose saturation is known: a curve, and a queue in virtual time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from queues import SYSTEMS, best_width, constant, erlang_limit, queue, served

from trtllm_bench.errors import BenchError
from trtllm_bench.load.clock import FakeClock
from trtllm_bench.load.control_variate import Run, corrections, waits
from trtllm_bench.load.driver import Drive, run_load
from trtllm_bench.load.saturation import Good, Probe, Search, design_effect, find_saturation, fitted_limit
from trtllm_bench.targets.scripted import Script, VirtualTarget
from trtllm_results.metrics.requests import goodput_mask
from trtllm_workloads.arrivals import Poisson
from trtllm_workloads.lengths import Correlated, Fixed
from trtllm_workloads.synthetic import synthetic

TRUTH = 37.0


class Curve:
    """Requests are good independently with a share that falls through 0.95 exactly at `TRUTH`."""

    def __init__(self, seed: int, requests: int = 400, steepness: float = 8.0) -> None:
        self.rng, self.requests, self.steepness = np.random.default_rng(seed), requests, steepness
        self.loads: list[float] = []

    def share(self, load: float) -> float:
        return 1 / (1 + (0.05 / 0.95) * (load / TRUTH) ** self.steepness)

    def __call__(self, load: float) -> Good:
        self.loads.append(load)
        return np.asarray(self.rng.random(self.requests) < self.share(load))


@pytest.mark.parametrize("start", [1.0, 37.0, 500.0])
def test_the_truth_lies_in_the_answer(start: float) -> None:
    wrong = 0
    for seed in range(60):
        found = find_saturation(Curve(seed), start, Search())
        wrong += not found.passed <= TRUTH <= found.failed
    assert wrong <= 3  # 95% confidence: 3 of 60


def test_more_requests_narrow_the_answer() -> None:
    def width(requests: int) -> float:
        answers = [find_saturation(Curve(seed, requests), 10.0, Search(tolerance=0.02)) for seed in range(12)]
        return float(np.median([math.log(answer.failed / answer.passed) for answer in answers]))

    assert width(6400) < 0.5 * width(400)


def test_clear_cases_are_decided_in_one_run_each() -> None:
    curve = Curve(0, requests=1000, steepness=200.0)
    found = find_saturation(curve, 4.0, Search())
    assert len(curve.loads) == len(found.probes)
    assert found.failed / found.passed <= 1.05
    assert found.passed <= TRUTH <= found.failed


def test_a_doubtful_load_is_repeated_pooled_and_called_undecided() -> None:
    curve = Curve(3, requests=300)
    probe_loads = find_saturation(curve, TRUTH, Search(repeats=4)).probes
    assert probe_loads[0].verdict == "undecided"
    assert len(probe_loads[0].runs) == 4


def test_concurrency_is_searched_in_whole_numbers() -> None:
    loads: list[float] = []

    def measure(load: float) -> Good:
        loads.append(load)
        return np.full(300, load <= 23)

    found = find_saturation(measure, 1.0, Search(whole=True, tolerance=1e-6))
    assert (found.passed, found.failed) == (23.0, 24.0)
    assert all(load == round(load) for load in loads)


def test_nothing_passes_and_nothing_fails() -> None:
    none = find_saturation(lambda load: np.zeros(300, bool), 4.0, Search(whole=True))
    assert none.passed == 0
    assert none.failed == 1
    everything = find_saturation(lambda load: np.ones(300, bool), 1.0, Search(highest=50.0))
    assert math.isinf(everything.failed)
    assert [probe.load for probe in everything.probes] == [1, 2, 4, 8, 16, 32, 50]


def test_correlated_requests_count_for_less() -> None:
    rng = np.random.default_rng(0)
    independent = rng.random(1000) < 0.8
    clumped = np.repeat(rng.random(20) < 0.8, 50)
    assert design_effect([independent]) < 3
    assert design_effect([clumped]) > 15
    low, high = Probe(1.0, [clumped]).interval(2.0)
    assert high - low > 3 * np.diff(Probe(1.0, [independent]).interval(2.0))[0]


def test_interval_of_a_perfect_run_is_wilsons() -> None:
    low, high = Probe(1.0, [np.ones(100, bool)]).interval(1.96)
    assert low == pytest.approx(100 / (100 + 1.96**2), abs=1e-9)
    assert high == pytest.approx(1.0)


def test_least_requests_is_just_enough_to_pass() -> None:
    search = Search(attainment=0.99)
    enough = search.least_requests()
    assert Probe(1.0, [np.ones(enough, bool)]).interval(search.z)[0] > 0.99
    assert Probe(1.0, [np.ones(enough - 3, bool)]).interval(search.z)[0] < 0.99


def test_a_queue_saturates_where_queueing_theory_says() -> None:
    """One server, 0.1 s a request: M/D/1. At 95% within 0.5 s the limit is where P(wait <= 0.4 s) = 0.95, utilisation 0.745.

    P(W <= 4 D) from Erlang's series for M/D/1, which crosses 0.95 between 0.74 and 0.76.
    """

    def within_four(utilisation: float) -> float:
        terms = [(-utilisation * (4 - k)) ** k / math.factorial(k) * math.exp(utilisation * (4 - k)) for k in range(5)]
        return (1 - utilisation) * sum(terms)

    truth = next(u for u in np.arange(0.5, 1, 0.001) if within_four(u) < 0.95) * 10
    seed = iter(range(1000))

    def measure(rate: float) -> Good:
        clock = FakeClock()
        workload = synthetic(3000, Correlated(Fixed(8), Fixed(1)), arrivals=Poisson(rate), seed=next(seed))
        result = run_load(
            workload.requests(),
            VirtualTarget(clock, Script(ttft_s=0.1, itl_s=0.0, slots=1)),
            Drive(open_loop=True, warmup_requests=100),
            clock,
        )
        return goodput_mask(result.measured, {"e2e": 500.0})

    found = find_saturation(measure, 1.0, Search(tolerance=0.1))
    assert found.passed <= truth <= found.failed
    assert found.failed / found.passed < 1.5


@pytest.mark.parametrize(
    "wrong", [{"attainment": 1.0}, {"confidence": 0.0}, {"confidence": 1 - 1e-12}, {"tolerance": 0.0}, {"repeats": 0}, {"repeats": 10**20}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(BenchError, match="must"):
        Search(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("service_s", "servers", "truth"), [(0.09, 4, 32.98), (0.2, 4, 11.125), (0.05, 1, 9.84)])
def test_the_limit_of_a_queue_is_held_in_two_minutes_of_load(service_s: float, servers: int, truth: float) -> None:
    """Truths from runs of a million requests. Near them twenty requests tell no more than one; 40 searches, of which 2 may be wrong, or 4
    by chance of one in twenty."""
    search, held = Search(alone=True, highest=1e4, tolerance=0.1), 0
    seconds: list[float] = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        found = find_saturation(
            lambda load, rng=rng: queue(load, service_s, servers, 0.1, rng, 180).good if load else np.ones(200, bool),  # type: ignore[misc]
            9.0,
            search,
        )
        held += found.passed <= truth <= found.failed
        seconds.append(sum(len(run) / 0.9 / probe.load for probe in found.probes if probe.load for run in probe.runs))
        assert found.reached == (found.passed > 0 and found.failed / found.passed <= 1.1)
    assert held >= 36
    assert np.median(seconds) < 130


@pytest.mark.parametrize(("name", "most"), [("M/D/4, 90 ms", 0.06), ("M/D/1, 50 ms", 0.1)])
def test_known_arrivals_narrow_the_answer_to_less_than_a_tenth(name: str, most: float) -> None:
    """In two minutes of load."""
    system, widths = SYSTEMS[name], []
    for seed in range(3):
        rng, seconds = np.random.default_rng(seed), [0.0]

        def measure(load: float, rng: np.random.Generator = rng, seconds: list[float] = seconds) -> Run:
            run = system.run(load, rng) if load else Run(np.ones(200, bool), np.arange(200.0))
            seconds.append(float(run.arrivals_s[-1]) if load else 0.0)
            return run

        answer = find_saturation(measure, 9.0, Search(alone=True, highest=1e4, tolerance=0.1))
        assert answer.passed <= system.limit <= answer.failed, seed
        assert sum(seconds) < 130
        widths.append(answer.failed / answer.passed - 1)
    assert np.median(widths) < most


def test_random_service_times_are_not_taken_for_explained() -> None:
    """Few clumps of bad requests fit many queues; runs that the queue was not fitted to tell."""
    system, rng = SYSTEMS["M/M/8, 100 ms"], np.random.default_rng(2)
    explained = [corrections([(60.0, system.run(60.0, rng)) for _ in range(3)], 1.0, 5).explained for _ in range(3)]
    assert np.median(explained) < 0.5


def test_limits_of_random_service_times_are_erlangs_and_no_search_tells_them_to_a_tenth_in_two_minutes() -> None:
    assert SYSTEMS["M/M/2, 80 ms"].limit == pytest.approx(erlang_limit(0.08, 2, 0.1), rel=1e-4)
    assert SYSTEMS["M/M/8, 100 ms"].limit == pytest.approx(erlang_limit(0.1, 8, 0.1), rel=1e-4)
    width, seconds = best_width(0.08, 2, 0.1, 120, 0.1)
    assert width == pytest.approx(0.193, abs=0.001)
    assert seconds == pytest.approx(413, abs=1)


def test_a_search_says_how_long_its_tolerance_would_take() -> None:
    """A quarter of the width takes sixteen times as long; here requests are independent."""
    short = find_saturation(Curve(1), 30.0, Search(tolerance=0.02, budget_s=60.0))
    assert not short.reached
    assert short.needed_s is not None
    spent_s = sum(len(run) / 0.9 / probe.load for probe in short.probes for run in probe.runs)
    assert short.needed_s > 2 * spent_s
    assert find_saturation(Curve(1), 30.0, Search(tolerance=0.5, budget_s=300.0)).needed_s is None


def test_what_arrivals_explain_is_taken_off_without_bias() -> None:
    """Shares of 12 runs of M/D/1 at its limit, which is where 95% wait at most twice their service time."""
    rng = np.random.default_rng(0)
    runs = [(9.84, queue(9.84, 0.05, 1, 0.1, rng, 180)) for _ in range(12)]
    lucky = corrections(runs, 1.0, 5)
    raw = np.asarray([run.good.mean() for _, run in runs])
    corrected = raw + [worse.mean() for worse in lucky.runs]
    assert corrected.std() < 0.2 * raw.std()
    assert corrected.mean() == pytest.approx(0.95, abs=0.005)
    assert lucky.explained > 0.9
    assert lucky.queue is not None
    assert lucky.queue.servers == 1
    assert lucky.queue.service_s == pytest.approx(0.05, rel=0.03)
    assert lucky.queue.limit(0.95, 1.0) == pytest.approx(9.84, rel=0.02)
    nothing = corrections([(load, Run(np.ones_like(run.good), run.arrivals_s)) for load, run in runs], 1.0, 5)
    assert not np.concatenate(nothing.runs).any()


def test_waits_are_lindleys_and_those_of_many_servers() -> None:
    np.testing.assert_allclose(waits(np.array([0.0, 0.5, 1.0, 5.0]), 1), [0.0, 0.5, 1.0, 0.0])
    arrivals = np.cumsum(np.random.default_rng(0).exponential(1 / 2.7, 500))
    np.testing.assert_allclose(waits(arrivals, 3), served(3, constant(1.0))(arrivals, np.random.default_rng(0)), atol=1e-9)


def test_a_time_to_spend_ends_the_search_and_more_of_it_narrows_the_answer() -> None:
    def width(budget_s: float) -> float:
        answers = [find_saturation(Curve(seed), 30.0, Search(tolerance=0.001, budget_s=budget_s)) for seed in range(10)]
        assert not any(answer.reached for answer in answers)
        return float(np.median([math.log(answer.failed / answer.passed) for answer in answers]))

    assert width(200.0) < 0.8 * width(60.0)


def test_runs_in_which_nothing_was_spoiled_do_not_count_as_independent() -> None:
    """A load is passed by luck: the model knows that the requests of its run may tell little."""
    probes = [
        Probe(20.0, [np.ones(400, bool)], "pass"),
        Probe(40.0, [np.arange(400) % 3 > 0], "fail"),
        Probe(33.0, [np.ones(250, bool)], "pass"),
    ]
    limit = fitted_limit(probes, Search())
    assert limit is not None
    assert limit.low < 34.0
    assert fitted_limit(probes[:1], Search()) is None
