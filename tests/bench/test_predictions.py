"""Predictions beside what was measured: the steady state, factors between engines, and the interval that errors give."""

from __future__ import annotations

import math
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from trtllm_bench.__main__ import main
from trtllm_bench.analysis.cells import plans_of, read_rows
from trtllm_bench.analysis.model_errors import (
    OwnError,
    PeerPoint,
    coverage,
    factors,
    in_sample,
    left_out,
    predicted,
    tables_of_errors,
    write_errors,
)
from trtllm_bench.analysis.peers import cover_table, interval_table, own_table
from trtllm_bench.analysis.predict import predict
from trtllm_bench.analysis.prediction_error import interval_for, interval_of, kind_of, read_errors
from trtllm_bench.analysis.steady import places_on, steady_rate
from trtllm_bench.analysis.step_constants import constants_for
from trtllm_bench.errors import BenchError
from trtllm_bench.roofline.hardware import published
from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.plan import Plan, Profile
from trtllm_engines.models.presets import preset_config
from trtllm_results.compare.published import load
from trtllm_results.gpus import SHEETS, Sheet, gpu_class
from trtllm_results.plausibility import Claim, judge
from trtllm_results.record.cell import Cell
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Row
from trtllm_results.store.table import Store
from trtllm_workloads.synthetic import fixed

DOC = Path(__file__).parents[2] / "docs" / "facts" / "predictions.md"


@pytest.fixture(scope="module")
def llama() -> Plan:
    source = {"kind": "dummy", "seed": 0}
    return compile_model(preset_config("llama-3.1-8b"), "fp8", Profile(64, 1024, 2048), arches=("sm_90",), weights_source=source).plan


@pytest.mark.parametrize(("isl", "osl", "places"), [(128, 64, 32), (1500, 32, 4), (64, 128, 8)], ids=["mixed", "chunks", "decoding"])
def test_the_steady_state_is_that_of_a_long_run(llama: Plan, isl: int, osl: int, places: int) -> None:
    run, _ = predict(llama, published("h100"), fixed(8 * places, isl, osl, vocab_size=100, seed=0), concurrency=places)
    assert steady_rate(llama, published("h100"), isl, osl, places) == pytest.approx(run["output_tokens_per_s"], rel=0.09)


def test_without_a_limit_as_many_sequences_run_as_have_room(llama: Plan) -> None:
    h100 = published("h100")
    assert places_on(llama, h100, 128, 64) == 64
    assert steady_rate(llama, h100, 128, 64) == steady_rate(llama, h100, 128, 64, 64) == steady_rate(llama, h100, 128, 64, 500)


MODELS_ON = [("a100", "bf16"), ("l40s", "int4"), ("h100", "fp8"), ("h200", "int8_sq"), ("b200", "fp8")]


@pytest.mark.parametrize(("gpu", "precision"), MODELS_ON)
def test_predictions_follow_physics(gpu: str, precision: str) -> None:
    """More of anything makes nothing slower, longer prompts make nothing faster, and no prediction is one that the GPU cannot reach."""
    hardware, source = published(gpu), {"kind": "dummy", "seed": 0}
    profile, arches = Profile(512, 8192, 40_000), (hardware.arch,)
    plan = compile_model(preset_config("llama-3.1-8b"), precision, profile, arches=arches, weights_source=source).plan
    better = {
        "bandwidth": replace(hardware, bytes_per_s=1.2 * hardware.bytes_per_s),
        "arithmetic": replace(hardware, flops_per_s={kind: 1.2 * rate for kind, rate in hardware.flops_per_s.items()}),
        "power": replace(hardware, power_w=1.2 * hardware.power_w),
        "clock": replace(hardware, boost_mhz=1.1 * hardware.boost_mhz),
    }
    for sequences in (1, 64, 300):
        rates = []
        for isl in (1, 128, 2000, 30_000):
            rate = steady_rate(plan, hardware, isl, 128, sequences)
            for what, more in better.items():
                assert steady_rate(plan, more, isl, 128, sequences) >= 0.9999 * rate, (what, sequences, isl)
            claim = Claim(gpu.upper(), "llama-3.1-8b", precision, isl, 128, rate, kv_dtype=plan.kv_dtype, batch=sequences)
            assert judge(claim) is None
            rates.append(rate)
        assert rates == sorted(rates, reverse=True), (sequences, rates)


def test_the_interval_is_the_rank_that_covers_nine_in_ten() -> None:
    nineteen = interval_of([0.01 * n for n in range(1, 20)], "")
    assert (nineteen.factor, nineteen.cover, nineteen.errors) == (pytest.approx(1.18), 0.9, 19), "the 18th of 19"
    assert interval_of([0.02, -0.2, 0.05], "").factor == pytest.approx(1.25), "a fifth too low is a quarter short"
    assert interval_of([0.02, -0.2, 0.05], "").cover == 0.75
    assert nineteen.around(118.0) == (pytest.approx(100.0), pytest.approx(139.24))


def test_a_gpu_with_runs_of_ours_has_the_narrowest_interval() -> None:
    factor = {gpu: interval_for(published(gpu), 1024).factor for gpu in ("a100", "l40s", "h100", "h200", "b200")}
    assert max(factor["h100"], factor["h200"]) < 1.1 < min(factor["l40s"], factor["a100"])
    assert published("NVIDIA H200") == published("h200")
    with pytest.raises(BenchError, match="no data sheet of GPU 'NVIDIA H100 PCIe'"):
        published("NVIDIA H100 PCIe")
    assert interval_for(published("b200"), 0).basis == "TensorRT-LLM's published figures on the A100 and L40S, by its factor on the H100"
    assert interval_for(published("l40s"), 1).basis.endswith("all with many sequences on one GPU")
    assert interval_for(published("h100"), 1024, ranks=4).factor > factor["h200"]
    assert [kind_of(sequences) for sequences in (0, 1, 128, 129)] == ["many", "few", "few", "many"]


def test_one_data_sheet_makes_a_gpu_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """By each of its names, and as no other GPU: what is known of an L40S says nothing of an L4, nor an H200's constants of a GH200."""
    ada = Sheet("sm_89", 49140, 0.96e12, {"bf16": 364e12, "fp8": 728e12}, 142, 2505, 300)
    monkeypatch.setitem(SHEETS, "rtx-6000-ada", ada)  # type: ignore[arg-type]
    monkeypatch.setitem(SHEETS, "l4", replace(ada, bytes_per_s=0.3e12))  # type: ignore[arg-type]
    names = ("rtx-6000-ada", "rtx 6000 ada", "NVIDIA RTX 6000 Ada Generation", "RTX-6000-ADA (by the step model)")
    assert {gpu_class(name) for name in names} == {"RTX-6000-ADA"}
    assert [gpu_class(name) for name in ("NVIDIA L4", "NVIDIA L40S", "NVIDIA RTX A6000")] == ["L4", "L40S", "NVIDIA RTX A6000"]
    assert published("NVIDIA RTX 6000 Ada Generation").arch == "sm_89"
    assert interval_for(published("l4"), 1024) == interval_for(published("b200"), 1024) != interval_for(published("l40s"), 1024)
    assert (
        constants_for("NVIDIA GH200 480GB").note == "the step model's constants are not fitted to NVIDIA GH200 480GB: they are the H100's"
    )
    too_fast = judge(Claim("NVIDIA RTX 6000 Ada Generation", "llama-3.1-8b", "bf16", 128, 128, 60_000))
    assert too_fast is not None
    assert too_fast.limit == ada.flops_per_s["bf16"]


@pytest.mark.parametrize("gpu", ["h100", "h200"])
def test_a_sheet_has_the_memory_that_drivers_report(gpu: str) -> None:
    """An H200's 141 GB are 150.8e9 bytes; by the sheet's rounded figure a 70B had room for 175 sequences of 2,000 tokens, not 185."""
    row = read_rows(Path(__file__).parents[2] / "results/recorded" / gpu / "llama-3.1-8b-fp8")[0]
    assert round(SHEETS[gpu].memory_bytes / 2**30, 2) == row.environment.gpu_memory_gib


def test_a_sweep_has_its_cost_in_the_table_and_refuses_a_price_that_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    asked = ["sweep", "--predict", "--gpu", "h200", "-m", "llama-3.1-8b", "--precision", "fp8", "--isl", "128", "--osl", "16"]
    assert main([*asked, "--batch-size", "8", "--gpu-price-per-hour", "3.5"]) == 0
    told = capsys.readouterr().out
    assert "USD/Mtok" in told
    assert "cost: 3.5 USD for an hour of one GPU, as given" in told
    assert main([*asked, "--batch-size", "8", "--gpu-price-per-hour", "-1"]) == 3
    assert "--gpu-price-per-hour is '-1'; give US dollars above 0" in capsys.readouterr().err


def test_an_error_left_out_is_by_the_factor_of_the_others() -> None:
    assert left_out([0.0, 1.0, 1.0]) == pytest.approx((0.0 + 1 / 2 - 1, 2 * 0.75 - 1, 2 * 0.75 - 1))
    assert left_out([0.3]) == ()


def test_figures_that_are_not_predicted_say_why() -> None:
    chosen, why = coverage(load())
    assert why["precision not stated"] == 87
    assert why["no fp8 on A100"] == 4
    assert why["several A100"] == 16
    assert why["implausible"] == 4
    assert len(chosen) + sum(why.values()) == len(load())
    assert {one.tp for one in coverage(load(), "l40s")[0]} == {1}


def test_an_engines_factor_takes_out_what_all_its_figures_share() -> None:
    """TensorRT-LLM on the L40S, by the H100's constants and the data sheet: 13% slower than predicted, one row by another within 4%."""
    chosen = [one for one in coverage(load(), "l40s")[0] if one.model == "llama-3.1-8b" and one.source.startswith("TensorRT-LLM")]
    (only,) = factors(predicted(chosen))
    assert (only.engine, only.gpu, len(only.errors)) == ("TensorRT-LLM", "L40S", 9)
    assert only.factor == pytest.approx(0.87, abs=0.03)
    assert sorted(map(abs, only.left_out))[4] < 0.04


def test_cells_that_constants_follow_are_told_from_others() -> None:
    cell = Cell(model="llama-3.1-8b", precision="fp8", batch=64, isl=128, osl=256)
    h100, h200 = (Environment(gpu=f"NVIDIA {name}", gpu_count=2, git_revision="4cbcc34") for name in ("H100 80GB HBM3", "H200"))
    assert in_sample(Row(cell, h100))
    assert not in_sample(Row(cell, replace(h100, git_revision="")))
    assert not in_sample(Row(replace(cell, precision="int4"), h100))
    assert not in_sample(Row(cell, h200)), "an earlier engine's, by the H100's constants"
    assert in_sample(Row(cell, replace(h200, git_revision="444f27e")))
    assert not in_sample(Row(cell, replace(h200, git_revision="5555555"))), "of no revision that constants follow"
    assert in_sample(Row(replace(cell, tp=2), h200)), "the wait in a reduction"
    assert not in_sample(Row(replace(cell, model="llama-3.1-70b", tp=2), h200))


def test_a_gpu_of_todays_engine_has_the_errors_left_out_of_the_fit_and_the_h100_those_of_the_earlier_one() -> None:
    few, many = (Cell("m", "fp8", batch, 128, 128) for batch in (8, 512))
    own = [OwnError("H200", few, True, 0.01), OwnError("H100", few, True, 0.02)]
    own += [OwnError("H200", few, False, error, left_out=True) for error in (0.03, 0.04, -0.05)]
    own += [OwnError("H200", few, False, error, transferred=True) for error in (0.06, 0.07)] + [OwnError("H100", few, False, 0.08)]
    own += [OwnError("H200", replace(few, precision="int4"), False, 0.5), OwnError("H200", many, False, 0.1, left_out=True)]
    tables = tables_of_errors(own, [point_of("H100", 0.1), point_of("L40S", 0.2)])
    assert tables["h200", "few"] == ("this engine's runs on H200, each left out of the fit", [0.03, 0.04, -0.05])
    assert tables["h100", "few"] == (
        "this engine's runs on H100 and H200, of an earlier engine, that no constant follows",
        [0.06, 0.07, 0.08],
    )
    assert ("h200", "many") not in tables, "one error is too few"
    table = "\n".join(own_table(own))
    assert "| one H200, each left out of the fit | 4 |" in table
    assert "| one H200, earlier engine, by the H100's constants | 2 | 6.5% | +7.0% |" in table
    assert "| one H100, held out | 1 | 8.0% | +8.0% |" in table


def test_the_error_that_is_an_intervals_factor_lies_within_it() -> None:
    """The file has errors to so many digits; the one that a factor is of is measured to more."""
    factor = interval_for(published("h200"), 512).factor
    widest = next(error for error in read_errors()["h200"]["many"]["errors"] if abs(math.log1p(error)) == pytest.approx(math.log(factor)))
    beyond = widest + math.copysign(6e-4, widest)
    own = [
        OwnError("H200", Cell("m", "fp8", 512, 128, 128), False, error, left_out=True) for error in (widest + 4e-5, widest - 4e-5, beyond)
    ]
    assert "| H200 | many | - | - | 2 | 3 |" in cover_table(own)


def point_of(gpu: str, error: float) -> PeerPoint:
    theirs = next(one for one in load() if one.source.startswith("TensorRT-LLM") and one.tp == 1 and not one.at_once)
    theirs = replace(theirs, gpu=gpu)
    return PeerPoint(theirs, (1 + error) * theirs.output_tokens_per_s)


def test_errors_are_written_as_they_are_read(tmp_path: Path) -> None:
    write_errors(
        {(gpu, kind): (t["basis"], t["errors"]) for gpu, kinds in read_errors().items() for kind, t in kinds.items()}, tmp_path / "e"
    )
    assert tomllib.loads((tmp_path / "e").read_text()) == read_errors()


def test_the_intervals_of_the_docs_are_those_in_use() -> None:
    assert "\n".join(interval_table()) in DOC.read_text()


def test_a_b200_is_predicted_and_marked_as_known_by_its_data_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = ("--batch-size", "8", "--isl", "32", "--osl", "16", "--model", "smollm2-135m", "--precision", "bf16")
    assert main(["sweep", "--predict", "--gpu", "b200", *shape, "--out", str(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "B200 (data sheet only, by the step model)" in said
    assert "B200: from its data sheet alone" in said
    assert "throughput within a factor of" in said
    (row,) = Store(tmp_path).rows()
    assert row.environment.gpu == "B200 (data sheet only, by the step model)"
    interval = row.extra["interval"]
    assert interval["low"] < row.figures["output_tokens_per_s"] < interval["high"]
    assert any("data sheet alone" in note for note in row.extra["predicted"])


def test_throughput_that_arrivals_decide_has_no_interval_beyond_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """5 and 1e5 requests/s of 16 tokens: what is offered, and what the engine can do."""
    shape = ("--batch-size", "8", "--isl", "32", "--osl", "16", "--num-requests", "40", "--model", "smollm2-135m", "--precision", "bf16")
    assert main(["sweep", "--predict", "--gpu", "h200", *shape, "--arrivals", "constant:5;constant:100000", "--out", str(tmp_path)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    factor = interval_for(published("h200"), 8).factor
    assert f"up to 128 sequences: throughput within a factor of {factor:.2f}" in told
    slow, fast = sorted(Store(tmp_path).rows(), key=lambda row: row.cell.request_rate)
    assert slow.figures["output_tokens_per_s"] == pytest.approx(40 * 16 / (39 / 5), rel=0.02)
    for row, ends in ((slow, 1.001), (fast, factor)):
        rate, interval = row.figures["output_tokens_per_s"], row.extra["interval"]
        assert interval["low"] == pytest.approx(rate / ends, rel=2e-3)
        assert interval["high"] == pytest.approx(rate * ends, rel=2e-3)


def test_a_prediction_lies_within_its_interval_where_shorter_steps_end_later(tmp_path: Path) -> None:
    load = ("--model", "tiny-llama", "--batch-size", "4", "--isl", "8", "--osl", "8", "--duration", "5", "--request-rate", "3")
    assert main(["sweep", "--predict", "--gpu", "h200", *load, "--out", str(tmp_path)]) == 0
    (row,) = Store(tmp_path).rows()
    interval = row.extra["interval"]
    assert interval["low"] <= row.figures["output_tokens_per_s"] <= interval["high"]


def test_a_b200s_figures_are_judged_by_its_data_sheet() -> None:
    """Two FLOP a weight and token, 128 in and 128 out: 1,000 tokens/s of Llama-3.1-8B are about 29 TFLOP/s."""
    assert judge(Claim("B200", "llama-3.1-8b", "bf16", 128, 128, 60_000)) is None
    too_fast = judge(Claim("B200", "llama-3.1-8b", "bf16", 128, 128, 200_000))
    assert too_fast is not None
    assert too_fast.limit == 2250e12


def test_a_checkpoint_of_several_schemes_is_predicted_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`mixed` has no scheme by name: each product has the checkpoint's."""
    model = Path(__file__).parents[1] / "engines" / "data" / "quantized" / "llmcompressor-mixed"
    asked = ["sweep", "--predict", "--gpu", "h200", "--model", str(model), "--batch-size", "1", "--isl", "8", "--osl", "4"]
    assert main([*asked, "--out", str(tmp_path / "o")]) == 0
    assert "choose" not in capsys.readouterr().err
    (row,) = Store(tmp_path / "o").rows()
    assert (row.status, row.cell.precision) == ("ok", "mixed")
    measured = replace(row, cell=replace(row.cell, target="native"))
    dtypes = {scheme.weights.dtype for scheme in plans_of(measured)[0].schemes.values() if scheme.weights is not None}
    assert dtypes == {"int4", "int8"}
