"""The CUDA executor: bound launches over one arena, replayed as CUDA graphs where a step only decodes.

All memory is fixed when the engine is loaded: weights, the plan's arena, step inputs, and a KV cache of what is left. A step is one copy of
integers, the launches, sampling, and one copy of tokens back behind an event; nothing waits for the device but `result()`.

Steps that only decode are CUDA graphs, one a bucket (`buckets.py`), padded with sequences that own page 0: a small step would wait for
Python's few microseconds a launch, and in a larger one kernels follow each other more closely. Steps with prompts, and larger ones, are
launched one by one: their kernels take longer than launching them, and padding would cost real work. A graph is captured the first time it
is needed or ahead (`capture`), after one run on padding alone, which loads what is loaded lazily and touches no sequence. Sampling is part
of the graph when greedy or plain temperature, else it follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from trtllm_engines.plan import Plan
from trtllm_engines.runtime.batch import StepBatch, StepOutput
from trtllm_engines.runtime.buckets import LARGEST_GRAPH, graph_buckets
from trtllm_engines.runtime.device_state import DeviceState, SamplingPlan, pages_within
from trtllm_engines.runtime.inputs import RING, StepSizes
from trtllm_engines.runtime.sampler import CAPTURABLE, LOGPROBS, Sampled, collect_logprobs
from trtllm_kernels.cubin import Cubin
from trtllm_kernels.driver import BoundProgram
from trtllm_kernels.expr import evaluate
from trtllm_kernels.specs import DTYPES
from trtllm_kernels.types import TensorSpec

FORWARD_ONLY = -1
"""In place of sampling flags: the graph ends at the logits."""
Progress = Callable[[int, int], None]
"""(graphs captured, of how many)"""


@dataclass(frozen=True)
class CudaHandle:
    event: torch.cuda.Event
    tokens: torch.Tensor
    """Pinned, int32 [S]; the buffer is reused a few steps later."""
    logprobs: tuple[torch.Tensor, ...]
    plan: SamplingPlan

    def done(self) -> bool:
        return bool(self.event.query())  # type: ignore[no-untyped-call]

    def result(self) -> StepOutput:
        self.event.synchronize()
        tokens = self.tokens.numpy().copy()
        if not self.logprobs:
            return StepOutput(tokens)
        chosen, top, top_ids = (tensor.numpy() for tensor in self.logprobs)
        return StepOutput(tokens, collect_logprobs(self.plan.wanted, chosen, top, top_ids))


@dataclass(frozen=True)
class CapturedStep:
    graph: torch.cuda.CUDAGraph
    sampled: Sampled | None


class CudaRunner:
    """`tensors` holds the plan's weights and constants on the device; `cubin` finds a kernel's code by key.

    The KV cache takes `kv_cache_fraction` of the memory left after weights and arena, unless `num_pages` says how much.
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
    ) -> None:
        self.plan = plan
        device = torch.device("cuda", torch.cuda.current_device())
        self._arena = torch.zeros(plan.arena_bytes, dtype=torch.uint8, device=device)
        if num_pages is None:
            torch.cuda.empty_cache()
            free, _ = torch.cuda.mem_get_info(device)
            num_pages = pages_within(plan, int(free * kv_cache_fraction))
        self.num_pages = num_pages
        self.state = DeviceState(plan, num_pages, device)
        lowered = [op.tactics[arch] for op in plan.ops]
        specs = {**plan.values, **{name: spec for one in lowered for name, spec in one.workspaces.items()}}
        self._values = {name: self._view(name, spec) for name, spec in specs.items() if name in plan.buffers}
        memory = {**tensors, **self.state.tensors, **self._values}
        cubins = {kernel.key: cubin(kernel.key) for one in lowered for kernel in one.kernels}
        self._program = BoundProgram(lowered, memory.__getitem__, cubins)
        self._host_tokens = [torch.zeros(plan.profile.max_batch_size, dtype=torch.int32, pin_memory=True) for _ in range(RING)]
        self._turn = 0
        self._sizes = StepSizes(0, 0, 0, 0, 1, 0, 0)
        self.buckets = graph_buckets(min(plan.profile.max_batch_size, max_graph_batch)) if cuda_graphs else ()
        self._graphs: dict[tuple[int, int], CapturedStep] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def _view(self, name: str, spec: TensorSpec) -> torch.Tensor:
        profile = self.plan.profile
        rows = profile.max_batch_size
        shape = [evaluate(dim, {"T": profile.max_num_tokens, "R": rows, "D": rows, "S": rows}) for dim in spec.shape]
        dtype = DTYPES[spec.dtype]
        offset = self.plan.buffers[name].offset
        return self._arena[offset : offset + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)

    @property
    def outputs(self) -> dict[str, torch.Tensor]:
        """The last launched step's results by name: logits and marked values. Reading them waits for the step."""
        symbols = {"T": self._sizes.num_tokens, "R": self._sizes.num_seqs, "D": self._sizes.num_decodes, "S": self._sizes.num_samples}
        return {name: self._values[name][: evaluate(self.plan.values[name].shape[0], symbols)] for name in self.plan.outputs}

    @torch.inference_mode()
    def launch(self, batch: StepBatch) -> CudaHandle:
        plan = self.state.start(batch)
        bucket = self._bucket(batch)
        if bucket is None:
            sizes = self.state.upload(batch)
            sampled = self._run(sizes, plan)
        else:
            flags = plan.flags if plan.flags & ~CAPTURABLE == 0 else FORWARD_ONLY
            captured = self._captured(bucket, flags)
            sizes = self.state.upload(batch, bucket)
            captured.graph.replay()
            sampled = captured.sampled or self._sample(self._unpadded(sizes, plan.count), plan)
        self._sizes = sizes
        return self._read_back(sampled, plan)

    def capture(self, flags: Sequence[int] = (0,), progress: Progress | None = None) -> None:
        """Captures every bucket ahead, for sampling of these kinds (0 greedy, `sampler.RANDOM` temperature)."""
        keys = [(bucket, kind) for kind in flags for bucket in reversed(self.buckets)]
        for done, key in enumerate(keys, 1):
            self._captured(*key)
            if progress is not None:
                progress(done, len(keys))

    def _bucket(self, batch: StepBatch) -> int | None:
        seqs = batch.num_seqs
        if not self.buckets or batch.num_decodes < seqs or seqs > self.buckets[-1]:
            return None
        return next(bucket for bucket in self.buckets if bucket >= seqs)

    @torch.inference_mode()
    def _captured(self, bucket: int, flags: int) -> CapturedStep:
        key = (bucket, flags)
        if key not in self._graphs:
            sizes = self.state.upload(_NOTHING, bucket)
            self._forward(sizes, flags)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                sampled = self._forward(sizes, flags)
            self._graphs[key] = CapturedStep(graph, sampled)
        return self._graphs[key]

    def _forward(self, sizes: StepSizes, flags: int) -> Sampled | None:
        counts = {"T": sizes.num_tokens, "R": sizes.num_seqs, "D": sizes.num_decodes, "S": sizes.num_samples}
        self._program.set_symbols(**counts, C=sizes.num_continued)
        self._program.run()
        return None if flags == FORWARD_ONLY else self.state.sample(flags, self._values["logits"][: sizes.num_samples], sizes)

    def _run(self, sizes: StepSizes, plan: SamplingPlan) -> Sampled:
        self._forward(sizes, FORWARD_ONLY)
        return self._sample(sizes, plan)

    def _sample(self, sizes: StepSizes, plan: SamplingPlan) -> Sampled:
        if plan.count == 0:
            return Sampled(self.state.last_tokens[:0])
        return self.state.sample(plan.flags, self._values["logits"][: sizes.num_samples], sizes, plan.num_logprobs)

    @staticmethod
    def _unpadded(sizes: StepSizes, count: int) -> StepSizes:
        return replace(sizes, num_samples=count)

    def _read_back(self, sampled: Sampled, plan: SamplingPlan) -> CudaHandle:
        self._turn = (self._turn + 1) % RING
        tokens = self._host_tokens[self._turn][: plan.count]
        tokens.copy_(sampled.tokens[: plan.count], non_blocking=True)
        logprobs: tuple[torch.Tensor, ...] = ()
        if plan.flags & LOGPROBS:
            logprobs = tuple(torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True) for t in sampled.logprobs)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return CudaHandle(event, tokens, logprobs, plan)


_EMPTY = np.empty(0, np.int32)
_NOTHING = StepBatch(_EMPTY, _EMPTY, _EMPTY, 0, _EMPTY, np.empty(0, np.bool_), np.empty((0, 3), np.int32))
