"""Checkpoints that quantizing tools wrote (`data/quantized`): engines of them give what transformers gives of their decoded weights."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from compiler_models import PROFILE, int32
from quantized_checkpoints import FOLDER, NAMES, dense
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from trtllm_engines.checkpoints import open_weights
from trtllm_engines.checkpoints.checkpoint_precision import default_precision, plan_for
from trtllm_engines.checkpoints.write import assemble, check_weights
from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.plan import Plan
from trtllm_engines.models.config import read_config
from trtllm_engines.quantization.scheme import KvScheme, QuantPlan, QuantScheme
from trtllm_engines.runtime.cpu import CpuRunner
from trtllm_engines.runtime.inputs import StepSizes

TOKENS = torch.arange(7, 7 + 16) * 5 % 64
SCHEMES = {
    "autoround-awq4": ("int4", "int4, one scale per group of 32 with a zero point"),
    "autoround-fp8-static": ("fp8_rowwise", "fp8, one scale per row"),
    "autoround-gptq3": ("int4", "int4, one scale per group of 32"),
    "autoround-gptq4-asym": ("int4", "int4, one scale per group of 32 with a zero point"),
    "autoround-gptq4-partial-group": ("int4", "int4, one scale per row"),
    "autoround-gptq8": ("int8_wo", "int8, one scale per group of 32"),
    "autoround-int8-w8a8": ("int8_sq", "int8, one scale per row"),
    "autoround-nvfp4": ("nvfp4_wo", "fp4, one scale per group of 16"),
    "bitsandbytes-int8": ("int8_wo", "int8, one scale per row"),
    "bitsandbytes-nf4-double": ("nf4", "nf4, one scale per group of 64"),
    "bitsandbytes-nf4-words": ("nf4", "nf4, one scale per group of 64"),
    "llmcompressor-embedding": ("mixed", "int4, one scale per group of 32"),
    "llmcompressor-fp8-block": ("fp8_block", "fp8, one scale per block of 32 x 32"),
    "llmcompressor-mixed": ("mixed", "int4, one scale per group of 32"),
    "llmcompressor-mxfp4a16": ("mxfp4_wo", "fp4, one scale per group of 32"),
    "llmcompressor-nvfp4a16": ("nvfp4_wo", "fp4, one scale per group of 16"),
    "llmcompressor-w3a16": ("int4", "int4, one scale per group of 32 with a zero point"),
    "llmcompressor-w4a16": ("int4", "int4, one scale per group of 32"),
    "llmcompressor-w4a16-asym-gptq": ("int4", "int4, one scale per group of 32 with a zero point"),
    "llmcompressor-w4afp8": ("w4a8", "int4, one scale per group of 32"),
    "llmcompressor-w8a16": ("int8_wo", "int8, one scale per row"),
    "llmcompressor-w8a8-smooth": ("int8_sq", "int8, one scale per row"),
    "modelopt-int4-awq": ("int4", "int4, one scale per group of 32"),
    "modelopt-int8-sq": ("int8_sq", "int8, one scale per row"),
    "modelopt-mixed": ("mixed", "fp8, one scale per tensor"),
    "modelopt-nvfp4": ("nvfp4_wo", "fp4, one scale per group of 16"),
    "modelopt-w4a8-awq": ("w4a8", "int4, one scale per group of 32"),
}
"""Precision that each checkpoint states, and the weights of its query projection."""


@cache
def expected(name: str) -> Tensor:
    """Logits [16, vocabulary] of transformers over the decoded weights, in fp32."""
    config = LlamaConfig.from_pretrained(FOLDER / name)
    del config.quantization_config
    model = LlamaForCausalLM(config).float()
    missing, unexpected = model.load_state_dict(dense(name), strict=False)
    assert [one for one in missing if one != "lm_head.weight"] == []
    assert [one for one in unexpected if not one.endswith(("input_scale", "k_scale", "v_scale"))] == []
    model.tie_weights()
    with torch.inference_mode():
        return model(TOKENS[None]).logits[0]


def in_fp32(plan: QuantPlan) -> QuantPlan:
    """The same codes between activations in fp32."""
    wide = QuantScheme("fp32")
    rules = tuple(replace(rule, scheme=wide) if rule.scheme.weights is None else rule for rule in plan.rules)
    return replace(plan, wide_dtype="fp32", kv=KvScheme("fp32"), rules=rules)


def compiled(name: str | Path, quant: QuantPlan) -> Plan:
    source = open_weights(FOLDER / name)
    plan = compile_model(read_config(FOLDER / name), quant, PROFILE, weights_source=source.description).plan
    check_weights(source, plan)
    return plan


def logits(name: str | Path, quant: QuantPlan) -> Tensor:
    plan, source = compiled(name, quant), open_weights(FOLDER / name)
    tensors = {weight: assemble(plan, weight, source, torch.device("cpu")) for weight in plan.weights}
    from trtllm_engines.models.rope import cos_sin_table

    tensors |= {"rope.cos_sin": cos_sin_table(plan.config.rope, PROFILE.max_seq_len)}
    runner = CpuRunner(plan, tensors, num_pages=8)
    values = {"context_tokens": TOKENS.int(), "seq_slots": int32([0]), "query_start": int32([0, 16]), "kv_lens": int32([16])}
    for key, value in {**values, "logit_rows": torch.arange(4, dtype=torch.int32) * 5}.items():
        runner.state.tensors[key][: len(value)] = value
    runner.state.block_table[0] = torch.arange(1, PROFILE.max_pages_per_seq + 1)
    return runner.forward(StepSizes(16, 1, 0, 4, 16, 0, 0))["logits"]


def stated(name: str) -> QuantPlan:
    return plan_for(FOLDER / name, SCHEMES[name][0])


def test_every_checkpoint_is_tried() -> None:
    assert sorted(SCHEMES) == NAMES


@pytest.mark.parametrize("name", SCHEMES)
def test_engine_gives_what_transformers_gives_of_the_decoded_weights(name: str) -> None:
    precision, weights = SCHEMES[name]
    plan = stated(name)
    assert plan.name == default_precision(FOLDER / name, gpu=False) == precision
    assert str(plan.scheme_of("model.layers.0.self_attn.q_proj").weights) == weights
    reference = expected(name)[::5]
    torch.testing.assert_close(logits(name, plan_for(FOLDER / name, "fp32")), reference, atol=2e-5, rtol=1e-4)
    if any(rule.scheme.inputs.dtype for rule in plan.rules):
        assert functional.cosine_similarity(logits(name, plan).float(), reference).min() > 0.99
    else:
        torch.testing.assert_close(logits(name, in_fp32(plan)), reference, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("engine", "weights"), [("modelopt-int4-awq", "llmcompressor-w4a16"), ("modelopt-int8-sq", "llmcompressor-w8a16")])
def test_an_engine_that_multiplies_inputs_by_factors_takes_weights_that_have_none(engine: str, weights: str) -> None:
    """As a refit gives them: their codes stay, and the factors are 1."""
    quant = stated(engine)
    assert any(rule.scheme.inputs.factored for rule in quant.rules)
    if engine == "modelopt-int4-awq":
        torch.testing.assert_close(logits(weights, in_fp32(quant)), expected(weights)[::5], atol=2e-5, rtol=1e-4)
    else:
        assert functional.cosine_similarity(logits(weights, quant).float(), expected(weights)[::5]).min() > 0.99
