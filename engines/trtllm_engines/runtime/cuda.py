"""The CUDA executor: bound launches over one arena, replayed as CUDA graphs where a step only decodes.

All memory is fixed when the engine is loaded: weights, the plan's arena, step inputs, and a KV cache of what is left. A step is one copy of
integers, the launches, and an event behind which the host finds the tokens; nothing waits for the device but `result()`.

Steps that only decode are CUDA graphs, one for each of a few numbers of sequences and, where that changes launches, lengths (`buckets.py`),
padded with sequences that own page 0: a small step would wait for Python's few microseconds a launch, and in a larger one kernels follow
each other more closely. Steps with prompts, and larger ones, are launched one by one: their kernels take longer than launching them, and
padding would cost real work. A graph is captured the first time it is needed or ahead (`capture`), after one run on padding alone, which
loads what is loaded lazily and touches no sequence. The plan's last op samples, greedy or at a temperature, and leaves the tokens in the
host's memory; sampling that takes more follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from trtllm_engines.compiler.plan import LOGITS, Plan
from trtllm_engines.errors import EngineError
from trtllm_engines.runtime.batch import StepBatch, StepOutput
from trtllm_engines.runtime.buckets import LARGEST_GRAPH, GraphKey, decode_symbols, graph_buckets, shared_graphs
from trtllm_engines.runtime.device_state import SamplingPlan
from trtllm_engines.runtime.group import RankGroup, StageLink
from trtllm_engines.runtime.inputs import StepSizes
from trtllm_engines.runtime.launch_order import LaunchOrder, run_in_groups
from trtllm_engines.runtime.observer import NOBODY, StepObserver, op_groups
from trtllm_engines.runtime.rank import CacheSize, RankMemory
from trtllm_engines.runtime.sampler import collect_logprobs
from trtllm_kernels.compile.cubin import Cubin
from trtllm_kernels.dialect.expr import evaluate
from trtllm_kernels.dialect.types import NO_TOKEN, rounded_keys
from trtllm_kernels.launch.driver import BoundProgram

Progress = Callable[[int, int], None]
"""(graphs captured, of how many)"""


@dataclass(frozen=True)
class CudaHandle:
    event: torch.cuda.Event
    tokens: torch.Tensor
    """In the host's memory, int32 [S]; `NO_TOKEN` where a row's best logit is not a finite number. Reused a few steps later."""
    logprobs: tuple[torch.Tensor, ...]
    plan: SamplingPlan
    finite: torch.Tensor | None = None
    """In the host's memory, bool [1]: whether all logits are numbers. None where nobody looked."""

    def done(self) -> bool:
        return bool(self.event.query())  # type: ignore[no-untyped-call]

    def result(self) -> StepOutput:
        self.event.synchronize()
        tokens = self.tokens.numpy().copy()
        if (self.finite is not None and not bool(self.finite)) or bool((tokens == NO_TOKEN).any()):
            raise EngineError(
                f"the {LOGITS} of a step are NaN or infinite, so there is no next token; the weights are damaged, or need a wider precision"
            )
        if not self.logprobs:
            return StepOutput(tokens)
        chosen, top, top_ids = (tensor.numpy() for tensor in self.logprobs)
        return StepOutput(tokens, collect_logprobs(self.plan.row_logprobs, chosen, top, top_ids))


class CudaRunner:
    """`tensors` holds the plan's weights and constants on the device; `cubin` finds a kernel's code by key.

    The KV cache takes `kv_cache_fraction` of the memory left after weights and arena, unless `num_pages` says how much.
    `link`: of a pipeline's stage, whose tokens mean nothing unless it is the last. `pdl` is `BoundProgram`'s. `check_logits` looks at every
    step's logits on the device, one pass over them, and raises where they are not numbers; off where time is measured.
    """

    def __init__(
        self,
        plan: Plan,
        arch: str,
        tensors: Mapping[str, torch.Tensor],
        cubin: Callable[[str], Cubin],
        *,
        kv_cache_fraction: float = 0.9,
        num_pages: int | None = None,
        cuda_graphs: bool = True,
        max_graph_batch: int = LARGEST_GRAPH,
        pdl: bool = True,
        group: RankGroup | None = None,
        link: StageLink | None = None,
        check_logits: bool = False,
    ) -> None:
        self.plan = plan
        self._arch = arch
        self._check_logits = check_logits and plan.is_last_stage
        device = torch.device("cuda", torch.cuda.current_device())
        self.memory = RankMemory(plan, device, tensors, CacheSize(kv_cache_fraction, num_pages), group, link)
        self.num_pages, self.state = self.memory.num_pages, self.memory.state
        lowered = [op.tactics[arch] for op in plan.ops]
        specs = {**plan.values, **{name: spec for one in lowered for name, spec in one.workspaces.items()}}
        self._values = {name: self.memory.view(name, spec) for name, spec in specs.items() if name in plan.buffers}
        addressed = {**tensors, **self.state.tensors, **self._values}
        cubins = {kernel.key: cubin(kernel.key) for one in lowered for kernel in one.kernels}
        self._program = BoundProgram(lowered, addressed.__getitem__, cubins, pdl=pdl)
        self._sizes = StepSizes(0, 0, 0, 0, 1, 0, 0)
        self.buckets = graph_buckets(min(plan.profile.max_batch_size, max_graph_batch)) if cuda_graphs else ()
        self._graph_of = shared_graphs(self.buckets, plan.profile.max_seq_len, lambda key: self._program.sizes(**decode_symbols(key)))
        self._graphs: dict[GraphKey, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self.observe(NOBODY)

    def close(self) -> None:
        """Its memory goes with it."""

    def observe(self, observer: StepObserver) -> None:
        self._observer = observer
        self._groups = op_groups([op.name for op in self.plan.ops], observer.op_detail)
        self._order = LaunchOrder(self.plan, self._arch) if self._groups else None

    @property
    def outputs(self) -> dict[str, torch.Tensor]:
        """The last launched step's results by name: logits and marked values. Reading them waits for the step."""
        symbols = self._sizes.symbols
        return {name: self._values[name][: evaluate(self.plan.values[name].shape[0], symbols)] for name in self.plan.outputs}

    @torch.inference_mode()
    def launch(self, batch: StepBatch) -> CudaHandle:
        plan = self.state.start(batch)
        bucket = self._bucket(batch)
        if bucket is None:
            sizes = self.state.upload(batch)
            self._forward(sizes)
        else:
            graph = self._captured(self._graph_of[bucket, rounded_keys(int(batch.kv_lens.max()))])
            sizes = self.state.upload(batch, bucket)
            self._observer.replays_graph(bucket)
            graph.replay()
        self._sizes = sizes
        return self._handle(plan)

    def _logits(self) -> torch.Tensor:
        """[S, V] of the last step, all ranks' columns."""
        return self.memory.logits(self.outputs[LOGITS])

    def capture(self, progress: Progress | None = None) -> None:
        """Captures every graph ahead, largest first."""
        keys = sorted(set(self._graph_of.values()), reverse=True)
        for done, key in enumerate(keys, 1):
            self._captured(key)
            if progress is not None:
                progress(done, len(keys))

    def _bucket(self, batch: StepBatch) -> int | None:
        seqs = batch.num_seqs
        if not self.buckets or batch.num_decodes < seqs or seqs > self.buckets[-1]:
            return None
        return next(bucket for bucket in self.buckets if bucket >= seqs)

    @torch.inference_mode()
    def _captured(self, key: GraphKey) -> torch.cuda.CUDAGraph:
        if key not in self._graphs:
            sequences, keys = key
            sizes = replace(self.state.upload(_NOTHING, sequences), longest_decode=keys)
            self._forward(sizes)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                self._forward(sizes)
            self._graphs[key] = graph
        return self._graphs[key]

    def _forward(self, sizes: StepSizes) -> None:
        self._program.set_symbols(**sizes.symbols)
        if self._order is None:
            self._program.run()
        else:
            run_in_groups(self._program, self._groups, self._order.ends(sizes.symbols), self._observer)

    def _handle(self, plan: SamplingPlan) -> CudaHandle:
        """Of the step just launched, sampled anew where that takes more than the plan does."""
        logprobs: tuple[torch.Tensor, ...] = ()
        if plan.by_sampler and self.plan.is_last_stage:
            self._observer.sample_begins(plan.count)
            try:
                on_device = self.state.sample(plan, self._logits(), self._sizes).logprobs
            finally:
                self._observer.sample_ends()
            logprobs = tuple(torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True) for t in on_device)
        finite: torch.Tensor | None = None
        if self._check_logits:
            seen = torch.isfinite(self.outputs[LOGITS][: plan.count]).all().view(1)
            finite = torch.empty(1, dtype=torch.bool, pin_memory=True).copy_(seen, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return CudaHandle(event, self.state.tokens[: plan.count], logprobs, plan, finite)


_EMPTY = np.empty(0, np.int32)
_NOTHING = StepBatch(_EMPTY, _EMPTY, _EMPTY, 0, _EMPTY, np.empty(0, np.bool_), np.empty((0, 3), np.int32))
