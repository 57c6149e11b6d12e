"""A model's ops one by one, at a batch's shape, with the launches and the inputs they have in an engine.

The plan of the model, cut to two layers (the first differs from the others, the rest are alike), is compiled for this GPU; a step's inputs
are laid down as the runtime does, and the ops run in order, so that each op's inputs are what the ops before it made. Nothing is
invented for the benchmark: shapes, tactics, launches and data are the engine's. An op is checked by running its reference on those inputs.

An op may launch nothing in a step because the next op does its work: attention rotates and writes the cache itself in steps that only
decode, and products of few tokens take the norm before them. The next op then includes it, and is held against the references of both,
one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch

from trtllm_bench.errors import BenchError
from trtllm_bench.micro.timing import FLUSH_BYTES
from trtllm_bench.roofline.counts import OpCost, PlanCounter, StepShape
from trtllm_engines.checkpoints.dummy import DummyWeights
from trtllm_engines.checkpoints.write import assemble
from trtllm_engines.compiler.compile import Compiled, compile_model
from trtllm_engines.compiler.plan import KV_SCALES, Op, Plan, Profile
from trtllm_engines.models.config import ModelConfig
from trtllm_engines.models.presets import resolve_model
from trtllm_engines.runtime.batch import StepBatch
from trtllm_engines.runtime.device_state import DeviceState
from trtllm_engines.runtime.pages import RESERVED_PAGES
from trtllm_kernels.dialect.expr import evaluate
from trtllm_kernels.dialect.ops import OP_SPECS
from trtllm_kernels.dialect.specs import DTYPES, spec_of
from trtllm_kernels.dialect.types import SKINNY_TOKENS, Arg, Attr, Lowered, TensorSpec
from trtllm_kernels.errors import KernelError
from trtllm_kernels.lowering import lower
from trtllm_kernels.references import OPS
from trtllm_kernels.references.quantize import INT8_MAX

LAYERS = 2
VALUE_RANGE = 3.0
LEAST_CALLS, MOST_COPIES = 64, 256
"""Of a chain: so many that what lies between two replays of its graph does not count, and of a weight, which has to leave L2."""
REPLAYS = 6
"""Of a graph, between two events."""
RIDGE = 270
"""FLOP a byte from which a product's time is its arithmetic's, an H100's roughly."""


@dataclass(frozen=True)
class KernelCase:
    """One step to take apart."""

    label: str
    shape: StepShape


def decode_case(sequences: int, kv_len: int) -> KernelCase:
    return KernelCase("decode", StepShape.decode(sequences, kv_len))


def prefill_case(tokens: int) -> KernelCase:
    return KernelCase("prefill", StepShape.prefill(1, tokens))


def chunk_case(tokens: int, past: int) -> KernelCase:
    """A prompt's next tokens, the `past` before them in the cache."""
    return KernelCase("chunk", StepShape(np.array([tokens]), np.array([tokens + past]), 0, 1))


def compile_cases(
    config: ModelConfig, precision: str, arch: str, cases: Sequence[KernelCase], page_size: int = 32, **compile_flags: Any
) -> Compiled:
    """A model's plan for these steps, in which the last layer's ops are those of the others.

    Raises `BenchError` for a sequence of more tokens than the model has positions.
    """
    tokens = max(case.shape.tokens for case in cases)
    sequences = max(case.shape.sequences for case in cases)
    longest = max(int(case.shape.kv_lens.max()) for case in cases)
    if longest > config.max_position_embeddings:
        most = config.max_position_embeddings
        raise BenchError(f"{config.name} has {most:,} positions; a sequence of {longest:,} tokens is too long for it")
    profile = Profile(sequences, max(tokens, sequences), min(longest + 1, config.max_position_embeddings), page_size)
    source = DummyWeights(0).description
    return compile_model(config, precision, profile, arches=(arch,), weights_source=source, every_row=True, **compile_flags)


def ops_until(plan: Plan, last: str) -> tuple[Op, ...]:
    """A plan's ops up to the first whose kind is `last`; all of them where that is empty."""
    end = next((index + 1 for index, op in enumerate(plan.ops) if op.op == last), len(plan.ops))
    return plan.ops[:end]


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
            from trtllm_kernels.compile.pool import compile_many

            cubins = compile_many([k for op in self._ops for k in op.tactics[arch].kernels], arch)
            for reason in (one for one in cubins.values() if isinstance(one, str)):
                raise KernelError(reason)
            self._cubins = cubins

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
        from trtllm_kernels.compile.pool import compile_many

        cubins = compile_many(list(lowered.kernels), self.arch)
        for reason in (one for one in cubins.values() if isinstance(one, str)):
            raise KernelError(reason)
        self.add_kernels(cubins)
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


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """The buffer that a value is the beginning of."""
    return tensor if tensor._base is None else tensor._base


def _reading(lowered: Lowered, name: str, other: str) -> Lowered:
    """With `other` where launches take `name`."""

    def argument(arg: Arg) -> Arg:
        return replace(arg, value=other) if arg.value == name else arg

    launches = (replace(one, args=tuple(argument(arg) for arg in one.args)) for one in lowered.launches)
    return replace(lowered, launches=tuple(launches))


@dataclass(frozen=True)
class BoundOp:
    op: Op
    cost: OpCost
    memory: dict[str, torch.Tensor]
    symbols: Mapping[str, int]
    lowered: Lowered
    program: Any
    """The launches, bound; None runs the reference."""
    includes: tuple[BoundOp, ...] = ()
    """Ops before this one whose work its launches do too."""

    @property
    def idle(self) -> bool:
        """Whether all its launches are skipped in this step: another op does its work."""
        skipped = (any(evaluate(dim, self.symbols) <= 0 for dim in launch.grid) for launch in self.lowered.launches)
        return bool(self.lowered.launches) and all(skipped)

    def operand(self, name: str) -> str:
        """What the op's tensor `name` of its definition is called in the plan."""
        return dict(zip(OPS[self.op.op].tensors, self.op.inputs, strict=True))[name]

    def arguments(self) -> dict[str, Any]:
        definition = OPS[self.op.op]
        inputs = zip(definition.tensors, self.op.inputs, strict=True)
        return {name: self.memory[value] if value else None for name, value in inputs} | dict(self.op.attrs)

    def run(self) -> None:
        """Computes the results in place."""
        if self.program is not None:
            self.program.run()
            return
        for name, value in zip(self.op.outputs, self.reference(self.arguments()), strict=True):
            self.memory[name] = value

    def reference(self, arguments: dict[str, Any]) -> list[torch.Tensor]:
        """What the op's definition makes of these, on their own device."""
        device = next(value.device for value in arguments.values() if isinstance(value, torch.Tensor))
        with device:
            result = OPS[self.op.op].reference(**arguments)
        return list(result) if isinstance(result, tuple | list) else [result]

    def error(self) -> float:
        """Largest root-mean-square difference to the reference, relative to it, over results and what is written in place; inf for NaN."""
        expected = self.expected()
        self.run()
        return self.difference(expected)

    def expected(self) -> list[torch.Tensor]:
        """What references make of the inputs: results, then copies of what is written in place. The ops that this one includes come first,
        and this one's reference reads what theirs have made."""
        memory = dict(self.memory)
        for part in (*self.includes, self):
            part = replace(part, memory=memory)
            written = {part.operand(name): tensor.clone() for name, tensor in OPS[part.op.op].written_in(part.arguments()).items()}
            memory |= written
            part = replace(part, memory=memory)
            memory |= zip(part.op.outputs, part.reference(part.arguments()), strict=True)
        return self._written_in(memory)

    def difference(self, expected: list[torch.Tensor]) -> float:
        """Of what the last `run` left to `expected`."""
        if self.op.op == "linear_sample":
            expected = self._as_sampled(expected)
        return max(_difference(a, b) for a, b in zip(self.written(), expected, strict=True))

    def _as_sampled(self, expected: list[torch.Tensor]) -> list[torch.Tensor]:
        """With the tokens that the last run's own logits have for largest: of two nearly equal logits rounding decides."""
        logits, tokens = (self.memory[name] for name in self.op.outputs)
        arguments = self.arguments()
        most = logits.gather(1, tokens.long().clamp(0, logits.shape[1] - 1)[:, None])[:, 0] == logits.amax(1)
        expected_logits, chosen, best, last_tokens, ring = expected
        sampled, last_tokens, ring = torch.where(most, tokens, chosen), last_tokens.clone(), ring.clone()
        last_tokens[arguments["sample_slots"].long()] = sampled
        ring[int(arguments["ring_slot"]), : len(sampled)] = sampled.to(ring.device)
        return [expected_logits, sampled, best, last_tokens, ring]

    def written(self) -> list[torch.Tensor]:
        """Results, then what is written in place, by the ops that this one includes too."""
        return self._written_in(self.memory)

    def _written_in(self, memory: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        in_place = {part.operand(name): None for part in (*self.includes, self) for name in OPS[part.op.op].written_in(part.arguments())}
        return [memory[name] for name in (*self.op.outputs, *in_place)]


def _difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    a, b = actual.reshape(-1), expected.reshape(-1)
    if not a.is_floating_point() and a.dtype != torch.int8:  # codes are numbers
        return 0.0 if torch.equal(a, b) else float("inf")
    total = scale = 0.0
    for at in range(0, len(a), 1 << 26):
        x, y = a[at : at + (1 << 26)].float(), b[at : at + (1 << 26)].float()
        total += float((x - y).square().sum())
        scale += float(y.square().sum())
    if total != total or scale != scale:
        return float("inf")
    return math.sqrt(total / scale if scale > 0 else total)


def upload_step(state: DeviceState, plan: Plan, shape: StepShape) -> None:
    """A step as the runtime would upload it, of drawn tokens; each sequence owns consecutive pages."""
    sequences, decodes = shape.sequences, shape.num_decodes
    page = plan.profile.page_size
    counts = -(-shape.kv_lens // page)
    table = np.zeros((sequences, plan.profile.max_pages_per_seq), np.int32)
    first = RESERVED_PAGES
    for row, count in enumerate(counts.tolist()):
        table[row, :count] = np.arange(first, first + count)
        first += count
    state.block_table[:sequences] = torch.from_numpy(table).to(state.device)
    vocabulary = plan.config.vocab_size
    draw = np.random.default_rng(0)
    state.last_tokens.copy_(torch.from_numpy(draw.integers(0, vocabulary, len(state.last_tokens)).astype(np.int32)))
    sampled = np.ones(sequences, np.bool_)
    state.upload(
        StepBatch(
            slots=np.arange(sequences, dtype=np.int32),
            query_lens=shape.query_lens.astype(np.int32),
            kv_lens=shape.kv_lens.astype(np.int32),
            num_decodes=decodes,
            context_tokens=draw.integers(0, vocabulary, shape.tokens - decodes).astype(np.int32),
            sampled=sampled,
            page_updates=np.empty((0, 3), np.int32),
        )
    )


def fill_cache(state: DeviceState) -> None:
    """Keys and values of sequences already there, drawn; where each has a scale, all scales are alike."""
    scale = 1.0
    if (scales := state.tensors.get(KV_SCALES)) is not None:
        scale = VALUE_RANGE / INT8_MAX
        scales.fill_(scale)
    flat = state.kv_cache.view(-1)
    for at in range(0, len(flat), 1 << 26):
        part = flat[at : at + (1 << 26)]
        part.copy_(torch.randn(len(part), device=flat.device).clamp_(-VALUE_RANGE, VALUE_RANGE) / scale)
