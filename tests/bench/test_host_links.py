"""Exchanges between hosts: NCCL's own figures, which links each layout uses, and what a prediction says about them."""

from __future__ import annotations

from pathlib import Path

import pytest

from trtllm_bench.__main__ import main
from trtllm_bench.analysis.cells import layout_of, plans_of
from trtllm_bench.analysis.host_links import HostLinks
from trtllm_bench.analysis.step_model import StepModel
from trtllm_bench.roofline.counts import StepShape
from trtllm_bench.roofline.hardware import published
from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.plan import ParallelLayout, Plan, Profile
from trtllm_engines.models.presets import preset_config
from trtllm_results.cost import cost_per_million
from trtllm_results.record.cell import Cell
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Row
from trtllm_results.store.table import Store

NDR, NVLINK = 50e9, 387e9
TINY = preset_config("tiny-llama")


@pytest.mark.parametrize(("nbytes", "logged_us"), [(256, 25.23), (4096, 25.87), (8192, 26.55), (65536, 37.80), (131072, 51.60)])
def test_a_reduction_over_hosts_takes_what_nccl_expects_of_it(nbytes: int, logged_us: float) -> None:
    """As NCCL logged it on three hosts of eight H100 (NVIDIA/nccl issue 1453)."""
    assert HostLinks(ParallelLayout(24, 1, 3), NDR, NVLINK).all_reduce_us(nbytes) == pytest.approx(logged_us, rel=0.05)


def test_large_reductions_and_sends_take_the_adapters_rate() -> None:
    """A host's adapters share the reduction of a stage; between stages, each rank sends its rows over its own adapter."""
    sixteen, two = (HostLinks(ParallelLayout(tp, 1, 2), NDR, NVLINK) for tp in (16, 2))
    mib = 2.0**20
    assert (sixteen.all_reduce_us(512 * mib) - sixteen.all_reduce_us(256 * mib)) == pytest.approx(
        256 * mib * 1.875 / (8 * 47e9 * 0.92) * 1e6
    )
    assert (two.all_reduce_us(512 * mib) - two.all_reduce_us(256 * mib)) == pytest.approx(256 * mib / (47e9 * 0.92) * 1e6)
    stages = HostLinks(ParallelLayout(4, 4, 2), NDR, NVLINK)  # two stages a host
    times = [stages.send_us(64 * mib, stage) for stage in range(3)]
    assert times == pytest.approx([11.8 + 64 * mib / NVLINK * 1e6, 22.4 + 64 * mib / 47e9 * 1e6, 11.8 + 64 * mib / NVLINK * 1e6])


def plan_of(layout: ParallelLayout, stage: int = 0) -> Plan:
    source = {"kind": "dummy", "seed": 0}
    return compile_model(TINY, "fp8", Profile(64, 1024, 384), arches=("cpu",), weights_source=source, layout=layout, stage=stage).plan


def test_stages_of_whole_hosts_reduce_within_them_and_send_between_them() -> None:
    shape, h200 = StepShape.decode(64, 256), published("h200")
    within = StepModel(plan_of(ParallelLayout(2)), h200).step(shape)
    over = StepModel(plan_of(ParallelLayout(2, 1, 2)), h200).step(shape)
    least = HostLinks(ParallelLayout(2, 1, 2), NDR, NVLINK).all_reduce_us(0)
    assert over.parts["communication"] > (2 * TINY.num_layers + 1) * least > 2 * within.parts["communication"]
    assert over.parts["weights"] == pytest.approx(within.parts["weights"], rel=0.02)
    first, last = (StepModel(plan_of(ParallelLayout(1, 2, 2), stage), h200) for stage in (0, 1))
    sent = first.hosts.send_us(64 * TINY.hidden_size * 2, 0) if first.hosts is not None else 0.0
    assert [model.step(shape).parts["communication"] for model in (first, last)] == pytest.approx([sent, sent])


def test_a_prediction_over_hosts_says_what_it_assumes_and_needs_no_endpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = ["sweep", "--predict", "--model", "tiny-llama", "--precision", "fp8", "--concurrency", "4", "--isl", "32", "--osl", "16"]
    assert main([*grid, "--gpu", "h200", "--tp", "4", "--nnodes", "2", "--out", str(tmp_path)]) == 0
    assert "2 hosts of 2 GPUs: NCCL over links of 400 Gb/s a GPU (47 GB/s reached)" in capsys.readouterr().out
    (row,) = Store(tmp_path).rows()
    assert (row.cell.gpus, row.cell.settings["nnodes"], layout_of(row.cell)) == (4, 2, ParallelLayout(4, 1, 2))
    assert cost_per_million(3.0, row.cell.gpus, 1000.0) == pytest.approx(4 * 3.0 / 3600 / 1000 * 1e6), "GPUs of both hosts are paid for"
    assert main([*grid, "--gpu", "l40s", "--tp", "4", "--nnodes", "2"]) == 1
    assert "what connects hosts with L40S GPUs is not known here; leave --nnodes out" in capsys.readouterr().out
    assert main([*grid, "--gpu", "h200", "--tp", "3", "--nnodes", "2"]) == 1
    assert "tp x pp is 3, which does not divide by --nnodes 2" in capsys.readouterr().out


def test_a_cell_of_several_hosts_is_explained_by_the_plan_that_ran() -> None:
    cell = Cell("tiny-llama", "fp8", 4, 32, 16, tp=2, settings={"nnodes": 2, "max_batch_size": 4})
    (plan,) = plans_of(Row(cell, Environment(gpu="NVIDIA H200")))
    assert plan.parallel == ParallelLayout(2, 1, 2)
    assert plan.parallel.group_way == "nccl"
