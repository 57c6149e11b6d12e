"""python tests/bench/search_trials.py --searches 60: the saturation search on queues whose limits are known. Prints how often its interval
holds the limit, how wide it is and how long the load took, as docs/workloads.md has them.

Not collected by pytest: it takes minutes. `test_load_saturation.py` holds three of the queues.
"""

from __future__ import annotations

import argparse

import numpy as np
from queues import queue

from trtllm_bench.load.control_variate import Run
from trtllm_bench.load.saturation import Search, find_saturation

QUEUES = {
    "M/D/4, 90 ms": (0.09, 4, 0.1, False, 32.87),
    "M/D/4, 200 ms": (0.2, 4, 0.1, False, 11.10),
    "M/D/1, 50 ms": (0.05, 1, 0.1, False, 9.84),
    "M/D/2, 100 ms": (0.1, 2, 0.2, False, 14.06),
    "M/M/2, 80 ms": (0.08, 2, 0.1, True, 9.855),
    "M/M/8, 100 ms": (0.1, 8, 0.1, True, 59.75),
}
"""Service time, servers, seconds a request may wait, whether service times are random, and the rate at which 95% wait no longer, found by
runs of 800,000 requests."""


def search(name: str, seed: int) -> tuple[float, float, float]:
    """(rate that passed, rate that failed, seconds of load)."""
    service_s, servers, limit_s, random_service, _ = QUEUES[name]
    rng, spent_s = np.random.default_rng(seed), 0.0

    def measure(rate: float) -> Run:
        nonlocal spent_s
        if not rate:
            return Run(np.ones(200, bool), np.arange(222.0))
        run = queue(rate, service_s, servers, limit_s, rng, 180, random_service=random_service)
        spent_s += float(run.arrivals_s[-1])
        return run

    found = find_saturation(measure, 9.0, Search(alone=True, highest=1e4, tolerance=0.1))
    return found.passed, found.failed, spent_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--searches", type=int, default=60, help="of each queue")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for name, (*_, limit) in QUEUES.items():
        passed, failed, seconds = np.array([search(name, given.seed + i) for i in range(given.searches)]).T
        held = np.mean((passed <= limit) & (limit <= failed))
        width = np.median(failed / np.maximum(passed, 1e-9) - 1)
        print(
            f"{name}: held {held:.0%}, width {width:.0%}, load {np.median(seconds):.0f} s (90% {np.quantile(seconds, 0.9):.0f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
