"""Queues in virtual time, whose limits are known: what the saturation search is tried on."""

from __future__ import annotations

import heapq
import math

import numpy as np

from trtllm_bench.load.control_variate import Run
from trtllm_bench.load.saturation import RAMP_UP


def queue(
    rate: float, service_s: float, servers: int, limit_s: float, rng: np.random.Generator, least: int, *, random_service: bool = False
) -> Run:
    """Whether each of the requests of twenty seconds waited no longer than `limit_s`: M/D/c or, with exponential service times of the mean
    `service_s`, M/M/c; the first tenth left out."""
    n = max(least, math.ceil(20 * rate))
    free, good, arrivals_s = [0.0] * servers, np.empty(n, bool), np.cumsum(rng.exponential(1 / rate, n))
    services_s = rng.exponential(service_s, n) if random_service else np.full(n, service_s)
    for k, (arrival, service) in enumerate(zip(arrivals_s.tolist(), services_s.tolist(), strict=True)):
        begin = max(arrival, heapq.heappop(free))
        good[k] = begin - arrival <= limit_s
        heapq.heappush(free, begin + service)
    return Run(good[int(n * RAMP_UP) :], arrivals_s)
