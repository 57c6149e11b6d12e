"""Whole decode steps of a model on one GPU, by any tactics: what tuning times where kernels overlap.

A step is all of the model's ops in order, in a CUDA graph as in an engine, over the memory an engine has: weights, arena, step inputs and
cache. The model is cut to a few layers, with weights of their own and more of them than L2 holds, so that each replay reads all of them
from memory. Replays change nothing but the last tokens.

Of one rank of a tensor-parallel model it is that rank's shapes, as if alone (`alone`): a reduction becomes what follows it, over this
rank's own sums, and sampling is over this rank's part of the vocabulary. So what the step lacks is the exchange itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch

from trtllm_bench.micro.cases import KernelCase, compile_cases
from trtllm_bench.micro.results import is_right
from trtllm_bench.micro.step_inputs import fill_cache, upload_step
from trtllm_bench.roofline.counts import PlanCounter
from trtllm_bench.telemetry import Telemetry
from trtllm_bench.tune.check import spoil
from trtllm_bench.tune.plan import active_launches
from trtllm_engines.checkpoints.dummy import DummyWeights
from trtllm_engines.checkpoints.write import assemble, weight_bytes
from trtllm_engines.compiler.plan import Op, ParallelLayout, Plan
from trtllm_engines.compiler.planning import plan_ops
from trtllm_engines.compiler.planning.select_tactics import lowered_together, select_tactics
from trtllm_engines.models.config import ModelConfig
from trtllm_engines.models.presets import resolve_model
from trtllm_engines.runtime.pages import RESERVED_PAGES
from trtllm_engines.runtime.rank import CacheSize, RankMemory
from trtllm_kernels import tactics
from trtllm_kernels.dialect.expr import evaluate
from trtllm_kernels.dialect.ops import OP_SPECS, Trait
from trtllm_kernels.dialect.specs import DTYPES
from trtllm_kernels.dialect.types import KernelSpec, Lowered, TensorSpec
from trtllm_kernels.errors import KernelError
from trtllm_kernels.tactics import Tactic

LEAST_LAYERS, LEAST_BYTES = 4, 2 << 30
"""Of the cut model: so many layers, with so many bytes of weights where the model has them."""
Tactics = Mapping[str, Tactic]
"""By key."""


@dataclass(frozen=True)
class Sustained:
    """A step replayed for long enough that power settles. NaN where NVML does not say."""

    us: float
    watts: float
    mhz: float

    @property
    def mj(self) -> float:
        """Energy of a step in mJ."""
        return self.watts * self.us * 1e-3


@dataclass
class StepProgram:
    """A step's graph. `us`: of a replay, as last measured."""

    graph: Any
    kept: Any
    us: float


class StepBench:
    """Decode steps of `cases` on this machine's GPU. `tp`: of one rank among so many. `device` is another in tests. Raises `BenchError` for
    a sequence of more tokens than the model has positions."""

    def __init__(
        self,
        model: str,
        precision: str,
        arch: str,
        cases: Sequence[KernelCase],
        page_size: int = 32,
        kv_dtype: str = "auto",
        tp: int = 1,
        gpu: str = "",
        device: str = "cuda",
    ) -> None:
        self.arch = arch
        self.plan, constants, self.replaced = cut_plan(resolve_model(model).config, precision, arch, cases, page_size, kv_dtype, tp, gpu)
        self.counter = PlanCounter(self.plan)
        source = DummyWeights(0)
        self._device = torch.device(device)
        needed = {name for op in self.plan.ops for name in op.inputs}
        tensors = {name: assemble(self.plan, name, source, self._device) for name in self.plan.weights if name in needed}
        tensors |= {name: constants[name].to(self._device) for name in self.plan.constants}
        pages = max(int((-(-case.shape.kv_lens // page_size)).sum()) for case in cases) + RESERVED_PAGES
        self._memory = RankMemory(self.plan, self._device, tensors, CacheSize(num_pages=pages))
        fill_cache(self._memory.state)
        self._scratch: dict[str, torch.Tensor] = {}
        self._cubins: dict[str, Any] = {}
        self._held: tuple[object, list[torch.Tensor]] = (None, [])
        self._active_known: dict[tuple[int, int], Lowered] = {}
        """By what is lowered, which `StepLowering` keeps, and the step's tokens."""
        self._lowering = StepLowering(self.plan, self.counter.specs, arch)
        self._tensors = {**tensors, **self._memory.state.tensors}
        self._tensors |= {name: self._memory.view(name, spec) for name, spec in self.plan.values.items() if name in self.plan.buffers}

    def kernels(self, case: KernelCase, chosen: Tactics, key: str = "") -> Sequence[KernelSpec]:
        """Those that run in a step; `key`: of the first op of that alone, and what is lowered with it."""
        return [spec for one in self._active(case, chosen, key) for spec in one.kernels]

    def add_kernels(self, cubins: Mapping[str, Any]) -> None:
        self._cubins |= cubins

    def upload(self, case: KernelCase) -> None:
        """Makes `case` the step that programs run."""
        upload_step(self._memory.state, self.plan, case.shape)

    def program(self, case: KernelCase, chosen: Tactics) -> StepProgram:
        """The step `case`, after `upload`. Raises `KernelError` for what cannot be launched."""
        program = self._bound(self._active(case, chosen), case)
        program.run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            program.run()
        made = StepProgram(graph, program, 1000.0)
        self.batch(made, 0.002)
        return made

    def batch(self, program: StepProgram, seconds: float) -> float:
        """Microseconds of a step, among as many in a row as take about so long."""
        program.us = _replays(program.graph, max(2, round(seconds * 1e6 / program.us)))
        return program.us

    def sustained(self, program: StepProgram, seconds: float) -> Sustained:
        """A tenth as long goes before, unmeasured."""
        self.batch(program, seconds / 10)
        with Telemetry() as telemetry:
            begin = time.perf_counter()
            us = self.batch(program, seconds)
            end = time.perf_counter()
        figures = telemetry.stop().figures(begin, end, 0)
        return Sustained(us, figures.get("power_mean_w", math.nan), figures.get("sm_clock_mean_mhz", math.nan))

    def runs(self, case: KernelCase, key: str, chosen: Tactics) -> bool:
        """Whether ops of `key` launch anything in a step."""
        active = zip(self.plan.ops, self._active(case, chosen), strict=True)
        return any(one.launches for op, one in active if self._lowering.keys[op.name] == key)

    def error(self, case: KernelCase, key: str, chosen: Tactics, holding: Tactics) -> str:
        """What is wrong with the results of the first op of `key` beside those with `holding`, or nothing."""
        try:
            held = (case.shape.tokens, key, _frozen(holding))
            if self._held[0] != held:
                self._held = held, self.results(case, key, holding)
            return differs(self.results(case, key, chosen), self._held[1])
        except KernelError as error:
            return f"does not run: {error}"

    def results(self, case: KernelCase, key: str, chosen: Tactics) -> list[torch.Tensor]:
        """What the first op of `key` makes of what those before it made, all of them run anew on results spoiled beforehand."""
        ops = self.plan.ops
        last = next(i for i, op in enumerate(ops) if self._lowering.keys[op.name] == key)
        self.upload(case)
        written = {name: self.plan.values[name] for name in ops[last].outputs if name in self.plan.buffers}
        views = [self._tensors[name][: evaluate(spec.shape[0], case.shape.symbols)] for name, spec in written.items()]
        for view in views:
            spoil(view)
        self._bound(self._active(case, chosen)[: last + 1], case).run()
        return [view.clone() for view in views]

    def _active(self, case: KernelCase, chosen: Tactics, key: str = "") -> list[Lowered]:
        active: list[Lowered] = []
        for one in self._lowering(chosen, key):
            place = (id(one), case.shape.tokens)
            if place not in self._active_known:
                self._active_known[place] = active_launches(one, case.shape.symbols)
            active.append(self._active_known[place])
        return active

    def _bound(self, lowered: Sequence[Lowered], case: KernelCase) -> Any:
        from trtllm_kernels.launch.driver import BoundProgram

        scratch = {name: self._workspace(name, spec) for one in lowered for name, spec in one.workspaces.items()}
        program = BoundProgram(lowered, {**self._tensors, **scratch}.__getitem__, self._cubins)
        program.set_symbols(**case.shape.symbols)
        return program

    def _workspace(self, name: str, spec: TensorSpec) -> torch.Tensor:
        """Scratch memory, which ops of one kind share."""
        profile = self.plan.profile
        largest = {**dict.fromkeys("RDSC", profile.max_batch_size), "T": profile.max_num_tokens}
        shape = [max(1, evaluate(dim, largest)) for dim in spec.shape]
        place = f"{name.rpartition(':')[2]} {spec.dtype} {shape}"
        if place not in self._scratch:
            self._scratch[place] = torch.zeros(shape, dtype=DTYPES[spec.dtype], device=self._device)
        return self._scratch[place]


def _frozen(chosen: Tactics) -> object:
    return frozenset((key, frozenset(tactic.items())) for key, tactic in chosen.items())


def differs(results: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> str:
    """What is wrong with an op's results beside those of the tactics that hold, or nothing."""
    for result, other in zip(results, expected, strict=True):
        if not result.is_floating_point() and result.dtype != torch.int8:
            continue  # tokens: of nearly equal logits rounding decides
        a, b = result.float(), other.float()
        error = float((a - b).norm() / b.norm().clamp_min(1e-30))
        name = {torch.float8_e4m3fn: "fp8", torch.int8: "int8"}.get(result.dtype, "bf16")
        if not is_right(error, name):
            return f"wrong: differs from what holds by {error:.2%}"
    return ""


def _replays(graph: Any, count: int) -> float:
    """Microseconds of each of `count` replays."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    for _ in range(count):
        graph.replay()
    end.record()
    end.synchronize()
    return 1e3 * float(begin.elapsed_time(end)) / count


class StepLowering:
    """Launches of all ops by given tactics; ops whose tactics were seen before are not lowered anew."""

    def __init__(self, plan: Plan, specs: Mapping[str, TensorSpec], arch: str) -> None:
        self._plan, self._specs, self._arch = plan, specs, arch
        self._units = list(_units(plan.ops))
        self._read_behind: list[tuple[str, ...]] = []
        """Of each unit, what ops behind it, or the caller, read."""
        read = {*plan.outputs}
        for unit in reversed(self._units):
            self._read_behind.insert(0, tuple(read))
            read |= {name for op in unit for name in op.inputs}
        self._known: dict[object, tuple[Lowered, ...]] = {}
        self.keys = {op.name: self._key(op) for op in plan.ops}
        """Of each op, by name."""

    def _key(self, op: Op) -> str:
        inputs = [self._specs[name] if name else None for name in op.inputs]
        return tactics.key(op.op, inputs, [self._specs[name] for name in op.outputs], op.attrs)

    def __call__(self, chosen: Tactics, key: str = "") -> list[Lowered]:
        """Of all ops in order; `key`: of the first op of that alone, and what is lowered with it."""
        lowered: list[Lowered] = []
        for index, ops in enumerate(self._units):
            if key and (lowered or all(self.keys[op.name] != key for op in ops)):
                continue
            mine = tuple(frozenset(chosen.get(self.keys[op.name], {}).items()) for op in ops)
            if (index, mine) not in self._known:
                selected = select_tactics(ops, self._specs, (self._arch,), outputs=self._read_behind[index], chosen=chosen)
                self._known[index, mine] = tuple(op.tactics[self._arch] for op in selected)
            lowered += self._known[index, mine]
        return lowered


def _units(ops: Sequence[Op]) -> Iterator[tuple[Op, ...]]:
    """Ops that are lowered together: attention may rotate, products may normalize."""
    pairs = {b.name: (a, b) for a, b in pairwise(ops) if lowered_together(a, b)}
    first = {a.name for a, _ in pairs.values()}
    for op in ops:
        if op.name not in first:
            yield pairs.get(op.name, (op,))


def cut_plan(
    config: ModelConfig, precision: str, arch: str, cases: Sequence[KernelCase], page_size: int, kv_dtype: str, tp: int, gpu: str
) -> tuple[Plan, Mapping[str, torch.Tensor], frozenset[str]]:
    """The plan of a few layers of one rank alone, its constants, and keys of the ops that it has in place of others. Raises as
    `compile_cases`."""

    def compiled(layers: int) -> Any:
        few = replace(config, num_layers=min(layers, config.num_layers))
        return compile_cases(few, precision, arch, cases, page_size, kv_dtype=kv_dtype, layout=ParallelLayout(tp=tp), gpu=gpu)

    compiled_model = compiled(LEAST_LAYERS)
    nbytes = weight_bytes(compiled_model.plan.weights)
    if nbytes < LEAST_BYTES and config.num_layers > LEAST_LAYERS:
        compiled_model = compiled(-(-LEAST_LAYERS * LEAST_BYTES // nbytes))
    plan, replaced = alone(compiled_model.plan, arch, gpu)
    return plan, compiled_model.constants, replaced


def alone(plan: Plan, arch: str, gpu: str) -> tuple[Plan, frozenset[str]]:
    """The plan of a rank as if it were the only one, its shapes as they are, and the keys of the ops that this put in place of others."""
    if plan.parallel.tp == 1:
        return plan, frozenset()
    names: dict[str, str] = {}
    ops: list[Op] = []
    replaced: list[Op] = []
    for op in plan.ops:
        inputs = tuple(names.get(name, name) for name in op.inputs)
        spec = OP_SPECS[op.op]
        if Trait.REDUCES in spec.traits and not spec.alone:
            names[op.outputs[0]] = inputs[0]
            continue
        made = replace(op, inputs=inputs, tactics={}, reuses="")
        if spec.alone:
            given = dict(zip(spec.tensors, inputs, strict=True))
            made = replace(made, op=spec.alone, inputs=tuple(given.get(name, "") for name in _arguments(spec.alone)))
            replaced.append(made)
        ops.append(made)
    values = {name: spec for name, spec in plan.values.items() if name not in names}
    specs = {**PlanCounter(plan).specs, **values}
    outputs = tuple(names.get(name, name) for name in plan.outputs)
    planned = plan_ops(ops, values, specs, outputs, plan.profile, (arch,), gpu)
    keys = (
        tactics.key(op.op, [specs[name] if name else None for name in op.inputs], [specs[name] for name in op.outputs], op.attrs)
        for op in replaced
    )
    rank = replace(plan, ops=planned.ops, values=values, buffers=planned.buffers, arena_bytes=planned.arena_bytes, outputs=outputs)
    return rank, frozenset(keys)


def _arguments(op: str) -> Sequence[str]:
    """Tensors of an op; `a` and `b` of a sum are what a reduction calls x and residual."""
    return tuple({"a": "x", "b": "residual"}.get(name, name) for name in OP_SPECS[op].tensors)
