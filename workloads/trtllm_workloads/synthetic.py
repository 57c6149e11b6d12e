"""A workload from distributions: lengths, arrivals, structure, one seed.

Each ingredient draws from its own generator, split off the seed by name, so that changing one (a burstier arrival process, say) leaves the
others as they were: runs that differ in one setting send the same prompts.
"""

from __future__ import annotations

import zlib

import numpy as np

from trtllm_workloads.arrivals import Arrivals
from trtllm_workloads.errors import WorkloadError, shown
from trtllm_workloads.lengths import Correlated, Fixed, Pairs
from trtllm_workloads.request import Workload
from trtllm_workloads.structure import Conversations, PrefixTree, unshared
from trtllm_workloads.tokens import Vocabulary

MOST_REQUESTS = 10_000_000
"""Of a workload: what is kept of each fits in memory."""


def generator(seed: int, purpose: str) -> np.random.Generator:
    """The random stream of one ingredient."""
    return np.random.default_rng([seed & 0xFFFFFFFF, zlib.crc32(purpose.encode())])


def synthetic(
    num_requests: int,
    lengths: Pairs,
    *,
    name: str = "synthetic",
    arrivals: Arrivals | None = None,
    prefixes: PrefixTree | None = None,
    conversations: Conversations | None = None,
    vocabulary: Vocabulary | None = None,
    seed: int = 0,
) -> Workload:
    """`num_requests` requests; without `arrivals` the workload says nothing of when they come (closed loop, or all at once)."""
    if not 1 <= num_requests <= MOST_REQUESTS:
        raise WorkloadError(f"{shown(num_requests)} requests asked for; ask for at least 1 and at most {MOST_REQUESTS:,}")
    if prefixes is not None and conversations is not None:
        raise WorkloadError("shared prefixes and conversations cannot be combined; give conversations a system prompt instead")
    vocabulary = vocabulary or Vocabulary()
    inputs, outputs = lengths.sample(num_requests, generator(seed, "lengths"))
    structure = generator(seed, "structure")
    if conversations is not None:
        workload = conversations.build(name, inputs, outputs, vocabulary, seed, structure)
    else:
        prompts = prefixes.prompts(inputs, vocabulary, seed, structure) if prefixes else unshared(inputs, vocabulary, seed)
        workload = Workload(name=name, prompts=prompts, input_tokens=inputs, output_tokens=outputs)
    if arrivals is None:
        return workload
    return workload.with_arrivals(arrivals.times(workload.num_arrivals, generator(seed, "arrivals")))


def fixed(num_requests: int, isl: int, osl: int, *, vocab_size: int = 32_000, seed: int = 0) -> Workload:
    """`num_requests` requests of `isl` prompt tokens and `osl` output tokens: a sweep's cell."""
    return synthetic(
        num_requests, Correlated(Fixed(isl), Fixed(osl)), name=f"fixed-{isl}-{osl}", vocabulary=Vocabulary(vocab_size), seed=seed
    )
