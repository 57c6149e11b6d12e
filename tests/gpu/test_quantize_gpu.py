"""Row-wise fp8 on the GPU against its reference, calibration against the CPU's, and the precisions' perplexities against each other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from samples import BatchShape, code_steps, fp8_sample, sample
from trtllm_engines.calibration.perplexity import perplexity
from trtllm_engines.calibration.quantize import quantize
from trtllm_engines.checkpoints.dummy import draw
from trtllm_engines.compiler.graph import trace
from trtllm_engines.compiler.plan import Profile
from trtllm_engines.models.config import read_config
from trtllm_kernels.dialect.model_shape import ModelShape

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9), reason="needs a GPU with fp8"),
]
OPS = torch.ops.trtllm
SHAPES = {"llama-8b": ModelShape(4096, 14336, 32, 8, 128, 128), "smollm2": ModelShape(576, 1536, 9, 3, 64, 64), "tiny": ModelShape(64, 96)}
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
