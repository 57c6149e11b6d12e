"""What stays on the device between steps: KV cache, block table, last token of each slot, sampling parameters, and where inputs land.

The CPU and the CUDA runner share it, so the path from a `StepBatch` to the tensors a plan's ops read is tested on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from trtllm_engines.compiler.plan import HIDDEN, KV_SCALES, PIPE, STEP_INPUTS, Plan
from trtllm_engines.errors import OutOfMemoryError
from trtllm_engines.runtime.batch import StepBatch
from trtllm_engines.runtime.inputs import StepInputs, StepSizes
from trtllm_engines.runtime.memory import page_bytes
from trtllm_engines.runtime.pages import RESERVED_PAGES
from trtllm_engines.runtime.sampler import IN_PLAN, LOGPROBS, Sampled, Sampler
from trtllm_kernels.dialect.expr import evaluate
from trtllm_kernels.dialect.specs import DTYPES
from trtllm_kernels.references.sampling import EMPTY


def pages_within(plan: Plan, nbytes: int) -> int:
    """Pages to allocate: as many as fit `nbytes`, no more than the profile can use. Raises `EngineError` when not one sequence fits."""
    profile = plan.profile
    useful = profile.max_batch_size * profile.max_pages_per_seq + RESERVED_PAGES
    count = min(useful, nbytes // page_bytes(plan))
    if count < RESERVED_PAGES + 1:
        raise OutOfMemoryError(
            f"no room for the KV cache: {max(nbytes, 0) / 2**30:.2f} GiB are left and one page of {profile.page_size} tokens takes "
            f"{page_bytes(plan) / 2**20:.1f} MiB; free device memory, or build for fewer tokens or a smaller batch"
        )
    return int(count)


class DeviceState:
    def __init__(
        self,
        plan: Plan,
        num_pages: int,
        device: torch.device | str,
        group: torch.Tensor | None = None,
        pipe: torch.Tensor | None = None,
        hidden: torch.Tensor | None = None,
    ) -> None:
        """`group`, `pipe` and `hidden`: the plan's step inputs of these names, where it has them."""
        profile, config = plan.profile, plan.config
        self.device = torch.device(device)
        slots = profile.max_batch_size + 1
        cache = (plan.stage.num_layers, num_pages, 2, plan.kv_heads, profile.page_size, config.head_dim)
        self.kv_cache = torch.zeros(cache, dtype=DTYPES[plan.kv_dtype], device=self.device)
        scales = {KV_SCALES: torch.zeros(cache[:-1], device=self.device)} if KV_SCALES in plan.step_inputs else {}
        self.block_table = torch.zeros((slots, profile.max_pages_per_seq), dtype=torch.int32, device=self.device)
        self.last_tokens = torch.zeros(slots, dtype=torch.int32, device=self.device)
        self.token_ring = torch.zeros((plan.parallel.ring_slots, slots - 1), dtype=torch.int32, pin_memory=self.device.type == "cuda")
        """Where the device leaves a step's tokens for the host: no copy back, which would have to be waited for and launched."""
        self.inputs = StepInputs(profile, self.device, plan.parallel.ring_slots)
        self.sampler = Sampler(slots, profile.max_seq_len, self.device)
        self.tensors = {
            "kv_cache": self.kv_cache,
            **scales,
            "block_table": self.block_table,
            "last_tokens": self.last_tokens,
            "token_ring": self.token_ring,
            "argmax_scratch": torch.full((slots - 1,), EMPTY, dtype=torch.int64, device=self.device),
            **{name: self.inputs.tensors[name] for name in STEP_INPUTS if name in self.inputs.tensors},
            **{name: tensor for name, tensor in (("group", group), (PIPE, pipe), (HIDDEN, hidden)) if tensor is not None},
        }
        """Every step input of the plan, at full capacity."""
        self._specs = plan.step_inputs

    def of_step(self, symbols: Mapping[str, int]) -> dict[str, torch.Tensor]:
        """The step inputs of the plan, cut to a step's sizes."""
        cut = dict(self.tensors)
        for name, spec in self._specs.items():
            if isinstance(spec.shape[0], str):
                cut[name] = cut[name][: evaluate(spec.shape[0], symbols)]
        return cut

    def start(self, batch: StepBatch) -> SamplingPlan:
        """Takes over the sampling parameters of sequences new in this step; returns what sampling it takes."""
        self.sampler.start(batch.starts)
        return SamplingPlan(self.sampler, batch)

    def upload(self, batch: StepBatch, padded_seqs: int | None = None) -> StepSizes:
        """Brings a step's inputs to the device and enters its new pages into the block table."""
        sizes = self.inputs.upload(batch, self.sampler.sampling_words, padded_seqs)
        if sizes.num_updates:
            index = self.inputs.tensors["update_index"][: sizes.num_updates]
            self.block_table.view(-1).index_put_((index,), self.inputs.tensors["update_pages"][: sizes.num_updates])
        return sizes

    @property
    def tokens(self) -> torch.Tensor:
        """int32 [max_batch_size] in the host's memory: the sampled tokens of the last step uploaded, once it is done."""
        return self.token_ring[self.inputs.ring_slot]

    def sample(self, plan: SamplingPlan, logits: torch.Tensor, sizes: StepSizes) -> Sampled:
        """What the plan's last op does not: logits [S, V], of which the first `plan.count` rows count, to tokens in place of its own."""
        slots = self.inputs.tensors["sample_slots"][: plan.count].long()
        positions = self.inputs.tensors["sampling_words"][: plan.count, -1].long()
        sampled = self.sampler.sample(plan.flags, logits[: plan.count], slots, positions, sizes.longest, plan.num_logprobs)
        self.last_tokens.index_put_((slots,), sampled.tokens)
        self.tokens[: plan.count].copy_(sampled.tokens, non_blocking=True)
        return sampled


class SamplingPlan:
    """What one step's sampling takes, decided on the host from its slots."""

    def __init__(self, sampler: Sampler, batch: StepBatch) -> None:
        slots = batch.slots if batch.num_seqs == batch.num_decodes else batch.slots[batch.sampled]
        self.count = len(slots)
        self.flags = sampler.flags(slots)
        self.by_sampler = bool(self.flags & ~IN_PLAN)
        """Whether `DeviceState.sample` is needed."""
        self.row_logprobs = sampler.num_logprobs(slots) if self.flags & LOGPROBS else np.empty(0, np.int32)
        """[count] most likely tokens whose log-probabilities each row wants, -1 for none; empty where no row does."""
        self.num_logprobs = int(self.row_logprobs.max(initial=0))
