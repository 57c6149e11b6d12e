"""A model's ops one by one, at a batch's shape, with the launches and the inputs they have in an engine.

The plan of the model, cut to two layers (the first differs from the others, the rest are alike), is compiled for this GPU; a step's inputs
are laid down as the runtime does, and the ops run in order, so that each op's inputs are what the ops before it made. Nothing is
invented for the benchmark: shapes, tactics, launches and data are the engine's. An op is checked by running its reference on those inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import torch

from trtllm_bench.micro.bound_op import BoundOp
from trtllm_bench.micro.cases import KernelCase, compile_cases, ops_until
from trtllm_bench.micro.step_inputs import fill_cache, upload_step
from trtllm_bench.micro.timing import FLUSH_BYTES
from trtllm_bench.roofline.counts import PlanCounter
from trtllm_engines.checkpoints.dummy import DummyWeights
from trtllm_engines.checkpoints.write import assemble
from trtllm_engines.compiler.plan import Op, Plan
from trtllm_engines.models.config import ModelConfig
from trtllm_engines.models.presets import resolve_model
from trtllm_engines.runtime.device_state import DeviceState
from trtllm_engines.runtime.pages import RESERVED_PAGES
from trtllm_kernels.dialect.expr import evaluate
from trtllm_kernels.dialect.ops import OP_SPECS
from trtllm_kernels.dialect.specs import DTYPES, spec_of
from trtllm_kernels.dialect.types import SKINNY_TOKENS, Arg, Attr, KernelSpec, Lowered, TensorSpec
from trtllm_kernels.errors import KernelError
from trtllm_kernels.lowering import lower

LAYERS = 2
LEAST_CALLS, MOST_COPIES = 64, 256
"""Of a chain: so many that what lies between two replays of its graph does not count, and of a weight, which has to leave L2."""
REPLAYS = 6
"""Of a graph, between two events."""
RIDGE = 270
"""FLOP a byte from which a product's time is its arithmetic's, an H100's roughly."""


def op_reading(op: Op, argument: str, name: str) -> Op:
    """`op` with the value `name` as its tensor `argument`."""
    arguments = OP_SPECS[op.op].tensors
    inputs = (name if one == argument else given for one, given in zip(arguments, op.inputs, strict=True))
    return replace(op, name=f"{op.name} with {name}", inputs=tuple(inputs))


def lower_in(plan: Plan, op: Op, arch: str, others: Mapping[str, TensorSpec]) -> Lowered:
    """Launches of an op that is not the plan's own, on its values, weights and step inputs and on `others`. None on the CPU."""
    if arch == "cpu":
        return Lowered(())
    specs = {**plan.weights, **plan.constants, **plan.step_inputs, **plan.values, **others}
    return lower(
        op.op,
        [specs[name] if name else None for name in op.inputs],
        [specs[name] for name in op.outputs],
        op.attrs,
        arch,
        input_names=op.inputs,
        output_names=op.outputs,
        in_place=bool(op.reuses),
    )


class Bench:
    """A model's ops on one device. `arch` "cpu" runs the references, for tests. `last`: the kind of op behind whose first nothing is
    prepared. Raises `BenchError` for a sequence of more tokens than the model has positions."""

    def __init__(
        self,
        model: str | ModelConfig,
        precision: str,
        arch: str,
        cases: Sequence[KernelCase],
        page_size: int = 32,
        last: str = "",
        **compile_flags: Any,
    ) -> None:
        self.arch = arch
        self.device = torch.device("cpu" if arch == "cpu" else "cuda")
        config = model if isinstance(model, ModelConfig) else replace(resolve_model(model).config, num_layers=LAYERS)
        gpu = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" and torch.cuda.is_available() else ""
        compiled = compile_cases(config, precision, arch, cases, page_size, gpu=gpu, **compile_flags)
        source = DummyWeights(0)
        self.plan: Plan = compiled.plan
        self.counter = PlanCounter(self.plan)
        self._ops = ops_until(self.plan, last)
        needed = {name for op in self._ops for name in op.inputs}
        self.weights = {name: assemble(self.plan, name, source, self.device) for name in self.plan.weights if name in needed}
        self.weights |= {name: compiled.constants[name].to(self.device) for name in self.plan.constants}
        pages = max(int((-(-case.shape.kv_lens // page_size)).sum()) for case in cases) + RESERVED_PAGES
        self.state = DeviceState(self.plan, pages, self.device)
        fill_cache(self.state)
        self._cubins: Mapping[str, Any] = {}
        self._copied, self._copies = "", dict[str, torch.Tensor]()
        if arch != "cpu":
            self._cubins = _compiled([kernel for op in self._ops for kernel in op.tactics[arch].kernels], arch)

    def ops(self, case: KernelCase) -> Iterator[BoundOp]:
        """The step's ops in order, one of each kind, each bound to the results of those before it."""
        symbols = case.shape.symbols
        upload_step(self.state, self.plan, case.shape)
        memory: dict[str, torch.Tensor] = {**self.weights, **self.state.of_step(symbols)}
        costs = self.counter.step(case.shape)
        met: set[int] = set()
        left_to_next: tuple[BoundOp, ...] = ()
        for op, cost, like in zip(self._ops, costs, self.counter.likeness, strict=False):
            for name in op.outputs:
                memory[name] = self._empty(self.plan.values[name], symbols)
            if op.reuses:
                memory[op.outputs[0]] = memory[op.reuses]
            lowered = op.tactics.get(self.arch, Lowered(()))
            program = None if self.arch == "cpu" else self._bind([lowered], memory, symbols)
            bound = BoundOp(op, cost, memory, symbols, lowered, program, left_to_next)
            left_to_next = (*left_to_next, bound) if bound.idle else ()
            bound.run()
            if bound.idle and not op.reuses:  # what the next op's other variants read
                for name, value in zip(op.outputs, bound.reference(bound.arguments()), strict=True):
                    memory[name].copy_(value)
            if like not in met:
                met.add(like)
                yield bound

    def _empty(self, spec: Any, symbols: Mapping[str, int]) -> torch.Tensor:
        """With room for more tokens behind it, as an engine's buffers have: kernels that pad tokens read what lies there (`_whole`), and no
        edge of the tensor, at which TMA is slower."""
        shape = [evaluate(dim, symbols) for dim in spec.shape]
        rows = max(shape[0], SKINNY_TOKENS)
        return torch.zeros([rows, *shape[1:]], dtype=DTYPES[spec.dtype], device=self.device)[: shape[0]]

    def _bind(
        self, lowered: Sequence[Lowered], memory: Mapping[str, torch.Tensor], symbols: Mapping[str, int], overlap: bool = False
    ) -> Any:
        """Without overlap a duration is a kernel's own, and no wait for the one before."""
        from trtllm_kernels.launch.driver import BoundProgram

        workspaces = {name: spec for one in lowered for name, spec in one.workspaces.items()}
        scratch = {name: self._empty(spec, symbols) for name, spec in workspaces.items()}
        values = {name: _whole(tensor) if name in self.plan.values else tensor for name, tensor in memory.items()}
        program = BoundProgram(lowered, {**values, **scratch}.__getitem__, self._cubins, pdl=overlap)
        program.set_symbols(**symbols)
        return program

    def add_kernels(self, cubins: Mapping[str, Any]) -> None:
        """Machine code that `variant` may need beyond the plan's own."""
        self._cubins = {**self._cubins, **cubins}

    def chain(self, bound: BoundOp) -> Chain | None:
        """A product over and over as in an engine, where launches overlap and every weight comes from memory; None for other ops, and
        for products whose time is their arithmetic's."""
        if bound.cost.kind != "gemm" or bound.cost.flop > RIDGE * bound.cost.bytes:
            return None
        name = bound.operand("weight")
        others = self._copies_of(name, bound.memory[name])
        names, memory = [name, *others], {**bound.memory, **others}
        copies = len(names)
        calls = copies * -(-LEAST_CALLS // copies)
        if self.arch == "cpu":
            bounds = [replace(bound, memory={**memory, name: memory[one]}) for one in names]

            def run() -> None:
                for i in range(calls):
                    bounds[i % copies].run()

            return Chain(run, calls)
        each = [_reading(bound.lowered, name, one) for one in names]
        program = self._bind(each * (calls // copies), memory, bound.symbols, overlap=True)
        program.run()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            program.run()
        return Chain(graph.replay, calls, program)

    def loop(self, parts: Sequence[BoundOp], copies: int) -> Chain:
        """The parts one after another, in rounds of one CUDA graph that is replayed `REPLAYS` times at a run, as AIConfigurator's
        collectors do. In each of the `copies` rounds a product reads a weight of its own."""
        product = next((part for part in parts if part.cost.kind == "gemm"), None)
        weights = {} if product is None else self._weights_of(product, copies)
        names, memory = tuple(weights) or ("",), {**parts[0].memory, **weights}
        if self.arch == "cpu":
            rounds = [replace(part, memory={**memory, names[0]: memory[one]} if weights else memory) for one in names for part in parts]
            return self._replayed([part.run for part in rounds], len(names))
        each = [_reading(part.lowered, names[0], one) for one in names for part in parts]
        program = self._bind(each, memory, parts[0].symbols, overlap=True)
        return self._replayed([program.run], len(names))

    def loop_of(self, call: Callable[[torch.Tensor, torch.Tensor], Any], product: BoundOp, copies: int) -> Chain:
        """As `loop`, of another library's product: `call` takes its input and a weight."""
        x = product.arguments()["x"]
        weights = self._weights_of(product, copies).values()
        return self._replayed([partial(call, x, weight) for weight in weights], len(weights))

    def _weights_of(self, product: BoundOp, copies: int) -> dict[str, torch.Tensor]:
        """A product's own weight and so many copies that there are `copies`, or fewer of large ones, by name."""
        name = product.operand("weight")
        return {name: product.memory[name]} | dict(islice(self._copies_of(name, product.memory[name]).items(), copies - 1))

    def _replayed(self, calls: Sequence[Callable[[], Any]], rounds: int) -> Chain:
        """`calls`, which make `rounds` rounds, as a graph that is replayed."""

        def round_() -> None:
            for call in calls:
                call()

        once, kept = round_, None
        if self.arch != "cpu":
            round_()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                round_()
            once, kept = graph.replay, (calls, graph)

        def replays() -> None:
            for _ in range(REPLAYS):
                once()

        return Chain(replays, REPLAYS * rounds, kept)

    def before(
        self, bound: BoundOp, op: str, inputs: Mapping[str, TensorSpec], outputs: Sequence[str], attrs: Mapping[str, Attr]
    ) -> BoundOp:
        """An op that the plan does not have, with `outputs`, values of the plan that `bound` reads, as its results. Inputs that the memory
        lacks are drawn."""
        for name, spec in inputs.items():
            if name not in bound.memory:
                bound.memory[name] = self._empty(spec, bound.symbols).normal_()
        extra = Op(f"{op} before {bound.op.name}", op, tuple(inputs), tuple(outputs), attrs)
        lowered = lower_in(self.plan, extra, self.arch, inputs)
        return self._added(replace(bound, op=extra, includes=(), cost=replace(bound.cost, op=op, kind=OP_SPECS[op].kind)), lowered)

    def reading(self, bound: BoundOp, argument: str, name: str, tensor: torch.Tensor) -> BoundOp:
        """The same op on the same memory, but for `tensor`, called `name`, in place of what it reads as `argument`."""
        bound.memory[name] = tensor
        other = op_reading(bound.op, argument, name)
        lowered = lower_in(self.plan, other, self.arch, {name: spec_of(tensor)})
        return self._added(replace(bound, op=other, includes=()), lowered)

    def _added(self, bound: BoundOp, lowered: Lowered) -> BoundOp:
        """With launches whose kernels the plan may lack. Raises `KernelError` where one cannot be compiled."""
        if self.arch == "cpu":
            return replace(bound, lowered=lowered, program=None)
        self.add_kernels(_compiled(lowered.kernels, self.arch))
        return replace(bound, lowered=lowered, program=self._bind([lowered], bound.memory, bound.symbols))

    def _copies_of(self, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """By names of their own. Those asked for last are kept, for the next variant."""
        if self._copied != name:
            count = min(MOST_COPIES, -(-FLUSH_BYTES // weight.nbytes))
            self._copies = {}
            self._copies = {f"{name} copy {i}": weight.clone() for i in range(1, count)}
            self._copied = name
        return self._copies

    def variant(self, bound: BoundOp, lowered: Lowered) -> BoundOp:
        """The same op on the same memory by other launches, which do its own work alone."""
        program = None if self.arch == "cpu" else self._bind([lowered], bound.memory, bound.symbols)
        return replace(bound, lowered=lowered, program=program, includes=())


@dataclass(frozen=True)
class Chain:
    """`calls` of one op in one `run`. `kept`: what a graph needs alive."""

    run: Callable[[], Any]
    calls: int
    kept: Any = None


def _compiled(kernels: Iterable[KernelSpec], arch: str) -> Mapping[str, Any]:
    """Machine code by kernel key. Raises `KernelError` with the reason where a kernel cannot be compiled."""
    from trtllm_kernels.compile.pool import compile_many

    cubins = compile_many(kernels, arch)
    for reason in (one for one in cubins.values() if isinstance(one, str)):
        raise KernelError(reason)
    return cubins


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """The buffer that a value is the beginning of."""
    return tensor if tensor._base is None else tensor._base


def _reading(lowered: Lowered, name: str, other: str) -> Lowered:
    """With `other` where launches take `name`."""

    def argument(arg: Arg) -> Arg:
        return replace(arg, value=other) if arg.value == name else arg

    launches = (replace(one, args=tuple(argument(arg) for arg in one.args)) for one in lowered.launches)
    return replace(lowered, launches=tuple(launches))
