"""Attention of prompts in fp8: what an engine then computes, what is launched, and where it is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from compiler_models import LENGTHS, LLAMA, MODELS, PROFILE, checkpoint, paged_inputs, stacked
from torch import Tensor

from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.graph import ModelGraph, assign_schemes, evaluate, trace
from trtllm_engines.compiler.passes import run_passes
from trtllm_engines.compiler.plan import Plan
from trtllm_engines.errors import EngineError
from trtllm_engines.models.config import ModelConfig, RopeConfig
from trtllm_engines.quantization import named_plan
from trtllm_kernels.dialect.expr import evaluate as value_of
from trtllm_kernels.references.quantize import FP8

K_SCALE, V_SCALE = 0.02, 0.005
WIDER = replace(LLAMA, head_dim=64, rope=RopeConfig(10000.0, 64))
DUMMY = {"kind": "dummy", "seed": 0}


def graph_of(model: str, kv_dtype: str, context_attention: str) -> ModelGraph:
    graph = trace(MODELS[model], "bf16", PROFILE)
    assign_schemes(graph, named_plan("bf16", kv_dtype, context_attention=context_attention))
    run_passes(graph)
    return graph


def ran(model: str, context_attention: str) -> list[Tensor]:
    """Logits, and of the first layer the projection and the attention of four whole prompts."""
    graph, plain = graph_of(model, "fp8", context_attention), graph_of(model, "bf16", "wide")
    scales = {name: torch.tensor([K_SCALE if name.endswith("k_scale") else V_SCALE]) for name in graph.weights if name.endswith("_scale")}
    weights = {**stacked(plain, checkpoint(plain)), **scales}
    (attention, *_) = graph.nodes("paged_attention")
    (write, *_) = [*graph.nodes("rope_kv_write"), *graph.nodes("rope_kv_write_quantize")]
    return evaluate(graph, weights, paged_inputs(graph), [write.args[0], attention])


def codes(x: Tensor, scale: float = 1.0) -> Tensor:
    return (x / scale).clamp(-448, 448).to(FP8).double()


@pytest.mark.parametrize("model", ["llama", "gptj"])
def test_an_engine_attends_to_its_prompts_as_the_formula_says(model: str) -> None:
    config = MODELS[model]
    logits, qkv, attended = ran(model, "fp8")
    wide_logits, _, wide = ran(model, "wide")
    heads, kv_heads, d = config.num_heads, config.num_kv_heads, config.head_dim
    table = trace(config, "bf16", PROFILE).constants["rope.cos_sin"]
    positions = torch.cat([torch.arange(n, dtype=torch.int32) for n in LENGTHS])
    parts = qkv.float().split([heads * d, kv_heads * d, kv_heads * d], 1)
    q, k = (torch.ops.trtllm.rope(x.contiguous(), positions, table, d, config.rope.interleaved) for x in parts[:2])
    q, k, v = codes(q), codes(k, K_SCALE), codes(parts[2], V_SCALE)
    begin = 0
    for length in LENGTHS:
        rows = slice(begin, begin + length)
        begin += length
        for head in range(heads):
            of_q = slice(head * d, head * d + d)
            of_kv = slice(head * kv_heads // heads * d, head * kv_heads // heads * d + d)
            scores = q[rows, of_q] @ k[rows, of_kv].T * d**-0.5 * K_SCALE
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
            p = (scores - scores.amax(1, keepdim=True)).exp()
            rounded = codes(256 * p.float())
            expected = rounded @ v[rows, of_kv] * V_SCALE / rounded.sum(1, keepdim=True)
            torch.testing.assert_close(attended[rows, of_q].double(), expected, rtol=2**-7, atol=2e-4)
    # of the prompt of one token both read the cache's code of its value
    assert torch.equal(attended[5], wide[5])
    assert float((attended.float() - wide.float()).norm() / wide.float().norm()) > 0.005
    assert torch.nn.functional.cosine_similarity(logits.float(), wide_logits.float()).min() > 0.97


def plan_of(context_attention: str, config: ModelConfig = WIDER, arches: tuple[str, ...] = ("sm_90",), **types: str) -> Plan:
    return compile_model(config, "fp8", PROFILE, arches=arches, weights_source=DUMMY, context_attention=context_attention, **types).plan


def launched(plan: Plan, **symbols: int) -> list[str]:
    """Kernels of the first layer's attention and of what comes before it, in a step."""
    ops = [op for op in plan.ops if op.name.startswith("model.layers.0.self_attn.attn.")]
    return [
        one.kernel.rpartition("-")[0]
        for op in ops
        for one in op.tactics["sm_90"].launches
        if min(value_of(dim, symbols) for dim in one.grid) > 0
    ]


def test_codes_are_made_of_prompts_and_decoding_is_launched_as_ever() -> None:
    plan = plan_of("fp8")
    assert plan.quant.context_attention == "fp8"
    assert Plan.from_json(plan.to_json()).quant == plan.quant
    make, attend, decode = "rope_kv_write_quantize", "uncached_prefill_attention", ["rope_kv_write", "decode_attention"]
    assert launched(plan, T=50, R=2, D=0, S=2, C=0, L=0) == [make, attend]
    assert launched(plan, T=60, R=3, D=1, S=3, C=1, L=1024) == [make, *decode, attend, "context_attention"]
    assert launched(plan, T=4, R=4, D=4, S=4, C=0, L=1024) == launched(plan_of("wide"), T=4, R=4, D=4, S=4, C=0, L=1024)
    values = plan.values["model.layers.0.self_attn.attn.rope_kv_write.values"]
    assert values.shape == (WIDER.num_kv_heads * 64, 128)
    assert values.dtype == "fp8"


def test_decoding_keeps_its_tactic_and_never_runs_beside_prompts() -> None:
    """Beside them runs a kernel that multiplies 16 bits, so a prompt's result would depend on who else is served."""
    many = {"T": 3000, "R": 2001, "D": 2000, "S": 2001, "C": 0, "L": 1024}
    for context, count in (("wide", 2), ("fp8", 1)):
        (attention, *_) = [op for op in plan_of(context).ops if op.op == "paged_attention"]
        prompts = {one.kernel for one in attention.tactics["sm_90"].launches if one.kernel.startswith("uncached_prefill")}
        assert len(prompts) == count
        assert any(one.concurrent for one in attention.tactics["sm_90"].launches) == (context == "wide")
    assert launched(plan_of("fp8"), **many).count("uncached_prefill_attention") == 1


@pytest.mark.parametrize(
    ("config", "arches", "types", "says"),
    [
        (WIDER, ("sm_90",), {"kv_dtype": "bf16"}, "fp8 context attention multiplies the codes of an fp8 KV cache and this one is in bf16"),
        (WIDER, ("sm_90",), {"kv_dtype": "int8"}, "this one is in int8; choose --kv-dtype fp8, or --context-attention wide"),
        (WIDER, ("sm_89", "sm_90"), {}, "fp8 context attention has no kernel for sm_89; choose --context-attention wide, or other arch"),
        (LLAMA, ("sm_90",), {}, "has kernels for heads of 64 or 128 dimensions and this model's have 16; choose --context-attention wide"),
    ],
)
def test_what_has_no_kernel_is_refused(config: ModelConfig, arches: tuple[str, ...], types: dict[str, str], says: str) -> None:
    with pytest.raises(EngineError, match=says):
        plan_of("fp8", config, arches, **types)


def test_an_unknown_context_attention_is_refused() -> None:
    with pytest.raises(EngineError, match="unknown context attention 'int8'; supported are wide, fp8"):
        named_plan("fp8", context_attention="int8")
