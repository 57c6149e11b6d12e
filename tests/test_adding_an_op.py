"""An op is added by its own files: a specification, a reference and a lowering make it known to every component, no table is extended.

The op here doubles its argument by the kernel of `add`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from trtllm_bench.roofline.counts import OpCost, PlanCounter, StepShape
from trtllm_engines.compiler.compile import compile_model, export
from trtllm_engines.compiler.graph import call, evaluate, trace
from trtllm_engines.compiler.plan import Op, Profile
from trtllm_engines.compiler.planning.reuse_inputs import reuse_inputs
from trtllm_engines.compiler.planning.select_tactics import select_tactics
from trtllm_engines.compiler.verify import VerifyError, verify
from trtllm_engines.models.presets import preset_config
from trtllm_kernels.compile.catalogue import MODELS, kernels_of, ops_of
from trtllm_kernels.dialect import table
from trtllm_kernels.dialect.ops import OP_SPECS, OpSpec, register
from trtllm_kernels.dialect.registry import dialect_op, fake_like_first
from trtllm_kernels.dialect.types import Lowered, TensorSpec
from trtllm_kernels.dialect.work import elementwise
from trtllm_kernels.lowering import LOWERINGS, lower, search_space
from trtllm_kernels.lowering.call import Builder, OpCall
from trtllm_kernels.lowering.registry import lowers
from trtllm_kernels.lowering.space import row_space
from trtllm_kernels.references import OPS

X = TensorSpec(("T", 96), "bf16")
PROFILE = Profile(max_batch_size=4, max_num_tokens=64, max_seq_len=64, page_size=16)


@pytest.fixture(scope="module", autouse=True)
def double() -> Iterator[None]:
    register(
        OpSpec(
            "double(Tensor x, Tensor? addend=None) -> Tensor",
            "x + x + addend",
            work=elementwise(1, summands=("addend",)),
            examples=lambda t: [((t.hidden, None), (t.hidden,), {})],
            in_place="x",
            same_shape=("x", "addend"),
        )
    )

    @dialect_op("double", fake=fake_like_first)
    def reference(x: torch.Tensor, addend: torch.Tensor | None = None) -> torch.Tensor:
        return 2 * x if addend is None else 2 * x + addend

    @lowers("double", space=row_space)
    def lowering(op: OpCall) -> Lowered:
        x, tuned = op["x"], op.tuned(warps=2)
        builder = Builder(op)
        parameters = {"A": x, "B": x, "Y": op.outputs[0]}
        builder.launch(
            "elementwise.add", parameters, grid=(x.shape[0], 1), constexprs={"N": x.size(1), "BLOCK": 4096}, warps=tuned["warps"]
        )
        return builder.finish()

    yield
    for registry in (OP_SPECS, OPS, LOWERINGS):
        del registry["double"]  # type: ignore[attr-defined]


def test_it_lowers_and_is_tuned() -> None:
    lowered = lower("double", [X], [X], {}, "sm_90")
    (launch,), (kernel,) = lowered.launches, lowered.kernels
    assert [arg.value for arg in launch.args] == ["x", "x", "out0"]
    assert (kernel.function, kernel.num_warps) == ("add", 2)
    assert [c["warps"] for choice in search_space("double", [X], [X], {}, "sm_90") for c in choice.candidates] == [1, 2, 4, 8, 16]
    assert lower("double", [X], [X], {}, "sm_90", tactic={"warps": 8}).kernels[0].num_warps == 8


def test_it_is_in_the_catalogue_of_kernels_and_in_the_table() -> None:
    shapes = [op for op in ops_of(MODELS["llama-3.1-8b"], "bf16") if op.op == "double"]
    assert [op.inputs for op in shapes] == [(TensorSpec(("T", 4096), "bf16"), None)]
    assert {kernel.key for op in shapes for kernel in op.kernels("sm_90")} <= kernels_of("llama-3.1-8b", "bf16", "sm_90").keys()
    assert "| `double` | x + x + addend | `x`, `addend?` |  | 1 | `x` | rows |  |\n" in table.markdown()


def test_it_runs_in_a_graph_and_the_verifier_knows_it() -> None:
    config = replace(preset_config("tiny-llama"), num_layers=1)
    graph = trace(config, "fp32", PROFILE)
    norm = graph.nodes("rms_norm")[-1]
    with graph.fx.inserting_after(norm):
        doubled = call(graph.fx, "double", norm, label="twice")
    norm.replace_all_uses_with(doubled, delete_user_cb=lambda user: user is not doubled)
    verify(graph, "test")
    assert doubled.meta["spec"] == TensorSpec(("T", config.hidden_size), "fp32")

    tensors = {name: torch.randn([int(d) for d in spec.shape]) for name, spec in graph.weights.items()}
    ids = torch.arange(5, dtype=torch.int32)
    inputs = {"token_ids": ids, "positions": ids, "query_start": torch.tensor([0, 5], dtype=torch.int32), "logit_rows": ids}
    _, plain, twice = evaluate(graph, tensors, inputs, outputs=[norm, doubled])
    torch.testing.assert_close(twice, 2 * plain, atol=0.0, rtol=0.0)

    ops, values = export(graph)
    op = next(op for op in ops if op.op == "double")
    assert (op.name, op.inputs, values[op.outputs[0]]) == ("twice", ("model.norm", ""), doubled.meta["spec"])
    (reusing,) = (one for one in reuse_inputs(ops, values, ["logits"]) if one.op == "double")
    assert reusing.reuses == "model.norm"
    (selected,) = select_tactics([op], values, ["sm_90"])
    assert [arg.value for arg in selected.tactics["sm_90"].launches[0].args] == ["model.norm", "model.norm", "twice"]

    doubled.update_arg(1, graph.nodes("silu_mul")[0])
    with pytest.raises(VerifyError, match="double 'twice' combines"):
        verify(graph, "test")


def test_its_flop_and_bytes_are_counted() -> None:
    plan = compile_model(preset_config("tiny-llama"), "bf16", PROFILE, weights_source={"kind": "dummy", "seed": 0}).plan
    value = plan.ops[1].outputs[0]
    width = int(plan.values[value].shape[1])
    ops = (*plan.ops, Op("twice", "double", (value, ""), ("twice",), {}), Op("more", "double", (value, value), ("more",), {}))
    counter = PlanCounter(replace(plan, ops=ops, values={**plan.values, "twice": plan.values[value], "more": plan.values[value]}))
    elements, shape = 3 * width, StepShape.decode(3, 20)
    assert counter.op("twice", shape) == OpCost("twice", "double", "rows", "bf16", elements, 0.0, 0.0, 2 * elements * 2)
    assert counter.op("more", shape) == OpCost("more", "double", "rows", "bf16", 2 * elements, 0.0, 0.0, 3 * elements * 2)
