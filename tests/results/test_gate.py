"""The gate: verdicts, sequential looks, guards, baselines, drift, calibration, and its promises under simulation."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from trtllm_results.errors import ResultsError, WriteError
from trtllm_results.gate import baseline, calibrate
from trtllm_results.gate import run as gate_run
from trtllm_results.gate.config import GateConfig, load_config
from trtllm_results.gate.report import explanations
from trtllm_results.gate.run import Arm, Blocks, RunResult, report_blocks
from trtllm_results.gate.simulate import MODELS, simulate, verdicts
from trtllm_results.gate.verdict import EXIT_CODES, GateReport, Judged, judge
from trtllm_results.record.cell import Cell
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Row
from trtllm_results.stats import paired

run_gate = functools.partial(gate_run.run_gate, seed=34)
"""Seed 34 draws A B B A, B A A B, A B B A, B A A B first."""
H100 = Environment(gpu="H100", driver="580.1", power_limit_w=700.0)
GOODPUT = "goodput_requests_per_s"
RATE, TTFT = "output_tokens_per_s", "ttft_p99_ms"


class Scripted:
    """A machine whose B arm is `loss` slower, with run noise and a slow decline."""

    def __init__(self, loss: float = 0.0, sd: float = 0.003, decline: float = 0.0, seed: int = 0, **more: object) -> None:
        self.loss, self.sd, self.decline, self.more = loss, sd, decline, more
        self.rng = np.random.default_rng(seed)
        self.order: list[Arm] = []

    def run(self, arm: Arm) -> RunResult:
        speed = 1000 * math.exp(self.rng.normal(0, self.sd) - self.decline * len(self.order)) * (1 - self.loss if arm == "B" else 1)
        self.order.append(arm)
        environment = dataclasses.replace(H100, **self.more.get(arm, {}))  # type: ignore[arg-type, call-overload]
        return RunResult({RATE: speed, TTFT: 1e5 / speed}, environment)


CONFIG = GateConfig(blocks=4, max_blocks=12, looks=3)


def test_a_planted_slow_down_fails_and_an_a_a_pair_passes() -> None:
    slow = run_gate(Scripted(0.04), CONFIG, "old", "new")
    assert (slow.verdict, slow.exit_code) == ("fail", 1)
    assert slow.findings[0].change is not None
    assert slow.findings[0].change.high < -0.02
    same = run_gate(Scripted(0.0), CONFIG, "old", "new")
    assert (same.verdict, same.exit_code, same.blocks) == ("pass", 0, 4)


def test_a_faster_candidate_passes() -> None:
    assert run_gate(Scripted(-0.1), CONFIG, "a", "b").verdict == "pass"


def test_a_loss_at_the_margin_is_inconclusive_and_says_what_would_decide() -> None:
    report = run_gate(Scripted(0.018, sd=0.01, seed=3), GateConfig(blocks=4, max_blocks=4, looks=1), "a", "b")
    assert (report.verdict, report.exit_code) == ("inconclusive", 2)
    assert "more repeats would decide" in report.findings[0].why
    assert report.findings[0].detectable > 0.02


def test_runs_are_interleaved_and_a_steady_decline_is_not_a_regression() -> None:
    runner = Scripted(decline=0.002)
    report = run_gate(runner, GateConfig(blocks=6, max_blocks=6, looks=1), "a", "b", warmup=1)
    assert runner.order[2:10] == ["A", "B", "B", "A", "B", "A", "A", "B"]
    assert report.verdict == "pass"
    assert abs(report.findings[0].judged.evidence.mean) < 0.005  # type: ignore[union-attr]


def test_block_orders_are_drawn_from_a_seed_that_the_report_names() -> None:
    def order(seed: int | None) -> tuple[list[Arm], int | None]:
        runner = Scripted()
        report = gate_run.run_gate(runner, GateConfig(blocks=12, max_blocks=12, looks=1), "a", "b", warmup=0, seed=seed)
        return runner.order, report.seed

    first, seed = order(None)
    assert order(seed) == (first, seed)
    assert {"".join(first[i : i + 4]) for i in range(0, 48, 4)} <= {"ABBA", "BAAB"}
    drawn = [[Blocks(seed=seed).order(block)[0] == "B" for block in range(10)] for seed in range(200)]
    assert np.mean(drawn) == pytest.approx(0.5, abs=0.04)
    assert abs(np.corrcoef(np.array(drawn)[:, :-1].ravel(), np.array(drawn)[:, 1:].ravel())[0, 1]) < 0.08


def test_one_block_is_inconclusive_and_says_why() -> None:
    report = run_gate(Scripted(0.5), GateConfig(blocks=1, max_blocks=1, looks=1), "a", "b")
    assert report.verdict == "inconclusive"
    assert "only 1 repeat" in report.findings[0].why


def test_latency_counts_the_other_way() -> None:
    margins = {RATE: 0.02, TTFT: 0.02}
    report = run_gate(Scripted(0.05), dataclasses.replace(CONFIG, margins=margins), "a", "b")
    assert [finding.verdict for finding in report.findings] == ["fail", "fail"]
    assert report.findings[1].change is not None
    assert report.findings[1].change.estimate > 0.04, "the latency rose"


def test_holm_makes_many_figures_no_easier_to_fail_by_luck() -> None:
    noisy = Judged("", RATE, 0.02, paired([-0.030, -0.022, -0.040, -0.0205]), 1, 1, 4, 0.01)
    quiet = Judged("", RATE, 0.02, paired([0.001, -0.001, 0.0, 0.002]), 1, 1, 4, 0.01)
    (alone,) = judge([noisy])
    together = judge([noisy, *[quiet] * 20])[0]
    assert alone.p_fail < 0.1 < together.p_fail


@pytest.mark.parametrize(
    ("field", "values"), [("driver", ("580.1", "581.0")), ("power_limit_w", (700.0, 500.0)), ("gpu", ("H100", "H200"))]
)
def test_different_conditions_refuse(field: str, values: tuple[object, object]) -> None:
    runner = Scripted(A={field: values[0]}, B={field: values[1]})
    with pytest.raises(ResultsError, match=f"differ in {field}"):
        run_gate(runner, CONFIG, "a", "b")


def test_throttling_gives_no_verdict_and_clocks_warn() -> None:
    hot = run_gate(Scripted(0.1, B={"throttle_reasons": "sw_power_cap hw_thermal_slowdown"}), CONFIG, "a", "b")
    assert hot.verdict == "inconclusive"
    assert "hw_thermal_slowdown" in hot.why
    assert run_gate(Scripted(0.0, B={"throttle_reasons": "sw_power_cap"}), CONFIG, "a", "b").verdict == "pass", "the power cap is normal"

    class Clocked(Scripted):
        def run(self, arm: Arm) -> RunResult:
            result = super().run(arm)
            return dataclasses.replace(result, figures={**result.figures, "sm_clock_mean_mhz": 1400.0 if arm == "A" else 1300.0})

    assert "SM clock was 1400 MHz under A and 1300 MHz under B" in run_gate(Clocked(), CONFIG, "a", "b").warnings[0]


def test_missing_zero_and_nan_figures_are_one_sentence() -> None:
    class Broken:
        def __init__(self, figures: dict[str, float]) -> None:
            self.figures = figures

        def run(self, arm: Arm) -> RunResult:
            return RunResult(self.figures, H100)

    with pytest.raises(ResultsError, match="reported no output_tokens_per_s"):
        run_gate(Broken({}), CONFIG, "a", "b")
    for bad in (0.0, math.nan, math.inf):
        with pytest.raises(ResultsError, match="cannot be compared"):
            run_gate(Broken({RATE: bad}), CONFIG, "a", "b")


def test_config_is_validated_with_the_file_named(tmp_path: Path) -> None:
    path = tmp_path / "gate.toml"
    path.write_text('blocks = 6\nmax_blocks = 18\nlooks = 3\n[margins]\noutput_tokens_per_s = "3%"\nttft_p99_ms = 0.1\n')
    config = load_config(path)
    assert config.margins == {RATE: pytest.approx(0.03), TTFT: 0.1}
    assert config.look_blocks == (6, 12, 18)
    assert sum(config.look_alphas) == pytest.approx(0.05)
    for text, message in (
        ("blcks = 3", r"unknown setting 'blcks' \(did you mean blocks\?\)"),
        ("alpha = 2.0", "alpha is 2.0"),
        ("blocks = 9\nmax_blocks = 3", "blocks is 9"),
        ("[margins]\nspeed = 0.1", "'speed' is not a figure"),
        ("[margins]\nduration_s = 0.1", "'duration_s' is not a figure"),
        ('[margins]\noutput_tokens_per_s = "lots"', "margin 'lots'"),
        ("[margins]\noutput_tokens_per_s = 2", "between 0 and 0.5"),
        ('blocks = "a"', "wrong type"),
        ("margins = 3", "wrong type"),
        ("[margins]\n", "no margins"),
        ("a b", "not valid TOML"),
    ):
        path.write_text(text)
        with pytest.raises(ResultsError, match=message) as caught:
            load_config(path)
        assert str(path) in str(caught.value)
    with pytest.raises(ResultsError, match="cannot read gate settings"):
        load_config(tmp_path / "none.toml")


def rows(rate: float, repeats: int = 4, sd: float = 0.002, seed: int = 0, environment: Environment = H100, batch: int = 8) -> list[Row]:
    rng = np.random.default_rng(seed)
    cell = Cell("llama-3.1-8b", "fp8", batch, 128, 128)
    return [Row(cell, environment, i, figures={RATE: rate * math.exp(rng.normal(0, sd))}) for i in range(repeats)]


def test_runs_of_a_baseline_are_in_the_order_of_repeats() -> None:
    """As pairs need them; a store has one that was made up for last."""
    first, *others = rows(1000)
    cells = [baseline.accept(None, "h100", order, "first").history[0].cells for order in ([first, *others], [*others, first])]
    assert cells[0] == cells[1]


def test_baseline_moves_only_by_accept_and_keeps_its_history(tmp_path: Path) -> None:
    path = tmp_path / "baselines" / "h100.json"
    first = baseline.accept(None, "h100", rows(1000), "first")
    baseline.save(first, path)
    before = path.read_bytes()
    assert baseline.check(baseline.load(path), rows(950, seed=1), CONFIG).verdict == "fail"
    assert path.read_bytes() == before
    second = baseline.accept(baseline.load(path), "h100", rows(950, seed=1), "slower on purpose")
    baseline.save(second, path)
    assert [entry.note for entry in baseline.load(path).history] == ["first", "slower on purpose"]
    assert baseline.check(baseline.load(path), rows(951, seed=2), CONFIG, noise={RATE: 0.003}).verdict == "pass"


def test_baseline_check_needs_repeats_and_widens_with_calibrated_noise() -> None:
    base = baseline.accept(None, "b", rows(1000), "")
    single = baseline.check(base, rows(900, repeats=1), CONFIG)
    assert single.verdict == "inconclusive"
    assert "only 1 repeat" in single.findings[0].why
    assert baseline.check(base, rows(960, seed=5), CONFIG, noise={RATE: 0.002}).verdict == "fail"
    assert baseline.check(base, rows(960, seed=5), CONFIG, noise={RATE: 0.02}).verdict == "inconclusive"


def test_baseline_check_refuses_other_machines_and_other_cells() -> None:
    base = baseline.accept(None, "b", rows(1000), "")
    with pytest.raises(ResultsError, match="differ in gpu"):
        baseline.check(base, rows(1000, environment=Environment(gpu="A100")), CONFIG)
    with pytest.raises(ResultsError, match="no cell in common"):
        baseline.check(base, rows(1000, batch=64), CONFIG)
    with pytest.raises(ResultsError, match="no successful measurement"):
        baseline.check(base, [Row(Cell("m", "fp8", 1, 1, 1), H100, status="failed", reason="x")], CONFIG)
    with pytest.raises(ResultsError, match="has no ttft_p99_ms in the baseline"):
        baseline.check(base, rows(1000), dataclasses.replace(CONFIG, margins={TTFT: 0.05}))
    zero = [dataclasses.replace(row, figures={RATE: 0.0}) for row in rows(1000)]
    with pytest.raises(ResultsError, match="cannot be judged"):
        baseline.check(base, zero, CONFIG)


def test_goodput_is_judged_within_the_same_limits_only(tmp_path: Path) -> None:
    def within(ttft: float) -> list[Row]:
        return [
            dataclasses.replace(
                row, cell=dataclasses.replace(row.cell, settings={"slo_ms": {"ttft": ttft}}), figures={GOODPUT: row.figures[RATE]}
            )
            for row in rows(1000)
        ]

    config = dataclasses.replace(CONFIG, margins={GOODPUT: 0.02})
    path = tmp_path / "b.json"
    baseline.save(baseline.accept(None, "b", within(200), ""), path)
    assert baseline.check(baseline.load(path), within(200), config).findings
    with pytest.raises(ResultsError, match="within ttft:200 in the baseline and within ttft:400 in the candidate"):
        baseline.check(baseline.load(path), within(400), config)


def test_bad_baseline_files_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="there is no baseline"):
        baseline.load(tmp_path / "none.json")
    for text, message in (
        ("{", "not a baseline"),
        ("[]", "not a baseline"),
        ('{"schema_version": 9}', "newer than"),
        ('{"schema_version": 1}', "not a"),
    ):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ResultsError, match=message):
            baseline.load(tmp_path / "x.json")


def history(levels: list[float]) -> baseline.Baseline:
    found = None
    for index, level in enumerate(levels):
        here = dataclasses.replace(H100, git_revision=f"rev{index:04d}")
        found = baseline.accept(found, "h", rows(level, seed=index, environment=here, sd=0.001), f"change {index}")
    assert found is not None
    return found


def test_a_slow_slide_over_accepted_changes_is_named() -> None:
    slide = history([1000 * 0.994**i for i in range(8)])
    (sentence,) = baseline.drift(slide, CONFIG)
    assert "slid by -4." in sentence
    assert "rev0000" in sentence
    candidate = rows(1000 * 0.994**8, seed=99)
    report = baseline.check(slide, candidate, CONFIG)
    assert (report.verdict, len(report.drift)) == ("pass", 1)
    assert baseline.check(slide, candidate, dataclasses.replace(CONFIG, drift="fail")).verdict == "fail"
    assert baseline.drift(history([1000.0 + (i % 3) for i in range(8)]), CONFIG) == []


def test_a_shift_in_the_history_names_where_it_began() -> None:
    (sentence,) = baseline.drift(history([1000.0, 1001.0, 999.0, 1000.0, 970.0, 971.0, 969.5, 970.0]), CONFIG)
    assert "rev0004" in sentence


def test_calibration_recovers_the_noise_it_was_given(tmp_path: Path) -> None:
    runner = Scripted(sd=0.01, seed=11)
    blocks = Blocks([[(arm, runner.run(arm)) for arm in ("A", "B", "B", "A")] for _ in range(60)])  # type: ignore[misc]
    (floor,) = calibrate.noise_floor(blocks, CONFIG)
    assert floor.run_sd == pytest.approx(0.01, rel=0.15)
    assert floor.block_sd == pytest.approx(0.01, rel=0.25), "two runs an arm: sd sqrt(1/2 + 1/2)"
    assert floor.drift_sd < 0.006
    assert floor.block_sd_interval[0] < 0.01 < floor.block_sd_interval[1]
    assert floor.false_fail_rate <= 0.01
    calibrate.save([floor], tmp_path / "noise.json")
    (noise,) = calibrate.load_noise(tmp_path / "noise.json").values()
    assert (noise.sd, noise.df) == (floor.drift_sd, floor.drift_df)
    assert calibrate.load_noise(None) == {}
    (tmp_path / "bad.json").write_text(json.dumps({"x": 1}))
    with pytest.raises(ResultsError, match="not a noise file"):
        calibrate.load_noise(tmp_path / "bad.json")
    with pytest.raises(ResultsError, match="at least 3 blocks"):
        calibrate.noise_floor(Blocks(blocks.runs[:2]), CONFIG)


@pytest.mark.parametrize("model", MODELS)
def test_wrong_verdicts_stay_within_alpha_and_real_losses_are_found(model: str) -> None:
    """Simulated on 4,000 machines; 0.06 leaves three standard errors above alpha = 0.05."""
    at_margin = simulate(model, 0.02, GateConfig(), margin=0.02)
    assert at_margin.fail <= 0.06
    assert at_margin.passed <= 0.06
    assert simulate(model, 0.0, GateConfig()).fail <= 0.005
    assert simulate(model, 0.04, GateConfig()).fail >= 0.95


@pytest.mark.parametrize("period", [2, 3, 4, 5, 6, 7, 8, 12])
@pytest.mark.parametrize("sd", [0.01, 0.003])
def test_a_disturbance_of_any_period_makes_no_more_wrong_verdicts(monkeypatch: pytest.MonkeyPatch, period: int, sd: float) -> None:
    """8,000 machines; 0.0575 is three standard errors above alpha. Alternating orders: 45% wrong at a period of 8."""
    monkeypatch.setitem(MODELS, "every nth", functools.partial(MODELS["periodic"], period=period))  # type: ignore[arg-type]
    at_margin = simulate("every nth", 0.02, GateConfig(), sd=sd, machines=8000)
    assert max(at_margin.fail, at_margin.passed) <= 0.0575


def test_running_all_a_then_all_b_would_break_the_promise() -> None:
    assert simulate("drift", 0.02, GateConfig(), interleaved=False).fail > 0.9
    assert simulate("autocorrelated", 0.02, GateConfig(), interleaved=False).fail > 0.1


def test_the_simulated_gate_is_the_real_one() -> None:
    """The vectorised verdicts equal `report_blocks` look by look."""
    rng = np.random.default_rng(8)
    differences = rng.normal(-0.02, 0.01, (20, CONFIG.max_blocks))
    fast = verdicts(differences, math.log1p(-0.02), CONFIG)
    for machine in range(20):
        slow = "inconclusive"
        for look, alpha in zip(CONFIG.look_blocks, CONFIG.look_alphas, strict=True):
            runs = []
            for d in differences[machine, :look]:
                a, b = RunResult({RATE: 1.0}, H100), RunResult({RATE: math.exp(d)}, H100)
                runs.append([("A", a), ("B", b), ("B", b), ("A", a)])
            slow = report_blocks(Blocks(runs), CONFIG, "a", "b", alpha).verdict  # type: ignore[arg-type]
            if slow != "inconclusive":
                break
        assert fast[machine] == slow


def test_calibration_states_what_the_gate_then_finds() -> None:
    """200 calibrations of 8 A/A blocks each, 50 gates of a B that lost what was stated beyond the margin: power 0.8."""
    config, rng, found = GateConfig(), np.random.default_rng(17), []
    last = config.look_blocks[-1]
    for _ in range(200):
        runs = [[(arm, RunResult({RATE: math.exp(rng.normal(0, 0.01))}, H100)) for arm in "ABBA"] for _ in range(8)]
        (floor,) = calibrate.noise_floor(Blocks(runs), config, resamples=1)  # type: ignore[arg-type]
        assert list(floor.detectable) == list(config.look_blocks)
        differences = math.log1p(-0.02) + math.log1p(-floor.detectable[last]) + rng.normal(0, 0.01, (50, last))
        found.append((verdicts(differences, math.log1p(-0.02), config) == "fail").mean())
    assert np.mean(found) == pytest.approx(0.8, abs=0.03)


def test_sentences_of_one_kind_are_one_sentence() -> None:
    rng = np.random.default_rng(5)
    spread = np.array([-1, 1, -1, 1, -1, 1]) * 0.01
    items = [Judged(f"b{batch}", RATE, 0.02, paired(-0.012 + spread * (1 + batch / 20)), 1, 1, 6, 0.01) for batch in range(12)]
    findings = judge([*items, Judged("b99", RATE, 0.02, paired(rng.normal(0, 1e-4, 6)), 1, 1, 6, 1e-4)], plan=GateConfig().plan)
    undecided, passed, meaning = explanations(GateReport("a", "b", "inconclusive", findings, 0.05, 6))
    assert undecided.startswith("inconclusive: 12 figures (b0 output, b1 output, b2 output, ...): ")
    assert " more repeats would decide" in undecided
    assert passed == "pass: b99 output: within the tolerated 2.0% drop"
    assert "it is not a pass" in meaning


def test_concurrent_accepts_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "base.json"
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda day: baseline.accept_into(path, rows(1000, seed=day), f"day {day}"), range(12)))
    assert sorted(entry.note for entry in baseline.load(path).history) == sorted(f"day {day}" for day in range(12))
    assert [one.name for one in tmp_path.iterdir()] == ["base.json"], "no lock and no temporary is left"


def test_an_accept_that_cannot_be_written_leaves_the_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "base.json"
    before = baseline.accept_into(path, rows(1000), "first")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(WriteError, match=r"base\.json: No space"):
        baseline.accept_into(path, rows(990), "second")
    assert baseline.load(path) == before
    assert [one.name for one in tmp_path.iterdir()] == ["base.json"]


def test_sessions_of_a_state_are_its_baseline_together() -> None:
    base = baseline.accept(None, "b", rows(1000), "")
    for level, seed in ((1010, 1), (990, 2)):
        base = baseline.accept(base, "b", rows(level, seed=seed), "", same_state=True)
    report = baseline.check(base, rows(1000, seed=3), CONFIG)
    assert report.findings[0].judged.a_value == pytest.approx(1000, rel=0.002)
    assert report.warnings == ()
    assert [len(state) for state in base.states] == [3]
    assert baseline.check(base, rows(965, seed=4), CONFIG).verdict == "inconclusive", "three sessions 1% apart decide little"
    assert baseline.check(base, rows(900, seed=4), CONFIG).verdict == "fail"
    with pytest.raises(ResultsError, match="differ in driver"):
        baseline.accept(base, "b", rows(1000, environment=dataclasses.replace(H100, driver="9")), "", same_state=True)
    with pytest.raises(ResultsError, match="no state yet"):
        baseline.accept(None, "b", rows(1000), "", same_state=True)


def test_one_session_knows_nothing_of_days() -> None:
    """Two sessions of the same code, 3.2% apart, are no failure; the report says what it assumed."""
    report = baseline.check(baseline.accept(None, "b", rows(1000), ""), rows(968, seed=1), CONFIG)
    assert report.verdict == "inconclusive"
    assert "1.0% is assumed" in report.warnings[0]
    assert "no number of repeats changes that" in report.findings[0].why
    assert report.findings[0].blocks_needed is None


def test_exit_codes() -> None:
    assert EXIT_CODES == {"pass": 0, "fail": 1, "inconclusive": 2}
