"""Model to plan: trace, run the passes, name every value, choose tactics, plan memory. No weights and no GPU are needed."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from torch import Tensor, fx

from trtllm_engines.compiler.fingerprint import make_fingerprint
from trtllm_engines.compiler.graph import ModelGraph, assign_schemes, op_name, trace
from trtllm_engines.compiler.passes import EVERY_ROW, PASSES, run_passes
from trtllm_engines.compiler.plan import LOGITS, NEXT_HIDDEN, ONE_GPU, STEP_INPUTS, Op, ParallelLayout, Plan, Profile
from trtllm_engines.compiler.planning import plan_ops
from trtllm_engines.errors import EngineError
from trtllm_engines.models.config import ModelConfig
from trtllm_engines.quantization import named_plan
from trtllm_engines.quantization.precision import check_gpus, check_head_size
from trtllm_engines.quantization.scheme import WIDE, QuantPlan
from trtllm_kernels.dialect.types import TensorSpec
from trtllm_kernels.references import OPS


@dataclass(frozen=True)
class Compiled:
    """A plan and the tables it names."""

    plan: Plan
    constants: Mapping[str, Tensor]


def compile_model(
    config: ModelConfig,
    precision: str | QuantPlan,
    profile: Profile,
    *,
    arches: Sequence[str] = ("cpu",),
    weights_source: Mapping[str, Any],
    kv_dtype: str = "auto",
    context_attention: str = WIDE,
    mark_outputs: Sequence[str] = (),
    every_row: bool = False,
    layout: ParallelLayout = ONE_GPU,
    stage: int = 0,
    gpu: str = "",
) -> Compiled:
    """`precision` is a quantization plan, or the name of one, whose KV cache is `kv_dtype` and whose prompts' attention multiplies
    `context_attention`. `stage`: which of the layout's stages.
    `every_row`: the last layer computes all tokens, also those whose logits nobody asks for; so it is where values are marked.
    `gpu`: the GPU it is for, whose recorded tactics are taken where there are such.

    Raises `EngineError` for types that do not go together, an unknown marked node, and for sequences the model cannot express.
    """
    quant = named_plan(precision, kv_dtype, arches, context_attention) if isinstance(precision, str) else precision
    check_gpus(quant, arches)
    check_head_size(quant, config.head_dim, arches)
    config.check_sequence_length(profile.max_seq_len)
    graph = trace(config, quant.wide_dtype, profile)
    graph.layout, graph.stage = layout, replace(graph.stage, index=stage)
    assign_schemes(graph, quant)
    run_passes(graph, EVERY_ROW if every_row or mark_outputs else PASSES)
    ops, values = export(graph)
    if mark_outputs and layout.pp > 1:
        raise EngineError(f"--mark-output adds results of a whole model and --pp is {layout.pp}; leave one of them out")
    outputs = (_result(graph), *_marked(mark_outputs, values))
    step_specs = {**graph.inputs, **graph.weights, **values}
    constants = {name: TensorSpec(tuple(tensor.shape), "fp32") for name, tensor in graph.constants.items()}
    planned = plan_ops(ops, values, {**step_specs, **constants}, outputs, profile, arches, gpu)
    plan = Plan(
        model=config.to_dict(),
        quant=quant,
        profile=profile,
        parallel=layout,
        stage=graph.stage,
        fingerprint=make_fingerprint(arches, _any_cuda_kernels(planned.ops), gpu),
        weights=graph.weights,
        weight_recipes={name: graph.recipe(name) for name in graph.weights},
        schemes=dict(graph.schemes),
        constants=constants,
        weights_source=weights_source,
        values=values,
        buffers=planned.buffers,
        arena_bytes=planned.arena_bytes,
        ops=planned.ops,
        outputs=outputs,
    )
    return Compiled(plan, graph.constants)


def _any_cuda_kernels(ops: Sequence[Op]) -> bool:
    return any(kernel.is_cuda for op in ops for lowered in op.tactics.values() for kernel in lowered.kernels)


def export(graph: ModelGraph) -> tuple[tuple[Op, ...], dict[str, TensorSpec]]:
    """The graph as plan ops over named values. A value is named by its node's label, or by what a pass called it (meta `value`);
    the model's result is `logits`, that of a stage before the last `next_hidden`."""
    result = next(node for node in graph.fx.nodes if node.op == "output").args[0]
    names: dict[fx.Node, str] = {}
    values: dict[str, TensorSpec] = {}
    ops: list[Op] = []
    for node in graph.fx.nodes:
        if node.op in ("placeholder", "get_attr"):
            names[node] = str(node.target)
        op = op_name(node)
        if not op:
            continue
        specs = node.meta["spec"]
        outputs = _result_nodes(node) if isinstance(specs, tuple) else [node]
        output_names = []
        for index, output in enumerate(outputs):
            name = _result(graph) if output is result else _value_name(output) if output is not None else f"{node.meta['label']}.{index}"
            if output is not None:
                names[output] = name
            values[name] = specs[index] if isinstance(specs, tuple) else specs
            output_names.append(name)
        definition = OPS[op]
        arguments: dict[str, Any] = dict(zip((a.name for a in definition.overload._schema.arguments), node.args, strict=True))
        inputs = tuple("" if arguments[name] is None else names[arguments[name]] for name in definition.tensors)
        attrs = {name: arguments[name] for name in definition.attrs}
        ops.append(Op(str(node.meta["label"]), op, inputs, tuple(output_names), attrs))
    return tuple(ops), values


def _result(graph: ModelGraph) -> str:
    return LOGITS if graph.stage.index == graph.layout.pp - 1 else NEXT_HIDDEN


def _value_name(node: fx.Node) -> str:
    return str(node.meta.get("value", node.meta["label"]))


def _result_nodes(node: fx.Node) -> list[fx.Node | None]:
    """The getitem node of each result of an op with several; None for one nobody reads."""
    results: list[fx.Node | None] = [None] * len(node.meta["spec"])
    for user in node.users:
        if user.target is operator.getitem:
            results[int(user.args[1])] = user  # type: ignore[arg-type]
    return results


def _marked(names: Sequence[str], values: Mapping[str, TensorSpec]) -> list[str]:
    for name in names:
        if name in STEP_INPUTS or name not in values:
            near = get_close_matches(name, values, n=3, cutoff=0.3)
            raise EngineError(
                f"cannot mark {name!r} as an output: the compiled graph has no such value; near it are {', '.join(near) or 'none'}"
            )
    return [name for name in dict.fromkeys(names) if name != LOGITS]
