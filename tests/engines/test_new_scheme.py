"""A scheme is one file: this one adds int8 weights with one scale per row and wide inputs, and builds and runs an engine of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compiler_models import MODELS, PROFILE, checkpoint
from hf_folders import hf_folder, logits_of
from torch import Tensor
from torch.fx import Node
from torch.nn import functional

from trtllm_engines.checkpoints import WeightSource
from trtllm_engines.checkpoints.stack import stack
from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.graph import ModelGraph, assign_schemes, call, op_name, quantize_weight, trace
from trtllm_engines.compiler.passes import run_passes
from trtllm_engines.compiler.plan import Plan
from trtllm_engines.compiler.verify import VerifyError, verify
from trtllm_engines.engine.build import build
from trtllm_engines.engine.folder import load_engine
from trtllm_engines.engine.inspect import describe
from trtllm_engines.quantization import named_plan, precisions, registry
from trtllm_engines.quantization.registry import RecipeKind, SchemeDefinition, SharedInputs, register
from trtllm_engines.quantization.scheme import Codes, QuantScheme, WeightRecipe
from trtllm_kernels.dialect import op_spec
from trtllm_kernels.dialect.op_spec import OP_SPECS, OpSpec
from trtllm_kernels.dialect.registry import OPS, dialect_op
from trtllm_kernels.dialect.work import gemm

NAME = "int8_rows"
CODES, SCALE = "int8_rows_codes", "int8_rows_scale"


def _fake(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


SPEC = op_spec.register(
    OpSpec(
        "linear_int8_rows(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias=None) -> Tensor",
        "x @ (weight_scale * weight).T + bias",
        work=gemm,
        kind="gemm",
    )
)


@dialect_op(SPEC.name, fake=_fake)
def linear_int8_rows(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [T, K] times weight_scale [N, 1] * codes [N, K], transposed."""
    return functional.linear(x.float(), weight.float() * weight_scale, None if bias is None else bias.float()).to(x.dtype)


OP = OPS.pop(SPEC.name)
del OP_SPECS[SPEC.name]


def _scale(recipe: WeightRecipe, source: WeightSource, dtype: torch.dtype, device: torch.device) -> Tensor:
    return stack(recipe, source, torch.float32, device).abs().amax(1, keepdim=True) / 127


def _codes(recipe: WeightRecipe, source: WeightSource, dtype: torch.dtype, device: torch.device) -> Tensor:
    return (stack(recipe, source, torch.float32, device) / _scale(recipe, source, dtype, device)).round().to(dtype)


def _quantize_product(graph: ModelGraph, product: Node, scheme: QuantScheme, shared: SharedInputs) -> Node:
    x, weight, bias = product.args[:3]
    assert isinstance(weight, Node)
    assert scheme.weights is not None
    weight_scale = quantize_weight(graph, str(weight.target), scheme.weights, CODES, SCALE)
    return call(graph.fx, "linear_int8_rows", x, weight, weight_scale, bias, label=str(product.meta["label"]))


@pytest.fixture(autouse=True)
def scheme(monkeypatch: pytest.MonkeyPatch) -> SchemeDefinition:
    """Scheme and op, registered for one test."""
    monkeypatch.setitem(OP_SPECS, SPEC.name, SPEC)
    monkeypatch.setitem(OPS, OP.name, OP)
    precisions()
    monkeypatch.setattr(registry, "_SCHEMES", dict(registry._SCHEMES))
    return register(
        SchemeDefinition(
            scheme=QuantScheme(NAME, Codes("int8", "row")),
            wide_dtype="fp32",
            kv_dtype="fp32",
            quantize_product=_quantize_product,
            recipes={CODES: RecipeKind(_codes), SCALE: RecipeKind(_scale, is_scale=True)},
        )
    )


def compiled(model: str) -> Plan:
    return compile_model(MODELS[model], NAME, PROFILE, weights_source={"kind": "dummy", "seed": 0}).plan


@pytest.mark.parametrize("model", ["llama", "every bias", "tied embeddings", "qk norm", "gptj"])
def test_every_product_but_the_head_has_the_codes(model: str) -> None:
    plan = compiled(model)
    products = [op for op in plan.ops if op.op == "linear_int8_rows"]
    assert len(products) == sum(scheme.name == NAME for scheme in plan.schemes.values()) == 4 * MODELS[model].num_layers
    for op in products:
        _, weight, scale, _ = op.inputs
        assert plan.weights[weight].dtype == "int8"
        assert plan.weights[scale].shape == (plan.weights[weight].shape[0], 1)
    assert [op.name for op in plan.ops if op.op in ("linear", "linear_sample")] == ["lm_head"]
    assert Plan.from_json(plan.to_json()).schemes == plan.schemes


def test_an_engine_runs_near_the_wide_one(tmp_path: Path) -> None:
    tensors = checkpoint(trace(MODELS["llama"], "fp32", PROFILE))
    model = hf_folder(tmp_path / "model", tensors)
    wide = logits_of(build(model, "fp32", out=tmp_path / "wide", profile=PROFILE))
    folder = build(model, NAME, out=tmp_path / "int8", profile=PROFILE)
    ours = logits_of(folder)
    assert not torch.equal(wide, ours)
    # a code errs by half a step of 1/127 of its row's largest, some 0.7% of a bell-shaped weight's standard deviation
    assert (ours - wide).norm() / wide.norm() < 0.03
    rounded = {
        name: (tensor / (step := tensor.abs().amax(1, keepdim=True) / 127)).round() * step if "_proj" in name else tensor
        for name, tensor in tensors.items()
    }
    exact = logits_of(build(hf_folder(tmp_path / "rounded", rounded), "fp32", out=tmp_path / "exact", profile=PROFILE))
    torch.testing.assert_close(ours, exact, atol=1e-4, rtol=1e-4)
    assert load_engine(folder).tensors("cpu")["model.layers.0.mlp.down_proj.weight"].dtype == torch.int8
    (head, layers) = sorted(describe(folder)["quantization"]["schemes"], key=lambda row: row["count"])
    assert (head["scheme"], head["products"]) == ("fp32", ["lm_head"])
    assert (layers["weights"], layers["inputs"], layers["count"]) == ("int8, one scale per row", "wide", 12)


def test_verifier_refuses_codes_without_the_scales_of_their_scheme() -> None:
    def graph() -> ModelGraph:
        made = trace(MODELS["llama"], "fp32", PROFILE)
        assign_schemes(made, named_plan(NAME))
        run_passes(made)
        assert {"linear_int8_rows", "linear_sample"} <= {op_name(node) for node in made.fx.nodes}
        return made

    wrong = graph()
    product = wrong.nodes("linear_int8_rows")[0]
    product.update_arg(2, wrong.nodes("linear_int8_rows")[1].args[2])
    with pytest.raises(
        VerifyError, match=r"linear_int8_rows 'model\.layers\.0\.self_attn\.qkv_proj' has scales .*\(64, 1\).* where int8_rows has"
    ):
        verify(wrong, "test")
