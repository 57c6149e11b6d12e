"""Calibration and fp8 checkpoints: ranges are the definition's, the checkpoint is ModelOpt's layout, and an engine keeps its codes."""

from __future__ import annotations

import json
import math
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from compiler_models import LLAMA, MODELS, PROFILE, int32
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from trtllm_engines.calibration import export, perplexity, ranges, text
from trtllm_engines.calibration.integers import Recipe, quantize_integers
from trtllm_engines.calibration.layerwise import Layerwise, Part
from trtllm_engines.calibration.probe import Probe
from trtllm_engines.calibration.quantize import Quantized, quantize
from trtllm_engines.checkpoints import open_weights
from trtllm_engines.checkpoints.checkpoint import SafetensorsWeights
from trtllm_engines.checkpoints.checkpoint_precision import checkpoint_plan
from trtllm_engines.checkpoints.dummy import draw
from trtllm_engines.compiler.graph import ModelGraph, evaluate, trace
from trtllm_engines.compiler.plan import Profile
from trtllm_engines.engine.build import build
from trtllm_engines.engine.folder import load_engine
from trtllm_engines.errors import EngineError
from trtllm_engines.models.config import ModelConfig, read_config
from trtllm_engines.quantization.scheme import KvScheme

KINDS = ("llama", "qkv bias", "qk norm", "gptj")
SAMPLES = 3


def raw_config(config: ModelConfig) -> dict[str, object]:
    """As Hugging Face spells it."""
    if config.architecture == "GPTJForCausalLM":
        sizes = {
            "n_embd": config.hidden_size,
            "n_head": config.num_heads,
            "n_layer": config.num_layers,
            "n_inner": config.intermediate_size,
        }
        more = {"n_positions": config.max_position_embeddings, "rotary_dim": config.rope.rotary_dim}
        return {"architectures": [config.architecture], "vocab_size": config.vocab_size, **sizes, **more}
    return {
        "architectures": [config.architecture],
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope.theta,
        "tie_word_embeddings": config.tie_embeddings,
    }


def model_folder(folder: Path, kind: str | ModelConfig) -> Path:
    """A model of random weights, fp32, and a dataset beside it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(raw_config(MODELS[kind] if isinstance(kind, str) else kind)))
    graph = trace(read_config(folder), "fp32", PROFILE)
    tensors = {name: torch.empty(shape) for name, shape in graph.checkpoint_shapes.items()}
    for name, tensor in tensors.items():
        draw(tensor, name, 3)
    save_file(tensors, folder / "model.safetensors")
    generator = np.random.default_rng(5)
    lines = [json.dumps({"input_ids": generator.integers(0, LLAMA.vocab_size, n).tolist()}) for n in (40, 17, 64)]
    (folder.parent / "samples.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("quantize") / "model", request.param)


@pytest.fixture(scope="module")
def quantized(model: Path) -> tuple[Path, Quantized]:
    out = model.parent / "fp8"
    return out, quantize(model, out, dataset=model.parent / "samples.jsonl", length=64)


def dense(model: Path) -> tuple[ModelGraph, dict[str, Tensor]]:
    return trace(read_config(model), "fp32", PROFILE), load_file(model / "model.safetensors")


def dense_inputs(ids: Tensor) -> dict[str, Tensor]:
    rows = torch.arange(len(ids), dtype=torch.int32)
    return {"token_ids": ids.int(), "positions": rows, "query_start": int32([0, len(ids)]), "logit_rows": rows}


def samples(model: Path) -> list[Tensor]:
    return [torch.tensor(json.loads(line)["input_ids"]) for line in (model.parent / "samples.jsonl").read_text().splitlines()]


def build_fp8(folder: Path, out: Path, kv_dtype: str = "auto") -> Path:
    return build(folder, "fp8", out=out, kv_dtype=kv_dtype, profile=PROFILE)


# --- calibration ---


def test_ranges_are_the_largest_values_of_the_model_as_written(model: Path, quantized: tuple[Path, Quantized]) -> None:
    graph, tensors = dense(model)
    linears = [node for node in graph.nodes("linear") if "lm_head" not in str(node.args[1].target)]
    attentions = graph.nodes("attention")
    wanted = [*(node.args[0] for node in linears), *(x for node in attentions for x in node.args[1:3])]
    largest = torch.zeros(len(wanted))
    for ids in samples(model):
        values = evaluate(graph, tensors, dense_inputs(ids), wanted)[1:]
        largest = torch.maximum(largest, torch.stack([value.abs().amax() for value in values]))
    found = quantized[1].ranges
    names = [str(node.args[1].target).removesuffix(".weight") for node in linears]
    assert set(found.inputs) == set(names)
    torch.testing.assert_close(torch.tensor([found.inputs[name] for name in names]), largest[: len(names)], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.tensor(list(found.cache.values())), largest[len(names) :], rtol=1e-4, atol=1e-5)
    assert len(found.cache) == 2 * len(attentions)
    assert (quantized[1].windows, quantized[1].tokens) == (SAMPLES, 40 + 17 + 64)


def test_ranges_of_a_text_are_the_largest_of_its_windows(model: Path) -> None:
    def found(ids: list[Tensor]) -> tuple[float, ...]:
        layerwise = Layerwise(read_config(model), open_weights(model), [one.numpy().astype(np.int32) for one in ids], "cpu", exact=True)
        of_text = ranges.measure(layerwise)
        return (*of_text.inputs.values(), *of_text.cache.values())

    alone = [found([ids]) for ids in samples(model)]
    for whole, parts in zip(found(samples(model)), zip(*alone, strict=True), strict=True):
        assert max(parts) == pytest.approx(whole, rel=1e-4)


def test_one_layer_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a model larger than memory can be calibrated."""
    folder = model_folder(tmp_path / "model", "llama")
    alive: list[weakref.ref[Tensor]] = []
    read = Layerwise.read

    def watched(self: Layerwise, part: Part, *dtype: torch.dtype) -> dict[str, Tensor]:
        assert not [one for one in alive if one() is not None], "a layer before is still there"
        tensors = read(self, part, *dtype)
        alive.extend(weakref.ref(tensor) for tensor in tensors.values())
        return tensors

    monkeypatch.setattr(Layerwise, "read", watched)
    monkeypatch.setattr(Probe, "__init__", None)
    quantize(folder, tmp_path / "out", dataset=tmp_path / "samples.jsonl")
    assert len(alive) > 18, "nine weights of each of two layers"


def test_a_tensor_that_the_model_does_not_read_is_named_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left out of the checkpoint it would make another model of it."""
    folder = model_folder(tmp_path / "model", "llama")
    stored = load_file(folder / "model.safetensors")
    save_file({**stored, "model.layers.1.self_attn.q_proj.bias": torch.ones(64)}, folder / "model.safetensors")
    monkeypatch.setattr(Layerwise, "run", None)
    for act in (
        lambda: quantize(folder, tmp_path / "out", dataset=tmp_path / "samples.jsonl"),
        lambda: quantize_integers(folder, tmp_path / "out", Recipe("int8_wo")),
    ):
        with pytest.raises(EngineError, match=r"has a tensor model\.layers\.1\.self_attn\.q_proj\.bias, which Llama.* does not read"):
            act()


# --- the checkpoint ---


def test_the_checkpoint_is_modelopts_layout(model: Path, quantized: tuple[Path, Quantized]) -> None:
    folder, made = quantized
    before, after = load_file(model / "model.safetensors"), load_file(folder / "model.safetensors")
    modules = set(made.ranges.inputs)
    assert made.modules == len(modules)
    for name, tensor in before.items():
        module = name.removesuffix(".weight")
        if module not in modules:
            assert after[name].dtype == torch.bfloat16
            torch.testing.assert_close(after[name], tensor.bfloat16(), rtol=0, atol=0)
            continue
        assert after[name].dtype == torch.float8_e4m3fn
        scale = after[f"{module}.weight_scale"]
        assert scale.shape == after[f"{module}.input_scale"].shape == ()
        assert after[f"{module}.input_scale"].item() == pytest.approx(made.ranges.inputs[module] / 448)
        error = (after[name].float() * scale - tensor).abs()
        assert (error <= tensor.abs() / 16 + scale * 2**-10).all()
    added = set(after) - set(before)
    assert {name for name in added if "k_scale" in name or "v_scale" in name} == set(made.ranges.cache)
    assert all(after[name].item() == pytest.approx(value / 448) for name, value in made.ranges.cache.items())
    said = json.loads((folder / "hf_quant_config.json").read_text())["quantization"]
    assert said == {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    assert read_config(folder).to_dict() | {"name": ""} == read_config(model).to_dict() | {"name": ""}


def test_config_json_alone_says_how_it_is_quantized(quantized: tuple[Path, Quantized], tmp_path: Path) -> None:
    """transformers reads no other file, and without it takes the codes for weights."""
    (tmp_path / "config.json").write_text((quantized[0] / "config.json").read_text())
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["quant_method"] == "modelopt"
    alone, both = checkpoint_plan(tmp_path), checkpoint_plan(quantized[0])
    assert alone is not None
    assert both is not None
    assert (alone.name, alone.kv) == (both.name, both.kv) == ("fp8", KvScheme("fp8", "tensor"))
    modules = ("lm_head", "model.layers.0.mlp.down_proj")
    assert [alone.scheme_of(name) for name in modules] == [both.scheme_of(name) for name in modules]


def test_an_engine_keeps_the_checkpoints_codes_and_scales(quantized: tuple[Path, Quantized], tmp_path: Path) -> None:
    folder, made = quantized
    engine = load_engine(build_fp8(folder, tmp_path / "e"))
    stored, ours = load_file(folder / "model.safetensors"), engine.tensors("cpu")
    quantized_weights = 0
    for name, recipe in engine.plan.weight_recipes.items():
        if engine.plan.weights[name].dtype != "fp8":
            continue
        parts = recipe.inputs
        quantized_weights += len(parts)
        codes = [stored[part].view(torch.uint8) for part, _ in parts]
        assert torch.equal(ours[name].view(torch.uint8), torch.stack(codes, 1).flatten(0, 1) if recipe.interleave else torch.cat(codes))
        scales = {stored[part.removesuffix("weight") + "weight_scale"].item() for part, _ in parts}
        assert len(scales) == 1
        assert ours[f"{name}_scale"].item() == pytest.approx(scales.pop())
    assert quantized_weights == made.modules
    for name, recipe in engine.plan.weight_recipes.items():
        if recipe.kind in ("fp8_input_scale", "kv_scale"):
            sources = [stored[part].item() for part, _ in recipe.inputs]
            assert ours[name].item() == pytest.approx(max(sources))


def test_the_quantized_model_predicts_nearly_what_the_wide_one_does(model: Path, quantized: tuple[Path, Quantized]) -> None:
    ids = [np.asarray(sample, np.int32) for sample in samples(model)]

    def measured(folder: Path, precision: str, kv_dtype: str = "auto", chunk: int = 16) -> float:
        probe = Probe(folder, precision, perplexity.marks, window=64, chunk=chunk, kv_dtype=kv_dtype)
        return perplexity.measure(probe, ids).value

    wide = measured(model, "fp32")
    kinds = {"weights": ("fp32", "auto"), "activations": ("fp8", "bf16"), "cache": ("fp8", "fp8")}
    found = {kind: measured(quantized[0], *types) for kind, types in kinds.items()}
    assert len({wide, *found.values()}) == 4
    for value in found.values():
        assert value == pytest.approx(wide, rel=0.05)
    assert measured(quantized[0], "fp8", "fp8", chunk=64) == pytest.approx(measured(quantized[0], "fp8", "bf16", chunk=64), rel=1e-6)


def test_without_cache_scales_there_are_none(model: Path, tmp_path: Path) -> None:
    made = quantize(model, tmp_path / "out", dataset=model.parent / "samples.jsonl", samples=1, kv_dtype="none")
    assert made.windows == 1
    assert not [name for name in load_file(tmp_path / "out" / "model.safetensors") if name.endswith(("k_scale", "v_scale"))]
    assert json.loads((tmp_path / "out" / "hf_quant_config.json").read_text())["quantization"]["kv_cache_quant_algo"] is None
    build_fp8(tmp_path / "out", tmp_path / "e", "bf16")


def test_a_checkpoint_of_rows_is_kept_by_an_engine_of_rows(model: Path, tmp_path: Path) -> None:
    quantize(model, tmp_path / "out", precision="fp8_rowwise", dataset=model.parent / "samples.jsonl")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert not [name for name in stored if name.endswith("input_scale")]
    said = json.loads((tmp_path / "out" / "hf_quant_config.json").read_text())["quantization"]
    assert said["quant_algo"] == "FP8_PER_CHANNEL_PER_TOKEN"
    engine = load_engine(build(tmp_path / "out", "fp8_rowwise", out=tmp_path / "e", profile=PROFILE))
    ours = engine.tensors("cpu")
    fp8 = [name for name, spec in engine.plan.weights.items() if spec.dtype == "fp8"]
    assert fp8
    for name in fp8:
        recipe = engine.plan.weight_recipes[name]
        codes = [stored[part].view(torch.uint8) for part, _ in recipe.inputs]
        scales = [stored[f"{part}_scale"] for part, _ in recipe.inputs]
        stacked = [torch.stack(one, 1).flatten(0, 1) if recipe.interleave else torch.cat(one) for one in (codes, scales)]
        assert torch.equal(ours[name].view(torch.uint8), stacked[0])
        torch.testing.assert_close(ours[f"{name}_scale"].flatten(), stacked[1])
    wide = perplexity.perplexity(model, "fp32", model.parent / "samples.jsonl", length=64).value
    narrow = perplexity.perplexity(tmp_path / "out", "fp8_rowwise", model.parent / "samples.jsonl", length=64).value
    assert wide != narrow == pytest.approx(wide, rel=0.05)


def test_a_checkpoint_with_compressed_tensors_names_gives_the_same_engine(quantized: tuple[Path, Quantized], tmp_path: Path) -> None:
    """That format's scales are [1], or [out, 1] for rows, and the cache's belong to the attention."""
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text((quantized[0] / "config.json").read_text())
    renamed = {}
    for name, tensor in load_file(quantized[0] / "model.safetensors").items():
        for leaf in ("k", "v"):
            name = name.replace(f".{leaf}_proj.{leaf}_scale", f".{leaf}_scale")
        renamed[name] = tensor.reshape(1) if name.endswith("_scale") else tensor
    save_file(renamed, folder / "model.safetensors")
    engines = [load_engine(build_fp8(path, tmp_path / name)) for path, name in ((quantized[0], "a"), (folder, "b"))]
    first, second = (engine.tensors("cpu") for engine in engines)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name].view(torch.uint8), second[name].view(torch.uint8)) for name in first if first[name].dim())


def test_a_large_checkpoint_is_sharded(
    model: Path, quantized: tuple[Path, Quantized], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "SHARD_BYTES", 20_000)
    quantize(model, tmp_path / "out", dataset=model.parent / "samples.jsonl")
    shards = sorted(tmp_path.glob("out/*.safetensors"))
    assert len(shards) > 2
    assert shards[0].name == f"model-00001-of-{len(shards):05}.safetensors"
    whole = load_file(quantized[0] / "model.safetensors")
    parts = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    assert parts.keys() == whole.keys()
    assert all(torch.equal(parts[name].view(torch.uint8), whole[name].view(torch.uint8)) for name in whole if whole[name].dim())
    source = SafetensorsWeights(tmp_path / "out")
    name = next(iter(whole))
    assert torch.equal(source.read(name, tuple(whole[name].shape), torch.bfloat16, torch.device("cpu")), source.read(
        name, tuple(whole[name].shape), torch.float32, torch.device("cpu")).bfloat16())  # fmt: skip


# --- perplexity ---


def test_perplexity_is_the_definitions(model: Path) -> None:
    graph, tensors = dense(model)
    loss, count = 0.0, 0
    for ids in samples(model):
        logits = evaluate(graph, tensors, dense_inputs(ids))[0]
        loss += float(functional.cross_entropy(logits[:-1], ids[1:], reduction="sum"))
        count += len(ids) - 1
    for chunk in (9, 64):
        found = perplexity.perplexity(model, "fp32", model.parent / "samples.jsonl", length=64, chunk=chunk)
        assert found.value == pytest.approx(math.exp(loss / count), rel=1e-4)
        assert (found.tokens, found.windows) == (count, SAMPLES)


# --- texts ---


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.lists(st.integers(0, 96), max_size=12), min_size=1, max_size=6), st.integers(2, 8), st.integers(1, 4))
def test_windows_of_samples_are_their_beginnings(tmp_path: Path, lines: list[list[int]], length: int, count: int) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("\n\n".join(json.dumps({"input_ids": ids}) for ids in lines))
    expected = [ids[:length] for ids in lines if len(ids) >= 2][:count]
    if not expected:
        with pytest.raises(EngineError, match="holds no text"):
            text.windows(path, None, length=length, vocab_size=97, count=count)
        return
    assert [ids.tolist() for ids in text.windows(path, None, length=length, vocab_size=97, count=count)] == expected


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"input_ids": [1, 2]}\n{"input_ids": [1,', r"d\.jsonl, line 2 is not JSON"),
        ('{"input_ids": [1, 2]}\n[1, 2]', "line 2 should hold a JSON object but holds a list"),
        ('{"tokens": [1, 2]}', "line 1 has neither text nor prompt nor input_ids"),
        ('{"input_ids": [1, true]}', "line 1 has neither"),
        ('{"input_ids": [1, 97]}', "holds token id 97; the model has 0 to 96"),
        ('{"input_ids": [-1, 9]}', "holds token id -1"),
        ('{"text": "hello"}', r"line 1 is text but the model has no tokenizer\.json"),
        ("", "holds no text of 2 tokens"),
    ],
)
def test_a_dataset_that_cannot_be_used_is_one_sentence(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(content)
    with pytest.raises(EngineError, match=says):
        text.windows(path, None, length=8, vocab_size=97)


def test_json_lines_may_be_called_json(tmp_path: Path) -> None:
    """As those of NVIDIA's own tool often are: taken for plain text, they would be calibrated on with all their braces."""
    path = tmp_path / "d.json"
    path.write_text('{"input_ids": [5, 6, 7]}\n{"input_ids": [8, 9]}\n')
    assert [ids.tolist() for ids in text.windows(path, None, length=8, vocab_size=97)] == [[5, 6, 7], [8, 9]]


def test_lines_of_json_end_at_line_feeds_only(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"title": "a\u2028b\u0085c", "input_ids": [5, 6, 7]}\r\n{"input_ids": [8, 9]}\r\n', encoding="utf-8", newline="")
    assert [ids.tolist() for ids in text.windows(path, None, length=8, vocab_size=97)] == [[5, 6, 7], [8, 9]]


def test_a_disk_without_room_is_known_before_the_model_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder(tmp_path / "model", "llama")
    free = shutil.disk_usage(tmp_path)
    needed = (folder / "model.safetensors").stat().st_size // 4  # of numbers of 32 bits
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free._replace(free=needed // 2))
    monkeypatch.setattr(Layerwise, "run", None)
    for act in (
        lambda: quantize(folder, tmp_path / "out", dataset=tmp_path / "samples.jsonl"),
        lambda: quantize_integers(folder, tmp_path / "out", Recipe("int8_sq"), dataset=tmp_path / "samples.jsonl"),
    ):
        with pytest.raises(EngineError, match=r"no space for the checkpoint at .*out: it needs"):
            act()
    layerwise = Layerwise(read_config(folder), open_weights(folder), [], "cpu")
    assert needed * 0.9 < layerwise.stored_bytes(8) < 1.5 * needed


def test_windows_beyond_the_models_positions_are_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", replace(LLAMA, max_position_embeddings=16))
    samples, out = tmp_path / "samples.jsonl", tmp_path / "out"
    for act in (
        lambda: quantize(folder, out, dataset=samples),
        lambda: quantize_integers(folder, out, Recipe("int8_sq"), dataset=samples),
    ):
        with pytest.raises(EngineError, match=r"--calib-seq-len 64 is beyond the 16 positions .* ask for at most 16"):
            act()
    quantize(folder, out, dataset=samples, length=16)


@pytest.mark.parametrize("name", ["d.csv", "d.TSV", "d.parquet"])
def test_a_table_is_not_read_as_a_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("id,text\n1,Once upon a time\n")
    with pytest.raises(EngineError, match=r"is a table, whose rows would be read as one text; give text, or JSON lines"):
        text.windows(tmp_path / name, None, length=8, vocab_size=97)


def test_a_link_as_output_is_followed(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", "one layer")
    (tmp_path / "samples.jsonl").write_text('{"input_ids": [5, 6, 7]}\n')
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    quantize(folder, tmp_path / "out", dataset=tmp_path / "samples.jsonl")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "disk" / "model.safetensors").is_file()


def test_a_folder_that_cannot_be_written_is_known_before_the_model_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder(tmp_path / "model", "one layer")
    (tmp_path / "samples.jsonl").write_text('{"input_ids": [5, 6, 7]}\n')
    monkeypatch.setattr(ranges, "measure", None)
    with pytest.raises(EngineError, match=r"cannot write the checkpoint to .*samples\.jsonl/out"):
        quantize(folder, tmp_path / "samples.jsonl" / "out", dataset=tmp_path / "samples.jsonl")


def test_input_that_cannot_be_quantized_is_one_sentence(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", "one layer")
    dataset = tmp_path / "samples.jsonl"
    with pytest.raises(EngineError, match="tiny-llama is not a Hugging Face folder"):
        quantize("tiny-llama", tmp_path / "out")
    with pytest.raises(EngineError, match=r"model exists and is not empty"):
        quantize(folder, folder, dataset=dataset)
    with pytest.raises(EngineError, match=r"unknown precision 'bf16' for quantization; supported are fp8, fp8_rowwise"):
        quantize(folder, tmp_path / "out", dataset=dataset, precision="bf16")
    with pytest.raises(EngineError, match="unknown KV cache dtype 'int8'"):
        quantize(folder, tmp_path / "out", dataset=dataset, kv_dtype="int8")
    with pytest.raises(EngineError, match="cannot be read"):
        quantize(folder, tmp_path / "out", dataset=tmp_path / "nothing.txt")
    with pytest.raises(EngineError, match="no tokenizer"):
        quantize(folder, tmp_path / "out")
    with pytest.raises(EngineError, match=r"no activation scale .*q_proj\.input_scale.*trtllm-bench quantize"):
        build(folder, "fp8", out=tmp_path / "e", profile=Profile(1, 16, 16, 16))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 4] = float("inf")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(EngineError, match=r"not finite"):
        quantize(folder, tmp_path / "out", dataset=dataset)
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_tensor_that_stays_zero_gets_a_scale_all_the_same(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", "one layer")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.v_proj.weight"].zero_()
    save_file(tensors, folder / "model.safetensors")
    quantize(folder, tmp_path / "out", dataset=tmp_path / "samples.jsonl")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found["model.layers.0.self_attn.v_proj.v_scale"] > 0
    assert found["model.layers.0.self_attn.o_proj.input_scale"] > 0
    assert math.isfinite(perplexity.perplexity(tmp_path / "out", "fp8", tmp_path / "samples.jsonl", length=64).value)


# --- the real model ---


@pytest.mark.model
def test_the_real_model_calibrated_on_the_shipped_text_loses_little(smollm2: Path, tmp_path: Path) -> None:
    """All of fp8 (weights, activations, cache) on one window; docs/facts/precision-and-quality.md has the whole text: 3.6% over bf16."""
    made = quantize(smollm2, tmp_path / "fp8", samples=2, length=128)
    assert (made.modules, made.windows) == (210, 2)
    dataset = Path(__file__).parent / "data" / "pydoc_topics.txt"
    types = {(smollm2, "fp32"): 128, (tmp_path / "fp8", "fp8"): 64}
    wide, narrow = (
        perplexity.perplexity(folder, precision, dataset, count=1, length=128, chunk=chunk).value
        for (folder, precision), chunk in types.items()
    )
    assert wide < narrow < wide * 1.08
