"""The three sources of weights, and what each says when a weight is not there."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from compiler_models import LLAMA, PROFILE, checkpoint
from gguf_files import permute, write_gguf
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from trtllm_engines.checkpoints import checkpoint as checkpoint_module
from trtllm_engines.checkpoints import drawn_sums, open_weights
from trtllm_engines.checkpoints.checkpoint import SafetensorsWeights
from trtllm_engines.checkpoints.dummy import DummyWeights, draw
from trtllm_engines.checkpoints.gguf_weights import GgufWeights
from trtllm_engines.checkpoints.write import assemble, check_weights, write_safetensors
from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.graph import trace
from trtllm_engines.errors import EngineError
from trtllm_engines.memory import allocating
from trtllm_engines.models.llama.gguf import unpermute
from trtllm_engines.models.presets import resolve_model
from trtllm_kernels.dialect.types import TensorSpec

CPU = torch.device("cpu")


def uint32_reference(name: str, seed: int, count: int) -> np.ndarray:
    """The generator's definition in NumPy's unsigned arithmetic, which wraps by rule."""
    import hashlib

    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    before, between = (np.frombuffer(digest[i : i + 4], np.uint32)[0] for i in (0, 4))
    x = np.arange(count, dtype=np.uint32) ^ before
    x ^= x >> np.uint32(16)
    x = x * np.uint32(0x7FEB352D) + between
    x ^= x >> np.uint32(15)
    x = x * np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return sum(((x >> np.uint32(8 * i)) & np.uint32(255)).astype(np.int64) for i in range(4)) - 510


def test_generator_is_its_definition() -> None:
    out = torch.empty(1000, 3)
    draw(out, "a.weight", 5)
    std = 1 / np.sqrt(3)
    expected = uint32_reference("a.weight", 5, 3000).astype(np.float32) * np.float32(std / np.sqrt(4 * (256**2 - 1) / 12))
    np.testing.assert_array_equal(out.flatten().numpy(), expected)


@settings(deadline=None)
@given(chunk=st.integers(50, 5000), size=st.integers(1, 4000))
def test_generated_values_do_not_depend_on_chunks(chunk: int, size: int) -> None:
    whole, chunked = torch.empty(size), torch.empty(size)
    draw(whole, "w", 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawn_sums, "_CHUNK", {"cpu": chunk})
        draw(chunked, "w", 0)
    assert torch.equal(whole, chunked)


def test_generated_matrices_are_bell_shaped_with_the_scale_of_their_fan_in() -> None:
    w = torch.empty(512, 1024)
    draw(w, "w", 0)
    z = w * 32
    assert abs(z.mean()) < 0.01
    assert z.std() == pytest.approx(1.0, abs=0.01)
    assert (z.abs() < 1).float().mean() == pytest.approx(0.683, abs=0.02)  # uniform would give 0.577
    assert len(z.unique()) > 900
    rows = torch.corrcoef(w[:64])
    assert (rows - torch.eye(64)).abs().max() < 0.17  # 5 standard deviations of 1/sqrt(1024)


def test_names_and_seeds_give_different_weights() -> None:
    drawn = []
    for name, seed in (("a", 0), ("b", 0), ("a", 1)):
        out = torch.empty(4096)
        draw(out, name, seed)
        drawn.append(out)
    correlation = torch.corrcoef(torch.stack(drawn)) - torch.eye(3)
    assert correlation.abs().max() < 0.08


def test_norms_are_near_one_and_biases_small() -> None:
    norm, bias = torch.empty(4096), torch.empty(4096)
    draw(norm, "norm.weight", 0)
    draw(bias, "q_proj.bias", 0)
    assert norm.mean() == pytest.approx(1.0, abs=0.01)
    assert bias.std() == pytest.approx(0.02, abs=0.001)


def test_generator_refuses_more_elements_than_it_can_count() -> None:
    with pytest.raises(EngineError, match="counts to 2\\^31"):
        draw(torch.empty(1, device="meta").expand(1 << 31), "huge", 0)


def test_a_merged_weight_is_its_parts() -> None:
    plan = compile_model(LLAMA, "bf16", PROFILE, weights_source={"kind": "dummy", "seed": 3}).plan
    name = "model.layers.1.self_attn.qkv_proj.weight"
    merged = assemble(plan, name, DummyWeights(3), CPU)
    parts = [DummyWeights(3).read(part, shape, torch.bfloat16, CPU) for part, shape in plan.weight_recipes[name].inputs]
    assert merged.dtype == torch.bfloat16
    assert torch.equal(merged, torch.cat(parts))


def test_written_safetensors_are_read_by_the_library(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 5), "b": torch.randn(7).bfloat16(), "c": torch.arange(4, dtype=torch.int32)}
    specs = {"a": TensorSpec((3, 5), "fp32"), "b": TensorSpec((7,), "bf16"), "c": TensorSpec((4,), "int32")}
    write_safetensors(tmp_path / "x.safetensors", specs, lambda name: tensors[name])
    loaded = load_file(tmp_path / "x.safetensors")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def sharded(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    names = list(tensors)
    halves = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_few_shards_are_mapped_at_a_time(tmp_path: Path) -> None:
    """A limit of a process's memory counts what is mapped, and a model may be larger."""
    places = {f"w{i}": f"model-{i}.safetensors" for i in range(5)}
    for name, file in places.items():
        save_file({name: torch.full((4,), float(name[1:]))}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    source = SafetensorsWeights(tmp_path)
    assert [source.header(name) for name in places] == [("F32", (4,))] * 5
    for name in [*places, *reversed(places)]:
        assert source.tensor(name).tolist() == [float(name[1:])] * 4
        mapped = {file for file in places.values() if f"{tmp_path}/{file}" in Path("/proc/self/maps").read_text()}
        assert len(mapped) <= 2


def test_a_shard_that_memory_cannot_map_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"w": torch.ones(4)}, tmp_path / "model.safetensors")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(checkpoint_module, "safe_open", full)
    with pytest.raises(EngineError, match="out of memory while reading"), allocating("reading"):
        open_weights(tmp_path)


def test_shards_are_read_by_name(tmp_path: Path) -> None:
    tensors = checkpoint(trace(LLAMA, "fp32", PROFILE))
    sharded(tmp_path, tensors)
    source = open_weights(tmp_path)
    for name, tensor in tensors.items():
        assert torch.equal(source.read(name, tuple(tensor.shape), torch.float32, CPU), tensor)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="not 'dummy' and no such folder"):
        open_weights(tmp_path / "absent")
    with pytest.raises(EngineError, match=r"holds no weights: neither \*\.safetensors nor model\.safetensors\.index\.json"):
        open_weights(tmp_path)
    tensors = {"a.weight": torch.zeros(2, 3), "b.weight": torch.zeros(4)}
    sharded(tmp_path, tensors)
    source = open_weights(tmp_path)
    with pytest.raises(EngineError, match=r"weight c\.weight is missing from .* \(expected shape \[4\]\)"):
        source.read("c.weight", (4,), torch.float32, CPU)
    with pytest.raises(EngineError, match=r"weight a\.weight in .* has shape \[2, 3\] but the model's config\.json asks for \[3, 2\]"):
        source.read("a.weight", (3, 2), torch.float32, CPU)
    (tmp_path / "two.safetensors").write_bytes((tmp_path / "two.safetensors").read_bytes()[:-4])
    with pytest.raises(EngineError, match=r"two\.safetensors is not a whole safetensors file"):
        open_weights(tmp_path)
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(EngineError, match=r"lacks two\.safetensors \(1 of 2 shards are missing\)"):
        open_weights(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(EngineError, match="is not a safetensors index"):
        open_weights(tmp_path)


@pytest.mark.parametrize("quantized", [False, True])
def test_gguf_gives_back_config_and_weights(tmp_path: Path, quantized: bool) -> None:
    tensors = checkpoint(trace(LLAMA, "fp32", PROFILE))
    path = tmp_path / "test-llama.gguf"
    write_gguf(path, tensors, quantized)
    config = resolve_model(path).config
    assert config == LLAMA.__class__.from_dict({**LLAMA.to_dict(), "eos_token_ids": [2]})
    source = GgufWeights(path)
    for name, tensor in tensors.items():
        read = source.read(name, tuple(tensor.shape), torch.float32, CPU)
        if quantized and tensor.dim() == 2:
            assert (read - tensor).abs().max() <= tensor.abs().max() / 127  # one Q8_0 step
        else:
            assert torch.equal(read, tensor)


def test_gguf_of_qwen_is_not_permuted(tmp_path: Path) -> None:
    tensors = checkpoint(trace(LLAMA, "fp32", PROFILE))
    write_gguf(tmp_path / "q.gguf", tensors, quantized=False, architecture="qwen2")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(GgufWeights(tmp_path / "q.gguf").read(name, (64, 64), torch.float32, CPU), tensors[name])


def test_gguf_errors(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"not a gguf file at all")
    with pytest.raises(EngineError, match=r"x\.gguf is not a whole GGUF file"):
        resolve_model(path)
    tensors = checkpoint(trace(LLAMA, "fp32", PROFILE))
    write_gguf(path, tensors, quantized=False, architecture="bloom")
    with pytest.raises(EngineError, match="GGUF architecture 'bloom' is not supported; supported are llama, qwen2, qwen3"):
        resolve_model(path)
    del tensors["model.norm.weight"]
    write_gguf(path, tensors, quantized=False)
    with pytest.raises(EngineError, match=r"weight model\.norm\.weight \(output_norm\.weight in GGUF\) is missing"):
        GgufWeights(path).read("model.norm.weight", (64,), torch.float32, CPU)


@given(heads=st.integers(1, 4), half=st.integers(1, 8), columns=st.integers(1, 3))
def test_unpermute_undoes_permute(heads: int, half: int, columns: int) -> None:
    values = np.arange(heads * 2 * half * columns).reshape(-1, columns)
    np.testing.assert_array_equal(unpermute(permute(values, heads), heads), values)


def test_a_tensor_counts_in_the_file_that_the_index_names(tmp_path: Path) -> None:
    save_file({"a.weight": torch.zeros(2)}, tmp_path / "one.safetensors")
    save_file({"a.weight": torch.ones(2), "b.weight": torch.ones(2)}, tmp_path / "two.safetensors")
    with pytest.raises(EngineError, match=r"a\.weight is in both one\.safetensors and two\.safetensors of .* remove the file"):
        open_weights(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a.weight": "one.safetensors", "b.weight": "one.safetensors", "c.weight": "two.safetensors"}}')
    source = open_weights(tmp_path)
    assert source.read("a.weight", (2,), torch.float32, CPU).tolist() == [0, 0]
    with pytest.raises(EngineError, match=r"b\.weight is missing from one\.safetensors, where model\.safetensors\.index\.json says it is"):
        source.check("b.weight", (2,))
    for path in (index, tmp_path / "one.safetensors"):
        path.unlink()
        path.symlink_to(path.name)
        with pytest.raises(EngineError, match=rf"{path.name} cannot be read \(Too many levels of symbolic links\)"):
            open_weights(tmp_path)
        path.unlink()


def test_pytorch_files_hold_values_and_run_nothing(tmp_path: Path) -> None:
    huge = torch.sparse_coo_tensor(torch.tensor([[1], [1]]), torch.tensor([1.0]), (10**6, 10**6), check_invariants=True)
    torch.save({"a": huge, "b": torch.ones(2, device="meta")}, tmp_path / "pytorch_model.bin")
    source = open_weights(tmp_path)
    with pytest.raises(EngineError, match=r"has shape \[1000000, 1000000\] but"):  # without making it dense
        source.check("a", (2,))
    with pytest.raises(EngineError, match=r"tensor b in .* has a shape but no values"):
        source.check("b", (2,))
    torch.save({"a": torch.ones(2), "b": Path("/")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(EngineError, match="or holds objects other than tensors, which are not loaded since they can run code"):
        open_weights(tmp_path)


@pytest.mark.parametrize("gguf", [False, True])
def test_a_tensor_that_the_model_would_compute_without_is_refused(tmp_path: Path, gguf: bool) -> None:
    tensors = checkpoint(trace(LLAMA, "fp32", PROFILE))
    plan = compile_model(LLAMA, "fp32", PROFILE, weights_source=DummyWeights().description).plan
    module = "model.layers.0.self_attn.q_proj"

    def check(more: dict[str, torch.Tensor]) -> None:
        if gguf:
            write_gguf(tmp_path / "x.gguf", {**tensors, **more}, quantized=False)
        else:
            save_file({**tensors, **more}, tmp_path / "model.safetensors")
        check_weights(open_weights(tmp_path / "x.gguf" if gguf else tmp_path), plan)

    check({})
    with pytest.raises(EngineError, match=r"has a tensor .*q(_proj)?\.bias, which LlamaForCausalLM .* does not read"):
        check({f"{module}.bias": torch.ones(64)})
    if gguf:
        return
    check(
        {
            f"{module}.bias": torch.zeros(64),
            f"{module}.input_scale": torch.ones(1),
            "model.layers.0.self_attn.rotary.inv_freq": torch.ones(2),
        }
    )
    check({"model.layers.0.self_attn.bias": torch.ones(1, 1, 8, 8), "model.layers.99.mlp.up_proj.weight": torch.ones(2, 2)})
    with pytest.raises(EngineError, match=r"has a tensor model\.layers\.0\.self_attn\.q_norm\.weight"):
        check({"model.layers.0.self_attn.q_norm.weight": torch.ones(16)})


def test_an_adapter_is_not_taken_for_a_model_nor_left_out_of_one(tmp_path: Path) -> None:
    adapter = {"base_model.model.lm_head.lora_A.weight": torch.ones(8, 4)}
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file(adapter, tmp_path / "adapter_model.safetensors")
    for weights in ({}, {"lm_head.weight": torch.ones(4, 4)}):
        save_file(weights, tmp_path / "model.safetensors")
        with pytest.raises(EngineError, match=r"holds an adapter \(adapter_config\.json\), which no engine here adds.*; merge the two"):
            open_weights(tmp_path)
