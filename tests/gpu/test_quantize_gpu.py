"""Row-wise fp8 on the GPU against its reference, calibration against the CPU's, and the precisions' perplexities against each other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from compiled_once import compile_engines
from safetensors.torch import save_file

from samples import BatchShape, code_steps, fp8_sample, sample
from trtllm_engines.accuracy.likelihood import likelihood
from trtllm_engines.calibration.gptq import DAMPING, best_damping
from trtllm_engines.calibration.grid import Grid
from trtllm_engines.calibration.integers import Recipe, quantize_integers
from trtllm_engines.calibration.perplexity import perplexity
from trtllm_engines.calibration.quantize import quantize
from trtllm_engines.checkpoints.dummy import draw
from trtllm_engines.compiler.graph import trace
from trtllm_engines.compiler.plan import Profile
from trtllm_engines.llm import LLM
from trtllm_engines.models.config import read_config
from trtllm_kernels.compile.aot import cubin_folder
from trtllm_kernels.dialect.model_shape import ModelShape

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9), reason="needs a GPU with fp8"),
]
OPS = torch.ops.trtllm
SHAPES = {"llama-8b": ModelShape(4096, 14336, 32, 8, 128, 128), "smollm2": ModelShape(576, 1536, 9, 3, 64, 64), "tiny": ModelShape(64, 96)}
DEVICES = ("cpu", "cuda")
TOKENS = (1, 2, 17, 64, 100, 300)


def batch(tokens: int) -> BatchShape:
    return BatchShape((tokens,), (tokens,), max_pages=16)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_quantized_as_the_reference_does(shape: str, tokens: int) -> None:
    x = sample("quantize_rows", SHAPES[shape], batch(tokens), "bf16")["x"]
    codes, scales = (y.cpu() for y in OPS.quantize_rows(x.cuda()))
    expected, expected_scales = OPS.quantize_rows(x)
    torch.testing.assert_close(scales, expected_scales, rtol=1e-6, atol=0)
    steps = code_steps(codes, expected)
    assert steps.max() <= 1
    assert (steps > 0).float().mean() < 0.01


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("biased", [False, True])
def test_products_with_scales_of_rows_equal_the_reference(shape: str, tokens: int, biased: bool) -> None:
    named = fp8_sample("linear", SHAPES[shape], batch(tokens), by_row=True)
    if not biased:
        named["bias"] = None
    expected = OPS.linear(**named).float()
    found = OPS.linear(**{k: None if v is None else v.cuda() for k, v in named.items()}).cpu().float()
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantize") / "model"
    folder.mkdir()
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    more = {"vocab_size": 512, "max_position_embeddings": 256, "rms_norm_eps": 1e-5}
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **sizes, **more}))
    shapes = trace(read_config(folder), "fp32", Profile(1, 16, 16, 16)).checkpoint_shapes
    tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        draw(tensor, name, 2)
    save_file(tensors, folder / "model.safetensors")
    generator = np.random.default_rng(1)
    lines = [json.dumps({"input_ids": generator.integers(0, 512, n).tolist()}) for n in (200, 77, 131)]
    (folder.parent / "text.jsonl").write_text("\n".join(lines))
    return folder


def test_calibration_measures_what_the_cpu_does(model: Path, tmp_path: Path) -> None:
    found = [
        quantize(model, tmp_path / device, dataset=model.parent / "text.jsonl", length=200, device=device).ranges
        for device in ("cpu", "cuda")
    ]
    for cpu, cuda in ((found[0].inputs, found[1].inputs), (found[0].cache, found[1].cache)):
        assert cpu.keys() == cuda.keys()
        for name, value in cpu.items():
            assert cuda[name] == pytest.approx(value, rel=0.03), name


def test_perplexities_are_the_cpus(model: Path, tmp_path: Path) -> None:
    text = model.parent / "text.jsonl"
    quantize(model, tmp_path / "fp8", dataset=text, device="cuda")
    for folder, precision, kv_dtype in (
        (model, "bf16", "bf16"),
        (tmp_path / "fp8", "fp8", "bf16"),
        (tmp_path / "fp8", "fp8", "fp8"),
        (tmp_path / "fp8", "fp8_rowwise", "fp8"),
        (model, "int8_sq", "fp8"),
    ):
        values = [perplexity(folder, precision, text, kv_dtype=kv_dtype, length=200, device=device).value for device in ("cpu", "cuda")]
        assert values[1] == pytest.approx(values[0], rel=0.01), (precision, kv_dtype)


@pytest.mark.parametrize("asked", [("int4", "awq"), ("int4", "gptq"), ("int8_sq", "smoothquant")], ids="-".join)
def test_integers_calibrated_on_the_gpu_are_as_near_as_the_cpus(model: Path, tmp_path: Path, asked: tuple[str, str]) -> None:
    """With one damping: errors are those on the text that was calibrated on, where two dampings that do equally well on another text, so
    that rounding alone decides between them, differ by half."""
    recipe = Recipe(*asked, group_size=64 if asked[0] == "int4" else None, damping=DAMPING)
    made = [
        quantize_integers(model, tmp_path / device, recipe, dataset=model.parent / "text.jsonl", length=200, device=device)
        for device in DEVICES
    ]
    for module, error in made[0].errors.items():
        assert made[1].errors[module].output == pytest.approx(error.output, rel=0.1), module


@pytest.mark.parametrize("tokens", [64, 2048])
def test_trials_on_the_gpu_choose_the_cpus_damping(tokens: int) -> None:
    """Of 128 inputs: much with a short text, little with a long one."""
    mix, rest = torch.randn(128, 128, generator=seeded(9)), torch.logspace(0, -0.5, 128)
    halves = [torch.randn(tokens // 2, 128, generator=seeded(seed)) * rest @ mix for seed in (3, 4)]
    half, other = (x.T @ x / len(x) for x in halves)
    weight, gram = torch.randn(64, 128, generator=seeded(1)), (half + other) / 2
    cpu, cuda = (best_damping(weight.to(one), gram.to(one), half.to(one), 0.5, Grid(4, 32)) for one in DEVICES)
    assert cuda == cpu


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_an_engine_is_scored_as_on_the_cpu(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Prompts and decode steps (CUDA graphs where they fit a bucket) of sequences of different lengths, more than run at once."""
    arch, precisions = "sm_{}{}".format(*torch.cuda.get_device_capability()), ("bf16", "fp8_rowwise", "int8_wo", "int4")
    sizes = {"max_batch_size": 2, "max_num_tokens": 64, "max_seq_len": 256}
    compile_engines(model, precisions, Profile(**sizes), arch)
    (tmp_path / "cubins").symlink_to(cubin_folder(arch).parents[1])  # engines in a cache of their own, their kernels in everybody's
    monkeypatch.setenv("TRTLLM_BENCH_CACHE", str(tmp_path))
    windows = [np.asarray(json.loads(line)["input_ids"], np.int32) for line in (model.parent / "text.jsonl").read_text().splitlines()]
    for precision in precisions:
        scores = []
        for device in DEVICES:
            with LLM(model, precision=precision, device=device, **sizes) as llm:
                scores.append(likelihood(llm, windows)[0])
        assert scores[1].tokens.tolist() == scores[0].tokens.tolist() == [100, 39, 66]
        np.testing.assert_allclose(scores[1].loss, scores[0].loss, rtol=0.01, err_msg=precision)
