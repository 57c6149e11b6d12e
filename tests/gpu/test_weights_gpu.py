"""Weights on the GPU: drawn there bit for bit as on the CPU, and fast enough not to be noticed in an engine's start."""

import time
from pathlib import Path

import pytest
import torch

from trtllm_engines.checkpoints.dummy import draw
from trtllm_engines.compiler.fingerprint import detect_target
from trtllm_engines.compiler.plan import Profile
from trtllm_engines.engine.build import build
from trtllm_engines.engine.folder import load_engine
from trtllm_kernels.dialect.dtypes import nbytes

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["model.layers.3.mlp.up_proj.weight", "model.norm.weight"])
def test_generator_is_bit_identical_on_cpu_and_gpu(dtype: torch.dtype, name: str) -> None:
    shape = (3001, 1777) if "proj" in name else (5_000_001,)
    cpu, gpu = torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype, device="cuda")
    draw(cpu, name, 11)
    draw(gpu, name, 11)
    assert torch.equal(cpu, gpu.cpu())


def test_a_built_engine_loads_on_this_gpu_and_draws_eight_billion_weights_quickly(tmp_path: Path) -> None:
    target = detect_target()
    profile = Profile(max_batch_size=64, max_num_tokens=1024, max_seq_len=1024)
    engine = load_engine(build("llama-3.1-8b", "bf16", out=tmp_path / "e", profile=profile, arches=(target.arch,)), target)
    torch.cuda.synchronize()
    began = time.perf_counter()
    tensors = engine.tensors("cuda")
    torch.cuda.synchronize()
    took = time.perf_counter() - began
    print(f"drew {sum(t.numel() for t in tensors.values()) / 1e9:.2f} G weights in {took:.2f} s on {target.name}")
    assert set(tensors) == {*engine.plan.weights, *engine.plan.constants}
    head = tensors["lm_head.weight"].float()
    assert head.std().item() == pytest.approx(4096**-0.5, rel=0.01)


def test_what_drawing_takes_meanwhile_is_free_for_the_kv_cache(tmp_path: Path) -> None:
    """Codes are made of wide numbers, which are twice as large. Where weights lay between these, the allocator held more than they are."""
    target = detect_target()
    profile = Profile(max_batch_size=64, max_num_tokens=1024, max_seq_len=1024)
    engine = load_engine(build("llama-3.1-8b", "fp8", out=tmp_path / "e", profile=profile, arches=(target.arch,)), target)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    tensors = engine.tensors("cuda")
    torch.cuda.empty_cache()
    taken = torch.cuda.memory_reserved() - before
    assert sum(map(nbytes, engine.plan.weights.values())) == pytest.approx(taken, rel=0.01)
    assert len(tensors) > 100
