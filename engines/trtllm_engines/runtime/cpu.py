"""The CPU executor: runs a plan's ops, in order, through the dialect's references. Slow and exact: the definition the GPU is held to.

Launching computes at once, so a handle is done when made; the loop around it behaves as on a device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trtllm_engines.compiler.plan import LOGITS, Op, Plan
from trtllm_engines.errors import EngineError
from trtllm_engines.memory import allocating
from trtllm_engines.runtime.batch import IntArray, StepBatch, StepOutput
from trtllm_engines.runtime.group import RankGroup, StageLink
from trtllm_engines.runtime.inputs import StepSizes
from trtllm_engines.runtime.observer import NOBODY, StepObserver, op_groups
from trtllm_engines.runtime.rank import CacheSize, RankMemory
from trtllm_engines.runtime.sampler import collect_logprobs
from trtllm_kernels.references import OPS

NO_TOKENS: IntArray = np.empty(0, np.int32)


@dataclass(frozen=True)
class CpuHandle:
    output: StepOutput

    def done(self) -> bool:
        return True

    def result(self) -> StepOutput:
        return self.output


class CpuRunner:
    """`tensors` holds the plan's weights and constants. `outputs` are the last step's results by name: logits and marked values.

    The KV cache takes `kv_cache_fraction` of the free memory, unless `num_pages` says how much. `link`: of a pipeline's stage, which gives
    tokens only if it is the last.
    """

    def __init__(
        self,
        plan: Plan,
        tensors: Mapping[str, torch.Tensor],
        num_pages: int | None = None,
        *,
        kv_cache_fraction: float = 0.9,
        group: RankGroup | None = None,
        link: StageLink | None = None,
    ) -> None:
        self.plan = plan
        self.memory = RankMemory(plan, "cpu", tensors, CacheSize(kv_cache_fraction, num_pages), group, link)
        self.num_pages, self.state = self.memory.num_pages, self.memory.state
        self.outputs: dict[str, torch.Tensor] = {}
        self._alone = group is None and link is None
        self._calls = [(op, OPS[op.op].overload, dict(op.attrs)) for op in plan.ops]
        self._last_use = _last_uses(plan)
        self.observe(NOBODY)

    def close(self) -> None:
        """Its memory goes with it."""

    def observe(self, observer: StepObserver) -> None:
        self._observer = observer
        self._groups = op_groups([op.name for op in self.plan.ops], observer.op_detail)

    @torch.inference_mode()
    def launch(self, batch: StepBatch) -> CpuHandle:
        state = self.state
        plan = state.start(batch)
        sizes = state.upload(batch)
        last_tokens = state.last_tokens.clone()
        with allocating("running a step"):
            self.outputs = self.forward(sizes)
        if not self.plan.is_last_stage:
            return CpuHandle(StepOutput(NO_TOKENS))
        if not _finite(self.outputs[LOGITS][: plan.count]):
            state.last_tokens.copy_(last_tokens)
            raise self._not_finite(sizes)
        logprobs: tuple[torch.Tensor, ...] = ()
        if plan.by_sampler:
            self._observer.sample_begins(plan.count)
            try:
                logprobs = state.sample(plan, self.memory.logits(self.outputs[LOGITS]), sizes).logprobs
            finally:
                self._observer.sample_ends()
        tokens = state.tokens[: plan.count].numpy().copy()
        if not logprobs:
            return CpuHandle(StepOutput(tokens))
        chosen, top, top_ids = (tensor.numpy() for tensor in logprobs)
        return CpuHandle(StepOutput(tokens, collect_logprobs(plan.row_logprobs, chosen, top, top_ids)))

    def _not_finite(self, sizes: StepSizes) -> EngineError:
        """Names the first op whose results are not numbers, by running the step once more; ranks of several would wait for each other."""
        name = LOGITS
        if self._alone:
            values: dict[str, torch.Tensor] = {**self.memory.tensors, **self.state.of_step(sizes.symbols)}
            for index, (op, _, _) in enumerate(self._calls):
                self._run(values, index, index + 1)
                results = [values[output] for output in op.outputs if output in values]
                if not all(map(_finite, results)):
                    name = op.name
                    break
        return EngineError(
            f"the values of {name} are NaN or infinite, so there is no next token; the weights are damaged, or need a wider precision"
        )

    def forward(self, sizes: StepSizes) -> dict[str, torch.Tensor]:
        """Runs the plan on the inputs loaded; returns its outputs."""
        values: dict[str, torch.Tensor] = {**self.memory.tensors, **self.state.of_step(sizes.symbols)}
        if not self._groups:
            self._run(values, 0, len(self._calls))
        for label, first, end in self._groups:
            self._observer.ops_begin(label)
            try:
                self._run(values, first, end)
            finally:
                self._observer.ops_end()
        return {name: values[name] for name in self.plan.outputs}

    def _run(self, values: dict[str, torch.Tensor], first: int, end: int) -> None:
        """Ops [first, end) on `values`, to which it adds their results and from which it drops what nothing reads any more."""
        for index in range(first, end):
            op, call, attrs = self._calls[index]
            inputs = {argument: values[name] if name else None for argument, name in zip(OPS[op.op].tensors, op.inputs, strict=True)}
            result: Any = call(**inputs, **attrs)
            results = [result] if isinstance(result, torch.Tensor) else list(result)
            values.update(zip(op.outputs, results, strict=True))
            for name in self._last_use[index]:
                del values[name]


def _finite(tensor: torch.Tensor) -> bool:
    """Whether all values are numbers; codes and integers are."""
    if not tensor.is_floating_point() or tensor.element_size() < 2 or not tensor.numel():
        return True
    return all(math.isfinite(float(bound)) for bound in torch.aminmax(tensor))


def _last_uses(plan: Plan) -> list[tuple[str, ...]]:
    """Values that nothing after each op reads."""

    def touched(op: Op) -> set[str]:
        return {*op.inputs, *op.outputs} & plan.values.keys()

    last = {name: index for index, op in enumerate(plan.ops) for name in touched(op)}
    ends: list[list[str]] = [[] for _ in plan.ops]
    for name, index in last.items():
        if name not in plan.outputs:
            ends[index].append(name)
    return [tuple(names) for names in ends]
