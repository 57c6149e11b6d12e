"""Checkpoints of integers: the algorithms against direct references, the layout against a decoder written from its definition."""

from __future__ import annotations

import json
import resource
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from compiler_models import LLAMA, MODELS, PROFILE
from safetensors.torch import load_file
from test_quantize import dense_inputs, model_folder, samples
from torch import Tensor

from trtllm_engines.calibration import packed, perplexity
from trtllm_engines.calibration.folds import Fold, fold_of
from trtllm_engines.calibration.gptq import ActOrder, best_damping, gptq
from trtllm_engines.calibration.grid import Grid
from trtllm_engines.calibration.integers import Integers, Recipe, _Job, named, quantize_integers
from trtllm_engines.calibration.layerwise import Layerwise
from trtllm_engines.calibration.new_folder import write_config
from trtllm_engines.calibration.probe import Probe
from trtllm_engines.calibration.search import Statistics, awq, clipped, output_error, smooth
from trtllm_engines.checkpoints import open_weights
from trtllm_engines.compiler.graph import evaluate, trace
from trtllm_engines.errors import EngineError
from trtllm_engines.models.config import read_config

ROWS, COLUMNS, TOKENS = 24, 64, 200


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    """[TOKENS, COLUMNS] that depend on one another, a few columns far larger than the rest, as a transformer's are."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(TOKENS, COLUMNS, generator=generator) @ torch.randn(COLUMNS, COLUMNS, generator=generator) / 8
    x[:, ::17] *= 12
    return x


@pytest.fixture(scope="module")
def weight() -> Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(2))


def statistics(x: Tensor) -> Statistics:
    return Statistics(x.T @ x / len(x), x.abs().mean(0), x.abs().amax(0), x)


# --- the grid ---


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_is_to_the_nearest_code(weight: Tensor, bits: int, symmetric: bool) -> None:
    """Half a step; at a group's ends up to half a step more, since a symmetric grid is cut there and a zero point is a whole number."""
    grid = Grid(bits, 16, symmetric)
    rounded = grid.nearest(weight)
    steps = (rounded.values() - weight).abs() / rounded.scales.scale.repeat_interleave(16, 1)
    assert (int(rounded.codes.min()), int(rounded.codes.max())) == (grid.lowest, grid.highest) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert steps.max() <= 1 + 2.0 ** (bits - 9)
    inside = (rounded.codes > grid.lowest) & (rounded.codes < grid.highest)
    assert steps[inside].max() <= 0.5 + 1e-4
    assert torch.equal(rounded.scales.scale, rounded.scales.scale.bfloat16().float())


# --- GPTQ ---


def obq(weight: Tensor, gram: Tensor, grid: Grid, order: list[int], damping: float) -> Tensor:
    """Optimal brain quantization in a given order, as its paper writes it: the inverse of what is left, made anew for every column."""
    scales = grid.fit(weight)
    gram = gram.double() + damping * gram.diagonal().double().mean() * torch.eye(len(gram), dtype=torch.float64)
    rest, done = weight.double().clone(), torch.zeros_like(weight, dtype=torch.float64)
    for place, column in enumerate(order):
        group = column // grid.size(weight.shape[1])
        scale, zero = scales.scale[:, group].double(), None if scales.zero is None else scales.zero[:, group].double()
        code = grid.codes(rest[:, column], scale, zero)
        done[:, column] = scale * (code if zero is None else code - zero)
        left = order[place:]
        inverse = torch.linalg.inv(gram[left][:, left])
        error = (rest[:, column] - done[:, column]) / inverse[0, 0]
        rest[:, left] -= error[:, None] * inverse[0]
    return done.float()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [0, 16])
def test_gptq_is_optimal_brain_quantization(weight: Tensor, inputs: Tensor, group: int, symmetric: bool) -> None:
    grid, gram = Grid(4, group, symmetric), inputs.T @ inputs / TOKENS
    order = gram.diagonal().argsort(descending=True, stable=True).tolist()
    ours = gptq(weight, gram, grid, act_order="static", damping=0.01)
    assert ours.group_of is None
    torch.testing.assert_close(ours.values(), obq(weight, gram, grid, order, 0.01), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("act_order", ["none", "static", "group"])
def test_gptq_is_nearer_than_rounding_to_nearest(weight: Tensor, inputs: Tensor, act_order: ActOrder) -> None:
    grid, gram = Grid(4, 16), inputs.T @ inputs / TOKENS
    ours = gptq(weight, gram, grid, act_order=act_order)
    assert output_error(weight, ours.values(), gram) < 0.8 * output_error(weight, grid.rounded(weight), gram)


def test_groups_of_act_order_hold_columns_of_like_weight(weight: Tensor, inputs: Tensor) -> None:
    grid, gram = Grid(4, 16), inputs.T @ inputs / TOKENS
    ours = gptq(weight, gram, grid, act_order="group")
    assert ours.group_of is not None
    order = gram.diagonal().argsort(descending=True, stable=True)
    assert ours.group_of[order].tolist() == [place // 16 for place in range(COLUMNS)]
    assert ((ours.values() - weight).abs() / ours.scales.scale[:, ours.group_of]).median() < 1


def test_columns_that_nothing_feeds_are_no_obstacle(weight: Tensor, inputs: Tensor) -> None:
    silent = inputs.clone()
    silent[:, 5] = 0
    gram = silent.T @ silent / TOKENS
    ours = gptq(weight, gram, Grid(4, 16))
    assert not ours.codes[:, 5].any()
    assert torch.isfinite(ours.values()).all()
    with pytest.raises(EngineError, match="inputs of a product are not finite"):
        gptq(weight, gram * float("nan"), Grid(4, 16))


def test_damping_grows_where_a_text_is_short() -> None:
    """With 64 tokens for 128 columns, making up for errors on them with the paper's damping does more harm on other texts than good."""

    def moments(tokens: int, seed: int) -> Tensor:
        mix = torch.randn(128, 128, generator=torch.Generator().manual_seed(9))
        x = torch.randn(tokens, 128, generator=torch.Generator().manual_seed(seed)) * torch.logspace(0, -0.5, 128) @ mix
        return x.T @ x / tokens

    grid, weight, known = Grid(4, 32), torch.randn(64, 128, generator=torch.Generator().manual_seed(1)), moments(8192, 7)
    error = {"nearest": output_error(weight, grid.rounded(weight), known)}
    for tokens in (64, 2048):
        half, other = moments(tokens // 2, 3), moments(tokens // 2, 4)
        gram = (half + other) / 2
        chosen = best_damping(weight, gram, half, 0.5, grid)
        assert chosen >= 1 if tokens == 64 else chosen <= 0.1
        for name, damping in (("fixed", 0.01), ("chosen", chosen)):
            error[f"{name} {tokens}"] = output_error(weight, gptq(weight, gram, grid, damping=damping).values(), known)
    assert error["chosen 64"] < error["nearest"] < error["fixed 64"]
    assert error["chosen 2048"] < 0.7 * error["nearest"]


def test_damping_is_found_by_trial_unless_it_is_given(model: Path, tmp_path: Path) -> None:
    found, _, _ = written(model, tmp_path / "found", precision="int4", method="gptq", group_size=16)
    given, _, _ = written(model, tmp_path / "given", precision="int4", method="gptq", group_size=16, damping=0.01)
    assert "q_proj" in {name.rpartition(".")[2] for name in found.dampings} < {name.rpartition(".")[2] for name in found.errors}
    assert set(found.dampings.values()) <= {0.01, 0.1, 1.0, 10.0}
    assert given.dampings == {}


# --- AWQ, SmoothQuant ---


def test_awq_does_no_worse_than_rounding_to_nearest(weight: Tensor, inputs: Tensor) -> None:
    grid, known = Grid(4, 16), statistics(inputs)
    found = awq([weight], known, grid, Fold((), COLUMNS))
    assert found.factors is not None
    before, after = weight @ inputs.T, (grid.rounded(weight * found.factors) / found.factors) @ inputs.T
    assert (after - before).square().sum() == pytest.approx(found.loss * TOKENS, rel=1e-3)
    assert (grid.rounded(weight) @ inputs.T - before).square().sum() == pytest.approx(found.loss_before * TOKENS, rel=1e-3)
    assert found.loss < 0.7 * found.loss_before
    few = replace(known, sample=inputs[:32])
    found = awq([weight], few, grid, Fold((), COLUMNS))
    assert found.factors is not None
    after = (grid.rounded(weight * found.factors) / found.factors) @ inputs[:32].T
    assert (after - before[:, :32]).square().sum() == pytest.approx(found.loss * 32, rel=1e-3), "inputs wider than the sample"
    level = statistics(torch.eye(COLUMNS))
    assert awq([weight.sign()], level, grid, Fold((), COLUMNS)).factors is None, "a weight that is on the grid stays there"


def test_a_shrunk_scale_does_no_worse_by_its_groups(weight: Tensor) -> None:
    grid, gram = Grid(4, 16), torch.eye(COLUMNS)
    heavy = weight.clone()
    heavy[:, ::16] *= 3
    shrunk = grid.nearest(heavy, clipped(heavy, gram, grid)).values() - heavy
    plain = grid.rounded(heavy) - heavy
    by_group = [error.square().view(ROWS, -1, 16).sum(2) for error in (shrunk, plain)]
    assert (by_group[0] <= by_group[1] + 1e-6).all()
    assert by_group[0].sum() < 0.95 * by_group[1].sum()


def test_smoothquant_makes_the_rounded_product_nearer(weight: Tensor, inputs: Tensor) -> None:
    found = smooth([weight], statistics(inputs), Grid(8), Fold((), COLUMNS))
    assert found.factors is not None
    assert 0 < found.alpha < 1
    assert found.loss < 0.5 * found.loss_before


def test_factors_are_shared_by_the_heads_of_one_value_head() -> None:
    fold = Fold((), block=2, copies=3)
    factors = torch.tensor([1.0, 2.0, 3.0, 4.0])
    spread = fold.spread(factors)
    assert spread.tolist() == [1, 2, 1, 2, 1, 2, 3, 4, 3, 4, 3, 4]
    assert torch.equal(fold.rows(spread), factors)
    assert fold.shared(torch.arange(12.0)).tolist() == [4, 5, 10, 11]


# --- a layer at a time ---


@pytest.fixture(scope="module", params=["llama", "gptj"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("integers") / "model", request.param)


def test_layers_one_by_one_are_the_whole_model(model: Path) -> None:
    config, ids = read_config(model), samples(model)[:2]
    run = Layerwise(config, open_weights(model), [one.numpy().astype(np.int32) for one in ids], "cpu")
    assert [part.layer for part in run.parts] == [None, *range(config.num_layers), None]
    for part in run.parts[:-1]:
        run.enter(part, run.run(part, run.read(part)))
    logits = run.run(run.parts[-1], run.read(run.parts[-1]))
    graph, tensors = trace(config, "fp32", PROFILE), load_file(model / "model.safetensors")
    for ours, window in zip(logits, ids, strict=True):
        torch.testing.assert_close(ours.float(), evaluate(graph, tensors, dense_inputs(window))[0], rtol=0.05, atol=0.05)


def test_factors_go_where_they_are_exact(model: Path) -> None:
    graph = trace(read_config(model), "fp32", PROFILE)
    products = graph.nodes("linear")[:-1]
    folds = {str(one.args[1].target).split(".")[-2]: fold_of(one.args[0], 1, set(products)) for one in products}  # type: ignore[union-attr, arg-type]
    if MODELS["gptj"].architecture == read_config(model).architecture:
        layer = f"transformer.h.{read_config(model).num_layers - 1}"
        norm = (f"{layer}.ln_1.weight", f"{layer}.ln_1.bias")
        assert {name: fold and fold.divided for name, fold in folds.items()} == {
            **dict.fromkeys(("q_proj", "k_proj", "v_proj", "fc_in"), norm),
            "out_proj": (f"{layer}.attn.v_proj.weight",),
            "fc_out": None,
        }
        return
    layer = f"model.layers.{read_config(model).num_layers - 1}"
    assert {name: fold and fold.divided for name, fold in folds.items()} == {
        **dict.fromkeys(("q_proj", "k_proj", "v_proj"), (f"{layer}.input_layernorm.weight",)),
        "o_proj": (f"{layer}.self_attn.v_proj.weight",),
        **dict.fromkeys(("gate_proj", "up_proj"), (f"{layer}.post_attention_layernorm.weight",)),
        "down_proj": (f"{layer}.mlp.up_proj.weight",),
    }


# --- the checkpoint ---

Words = npt.NDArray[np.int64]


def bits_of(words: Words, bits: int, count: int) -> Words:
    """The first `count` unsigned fields of each row of 32-bit words, lowest bits first."""
    fields = [((words & 0xFFFFFFFF) >> shift) & ((1 << bits) - 1) for shift in range(0, 32, bits)]
    return np.stack(fields, -1).reshape(len(words), -1)[:, :count]


def decoded(stored: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a checkpoint of compressed-tensors, by the format's definition."""
    (group,) = config["config_groups"].values()
    bits = group["weights"]["num_bits"]
    weights: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "weight_packed":
            rows, columns = stored[f"{module}.weight_shape"].tolist()
            scale = stored[f"{module}.weight_scale"].float().numpy()
            codes = bits_of(tensor.numpy().astype(np.int64), bits, columns) - 2 ** (bits - 1)
            of = np.arange(columns) // (columns // scale.shape[1])
            if f"{module}.weight_g_idx" in stored:
                of = stored[f"{module}.weight_g_idx"].numpy()
            if f"{module}.weight_zero_point" in stored:
                zero = bits_of(stored[f"{module}.weight_zero_point"].numpy().T.astype(np.int64), bits, rows).T - 2 ** (bits - 1)
                codes = codes - zero[:, of]
            weights[f"{module}.weight"] = torch.from_numpy(codes * scale[:, of]).float()
        elif tensor.dtype == torch.int8:
            weights[name] = tensor.float() * stored[f"{module}.weight_scale"].float()
        elif not leaf.startswith("weight_"):
            weights[name] = tensor.float()
    return weights


def written(model: Path, out: Path, **asked: Any) -> tuple[Integers, dict[str, Tensor], dict[str, Any]]:
    made = quantize_integers(model, out, Recipe(**asked), dataset=model.parent / "samples.jsonl", length=64)
    stored = {name: tensor for path in out.glob("*.safetensors") for name, tensor in load_file(path).items()}
    return made, stored, json.loads((out / "config.json").read_text())["quantization_config"]


def test_config_json_says_what_numbers_are_not_codes(tmp_path: Path) -> None:
    """Under either of transformers' names: what it takes `dtype: float16` for would be read as other numbers than were written."""
    for number, before in enumerate(({"torch_dtype": "float16"}, {"dtype": "float16"})):
        folder = tmp_path / str(number)
        folder.mkdir()
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **before}))
        write_config(tmp_path, folder, {"quant_method": "modelopt"})
        after = json.loads((folder / "config.json").read_text())
        assert {after[name] for name in ("dtype", "torch_dtype") if name in after} == {"bfloat16"}
        assert (after["model_type"], after["quantization_config"]) == ("llama", {"quant_method": "modelopt"})


LARGEST_ERROR = {"int4": 0.17, "int8_wo": 0.012, "int8_sq": 0.012, "w4a8": 0.17}


@pytest.mark.parametrize(
    "asked",
    [
        {"precision": "int4", "group_size": 16},
        {"precision": "int4", "group_size": 16, "symmetric": False, "method": "awq"},
        {"precision": "int4", "group_size": 16, "symmetric": False, "method": "gptq", "act_order": "group"},
        {"precision": "int8_wo"},
        {"precision": "int8_sq"},
        {"precision": "w4a8", "group_size": 16, "method": "rtn"},
    ],
    ids=lambda asked: "-".join(str(value) for value in asked.values()),
)
def test_a_checkpoint_means_nearly_what_the_model_did(model: Path, tmp_path: Path, asked: dict[str, Any]) -> None:
    made, stored, config = written(model, tmp_path / "out", **asked)
    before, after = load_file(model / "model.safetensors"), decoded(stored, config)
    assert after.keys() == before.keys()
    graph = trace(read_config(model), "fp32", PROFILE)
    window = dense_inputs(samples(model)[0])
    ours, theirs = (evaluate(graph, tensors, window)[0] for tensors in (after, before))
    assert (ours - theirs).norm() / theirs.norm() < 3 * LARGEST_ERROR[asked["precision"]]
    assert all(error.weight < LARGEST_ERROR[asked["precision"]] for error in made.errors.values())
    assert set(made.errors) == {name.rpartition(".")[0] for name in stored if name.endswith("weight_scale")}
    read_config(tmp_path / "out")


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose weights divide into the tiles that an engine stores codes in."""
    config = replace(LLAMA, hidden_size=64, intermediate_size=128, num_heads=2, num_kv_heads=1, head_dim=32, num_layers=1)
    return model_folder(tmp_path_factory.mktemp("tiled") / "model", config)


@pytest.mark.parametrize(
    "asked",
    [
        {"precision": "int4", "group_size": 16},
        {"precision": "int4", "group_size": 32, "symmetric": False, "method": "gptq", "act_order": "group"},
        {"precision": "int8_wo"},
        {"precision": "int8_sq"},
        {"precision": "w4a8", "group_size": 32, "method": "rtn"},
    ],
    ids=lambda asked: "-".join(str(value) for value in asked.values()),
)
def test_an_engine_computes_what_the_checkpoint_means(tiled: Path, tmp_path: Path, asked: dict[str, Any]) -> None:
    """Logits by the engine, whose activations are bf16 (or 8 bits), are those of the decoded weights, and not those of the wide model."""
    _, stored, config = written(tiled, tmp_path / "out", **asked)
    graph, window = trace(read_config(tiled), "fp32", PROFILE), samples(tiled)[0]
    meant, wide = (
        evaluate(graph, tensors, dense_inputs(window))[0] for tensors in (decoded(stored, config), load_file(tiled / "model.safetensors"))
    )
    probe = Probe(tmp_path / "out", asked["precision"], perplexity.marks, window=len(window), kv_dtype="bf16")
    ((states,),) = (tuple(outputs.values()) for outputs in probe.run(window.numpy().astype(np.int32)))
    ours = states.float() @ load_file(tmp_path / "out" / "model.safetensors")["lm_head.weight"].float().T
    error, moved = ((ours - other).norm() / other.norm() for other in (meant, wide))
    assert error < {"int4": 0.01, "int8_wo": 0.01, "int8_sq": 0.02, "w4a8": 0.08}[asked["precision"]]
    assert moved > (0.1 if "4" in asked["precision"] else 0.005)


@torch.inference_mode()
def test_factors_change_nothing_but_the_rounding(model: Path) -> None:
    """With AWQ's factors in place and nothing rounded yet, a model computes what it did before."""
    config, windows = read_config(model), [one.numpy().astype(np.int32) for one in samples(model)]
    run = Layerwise(config, open_weights(model), windows, "cpu")
    recipe = Recipe("int4", "awq", 16)
    job = _Job(run, recipe.layout(), "awq", recipe)
    graph, before = trace(config, "fp32", PROFILE), load_file(model / "model.safetensors")
    scaled = dict(before)
    for part in run.parts[:-1]:
        tensors = run.read(part)
        if part.layer is not None:
            by_input = job._by_input(part)
            job._scale(by_input, tensors, job._measure(part, tensors, list(by_input)))
            scaled |= tensors
        run.enter(part, run.run(part, tensors))
    moved = [name for name in before if not torch.equal(before[name], scaled[name])]
    assert len(moved) > config.num_layers
    window = dense_inputs(samples(model)[0])
    after, wide = (evaluate(graph, tensors, window)[0] for tensors in (scaled, before))
    torch.testing.assert_close(after, wide, rtol=1e-4, atol=1e-4)


def test_the_layout_says_what_readers_need(model: Path, tmp_path: Path) -> None:
    """As llm-compressor writes W4A16 with act-order, W8A8 and W4AFP8."""
    _, stored, config = written(model, tmp_path / "a", precision="int4", group_size=32, method="gptq", act_order="group")
    (group,) = config["config_groups"].values()
    assert (config["quant_method"], config["format"], config["ignore"]) == ("compressed-tensors", "pack-quantized", ["lm_head"])
    assert group["targets"] == ["Linear"]
    assert group["weights"] | {"type": "int", "strategy": "group", "group_size": 32, "actorder": "group"} == group["weights"]
    name = next(name for name in stored if name.endswith("q_proj.weight_packed")).removesuffix("_packed")
    rows, columns = stored[f"{name}_shape"].tolist()
    assert stored[f"{name}_packed"].shape == (rows, columns // 8)
    assert stored[f"{name}_packed"].dtype == stored[f"{name}_g_idx"].dtype == torch.int32
    assert stored[f"{name}_scale"].shape == (rows, columns // 32)
    assert stored[f"{name}_scale"].dtype == torch.bfloat16
    _, stored, config = written(model, tmp_path / "b", precision="int8_sq")
    (group,) = config["config_groups"].values()
    assert config["format"] == "int-quantized"
    assert group["input_activations"] == {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    assert (stored[name].dtype, stored[f"{name}_scale"].shape) == (torch.int8, (rows, 1))
    _, _, config = written(model, tmp_path / "c", precision="w4a8", group_size=32, method="rtn")
    (group,) = config["config_groups"].values()
    assert group["input_activations"]["type"] == "float"
    assert group["format"] == config["format"] == "pack-quantized"  # compressed-tensors 0.20 loads no W4AFP8 without the group's own


def test_shards_are_named_when_their_number_is_known(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, whole, _ = written(model, tmp_path / "one", precision="int8_wo")
    monkeypatch.setattr(packed, "SHARD_BYTES", 20_000)
    _, parts, _ = written(model, tmp_path / "many", precision="int8_wo")
    shards = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert len(shards) > 2
    assert shards == [f"model-{number + 1:05}-of-{len(shards):05}.safetensors" for number in range(len(shards))]
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(index) == set(parts) == set(whole)
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_what_cannot_be_quantized_is_one_sentence(model: Path, tmp_path: Path) -> None:
    def refused(says: str, **asked: Any) -> None:
        with pytest.raises(EngineError, match=says):
            quantize_integers(model, tmp_path / "out", Recipe(**asked), dataset=model.parent / "samples.jsonl")

    refused(r"weight \S+proj.weight has 64 columns, which groups of 128 do not divide; choose --group-size 64 or 32", precision="int4")
    refused("unknown method 'smoothquant' for int4; supported are awq, gptq, rtn", precision="int4", method="smoothquant")
    refused("group size is 48; it must be 16, 32, 64, 128, or 0", precision="int4", group_size=48)
    refused("int8_sq has one scale per row", precision="int8_sq", group_size=32)
    refused("w4a8 has symmetric weights", precision="w4a8", symmetric=False)
    refused("unknown act-order 'yes'", precision="int4", act_order="yes")
    refused("damping is -1", precision="int4", damping=-1)
    assert not list(tmp_path.iterdir())


def test_a_name_of_nvidias_says_precision_and_method() -> None:
    assert [named(name) for name in ("W4A16_AWQ", "int4_gptq", "W4A8_AWQ", "W8A16", "int4", "fp8")] == [
        ("int4", "awq"),
        ("int4", "gptq"),
        ("w4a8", "awq"),
        ("int8_wo", None),
        ("int4", None),
        ("fp8", None),
    ]


def test_an_interrupted_run_leaves_nothing(model: Path, tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_integers(model, tmp_path / "out", Recipe("int8_wo"), progress=stop)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_sentence(model: Path, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(EngineError, match=r"cannot write the checkpoint to .*out \(File too large\); choose another output folder"):
            quantize_integers(model, tmp_path / "out", Recipe("int8_wo"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
