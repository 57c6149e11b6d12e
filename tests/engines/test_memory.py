"""Sizes are compared with memory before anything is allocated, and a sentence says what would fit."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from trtllm_engines import LLM, SamplingParams, memory
from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.plan import ParallelLayout, Plan, Profile
from trtllm_engines.engine import fits
from trtllm_engines.engine.build import build, default_profile
from trtllm_engines.engine.cache import cached_engine
from trtllm_engines.engine.fits import needed_bytes, too_large, weight_bytes_of
from trtllm_engines.errors import EngineError, OutOfMemoryError
from trtllm_engines.memory import allocating, host_free_bytes
from trtllm_engines.models.presets import PRESETS, preset_config
from trtllm_engines.quantization import named_plan
from trtllm_engines.runtime.memory import check_room, page_bytes, step_bytes

GIB = 2**30


def plan_of(batch: int, tokens: int, length: int) -> Plan:
    dummy = {"kind": "dummy", "seed": 0}
    return compile_model(
        preset_config("tiny-llama"), named_plan("fp32"), Profile(batch, tokens, length), arches=("cpu",), weights_source=dummy
    ).plan


@pytest.mark.parametrize(("precision", "bytes_each"), [("fp32", 4), ("bf16", 2)])
def test_weights_of_a_published_model(precision: str, bytes_each: int) -> None:
    """Llama 3.1 8B has 8,030,261,248 parameters (its model card)."""
    assert weight_bytes_of(preset_config("llama-3.1-8b"), named_plan(precision)) == 8_030_261_248 * bytes_each
    assert weight_bytes_of(preset_config("gptj-6b"), named_plan(precision)) == 6_050_882_784 * bytes_each


def test_quantized_products_count_as_what_they_are_stored_in() -> None:
    config = preset_config("llama-3.1-8b")
    head_and_embedding = 2 * 128256 * 4096
    norms = 65 * 4096
    rest = 8_030_261_248 - head_and_embedding - norms
    assert weight_bytes_of(config, named_plan("fp8")) == 2 * (head_and_embedding + norms) + rest
    weights, cache, table = weight_bytes_of(config, named_plan("fp8")), 2 * 32 * 8 * 128 * 4096, 4 * 128 * 4096
    assert needed_bytes(config, named_plan("fp8"), Profile(8, 4096, 4096)) == weights + cache + table
    assert needed_bytes(config, named_plan("fp8"), Profile(8, 4096, 4096), ParallelLayout(2)) == (weights + cache) // 2 + table


def test_a_model_too_large_is_told_with_what_fits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = preset_config("llama-3.1-8b")
    monkeypatch.setattr(fits, "room_of", lambda arch: 20 * GIB)
    said = too_large(config, named_plan("fp32"), Profile(1, 64, 4096), "cpu")
    assert said == (
        "llama-3.1-8b in fp32 needs 30.9 GiB for its weights and one sequence of 4096 tokens, and this machine's CPU has 20.0 GiB; "
        "it fits in fp16 (15.5 GiB) or bf16 (15.5 GiB) or fp8 (8.7 GiB) or fp8_rowwise (8.7 GiB) or int4 (5.8 GiB) or int8_sq (8.7 GiB) "
        "or w4a8 (5.6 GiB)"
    )
    assert too_large(config, named_plan("bf16"), Profile(1, 64, 4096), "cpu") == ""
    monkeypatch.setattr(fits, "room_of", lambda arch: 1 * GIB)
    assert "no precision of it fits; the largest preset that does is smollm2-135m" in too_large(
        config, named_plan("fp8"), Profile(1, 64, 64), "cpu"
    )
    monkeypatch.setenv("TRTLLM_BENCH_CACHE", str(tmp_path))
    with pytest.raises(OutOfMemoryError, match=r"llama-3\.1-8b in bf16 needs 15\.0 GiB"):
        cached_engine("llama-3.1-8b", "bf16", profile=Profile(1, 64, 64), arches=("cpu",))
    assert not (tmp_path / "engines").exists()


def test_a_gpu_that_is_not_here_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert too_large(preset_config("llama-3.1-70b"), named_plan("fp32"), Profile(1, 64, 4096), "sm_90") == ""


def test_a_batch_too_large_is_told_with_one_that_fits() -> None:
    plan = plan_of(4096, 4096, 2048)
    one = 2 * page_bytes(plan)
    check_room(plan, 0, None, step_bytes(plan.profile) + one)
    with pytest.raises(OutOfMemoryError, match=r"needs .* of memory besides its weights and .* are free; max_batch_size 2048 with .* fits"):
        check_room(plan, 0, None, step_bytes(plan.profile) + one - 1)
    smallest = step_bytes(Profile(1, 64, 2048)) + one
    with pytest.raises(OutOfMemoryError, match="max_batch_size 1 with max_num_tokens 64 fits"):
        check_room(plan, 0, None, smallest)
    with pytest.raises(OutOfMemoryError, match="free some, or build for shorter sequences"):
        check_room(plan, 0, None, smallest - 1)
    with pytest.raises(OutOfMemoryError, match="max_batch_size 1024 with max_num_tokens 1024 fits"):
        check_room(plan, 4096, None, step_bytes(Profile(1024, 1024, 2048)) + one + 1024)


def test_the_runner_asks_before_it_allocates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engine = build("tiny-llama", "fp32", out=tmp_path / "e", profile=Profile(4, 64, 64))
    monkeypatch.setattr(memory, "host_free_bytes", lambda: 100_000)
    with pytest.raises(OutOfMemoryError, match=r"no room for the weights: tiny-llama in fp32 needs 3\.5 MiB and 0\.1 MiB are free"):
        LLM(engine, device="cpu")


def test_free_memory_is_the_least_of_machine_container_and_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    unbounded = host_free_bytes()
    (tmp_path / "memory.max").write_text("max\n")
    assert abs(host_free_bytes() - unbounded) < GIB
    (tmp_path / "memory.max").write_text(f"{300 << 20}\n")
    (tmp_path / "memory.current").write_text(f"{100 << 20}\n")
    assert host_free_bytes() == 200 << 20
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    monkeypatch.setattr(resource, "getrlimit", lambda which: (now + (50 << 20), -1))
    assert host_free_bytes() <= 50 << 20


def test_the_hosts_allocator_failing_is_out_of_memory() -> None:
    for fails in (lambda: torch.empty(1 << 60, dtype=torch.uint8), lambda: bytearray(1 << 60)):
        with pytest.raises(OutOfMemoryError, match=r"out of memory while counting: .* are free"), allocating("counting"):
            fails()
    with pytest.raises(RuntimeError, match="shape"), allocating("counting"):
        torch.ones(2).view(3)


def test_memory_that_ends_in_a_step_ends_its_requests_as_out_of_memory() -> None:
    code = (
        "import resource\n"
        "from trtllm_engines import LLM, SamplingParams\n"
        "from trtllm_engines.errors import OutOfMemoryError\n"
        "llm = LLM('tiny-llama', device='cpu', max_batch_size=1, max_num_tokens=2000, max_seq_len=2048, num_pages=80)\n"
        "pages = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (pages + (24 << 20), -1))\n"
        "(output,) = llm.generate([[1] * 2000], SamplingParams(max_tokens=1))\n"
        "print(output.error)\n"
        "try:\n    llm.close()\n"
        "except OutOfMemoryError as error:\n    print('oom', error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "the engine stopped: out of memory while running a step" in run.stdout, run.stderr
    assert "oom the engine's thread failed: out of memory while running a step" in run.stdout


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_builds_by_default(name: str) -> None:
    config = preset_config(name)
    profile = default_profile(config)
    config.check_sequence_length(profile.max_seq_len)
    assert profile.max_seq_len == min(4096, config.max_position_embeddings)


def test_a_model_of_few_positions_and_one_of_a_window_build_by_default(tmp_path: Path) -> None:
    folder = build("gptj-6b", "bf16", out=tmp_path / "e")
    assert (folder / "engine.json").is_file()
    assert default_profile(preset_config("gptj-6b"), {"max_batch_size": 9000}) == Profile(9000, 9000, 2048)
    with pytest.raises(EngineError, match="max_seq_len 4096 is beyond the 2048 positions"):
        build("gptj-6b", "bf16", out=tmp_path / "f", profile=default_profile(preset_config("gptj-6b"), {"max_seq_len": 4096}))


def test_logits_that_are_no_numbers_name_the_op_and_give_no_token(tmp_path: Path) -> None:
    engine = build("tiny-llama", "fp32", out=tmp_path / "e", profile=Profile(2, 64, 64))
    for name, value, op in (
        ("model.layers.1.input_layernorm.weight", float("nan"), r"model\.layers\.1\.input_layernorm"),
        ("lm_head.weight", float("inf"), "lm_head|logits"),
    ):
        llm: Any = LLM(engine, device="cpu")
        llm._runner.memory.tensors[name].view(-1)[0] = value
        for output in llm.generate([[1, 2, 3], [4]], SamplingParams(max_tokens=4)):
            assert len(output.token_ids) == 0
            assert re.search(rf"the values of ({op}).* are NaN or infinite, so there is no next token", output.error), output.error
        with pytest.raises(EngineError, match="the engine's thread failed: the values of"):
            llm.close()
