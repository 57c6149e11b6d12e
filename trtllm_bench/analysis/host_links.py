"""How long ranks on several hosts take to exchange rows by NCCL, over each GPU's network adapter. These are formulas: two hosts were not at
hand to measure.

Latencies and rates of the protocols are NCCL's own, by which it chooses among them (`src/graph/tuning.cc` of NVIDIA/nccl at b647562). Here
they are those of trees: by LL for few bytes and by LL128 for more. On three hosts of eight H100 NCCL logged 25.2 us at 256 bytes, 25.9 at 4
KiB, 37.8 at 64 KiB and 51.6 at 128 KiB (NVIDIA/nccl issue 1453); by these formulas 25.3, 26.0, 38.1 and 49.2. Over two hosts of eight H200
NVL, 27.8 us were measured at 8 bytes (kubernetes.recipes, "NCCL All-Reduce Benchmarking on Multi-Node GPUs"). Rates of adapters are the
data sheet's (`trtllm_results.gpus`) times the share that NCCL reaches. Switches are assumed to be as fast as all adapters together, and
NCCL to use all adapters of a host.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from trtllm_engines.compiler.plan import ParallelLayout

REACHED = 0.94
"""Share of an adapter's rate that NCCL reaches: 46 to 48 GB/s of 400 Gb/s (NCCL's maintainers, NVIDIA/nccl-tests issue 290)."""
BASE_US, GPU_US, HOST_US = 6.8, 0.6, 5.0
"""Latency of an all-reduce by LL over a tree: a base, and for each way (up, down) so much per further GPU of a host and per level of
hosts."""
LL128_BASE_US, LL128_GPU_US, LL128_HOST_US = 14.0, 1.25, 8.5
LL_SHARE, LL_BYTES_PER_S, LL_BYTES_PER_S_OF_MORE = 1 / 3.8, 39e9, 20.4e9
"""LL reaches this share of the rate of all adapters, and at most these rates: over two hosts, and over more. A tree moves the bytes twice,
and at half the rate where they are few."""
LL128_SHARE = 0.92
SEND_US, SEND_HOP_US, SEND_NVLINK_US = 8.4, 14.0, 3.4
"""Latency of one send: a base, and its way over the network or within a host."""


@dataclass(frozen=True)
class HostLinks:
    """Exchanges of an engine whose ranks are on several hosts. Times are in microseconds."""

    layout: ParallelLayout
    adapter_bytes_per_s: float
    """Rate of one GPU's network adapter, one way."""
    copy_bytes_per_s: float
    """Rate from one GPU to another of the same host, one way."""

    @property
    def gpu_bytes_per_s(self) -> float:
        """Rate at which one GPU sends to another host."""
        return self.adapter_bytes_per_s * REACHED

    def all_reduce_us(self, nbytes: float) -> float:
        """Time of an all-reduce of `nbytes` on each rank of a stage whose ranks are on several hosts."""
        ranks = self.layout.tp
        of_host = math.gcd(ranks, self.layout.ranks // self.layout.nnodes)
        levels = math.floor(math.log2(ranks // of_host))
        rate = min(of_host * self.gpu_bytes_per_s, self.copy_bytes_per_s if of_host > 1 else math.inf)
        of_ll = min(rate * LL_SHARE, LL_BYTES_PER_S if ranks // of_host == 2 else LL_BYTES_PER_S_OF_MORE)
        few = BASE_US + 2 * ((of_host - 1) * GPU_US + levels * HOST_US) + 4 * nbytes / of_ll * 1e6
        many = LL128_BASE_US + 2 * ((of_host - 1) * LL128_GPU_US + levels * LL128_HOST_US)
        return min(few, many + 2 * (ranks - 1) / ranks * nbytes / (rate * LL128_SHARE) * 1e6)

    def send_us(self, nbytes: float, stage: int) -> float:
        """Time of a send of `nbytes` from each rank of `stage` to the same rank of the next."""
        if self._leaves_host(stage):
            return SEND_US + SEND_HOP_US + nbytes / self.gpu_bytes_per_s * 1e6
        return SEND_US + SEND_NVLINK_US + nbytes / self.copy_bytes_per_s * 1e6

    def _leaves_host(self, stage: int) -> bool:
        tp, of_host = self.layout.tp, self.layout.ranks // self.layout.nnodes
        return any(rank // of_host != (rank + tp) // of_host for rank in range(stage * tp, (stage + 1) * tp))

    @property
    def note(self) -> str:
        """What a prediction assumes, as a sentence to print beside it."""
        layout = self.layout
        of_host = layout.ranks // layout.nnodes
        hosts = f"{layout.nnodes} hosts of {of_host} GPU{'s' * (of_host > 1)}"
        link = f"{self.adapter_bytes_per_s * 8e-9:.0f} Gb/s a GPU ({self.gpu_bytes_per_s * 1e-9:.0f} GB/s reached)"
        return f"{hosts}: NCCL over links of {link}, by NCCL's own latencies, not measured"
