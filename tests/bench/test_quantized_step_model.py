"""Products over packed weights and with a scale a row in the step model: which kernels a step has, what they take, what is said of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from trtllm_bench.__main__ import main
from trtllm_bench.analysis import cells
from trtllm_bench.analysis.fit import followed
from trtllm_bench.analysis.model_errors import OwnError, PeerPoint, tables_of_errors
from trtllm_bench.analysis.peers import cover_table
from trtllm_bench.analysis.prediction_error import interval_for
from trtllm_bench.analysis.step_constants import constants_for
from trtllm_bench.analysis.step_model import StepModel, is_quantized, widens
from trtllm_bench.roofline.counts import OpCost, StepShape
from trtllm_bench.roofline.hardware import published
from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.plan import Plan, Profile
from trtllm_engines.models.presets import preset_config
from trtllm_engines.quantization import precisions
from trtllm_engines.quantization.registry import MIXED
from trtllm_kernels.dialect.expr import evaluate
from trtllm_results.compare.published import load
from trtllm_results.record.cell import Cell
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Row

ONE_LAYER = replace(preset_config("llama-3.1-8b"), num_layers=1)


def plan_of(precision: str, arch: str = "sm_90") -> Plan:
    kv_dtype = "fp8" if arch == "sm_90" and precision not in ("fp32", "fp16") else "auto"
    source = {"kind": "dummy", "seed": 0}
    return compile_model(ONE_LAYER, precision, Profile(2048, 8192, 384), arches=(arch,), kv_dtype=kv_dtype, weights_source=source).plan


def products(plan: Plan, tokens: int) -> dict[str, OpCost]:
    model = StepModel(plan, published("h200"))
    return {cost.name.rpartition(".")[2]: cost for cost, _ in model.kernels(StepShape.decode(tokens, 256)) if cost.kind == "gemm"}


@pytest.mark.parametrize(
    ("precision", "kernels"),
    [
        ("int4", {1: "packed_gemm", 64: "packed_gemm_pipelined", 2048: "packed_gemm_large"}),
        ("w4a8", {1: "packed_gemm", 64: "packed_gemm_pipelined", 2048: "packed_gemm_large"}),
        ("int8_sq", {8: "skinny_gemm", 64: "skinny_gemm", 2048: "row_scaled_gemm"}),
    ],
)
def test_the_kinds_of_products_are_those_of_the_kernels_launched(precision: str, kernels: dict[int, str]) -> None:
    plan = plan_of(precision)
    kinds = {"packed_gemm": "packed", "packed_gemm_pipelined": "packed", "packed_gemm_large": "packed"}
    kinds |= {"skinny_gemm": "skinny", "row_scaled_gemm": "row_scaled"}
    for tokens, kernel in kernels.items():
        shape = StepShape.decode(tokens, 256)
        (down,) = (op for op in plan.ops if op.name.endswith("down_proj"))
        running = [one for one in down.tactics["sm_90"].launches if all(evaluate(dim, shape.symbols) > 0 for dim in one.grid)]
        assert {launch.kernel.partition("-")[0] for launch in running} == {kernel}
        assert StepModel(plan, published("h200"))._kind(products(plan, tokens)["down_proj"]) == kinds[kernel]


@pytest.mark.parametrize(
    ("precision", "us"),
    [("int4", (15.4, 10.8)), ("w4a8", (15.1, 9.1)), ("int8_wo", (30.1, 16.0)), ("mxfp4_wo", (22.6, 13.3)), ("nvfp4_wo", (29.5, 16.3))],
)
def test_one_token_takes_what_single_kernels_measured(precision: str, us: tuple[float, float]) -> None:
    """gate_up and down chained on an H200 (docs/facts/kernels-packed-gemm.md); whole runs moved the constants by up to a quarter."""
    plan = plan_of(precision)
    model, costs = StepModel(plan, published("h200")), products(plan, 1)
    for name, measured_us in zip(("silu_mul", "down_proj"), us, strict=True):
        assert model._us(costs[name]) == pytest.approx(measured_us, rel=0.25), name


def test_on_a_cpu_packed_weights_are_widened_and_then_multiplied() -> None:
    plan = compile_model(ONE_LAYER, "int4", Profile(8, 64, 384), weights_source={"kind": "dummy", "seed": 0}).plan
    model = StepModel(plan, replace(published("h200"), arch="", name="a CPU"))
    kernels = [cost.kind for cost, _ in model.kernels(StepShape.decode(1, 256)) if cost.name.endswith("down_proj")]
    assert kernels == ["rows", "gemm"]
    assert model.step(StepShape.decode(1, 256)).total_us > 0


def test_a_weight_is_decoded_once_for_each_tile_of_tokens() -> None:
    model = StepModel(plan_of("nvfp4_wo"), published("h200"))
    (one, many) = (model._codes(products(model.counter.plan, tokens)["down_proj"]) for tokens in (256, 257))
    assert one is not None
    assert many is not None
    assert (one.format, one.values, one.scales) == ("fp4", 4096 * 14336, 4096 * 14336 / 16)
    assert (many.values, many.scales) == (2 * one.values, 2 * one.scales)


@pytest.mark.parametrize("precision", [name for name in precisions() if name not in (MIXED, "fp32")])
def test_a_precision_is_quantized_where_its_plans_products_are(precision: str) -> None:
    assert cells.is_quantized(Row(Cell("llama-3.1-8b", precision, 1, 8, 8), Environment())) == is_quantized(plan_of(precision))


def test_before_hopper_few_tokens_read_codes_and_many_a_weight_made_wide() -> None:
    """One token of int4 takes a third of bf16 on each GPU, and where launches widen a weight the model does: that is bf16, and codes read,
    and bf16 written and read again."""
    times = {}
    for gpu in ("a100", "l40s", "h200"):
        for precision in ("int4", "bf16"):
            plan = plan_of(precision, published(gpu).arch)
            model = StepModel(plan, published(gpu))
            assert widens(plan, published(gpu)) == (gpu != "h200" and precision == "int4")
            for tokens in (1, 257):
                times[gpu, precision, tokens] = model.step(StepShape.decode(tokens, 256)).ops["layers.*.mlp.down_proj"]
        assert times[gpu, "int4", 1] < 0.45 * times[gpu, "bf16", 1]
    (down,) = (op for op in plan_of("int4", "sm_80").ops if op.name.endswith("down_proj"))
    for tokens, library in ((256, False), (257, True)):
        symbols = StepShape.decode(tokens, 256).symbols
        running = [one for one in down.tactics["sm_80"].launches if all(evaluate(dim, symbols) > 0 for dim in one.grid)]
        assert any(one.library for one in running) == library
    assert 1.5 < times["a100", "int4", 257] / times["a100", "bf16", 257] < 2.5


def test_another_gpus_interval_is_wider_and_names_what_it_assumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    h100, h200 = published("h100"), published("h200")
    known = interval_for(h200, 64, quantized=True)
    assert interval_for(h100, 64, quantized=True).factor == pytest.approx(known.factor * interval_for(h100, 64).factor)
    assert "no such product was measured there" in interval_for(h100, 64, quantized=True).note
    grid = ["sweep", "--predict", "--gpu", "h100", "--model", "tiny-llama", "--precision", "fp8,int4", "--isl", "32", "--osl", "8"]
    assert main([*grid, "--concurrency", "2", "--out", str(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "int4: the step model's constants are not fitted to h100: they are the H200's" in said
    assert "fp8: the H100's constants follow an earlier engine" in said
    assert "not modelled" not in said
    assert constants_for("h100", quantized=True).gpu == "h200"


def test_of_a_case_at_two_revisions_that_constants_follow_the_later_run_counts() -> None:
    cell = Cell("llama-3.1-8b", "int4", 8, 128, 256)
    rows = [
        Row(
            cell,
            Environment(gpu="NVIDIA H200", git_revision=f"444f27e{tail}", source_hash=str(tail)),
            started_at=f"2026-11-30T1{tail}:00:00",
            run_id=str(tail),
        )
        for tail in (1, 2)
    ]
    rows.append(Row(replace(cell, batch=16), Environment(gpu="NVIDIA H200", git_revision="5555555"), started_at="2026-11-30T13:00:00"))
    assert [[row.run_id for row in group] for group in followed(rows)] == [["2"]]


def test_quantized_errors_are_told_and_covered_apart() -> None:
    cell = Cell("m", "int4", 8, 128, 128)
    own = [OwnError("H200", cell, False, error, left_out=True, quantized=True) for error in (0.01, -0.02)]
    own += [OwnError("H200", cell, False, 5.0, precision_left_out=True, quantized=True), OwnError("H200", cell, True, 5.0, quantized=True)]
    tables = tables_of_errors(own, [point_of("H100", 0.1), point_of("L40S", 0.1)])
    assert tables["h200", "quantized"] == ("this engine's quantized runs on H200, each left out of the fit", [0.01, -0.02])
    assert cover_table(own)[2:] == ["| H200 | quantized | 0 | 1 | 2 | 2 |"]


def point_of(gpu: str, error: float) -> PeerPoint:
    theirs = next(one for one in load() if one.source.startswith("TensorRT-LLM") and one.tp == 1 and not one.at_once)
    return PeerPoint(replace(theirs, gpu=gpu), (1 + error) * theirs.output_tokens_per_s)
