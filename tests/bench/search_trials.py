"""python tests/bench/search_trials.py --searches 60: the saturation search on queues whose limits are known. Prints how often its interval
holds the limit, how wide it is and how long the load took, as docs/workloads.md has them. `--limits` finds the limits anew; `--bounds` says
what no search can do better.

Not collected by pytest: it takes minutes. `test_load_saturation.py` holds some of the queues.
"""

from __future__ import annotations

import argparse

import numpy as np
from queues import SYSTEMS, best_width, limit_of

from trtllm_bench.load.control_variate import Run
from trtllm_bench.load.saturation import Search, find_saturation

LONG = 1_000_000
"""Requests of a run that a limit is found by."""
RANDOM = (("M/M/2, 80 ms", 0.08, 2, 0.1), ("M/M/8, 100 ms", 0.1, 8, 0.1))
"""Mean service time, servers, and seconds a request may wait."""


def search(name: str, seed: int) -> tuple[float, float, float]:
    """(rate that passed, rate that failed, seconds of load)."""
    system, rng, spent_s = SYSTEMS[name], np.random.default_rng(seed), 0.0

    def measure(rate: float) -> Run:
        nonlocal spent_s
        if not rate:
            return Run(np.ones(200, bool), np.arange(222.0))
        run = system.run(rate, rng)
        spent_s += float(run.arrivals_s[-1])
        return run

    found = find_saturation(measure, 9.0, Search(alone=True, highest=1e4, tolerance=0.1))
    return found.passed, found.failed, spent_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--searches", type=int, default=60, help="of each queue")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="queues whose names begin so")
    parser.add_argument("--limits", action="store_true")
    parser.add_argument("--bounds", action="store_true")
    given = parser.parse_args()
    if given.bounds:
        for name, mean_s, servers, may_wait_s in RANDOM:
            width, seconds = best_width(mean_s, servers, may_wait_s, 120, 0.1)
            print(f"{name}: width after 120 s {width:.0%}, 10% after {seconds:.0f} s")
        return
    for name, system in SYSTEMS.items():
        if not name.startswith(given.only):
            continue
        if given.limits:
            print(f"{name}: {limit_of(system, 1.0, 400.0, LONG):.2f}", flush=True)
            continue
        passed, failed, seconds = np.array([search(name, given.seed + i) for i in range(given.searches)]).T
        held = np.mean((passed <= system.limit) & (system.limit <= failed))
        width = failed / np.maximum(passed, 1e-9) - 1
        print(
            f"{name}: held {held:.0%}, width {np.median(width):.0%}, within 10% {np.mean(width <= 0.1):.0%}, "
            f"load {np.median(seconds):.0f} s (90% {np.quantile(seconds, 0.9):.0f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
