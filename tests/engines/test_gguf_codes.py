"""GGUF's block formats kept as codes, against the `gguf` library's values, and an engine of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from compiler_models import LLAMA, PROFILE, checkpoint
from gguf_files import permute
from hf_folders import logits_of

from trtllm_engines.checkpoints.checkpoint_precision import default_precision, plan_for
from trtllm_engines.checkpoints.formats.gguf import _LAYOUTS, unpacked
from trtllm_engines.checkpoints.gguf_weights import GgufWeights, gguf_plan, stored_name
from trtllm_engines.compiler.graph import trace
from trtllm_engines.engine.build import build
from trtllm_engines.engine.folder import load_engine
from trtllm_engines.models.llama.gguf import NAMES

TYPE = gguf.GGMLQuantizationType
SCALES = {TYPE.Q6_K: (208,), **dict.fromkeys((TYPE.Q4_1, TYPE.Q5_1, TYPE.Q4_K, TYPE.Q5_K), (0, 2))}
"""Where a block's fp16 numbers lie, if not at its beginning alone."""


@pytest.mark.parametrize("kind", _LAYOUTS)
def test_blocks_are_unpacked_as_the_library_decodes_them(kind: gguf.GGMLQuantizationType) -> None:
    rng = np.random.default_rng(0)
    size, size_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (6, 1024 // size, size_bytes), dtype=np.uint8)
    for place in SCALES.get(kind, (0,)):
        numbers = (rng.standard_normal((6, 1024 // size, 1)) * 0.01).astype(np.float16)
        numbers[0, 0] = 0.0
        blocks[..., place : place + 2] = numbers.view(np.uint8)
    if kind in (TYPE.Q4_K, TYPE.Q5_K):
        blocks[1, 0, 4:16] = 0b11_000001  # minima without scales, and scales without minima
    data = blocks.reshape(6, -1)
    expected = gguf.quants.dequantize(data, kind)
    read = unpacked(data, kind)
    np.testing.assert_array_equal(read.values(), expected)
    if read.minimum is not None:
        zero, scale = read.zero_and_scale()
        codes = read.kept_codes().reshape(*scale.shape, -1)
        again = ((codes - zero[:, :, None]) * scale[:, :, None]).reshape(expected.shape)
        np.testing.assert_allclose(again, expected, rtol=1e-5, atol=1e-7)


def write(path: Path, kinds: dict[str, gguf.GGMLQuantizationType]) -> None:
    """The small Llama, with each projection in its type."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LLAMA.num_layers)
    writer.add_context_length(LLAMA.max_position_embeddings)
    writer.add_embedding_length(LLAMA.hidden_size)
    writer.add_feed_forward_length(WIDER.intermediate_size)
    writer.add_head_count(LLAMA.num_heads)
    writer.add_head_count_kv(LLAMA.num_kv_heads)
    writer.add_layer_norm_rms_eps(LLAMA.norm_eps)
    writer.add_rope_freq_base(LLAMA.rope.theta)
    writer.add_eos_token_id(2)
    for name, tensor in TENSORS.items():
        values = tensor.numpy()
        heads = {"q_proj": LLAMA.num_heads, "k_proj": LLAMA.num_kv_heads}.get(name.split(".")[-2])
        values = values if heads is None else permute(values, heads)
        kind = kinds.get(name.split(".")[-2])
        stored = str(stored_name(name, NAMES))
        if kind is None:
            writer.add_tensor(stored, np.ascontiguousarray(values))
        else:
            writer.add_tensor(stored, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


WIDER = replace(LLAMA, intermediate_size=128)
TENSORS = checkpoint(trace(WIDER, "fp32", PROFILE))
MIXED = {"q_proj": TYPE.Q4_0, "k_proj": TYPE.Q4_1, "v_proj": TYPE.Q8_0, "o_proj": TYPE.Q4_0, "down_proj": TYPE.Q4_0}


def test_products_keep_the_codes_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write(path, MIXED)
    plan = gguf_plan(path)
    assert plan is not None
    assert (plan.name, default_precision(path, gpu=True)) == ("int4", "bf16")
    attention, mlp = "model.layers.2.self_attn", "model.layers.2.mlp"
    schemes = {module: plan.scheme_of(f"{module}_proj") for module in (f"{attention}.q", f"{attention}.o", f"{mlp}.up", f"{mlp}.down")}
    assert [scheme.name for scheme in schemes.values()] == ["int8_wo", "int4", "bf16", "int4"]
    assert str(schemes[f"{attention}.q"].weights) == "int8, one scale per group of 32 with a zero point"
    engine = load_engine(build(path, "int4", out=tmp_path / "int4", profile=PROFILE))
    assert engine.plan.weights[f"{attention}.qkv_proj.weight"].dtype == "int8"
    assert engine.plan.weights[f"{mlp}.down_proj.weight"].dtype == "int4"
    wide = logits_of(build(path, "fp32", out=tmp_path / "fp32", profile=PROFILE))
    assert torch.nn.functional.cosine_similarity(logits_of(engine.path).float(), wide).min() > 0.999


def test_codes_of_a_file_are_its_values(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write(path, MIXED)
    source, cpu = GgufWeights(path), torch.device("cpu")
    for leaf, tolerance in (("self_attn.q", 0.0), ("self_attn.k", 2e-2), ("self_attn.v", 0.0), ("mlp.down", 0.0)):
        name = f"model.layers.1.{leaf}_proj.weight"
        shape = tuple(TENSORS[name].shape)
        kind = plan_for(path, "int4").scheme_of(name.removesuffix(".weight")).weights
        assert kind is not None
        stored = source.stored(name, shape, kind, cpu)
        assert stored is not None
        values = source.read(name, shape, torch.float32, cpu)
        torch.testing.assert_close(stored.as_kind(kind).values(), values, rtol=0, atol=1e-6 + tolerance)
    assert source.stored("model.layers.1.mlp.up_proj.weight", (128, 64), kind, cpu) is None


def test_a_file_of_wide_numbers_is_rounded(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write(path, {})
    assert gguf_plan(path) is None
    plan = load_engine(build(path, "int8_wo", out=tmp_path / "e", profile=PROFILE)).plan
    assert plan.schemes["model.layers.0.mlp.down_proj.weight"].name == "int8_wo"
