"""Counts of FLOP and bytes against arithmetic done by hand, and ceilings measured, kept and found again."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from trtllm_bench.__main__ import main
from trtllm_bench.errors import BenchError
from trtllm_bench.roofline import ceilings as ceilings_module
from trtllm_bench.roofline import links as links_module
from trtllm_bench.roofline.ceilings import Ceilings
from trtllm_bench.roofline.costs import ModelCost, doubtful, utilisation
from trtllm_bench.roofline.link_rank import HIDDEN as HIDDEN_ROW
from trtllm_bench.roofline.link_rank import NCCL_ROWS, ROWS, lowered_reduction
from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.plan import ParallelLayout, Profile
from trtllm_engines.engine.cache import cached_engine
from trtllm_engines.engine.folder import load_engine
from trtllm_engines.models.presets import preset_config
from trtllm_engines.runtime.step_log import STEP_DTYPE
from trtllm_kernels.dialect.group import group_words
from trtllm_results.metrics.requests import RequestLog
from trtllm_results.record.environment import Environment

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD, INNER, VOCABULARY = 128, 4, 4, 2, 32, 384, 512
"""tiny-llama"""
AFTER_ATTENTION = HIDDEN * HEADS * HEAD + 3 * HIDDEN * INNER
LAYER_WEIGHTS = HIDDEN * (HEADS + 2 * KV_HEADS) * HEAD + AFTER_ATTENTION


@pytest.fixture(scope="module")
def cost(tmp_path_factory: pytest.TempPathFactory) -> ModelCost:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRTLLM_BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        folder = cached_engine("tiny-llama", "fp32", profile=Profile(4, 64, 128), arches=("cpu",))
    return ModelCost.of(load_engine(folder).plan)


def test_counts_of_the_graph(cost: ModelCost) -> None:
    assert cost.token_flops == 2 * (LAYERS * LAYER_WEIGHTS - AFTER_ATTENTION)
    assert cost.row_flops == 2 * (HIDDEN * VOCABULARY + AFTER_ATTENTION), "only rows that are sampled leave the last attention"
    assert cost.pair_flops == 4 * LAYERS * HEADS * HEAD
    assert cost.kv_bytes == 2 * LAYERS * KV_HEADS * HEAD * 4
    norms = (2 * LAYERS + 1) * HIDDEN
    assert cost.weight_bytes == 4 * (LAYERS * LAYER_WEIGHTS + HIDDEN * VOCABULARY + norms)
    assert cost.compute_dtype == "fp32"


def log_of(prompt: list[int], output: list[int], seconds: float, ok: bool = True) -> RequestLog:
    n = len(prompt)
    zero = np.zeros(n)
    return RequestLog(zero, zero, zero, np.full(n, seconds), np.asarray(prompt), np.asarray(output), np.full(n, ok))


def test_flops_and_bytes_of_one_request_step_by_step(cost: ModelCost) -> None:
    prompt, output = 5, 3
    flops = bytes_moved = 0.0
    for step in range(output):
        new = prompt if step == 0 else 1
        held = prompt + step
        flops += new * cost.token_flops + cost.row_flops
        flops += cost.pair_flops * sum(range(held - new + 1, held + 1))
        bytes_moved += cost.weight_bytes + cost.kv_bytes * (new + held)
    log = log_of([prompt], [output], 1.0)
    assert cost.flops_of(log) == pytest.approx(flops)
    assert cost.bytes_of(log, steps=output) == pytest.approx(bytes_moved)
    assert cost.flops_of(log_of([prompt], [output], 1.0, ok=False)) == 0


def steps_of(rows: list[tuple[float, float, int, int, int, int, int]]) -> np.ndarray:
    steps = np.zeros(len(rows), STEP_DTYPE)
    for name, values in zip(
        ("launched_s", "done_s", "decode_tokens", "context_tokens", "context_seqs", "running", "kv_pages_used"),
        zip(*rows, strict=True),
        strict=True,
    ):
        steps[name] = values
    return steps


def test_phases_are_told_apart_and_timed_from_step_to_step(cost: ModelCost) -> None:
    ceilings = Ceilings("test", {"fp32": 1e9}, 1e9, 2e9, 1.0, "k")
    steps = steps_of([(0.0, 1.0, 0, 20, 2, 2, 2), (0.5, 1.5, 2, 0, 0, 2, 2), (3.0, 3.25, 1, 10, 1, 3, 3)])
    found = utilisation(cost, ceilings, log_of([10, 10], [2, 1], 2.0), steps)
    prefill = 20 * cost.token_flops + 2 * cost.row_flops + cost.pair_flops * 20 * 11 / 2
    assert found["mfu_prefill"] == pytest.approx(prefill / 1.0 / 1e9)
    held = 2 * cost.page_size - 2 * cost.page_size / 2
    assert found["mfu_decode"] == pytest.approx((2 * (cost.token_flops + cost.row_flops) + cost.pair_flops * held) / 0.5 / 1e9)
    assert found["mbu_decode"] == pytest.approx((cost.weight_bytes + cost.kv_bytes * (held + 2)) / 0.5 / 2e9)
    assert found["mfu"] == pytest.approx(cost.flops_of(log_of([10, 10], [2, 1], 2.0)) / 2.0 / 1e9)


def test_a_pipeline_costs_what_the_whole_model_does() -> None:
    layout, source = ParallelLayout(1, 2), {"kind": "dummy", "seed": 0}
    config = preset_config("tiny-llama")
    profile = Profile(8, 64, 256)
    whole = ModelCost.of(compile_model(config, "fp32", profile, weights_source=source).plan)
    stages = [compile_model(config, "fp32", profile, weights_source=source, layout=layout, stage=stage).plan for stage in range(2)]
    assert ModelCost.of_stages(stages) == whole


def test_shares_of_replicas_are_of_the_ceilings_of_all() -> None:
    """Two replicas that each do what one does, beside each other, are used as well as the one."""
    cost = ModelCost(1e6, 1e5, 1e2, 1e6, 1e3, 32, "fp32")
    ceilings = Ceilings("test", {"fp32": 1e9}, 1e9, 2e9, 1.0, "k")
    one = steps_of([(0.0, 1.0, 0, 20, 2, 2, 2), (0.5, 1.5, 2, 0, 0, 2, 2)])
    expected = utilisation(cost, ceilings, log_of([10, 10], [2, 2], 1.5), one)
    both = np.empty(4, np.dtype([*STEP_DTYPE.descr, ("replica", np.int32)]))
    for name in STEP_DTYPE.names or ():
        both[name] = np.repeat(one[name], 2)
    both["replica"] = (0, 1, 0, 1)
    found = utilisation(cost, ceilings, log_of([10] * 4, [2] * 4, 1.5), both, gpus=2)
    assert found == pytest.approx(expected)
    assert {"mfu", "mbu", "mfu_decode", "mbu_decode", "mfu_prefill"} <= found.keys()


def test_without_a_ceiling_for_the_format_there_is_no_mfu(cost: ModelCost) -> None:
    steps = steps_of([(0.0, 1.0, 0, 20, 2, 2, 2)])
    found = utilisation(cost, Ceilings("test", {"fp8": 1e9}, 1e9, 1e9, 1.0, "k"), log_of([10], [1], 1.0), steps)
    assert "mbu" in found
    assert "mfu" not in found


def test_ceilings_are_measured_kept_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRTLLM_BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(ceilings_module, "CPU_SHAPES", ((128, 128, 128),))
    monkeypatch.setattr(ceilings_module, "CPU_BUFFER_BYTES", 1 << 22)
    assert main(["ceilings", "--device", "cpu", "--seconds", "0.05", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 1e8 < found["flops_per_s"]["fp32"] < 1e13
    assert 1e8 < found["copy_bytes_per_s"] < 1e12
    environment = Environment.capture(use_gpu=False)
    cached = ceilings_module.cached(environment)
    assert cached is not None
    assert cached.flops_per_s == found["flops_per_s"]
    assert ceilings_module.cached(replace(environment, torch="0.0")) is None
    assert main(["ceilings", "--device", "cpu"]) == 0
    assert "from " in capsys.readouterr().out
    ceilings_module.cache_file(environment).write_text("{")
    assert ceilings_module.cached(environment) is None


def rank_that(statements: str) -> Callable[[int, float, Path], list[str]]:
    """In place of the processes that measure links."""
    return lambda gpus, seconds, out: [sys.executable, "-c", f"import json, sys; gpus, out = {gpus}, open({str(out)!r}, 'w')\n{statements}"]


def test_links_are_kept_with_the_ceilings_of_a_machine_of_several_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRTLLM_BENCH_CACHE", str(tmp_path))
    found = "json.dump({'gpus': gpus, 'copy_bytes_per_s': 3.9e11, 'all_reduce_us': {'16384': 3.6, '2097152': 10.1}"
    found += ", 'nccl_all_reduce_us': {'16384': 21.0}}, out)"
    monkeypatch.setattr(links_module, "command", rank_that(found))
    environment = Environment(gpu="H200", gpu_count=2, driver="1")
    earlier = {"device": "H200", "flops_per_s": {}, "copy_bytes_per_s": 4e12, "read_bytes_per_s": 4.4e12, "measured_s": 1.0, "key": "k"}
    ceilings_module.cache_file(environment).parent.mkdir(parents=True)
    ceilings_module.cache_file(environment).write_text(json.dumps(earlier))
    before = ceilings_module.cached(environment)
    assert before is not None
    assert before.link_gpus == 0, "a file of before links were measured"
    assert ceilings_module.with_links(before, 1) is before
    monkeypatch.setattr("trtllm_bench.machine.has_gpu", lambda: True)
    monkeypatch.setattr(Environment, "capture", lambda use_gpu: environment)
    for source in ("processes", "file"):
        assert main(["ceilings"]) == 0
        shown = capsys.readouterr().out
        assert "links: copy 390.0 GB/s one way (2 GPUs, slowest pair)" in shown, source
        assert "all-reduce: 16 KiB 3.6 us, by NCCL 21.0 us\n" in shown
        assert "all-reduce: 2 MiB 10.1 us\n" in shown
    after = ceilings_module.cached(environment)
    assert after is not None
    assert (after.link_gpus, after.peer_copy_bytes_per_s, after.all_reduce_us["16384"]) == (2, 3.9e11, 3.6)
    assert after.read_bytes_per_s == 4.4e12


def test_links_that_cannot_be_measured_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    copied = "json.dump({'gpus': 2, 'copy_bytes_per_s': 1e11}, out); out.close(); sys.exit('KernelError: no peer access')"
    monkeypatch.setattr(links_module, "command", rank_that(copied))
    assert links_module.measure_links(2, 0.1, heard.append).all_reduce_us == {}
    assert heard[-1] == "all-reduce: not here (KernelError: no peer access)"
    monkeypatch.setattr(links_module, "command", lambda *_: [sys.executable, "-c", "raise ValueError('no gloo')"])
    with pytest.raises(BenchError, match=r"the links between 2 GPUs could not be measured: ValueError: no gloo"):
        links_module.measure_links(2, 0.1, heard.append)


def test_a_curve_of_nccl_that_is_missing_leaves_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    one = "json.dump({'gpus': 2, 'copy_bytes_per_s': 1e11, 'all_reduce_us': {'16384': 3.6}}, out); out.close(); "
    one += "sys.exit('KernelError: no NCCL')"
    monkeypatch.setattr(links_module, "command", rank_that(one))
    assert links_module.measure_links(2, 0.1, heard.append).all_reduce_us == {"16384": 3.6}
    assert heard[-2:] == ["all-reduce: 16 KiB 3.6 us", "all-reduce by NCCL: not here (KernelError: no NCCL)"]


def test_the_reductions_of_a_curve_by_nccl_have_every_tensor_of_their_launches() -> None:
    for rows in NCCL_ROWS:
        wide, codes = torch.empty(rows, HIDDEN_ROW, dtype=torch.bfloat16), torch.empty(rows, HIDDEN_ROW, dtype=torch.float8_e4m3fn)
        vectors = {"weight": wide[0], "out_scale": torch.ones(1), "group": torch.empty(2, dtype=torch.int32)}
        tensors = {"x": wide, "residual": wide, "out0": codes, "out1": wide, **vectors}
        lowered = lowered_reduction(tensors, "sm_90")
        assert [launch.library for launch in lowered.launches] == ["nccl_sum", ""]
        needed = {arg.value for launch in lowered.launches for arg in launch.args if arg.kind == "tensor"}
        assert needed == {*tensors, *lowered.workspaces}
        assert [spec.shape for spec in lowered.workspaces.values()] == [(rows, HIDDEN_ROW)]


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_reductions_of_a_curve_have_launches_and_every_tensor_of_them(ranks: int) -> None:
    for rows in ROWS:
        wide, codes = torch.empty(rows, HIDDEN_ROW, dtype=torch.bfloat16), torch.empty(rows, HIDDEN_ROW, dtype=torch.float8_e4m3fn)
        group = torch.empty(group_words(ranks), dtype=torch.int64)
        vectors = {"weight": wide[0], "out_scale": torch.ones(1), "group": group}
        tensors = {"x": wide, "residual": wide, "out0": codes, "out1": wide, **vectors}
        lowered = lowered_reduction(tensors, "sm_90")
        assert {arg.value for launch in lowered.launches for arg in launch.args if arg.kind == "tensor"} == set(tensors)
        at_work = [launch.kernel.split(".")[0] for launch in lowered.launches if launch.grid[0]]
        assert len(at_work) == 1


@pytest.mark.parametrize(("flags", "complaint"), [(["--device", "tpu"], "unknown device 'tpu'"), (["--seconds", "0"], "--seconds is 0")])
def test_bad_input(flags: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ceilings", *flags]) == 3
    assert complaint in capsys.readouterr().err


def test_small_and_large_rates_read_well() -> None:
    assert ceilings_module.rate_text(9.87e14) == "987.0 TFLOP/s"
    assert ceilings_module.rate_text(5.5e9) == "5.5 GFLOP/s"


def test_a_share_above_its_ceiling_is_a_warning() -> None:
    assert doubtful({"mfu": 0.9, "mbu_decode": 1.1, "ttft_p50_ms": 90.0}) == ()
    (warning,) = doubtful({"mfu": 0.91, "mfu_prefill": 1.485})
    assert "mfu_prefill is 148%" in warning
    assert "ceilings --again" in warning


def test_int8_has_at_least_the_ceiling_of_fp8() -> None:
    """Tensor cores multiply both at one rate; the library that is measured does not."""
    ceilings = Ceilings("test", {"fp8": 1.2e15, "int8": 0.87e15, "bf16": 0.7e15}, 1e12, 1e12, 1.0, "k")
    assert [ceilings.peak(one) for one in ("int8", "fp8", "bf16", "fp4")] == [1.2e15, 1.2e15, 0.7e15, 0.0]
    assert Ceilings("test", {"int8": 0.5e15}, 1e12, 1e12, 1.0, "k").peak("int8") == 0.5e15, "an A100 has no fp8"
