"""Bytes and FLOP of a step against counts done by hand for Llama-3.1-8B: hidden 4096, inner 14336, 32 heads over 8, head 128, 32 layers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trtllm_bench.roofline.costs import ModelCost
from trtllm_bench.roofline.counts import OpCost, PlanCounter, StepShape, role_of
from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.plan import ParallelLayout, Plan, Profile
from trtllm_engines.models.presets import preset_config

VOCAB, HIDDEN, INNER, LAYERS = 128256, 4096, 14336, 32


@pytest.fixture(scope="module")
def plan() -> Plan:
    source = {"kind": "dummy", "seed": 0}
    return compile_model(preset_config("llama-3.1-8b"), "bf16", Profile(256, 8192, 4096), weights_source=source).plan


def by_name(costs: list[OpCost]) -> dict[str, OpCost]:
    return {cost.name: cost for cost in costs}


def test_a_decode_step_of_64_sequences_at_200_tokens(plan: Plan) -> None:
    costs = by_name(PlanCounter(plan).step(StepShape.decode(64, 200)))
    layer = "model.layers.7."
    qkv = costs[layer + "self_attn.qkv_proj"]
    assert (qkv.kind, qkv.compute, qkv.rows) == ("gemm", "bf16", 64)
    assert qkv.flop == 2 * 64 * 4096 * 6144
    assert qkv.weight_bytes == 6144 * 4096 * 2
    assert qkv.activation_bytes == 64 * (4096 + 6144) * 2
    attention = costs[layer + "self_attn.attn.paged_attention"]
    assert attention.kind == "attention"
    assert attention.kv_bytes == 64 * 200 * 2 * 8 * 128 * 2
    assert attention.flop == 4 * 64 * 200 * 32 * 128
    pages = 64 * 7
    assert attention.activation_bytes == 2 * 64 * 4096 * 2 + 4 * (pages + 3 * 64)
    write = costs[layer + "self_attn.attn.rope_kv_write"]
    assert write.kv_bytes == 64 * 2 * 8 * 128 * 2
    assert write.activation_bytes == 64 * (4096 + 2048) * 2 + 64 * 128 * 4 + 64 * 4 * 2 + 64 * (4096 + 1024) * 2
    norm = costs[layer + "post_attention_layernorm"]
    assert (norm.weight_bytes, norm.activation_bytes) == (8192, 2 * 64 * 4096 * 2)
    output = costs[layer + "self_attn.o_proj"]
    assert (output.weight_bytes, output.activation_bytes) == (4096 * 4096 * 2, 3 * 64 * 4096 * 2), "the residual is read, too"
    gate_up = costs[layer + "mlp.silu_mul"]
    assert (gate_up.kind, gate_up.flop, gate_up.weight_bytes) == ("gemm", 2 * 64 * HIDDEN * 2 * INNER, 2 * INNER * HIDDEN * 2)
    assert gate_up.activation_bytes == 64 * (HIDDEN + INNER) * 2
    head = costs["lm_head"]
    assert (head.flop, head.weight_bytes) == (2 * 64 * 4096 * VOCAB, VOCAB * 4096 * 2)
    assert costs["model.embed_tokens"].bytes == 2 * 64 * 4096 * 2 + 64 * 4
    assert PlanCounter(plan).sampling(StepShape.decode(64, 200)).bytes == 64 * VOCAB * 2 + 64 * 4


def test_a_prefill_step_counts_each_causal_pair_once_and_only_the_last_row_of_a_prompt_meets_the_head(plan: Plan) -> None:
    costs = by_name(PlanCounter(plan).step(StepShape.prefill(4, 100)))
    assert costs["model.layers.0.self_attn.attn.paged_attention"].flop == 4 * 4 * (100 * 101 // 2) * 4096
    assert costs["model.layers.0.mlp.down_proj"].flop == 2 * 400 * INNER * HIDDEN
    assert costs["lm_head"].rows == 4
    last = "model.layers.31."
    assert costs[last + "self_attn.attn.paged_attention"].flop == 4 * 4 * (100 * 101 // 2) * 4096
    assert costs[last + "mlp.down_proj"].flop == 2 * 4 * INNER * HIDDEN, "nor does any other row leave the last attention"
    assert costs[last + "self_attn.o_proj.gather_rows"].bytes == 2 * 4 * 4096 * 2 + 4 * 4


def test_a_chunk_of_a_prompt_sees_what_is_in_the_cache() -> None:
    shape = StepShape(np.array([10]), np.array([110]), 0, 0)
    assert shape.pairs == sum(range(101, 111))
    both = StepShape.decode(2, 50) + shape
    assert (both.tokens, both.sequences, both.num_decodes, both.phase) == (12, 3, 2, "mixed")
    assert both.pairs == 100 + shape.pairs
    assert both.symbols == {"T": 12, "R": 3, "D": 2, "S": 2, "C": 1, "L": 512}
    assert (both + StepShape.prefill(2, 7)).symbols["C"] == 1, "a whole prompt continues nothing"


def test_a_step_is_its_decode_sequences_its_whole_prompts_and_those_with_a_past(plan: Plan) -> None:
    continued = StepShape(np.array([10]), np.array([110]), 0, 0)
    step = StepShape.decode(2, 50) + StepShape.prefill(3, 7) + continued
    kinds = (step.decodes, step.whole_prompts, step.continued)
    assert [(one.sequences, one.num_decodes, one.tokens, one.pairs) for one in kinds] == [
        (2, 2, 2, 100),
        (3, 0, 21, 3 * 28),
        (1, 0, 10, continued.pairs),
    ]
    counter, name = PlanCounter(plan), "model.layers.3.self_attn.attn.paged_attention"
    for figure in ("flop", "bytes", "kv_bytes"):
        assert sum(getattr(counter.op(name, one), figure) for one in kinds) == getattr(counter.op(name, step), figure)


def test_the_sum_over_ops_agrees_with_the_whole_model_count(plan: Plan) -> None:
    shape = StepShape.decode(32, 300)
    model = ModelCost.of(plan)
    costs = PlanCounter(plan).step(shape)
    gemm = sum(cost.flop for cost in costs if cost.kind == "gemm")
    assert gemm == pytest.approx(32 * (model.token_flops + model.row_flops), rel=1e-12)
    assert sum(cost.flop for cost in costs if cost.kind == "attention") == pytest.approx(model.pair_flops * shape.pairs)
    embedding = next(cost for cost in costs if cost.op == "embedding")
    assert sum(cost.weight_bytes for cost in costs) - embedding.weight_bytes == pytest.approx(model.weight_bytes, rel=1e-9)
    assert sum(cost.kv_bytes for cost in costs) == pytest.approx(model.kv_bytes * (32 * 300 + 32))


def test_a_rank_of_two_computes_half_and_sends_its_rows_twice_a_layer(plan: Plan) -> None:
    source = {"kind": "dummy", "seed": 0}
    half = compile_model(plan.config, plan.precision, plan.profile, weights_source=source, layout=ParallelLayout(2)).plan
    shape = StepShape.decode(64, 200)
    one, two = (PlanCounter(p).step(shape) for p in (plan, half))
    for kind in ("gemm", "attention"):
        assert sum(c.flop for c in two if c.kind == kind) == pytest.approx(sum(c.flop for c in one if c.kind == kind) / 2)
    sent = [cost.link_bytes for cost in two if cost.kind == "communication"]
    assert sent == [64 * plan.config.hidden_size * 2] * (2 * plan.config.num_layers)
    of_half, of_whole = ModelCost.of(half), ModelCost.of(plan)
    assert of_half.token_flops + of_half.row_flops == of_whole.token_flops + of_whole.row_flops
    assert ModelCost.of(half).kv_bytes == ModelCost.of(plan).kv_bytes
    assert ModelCost.of(half).weight_bytes == pytest.approx(ModelCost.of(plan).weight_bytes, rel=1e-3), "norms are on every rank"


def test_classes_sum_to_the_same_as_ops(plan: Plan) -> None:
    counter, shape = PlanCounter(plan), StepShape.decode(8, 77) + StepShape.prefill(2, 33)
    ops, classes = counter.step(shape), counter.classes(shape)
    assert sum(count for _, count in classes) == len(ops) == len(plan.ops)
    assert len(classes) < 20
    for figure in ("flop", "bytes", "kv_bytes"):
        assert sum(getattr(c, figure) * n for c, n in classes) == pytest.approx(sum(getattr(c, figure) for c in ops))


@pytest.mark.parametrize("model", ["gptj-6b", "qwen3-8b", "qwen2.5-7b"])
def test_other_families_count_their_own_matrices(model: str) -> None:
    plan = compile_model(preset_config(model), "bf16", Profile(8, 64, 64), weights_source={"kind": "dummy", "seed": 0}).plan
    cost, shape = ModelCost.of(plan), StepShape.decode(3, 20)
    counted = PlanCounter(plan).step(shape)
    assert sum(c.flop for c in counted if c.kind == "gemm") == pytest.approx(3 * (cost.token_flops + cost.row_flops))


def test_both_products_of_a_gptj_layer_read_and_write_the_residual_and_the_norm_reads_it_once() -> None:
    plan = compile_model(preset_config("gptj-6b"), "bf16", Profile(8, 64, 64), weights_source={"kind": "dummy", "seed": 0}).plan
    costs = PlanCounter(plan).step(StepShape.decode(3, 20))
    norms = [cost for cost in costs if cost.op == "layer_norm"]
    assert len(norms) == 29
    assert {(cost.activation_bytes, cost.weight_bytes, cost.flop) for cost in norms} == {(2 * 3 * 4096 * 2, 2 * 4096 * 2, 7 * 3 * 4096)}
    products = {cost.role: cost.activation_bytes for cost in costs if cost.kind == "gemm"}
    assert products["transformer.h.*.attn.out_proj"] == 3 * 3 * 4096 * 2
    assert products["transformer.h.*.mlp.fc_out"] == 3 * (16384 + 2 * 4096) * 2
    assert not [cost for cost in costs if cost.op.startswith("add")]


def test_rotation_moves_what_it_changes_and_what_it_caches() -> None:
    """GPT-J: 16 heads of 256, of which 64 rotate. Where the product before it is an output too, all of it is moved."""
    description = {"kind": "dummy", "seed": 0}
    product = "transformer.h.3.attn.qkv_proj"
    plan = compile_model(preset_config("gptj-6b"), "bf16", Profile(8, 64, 64), weights_source=description, mark_outputs=[product]).plan
    costs = by_name(PlanCounter(plan).step(StepShape.decode(3, 20)))
    rest = 3 * 64 * 4 + 3 * 4 * 2
    for layer, elements in ((2, (16 * 64 + 2 * 4096) + 2 * 16 * 64), (3, 2 * 3 * 4096)):
        write = costs[f"transformer.h.{layer}.attn.attn.rope_kv_write"]
        assert (write.activation_bytes, write.kv_bytes) == (3 * elements * 2 + rest, 3 * 2 * 4096 * 2)


def test_prompts_in_fp8_are_written_as_codes_and_computed_at_the_rate_of_fp8() -> None:
    source = {"kind": "dummy", "seed": 0}
    profile = Profile(8, 512, 512)
    config = replace(preset_config("smollm2-135m"), num_layers=4)
    plan = compile_model(config, "fp8", profile, weights_source=source, context_attention="fp8").plan
    counter, attend = PlanCounter(plan), "model.layers.3.self_attn.attn.paged_attention"
    for shape, compute in ((StepShape.prefill(2, 100), "fp8"), (StepShape.decode(8, 100), "fp16")):
        attention = by_name(counter.step(shape))[attend]
        assert attention.compute == compute
        assert attention.flop == 4 * shape.pairs * 576
        lists = 4 * (shape.pages(32) + 3 * shape.sequences)
        assert attention.activation_bytes == shape.tokens * 576 * ((1 if compute == "fp8" else 2) + 1) + lists
    mixed = by_name(counter.step(StepShape.decode(5, 100) + StepShape.prefill(1, 70)))["model.layers.3.self_attn.attn.rope_kv_write"]
    prompt, decoding = 70 * (960 * (2 + 1) + 64 * 4 + 8), 5 * ((960 + 768) * 2 + 64 * 4 + 8)
    assert (mixed.activation_bytes, mixed.kv_bytes) == (prompt + decoding, 75 * 2 * 192)


def test_roles_forget_the_layer() -> None:
    assert role_of("model.layers.31.mlp.down_proj") == "layers.*.mlp.down_proj"
