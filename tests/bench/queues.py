"""Queues in virtual time, whose limits are known: what the saturation search is tried on."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trtllm_bench.load.control_variate import Run
from trtllm_bench.load.saturation import RAMP_UP

FloatArray = npt.NDArray[np.float64]
Waits = Callable[[FloatArray, np.random.Generator], FloatArray]
"""[n] seconds that each of the arrivals [n] waits."""


def served(
    servers: int, services: Callable[[int, np.random.Generator], FloatArray], *, slow: Callable[[float], float] = lambda t: 1.0
) -> Waits:
    """G/G/c, first come first served. `slow`: what a service that begins at that second takes more."""

    def waits(arrivals_s: FloatArray, rng: np.random.Generator) -> FloatArray:
        free, waited = [0.0] * servers, np.empty(len(arrivals_s))
        for k, (arrival, service) in enumerate(zip(arrivals_s.tolist(), services(len(arrivals_s), rng).tolist(), strict=True)):
            begin = max(arrival, free[0])
            waited[k] = begin - arrival
            heapq.heapreplace(free, begin + service * slow(begin))
        return waited

    return waits


def constant(service_s: float) -> Callable[[int, np.random.Generator], FloatArray]:
    return lambda n, rng: np.full(n, service_s)


def exponential(mean_s: float) -> Callable[[int, np.random.Generator], FloatArray]:
    return lambda n, rng: rng.exponential(mean_s, n)


def two_kinds(short_s: float, long_s: float, share_long: float) -> Callable[[int, np.random.Generator], FloatArray]:
    """Hyper-exponential."""
    return lambda n, rng: rng.exponential(1, n) * np.where(rng.random(n) < share_long, long_s, short_s)


def batching(places: int, steps: int, step_s: float, each_s: float) -> Waits:
    """An engine that admits what waits, up to `places`, before each step. A step takes `step_s`, and `each_s` more for each request in it;
    a request takes `steps`."""

    def waits(arrivals_s: FloatArray, rng: np.random.Generator) -> FloatArray:
        waited, now, following = np.empty(len(arrivals_s)), 0.0, 0
        left: list[int] = []
        times = arrivals_s.tolist()
        while following < len(times):
            if not left:
                now = max(now, times[following])
            while following < len(times) and len(left) < places and times[following] <= now:
                waited[following] = now - times[following]
                left.append(steps)
                following += 1
            now += step_s + each_s * len(left)
            left = [more - 1 for more in left if more > 1]
        return waited

    return waits


@dataclass(frozen=True)
class System:
    """`limit`: the rate at which 95% wait at most `may_wait_s`, by long runs."""

    waits: Waits
    may_wait_s: float
    limit: float

    def run(self, rate: float, rng: np.random.Generator, least: int = 180) -> Run:
        """Twenty seconds of Poisson arrivals, the first tenth left out."""
        n = max(least, math.ceil(20 * rate))
        arrivals_s = np.cumsum(rng.exponential(1 / rate, n))
        return Run((self.waits(arrivals_s, rng) <= self.may_wait_s)[int(n * RAMP_UP) :], arrivals_s)


SYSTEMS = {
    "M/D/4, 90 ms": System(served(4, constant(0.09)), 0.1, 32.98),
    "M/D/4, 200 ms": System(served(4, constant(0.2)), 0.1, 11.125),
    "M/D/1, 50 ms": System(served(1, constant(0.05)), 0.1, 9.84),
    "M/D/2, 100 ms": System(served(2, constant(0.1)), 0.2, 14.09),
    "M/M/2, 80 ms": System(served(2, exponential(0.08)), 0.1, 9.927),
    "M/M/8, 100 ms": System(served(8, exponential(0.1)), 0.1, 60.21),
    "M/D/16, 100 ms": System(served(16, constant(0.1)), 0.1, 146.8),
    "M/H/4, 40 or 300 ms": System(served(4, two_kinds(0.04, 0.3, 0.1)), 0.2, 39.56),
    "batching, 16 places": System(batching(16, 5, 0.02, 0.001), 0.1, 76.27),
    "slow each 5 s": System(served(4, constant(0.09), slow=lambda t: 2.0 if t % 5 < 0.5 else 1.0), 0.2, 31.41),
    "M/D/1, 20 ms": System(served(1, constant(0.02)), 0.1, 37.17),
}


def limit_of(system: System, low: float, high: float, requests: int, seed: int = 0) -> float:
    """By bisection over runs of that many requests with the same random numbers."""
    for _ in range(14):
        rate = math.sqrt(low * high)
        rng = np.random.default_rng(seed)
        arrivals_s = np.cumsum(rng.exponential(1 / rate, requests))
        good = float((system.waits(arrivals_s, rng) <= system.may_wait_s).mean())
        low, high = (rate, high) if good >= 0.95 else (low, rate)
    return math.sqrt(low * high)


def erlang_limit(mean_s: float, servers: int, may_wait_s: float, share: float = 0.95) -> float:
    """The limit of M/M/c, by bisection: P(wait > t) = C exp(-(c / mean - rate) t), with Erlang's C from his B recursion."""

    def waiting_longer(rate: float) -> float:
        offered, blocked = rate * mean_s, 1.0
        for k in range(1, servers + 1):
            blocked = offered * blocked / (k + offered * blocked)
        return blocked / (1 - offered / servers * (1 - blocked)) * math.exp(-(servers / mean_s - rate) * may_wait_s)

    low, high = 0.0, servers / mean_s * (1 - 1e-9)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if waiting_longer(middle) < 1 - share else (low, middle)
    return low


def best_width(mean_s: float, servers: int, may_wait_s: float, seconds: float, tolerance: float) -> tuple[float, float]:
    """(relative width of the 95% interval of M/M/c's limit after so many seconds at it, seconds for a width of `tolerance`), of an observer
    who sees every service time and knows all but their mean: the mean of n exponential times has a relative error of 1 / sqrt(n)."""
    limit = erlang_limit(mean_s, servers, may_wait_s)
    change = math.log(erlang_limit(mean_s * 1.01, servers, may_wait_s) / erlang_limit(mean_s * 0.99, servers, may_wait_s))
    per_error = 2 * 1.96 * abs(change / math.log(1.01 / 0.99))
    return math.expm1(per_error / math.sqrt(seconds * limit)), (per_error / math.log1p(tolerance)) ** 2 / limit


def queue(
    rate: float, service_s: float, servers: int, limit_s: float, rng: np.random.Generator, least: int, *, random_service: bool = False
) -> Run:
    """M/D/c or, with exponential service times of the mean `service_s`, M/M/c, for twenty seconds."""
    return System(served(servers, exponential(service_s) if random_service else constant(service_s)), limit_s, 0.0).run(rate, rng, least)
