"""The memory plan: no two values alive together share a byte, whatever the lifetimes, and a decoder's peak does not grow with its depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from compiler_models import LLAMA, MODELS, PROFILE
from hypothesis import given
from hypothesis import strategies as st

from trtllm_engines.compiler import planning
from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.plan import Buffer, Op, ParallelLayout, Plan, Profile
from trtllm_engines.compiler.planning.plan_memory import ALIGNMENT, Lifetime, largest_bytes, lifetimes, place
from trtllm_engines.compiler.planning.reuse_inputs import reuse_inputs
from trtllm_engines.errors import EngineError
from trtllm_engines.models.config import ModelConfig
from trtllm_engines.models.presets import preset_config
from trtllm_engines.runtime.rank import RankMemory
from trtllm_kernels.dialect.expr import evaluate
from trtllm_kernels.dialect.types import SKINNY_TOKENS, SYMBOLS, Lowered, TensorSpec


@st.composite
def values(draw: st.DrawFn) -> list[Lifetime]:
    found = []
    for index in range(draw(st.integers(0, 25))):
        first = draw(st.integers(0, 20))
        found.append(Lifetime(f"v{index}", draw(st.integers(0, 5000)), first, first + draw(st.integers(0, 8))))
    return found


def disjoint(a: Buffer, b: Buffer) -> bool:
    return a.offset + a.nbytes <= b.offset or b.offset + b.nbytes <= a.offset


@given(values())
def test_values_alive_together_never_overlap(alive: list[Lifetime]) -> None:
    buffers, total = place(alive)
    assert set(buffers) == {v.name for v in alive}
    for a, b in combinations(alive, 2):
        if a.first <= b.last and b.first <= a.last:
            assert disjoint(buffers[a.name], buffers[b.name])
    for v in alive:
        assert buffers[v.name].nbytes == v.nbytes
        assert buffers[v.name].offset % ALIGNMENT == 0
        assert buffers[v.name].offset + v.nbytes <= total
    assert total <= sum(-(-v.nbytes // ALIGNMENT) * ALIGNMENT for v in alive)


def test_values_not_alive_together_share() -> None:
    buffers, total = place([Lifetime("a", 1000, 0, 1), Lifetime("b", 1000, 2, 3)])
    assert buffers["a"].offset == buffers["b"].offset
    assert total == 1024


def compiled(model: ModelConfig = LLAMA, **more: object) -> Plan:
    return compile_model(model, "fp32", PROFILE, weights_source={"kind": "dummy", "seed": 0}, **more).plan  # type: ignore[arg-type]


def test_an_op_never_writes_over_what_it_reads_but_in_place() -> None:
    for model in MODELS.values():
        plan = compiled(model)
        in_place = {op.name: op.op for op in plan.ops if op.reuses}
        assert sorted(in_place.values()) == ["linear"] * (2 * model.num_layers) + ["rope_kv_write"] * model.num_layers
        for op in plan.ops:
            for read in op.inputs:
                for written in op.outputs:
                    if op.reuses and read == op.reuses:
                        assert plan.buffers[read] == plan.buffers[written]
                    elif read in plan.buffers:
                        assert disjoint(plan.buffers[read], plan.buffers[written]), (op.name, read, written)


def test_memory_taken_over_is_kept_until_its_last_holder_is_done() -> None:
    plan = compiled()
    alive: dict[str, tuple[int, int]] = {}
    for index, op in enumerate(plan.ops):
        for name in (*op.inputs, *op.outputs):
            if name in plan.values:
                alive[name] = (alive.get(name, (index, index))[0], index)
    taken = {op.outputs[0]: op.reuses for op in plan.ops if op.reuses}
    for a, b in combinations(plan.values, 2):
        if alive[a][0] <= alive[b][1] and alive[b][0] <= alive[a][1] and a not in (taken.get(b), b) and b != taken.get(a):
            assert disjoint(plan.buffers[a], plan.buffers[b]), (a, b)


def test_what_launches_read_is_there_though_the_op_does_not_name_it() -> None:
    """Products of few tokens normalize what their norm reads: each value is as it was made when launches read it, in memory of its own."""
    config = replace(preset_config("llama-3.1-8b"), num_layers=2)
    plan = compile_model(config, "fp8", PROFILE, arches=("sm_90",), weights_source={"kind": "dummy", "seed": 0}).plan
    kept: set[str] = set()
    beyond = []
    for op in plan.ops:
        lowered = op.tactics["sm_90"]
        given = {
            str(arg.value) for launch in lowered.launches for arg in launch.args if arg.kind in ("tensor", "tma")
        } & plan.buffers.keys()
        read, written = given - {*op.outputs, *lowered.workspaces}, {*op.outputs, *lowered.workspaces}
        assert read <= kept, op.name
        beyond += [(op.op, name) for name in read - {*op.inputs}]
        for name in written:
            assert not [one for one in read - {op.reuses} if not disjoint(plan.buffers[one], plan.buffers[name])], op.name
            kept -= {one for one in kept if not disjoint(plan.buffers[one], plan.buffers[name])}
        kept |= written
    assert [op for op, _ in beyond] == ["linear", "gate_up_silu"] * 2 + ["linear_sample"]
    assert {name for _, name in beyond} == {op.inputs[0] for op in plan.ops if op.op == "rms_norm"}


def norms_left(plan: Plan, tokens: int) -> list[str]:
    """Names of the norms that a decode step of so many tokens launches."""
    symbols = {**dict.fromkeys(SYMBOLS, tokens), "C": 0}
    grids = {op.name: op.tactics["sm_90"].launches[0].grid for op in plan.ops if op.op == "rms_norm"}
    return [name for name, grid in grids.items() if min(evaluate(dim, symbols) for dim in grid) > 0]


def test_norms_of_few_tokens_are_their_products_where_nothing_else_reads_them() -> None:
    config, source = replace(preset_config("llama-3.1-8b"), num_layers=1), {"kind": "dummy", "seed": 0}
    norms = [f"model.{name}" for name in ("layers.0.input_layernorm", "layers.0.post_attention_layernorm", "norm")]

    def built(**more: Any) -> Plan:
        return compile_model(config, "fp8", PROFILE, arches=("sm_90",), weights_source=source, **more).plan

    plan = built()
    assert norms_left(plan, 4) == norms_left(plan, 1) == []
    assert norms_left(plan, 5) == norms
    assert norms_left(built(mark_outputs=norms[:1]), 1) == norms[::2], "there rows are gathered behind the last norm"
    assert norms_left(built(layout=ParallelLayout(tp=2)), 1) == norms[:1], "of ranks, the others reduce and normalize at once"


def test_a_value_that_is_wanted_afterwards_keeps_its_memory() -> None:
    value = next(op.reuses for op in compiled().ops if op.op == "rope_kv_write")
    marked = compiled(mark_outputs=[value])
    first = next(op for op in marked.ops if op.op == "rope_kv_write")
    assert (first.inputs[0], first.reuses) == (value, "")
    assert disjoint(marked.buffers[value], marked.buffers[first.outputs[0]])
    assert sum(bool(op.reuses) for op in marked.ops if op.op == "rope_kv_write") == LLAMA.num_layers - 1
    launches = compiled(mark_outputs=[value], arches=("sm_90",)).ops
    kernels = [op.tactics["sm_90"].kernels[0].constexprs["IN_PLACE"] for op in launches if op.op == "rope_kv_write"]
    assert kernels == [False] + [True] * (LLAMA.num_layers - 1)


def test_a_result_takes_only_memory_that_nothing_needs_any_more() -> None:
    plan = compiled()
    at, op = next((i, op) for i, op in enumerate(plan.ops) if op.op == "rope_kv_write")
    bare = [replace(one, reuses="") for one in plan.ops]
    stray = Op("stray", "gelu", (op.reuses, ""), ("strayed",), {})

    def taken(ops: Sequence[Op], values: Mapping[str, TensorSpec] = plan.values, outputs: Sequence[str] = ("logits",)) -> str:
        return next(one.reuses for one in reuse_inputs(ops, values, outputs) if one.name == op.name)

    assert taken(bare) == taken([*bare[:at], stray, *bare[at:]]) == op.reuses
    assert taken([*bare, stray]) == ""
    assert taken(bare, outputs=("logits", op.reuses)) == ""
    assert taken(bare, {**plan.values, op.reuses: TensorSpec(("T", 7), "fp32")}) == ""
    assert not next(one for one in reuse_inputs(bare, plan.values, ("logits",)) if one.op == "rms_norm").reuses


def arena(layers: int, **more: object) -> int:
    config = replace(LLAMA, num_layers=layers)
    return compile_model(config, "bf16", PROFILE, weights_source={"kind": "dummy", "seed": 0}, **more).plan.arena_bytes  # type: ignore[arg-type]


def test_depth_costs_no_memory_but_a_marked_output_does() -> None:
    assert arena(6) == arena(2)
    assert arena(6, mark_outputs=["model.layers.0.mlp.silu_mul"]) > arena(6)


def test_workspaces_live_during_their_op_and_take_the_largest_of_all_architectures() -> None:
    small, large = (Lowered((), workspaces={"y.partials": TensorSpec((f"min(8, 2 * D) * {n}",), "fp32")}) for n in (10, 30))
    ops = [Op("x", "gelu", (), ("x",), {}), Op("y", "gelu", ("x",), ("y",), {}, {"sm_80": small, "sm_90": large})]
    specs = {"x": TensorSpec(("T", 4), "bf16"), "y": TensorSpec(("T", 4), "bf16")}
    found = {v.name: v for v in lifetimes(ops, specs, ("y",), PROFILE)}
    assert found["y.partials"] == Lifetime("y.partials", 8 * 30 * 4, 1, 1)
    assert found["x"] == Lifetime("x", max(PROFILE.max_num_tokens, SKINNY_TOKENS) * 8, 0, 1)
    assert found["y"].last == 2


def test_scratch_memory_hides_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """An op's scratch memory for its weight made wide had the name of that weight, which kernels then never read."""
    config = replace(LLAMA, hidden_size=128, num_heads=2, num_kv_heads=1, head_dim=64, intermediate_size=192, num_layers=1)
    source = {"kind": "dummy", "seed": 0}
    plan = compile_model(config, "int8_wo", PROFILE, weights_source=source, arches=("sm_80", "sm_90")).plan
    scratch = {name for op in plan.ops for one in op.tactics.values() for name in one.workspaces}
    assert len([name for name in scratch if name.endswith(":weight")]) == 4
    assert not scratch & {*plan.weights, *plan.values, *plan.constants}

    hiding = Lowered((), workspaces={"w": TensorSpec((8, 8), "bf16")})
    monkeypatch.setattr(planning, "select_tactics", lambda ops, *_: tuple(replace(op, tactics={"sm_90": hiding}) for op in ops))
    specs = {"y": TensorSpec(("T", 8), "bf16"), "w": TensorSpec((8, 8), "int8")}
    with pytest.raises(EngineError, match="scratch memory of an op is called w, as a tensor of the model is"):
        planning.plan_ops([Op("y", "gelu", ("w",), ("y",), {})], {"y": specs["y"]}, specs, ("y",), PROFILE, ("sm_90",))


def test_sizes_are_of_the_largest_step_and_have_room_for_tiles_of_few_tokens() -> None:
    profile = Profile(max_batch_size=200, max_num_tokens=1000, max_seq_len=64)
    assert largest_bytes(TensorSpec(("T", 7), "fp32"), profile) == 1000 * 7 * 4
    assert largest_bytes(TensorSpec(("R + 1",), "int32"), profile) == 201 * 4
    assert largest_bytes(TensorSpec(("S", 5), "bf16"), profile) == 200 * 10
    small = Profile(max_batch_size=3, max_num_tokens=100, max_seq_len=64)
    assert largest_bytes(TensorSpec(("T", 7), "fp32"), small) == SKINNY_TOKENS * 7 * 4
    assert largest_bytes(TensorSpec(("S", 5), "bf16"), small) == SKINNY_TOKENS * 10


def test_kernels_are_given_a_values_whole_buffer() -> None:
    """Of a workspace that is larger on another architecture, the whole rows of it."""
    plan = compiled(arches=("sm_90",))
    memory = object.__new__(RankMemory)
    memory.plan, memory.arena = plan, torch.arange(plan.arena_bytes).to(torch.uint8)
    sizes = {**dict.fromkeys(SYMBOLS, PROFILE.max_batch_size), "T": PROFILE.max_num_tokens}
    workspaces = {name: spec for op in plan.ops for name, spec in op.tactics["sm_90"].workspaces.items()}
    assert workspaces
    for name, spec in {**plan.values, **workspaces}.items():
        view = memory.view(name, spec)
        rows, *row = (evaluate(dim, sizes) for dim in spec.shape)
        assert view.shape[0] >= (max(rows, SKINNY_TOKENS) if spec.shape[0] in SYMBOLS else rows)
        assert list(view.shape[1:]) == row
        assert view.data_ptr() == memory.arena.data_ptr() + plan.buffers[name].offset
        assert view.nbytes <= plan.buffers[name].nbytes
    memory.plan = replace(plan, buffers={"uneven": Buffer(256, 7 * 12 + 5)})
    assert memory.view("uneven", TensorSpec(("2 * T", 3), "fp32")).shape == (7, 3)


def test_plan_round_trips_through_json() -> None:
    for arches in (("cpu",), ("sm_80", "sm_90")):
        plan = compile_model(MODELS["qk norm"], "bf16", PROFILE, arches=arches, weights_source={"kind": "dummy", "seed": 0}).plan
        assert Plan.from_json(plan.to_json()) == plan
