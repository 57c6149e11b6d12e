"""Which weight a product brings nearer: in the order of the step, in launches alone, and through the file an engine is stored as."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trtllm_engines.compile import compile_model
from trtllm_engines.passes.fetch_ahead import weights_ahead
from trtllm_engines.plan import Op, Plan, Profile
from trtllm_engines.presets import resolve_model
from trtllm_kernels.lowering import PRODUCTS

ARCH = "sm_90"
MODELS = {name: replace(resolve_model(name).config, num_layers=2) for name in ("llama-3.1-8b", "gptj-6b")}


def compiled(model: str, precision: str = "fp8", **flags: bool) -> Plan:
    source = {"kind": "dummy", "seed": 0}
    return compile_model(MODELS[model], precision, Profile(4, 64, 128), arches=(ARCH,), weights_source=source, **flags).plan


def foreign(op: Op, plan: Plan) -> set[object]:
    """Weights that launches of the op name and the op does not."""
    named = {arg.value for launch in op.tactics[ARCH].launches for arg in launch.args if arg.kind == "tensor"}
    return (named & plan.weights.keys()) - set(op.inputs)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("precision", ["bf16", "fp8", "fp8_rowwise"])
def test_each_product_asks_for_the_weight_of_the_one_after_it(model: str, precision: str) -> None:
    plan = compiled(model, precision)
    products = [op for op in plan.ops if op.op in PRODUCTS]
    assert len(products) == 2 * 4 + 1
    nearer = dict(zip((op.name for op in plan.ops), weights_ahead(plan.ops), strict=True))
    assert [nearer[op.name] for op in products] == [*(op.inputs[1] for op in products[1:]), ""]
    assert not any(nearer[op.name] for op in plan.ops if op not in products)
    for op in plan.ops:
        kernels = {kernel.function for kernel in op.tactics[ARCH].kernels}
        by_us = bool(kernels & {"gemv", "gemv_gate_up_silu"})
        assert foreign(op, plan) == ({nearer[op.name]} - {""} if by_us else set()), op.name
    assert plan.ops[-1] is products[-1]


def test_engines_differ_in_launches_alone_and_say_so_in_their_file() -> None:
    plan, plain = compiled("llama-3.1-8b"), compiled("llama-3.1-8b", fetch_ahead=False)
    assert any(foreign(op, plan) for op in plan.ops)
    assert not any(foreign(op, plain) for op in plain.ops)
    assert [replace(op, tactics={}) for op in plan.ops] == [replace(op, tactics={}) for op in plain.ops]
    assert (plan.buffers, plan.arena_bytes) == (plain.buffers, plain.arena_bytes)
    assert Plan.from_json(plan.to_json()).ops == plan.ops


def test_what_is_no_product_is_passed_over() -> None:
    def op(name: str, kind: str, weight: str) -> Op:
        return Op(name, kind, ("x", weight), (f"{name}.y",), {})

    ops = [op("a", "rms_norm", "norm"), op("b", "linear", "first"), op("c", "rms_norm", "norm"), op("d", "linear_gelu", "second")]
    assert weights_ahead(ops) == ["", "second", "", ""]
    assert weights_ahead(ops[:1]) == [""]
