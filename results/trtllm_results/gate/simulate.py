"""Does the gate keep its promises? Its verdicts over thousands of simulated machines, with noise as benchmarks have it.

Each model gives the noise of ln(speed) of consecutive runs (standard deviation `sd` a run unless said):

    independent      normal
    autocorrelated   AR(1), 0.7 from run to run: slow wandering of clocks
    drift            normal, and the machine loses 3% over the session: warming up
    outliers         normal, and 1 run in 20 is 5% slow: something else woke up
    periodic         normal, and every 8th run is 5% slow: a timer of the machine's
    alternating      AR(1), -0.5 from run to run: what one run takes, the next gets
    heavy tails      Student t with 3 degrees of freedom
    all at once      AR(1) 0.7 with drift and outliers

The promises: at a true loss equal to the margin, `fail` comes at most alpha often and so does `pass`; without a loss, `fail` is rarer
still. For comparison the same judgement is made of runs taken all A first, then all B, as most scripts do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from trtllm_results.gate.config import GateConfig
from trtllm_results.gate.run import ORDERS
from trtllm_results.stats import FEW, t_quantile

FloatArray = npt.NDArray[np.float64]
Noise = Callable[[np.random.Generator, int, int, float], FloatArray]


def _independent(rng: np.random.Generator, machines: int, runs: int, sd: float) -> FloatArray:
    return rng.normal(0, sd, (machines, runs))


def _autocorrelated(rng: np.random.Generator, machines: int, runs: int, sd: float, rho: float = 0.7) -> FloatArray:
    noise = rng.normal(0, sd, (machines, runs))
    for i in range(1, runs):
        noise[:, i] = rho * noise[:, i - 1] + math.sqrt(1 - rho**2) * noise[:, i]
    return noise


def _drift(rng: np.random.Generator, machines: int, runs: int, sd: float) -> FloatArray:
    return _independent(rng, machines, runs, sd) + np.linspace(0, math.log(0.97), runs)


def _outliers(rng: np.random.Generator, machines: int, runs: int, sd: float) -> FloatArray:
    return _independent(rng, machines, runs, sd) + math.log(0.95) * (rng.random((machines, runs)) < 0.05)


def _periodic(rng: np.random.Generator, machines: int, runs: int, sd: float, period: int = 8) -> FloatArray:
    phase = rng.integers(0, period, (machines, 1))
    slow: FloatArray = math.log(0.95) * ((np.arange(runs) + phase) % period == 0)
    return _independent(rng, machines, runs, sd) + slow


def _heavy(rng: np.random.Generator, machines: int, runs: int, sd: float) -> FloatArray:
    return rng.standard_t(3, (machines, runs)) * sd / math.sqrt(3)


def _all(rng: np.random.Generator, machines: int, runs: int, sd: float) -> FloatArray:
    slow = math.log(0.95) * (rng.random((machines, runs)) < 0.05)
    return _autocorrelated(rng, machines, runs, sd) + np.linspace(0, math.log(0.97), runs) + slow


MODELS: Mapping[str, Noise] = {
    "independent": _independent,
    "autocorrelated": _autocorrelated,
    "drift": _drift,
    "outliers": _outliers,
    "periodic": _periodic,
    "alternating": partial(_autocorrelated, rho=-0.5),
    "heavy tails": _heavy,
    "all at once": _all,
}


@dataclass(frozen=True)
class SimulatedVerdict:
    """How often the gate said what, for one noise model, design and true loss (relative, 0.03: B is 3% slower)."""

    model: str
    design: str
    loss: float
    fail: float
    passed: float
    mean_blocks: float


def verdicts(differences: FloatArray, bound: float, config: GateConfig) -> npt.NDArray[np.str_]:
    """[machines] verdict of the sequential gate on one figure, from [machines, blocks] values of ln(B/A): `verdict.judge`, vectorised."""
    return sequential(differences, bound, config)[0]


def sequential(differences: FloatArray, bound: float, config: GateConfig) -> tuple[npt.NDArray[np.str_], npt.NDArray[np.int64]]:
    """`verdicts`, and the [machines] number of blocks at which each was reached."""
    machines = len(differences)
    verdict = np.full(machines, "inconclusive", dtype="<U12")
    blocks = np.full(machines, config.look_blocks[-1])
    for look, alpha in zip(config.look_blocks, config.look_alphas, strict=True):
        if look < 2:
            continue
        seen = differences[:, :look]
        error = np.maximum(seen.std(axis=1, ddof=1), 1e-300) / math.sqrt(look)
        score = (seen.mean(axis=1) - bound) / error
        reach = t_quantile(1 - alpha, look - 1)
        below, above = (seen.max(axis=1) < bound, seen.min(axis=1) > bound) if look <= FEW else (True, True)
        for word, hit in (("fail", (score <= -reach) & below), ("pass", (score >= reach) & above)):
            new = hit & (verdict == "inconclusive")
            verdict[new], blocks[new] = word, look
    return verdict, blocks


def _abba(rng: np.random.Generator, machines: int, blocks: int) -> npt.NDArray[np.bool_]:
    """[machines, 4 * blocks] whether each run is B's: every block's order drawn at random, as the gate draws it."""
    orders = np.array([[arm == "B" for arm in order] for order in ORDERS])
    return orders[rng.integers(0, 2, (machines, blocks))].reshape(machines, 4 * blocks)


def simulate(
    model: str,
    loss: float,
    config: GateConfig,
    margin: float = 0.02,
    sd: float = 0.01,
    machines: int = 4000,
    seed: int = 0,
    interleaved: bool = True,
) -> SimulatedVerdict:
    """One point: `machines` simulated gates, each of up to `config.max_blocks` ABBA blocks (or as many runs all A, then all B)."""
    rng = np.random.default_rng(seed)
    blocks = config.look_blocks[-1]
    noise = MODELS[model](rng, machines, 4 * blocks, sd)
    bound = math.log1p(-margin)
    if interleaved:
        is_b = _abba(rng, machines, blocks)
        speed = noise + np.where(is_b, math.log1p(-loss), 0.0)
        sign = np.where(is_b, 0.5, -0.5)
        differences = (speed * sign).reshape(machines, blocks, 4).sum(axis=2)
    else:
        a, b = noise[:, : 2 * blocks], noise[:, 2 * blocks :] + math.log1p(-loss)
        differences = (b - a).reshape(machines, blocks, 2).mean(axis=2)
    verdict, used = sequential(differences, bound, config)
    rates = {word: float((verdict == word).mean()) for word in ("fail", "pass")}
    design = "ABBA" if interleaved else "all A, then all B"
    return SimulatedVerdict(model, design, loss, rates["fail"], rates["pass"], float(used.mean()))
