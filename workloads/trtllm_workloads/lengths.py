"""Prompt and output lengths: each distribution turns uniforms in [0, 1) into token counts.

One method, `at(u)`, because everything else follows from it: sampling is `at(rng.random(n))`, correlation is a Gaussian copula over
two sets of uniforms, and results do not depend on the sampling algorithms of a NumPy version (`Generator.random` is the one stream
used). Rejected: `Generator.normal` and friends, whose streams NumPy's NEP 19 lets change.

Clamping is stated: `mean` and `stdev` are of the distribution before it is clamped to `[low, high]`, as in NVIDIA's `token-norm-dist`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from trtllm_workloads.errors import WorkloadError, shown
from trtllm_workloads.shortform import build
from trtllm_workloads.tokens import Int32Array

Float64Array = npt.NDArray[np.float64]
MAX_TOKENS = 10_000_000
MOST_DIGITS = 20


class Lengths(Protocol):
    """A distribution over token counts of at least 1."""

    def at(self, u: Float64Array) -> Int32Array:
        """Length for each uniform number in [0, 1); non-decreasing in u except for mixtures and empirical samples in file order."""


def _clamp(values: npt.NDArray[np.generic], low: int, high: int) -> Int32Array:
    return np.clip(np.rint(values.astype(np.float64)), low, high).astype(np.int32)


def _check_range(kind: str, low: int, high: int) -> None:
    if low < 1:
        raise WorkloadError(f"{kind} lengths: the smallest length is {shown(low)}; it must be at least 1")
    if high < low:
        raise WorkloadError(f"{kind} lengths: the largest length {shown(high)} is below the smallest {shown(low)}")
    if high > MAX_TOKENS:
        raise WorkloadError(f"{kind} lengths: the largest length {shown(high)} is beyond {MAX_TOKENS} tokens")


def _check_positive(kind: str, name: str, value: float) -> None:
    if not value > 0:
        raise WorkloadError(f"{kind} lengths: {name} is {value:g}; it must be above 0")
    if not 1e-6 <= value <= MAX_TOKENS:
        raise WorkloadError(f"{kind} lengths: {name} is {value:g}; it must lie between 1e-06 and {MAX_TOKENS}")


def _check_weights(what: str, weights: Sequence[float]) -> None:
    if not all(weight >= 0 for weight in weights) or not 0 < sum(weights) < np.inf:
        raise WorkloadError(f"{what} must not be negative, and one must be above 0")


@dataclass(frozen=True)
class Fixed:
    """Every length the same."""

    tokens: int

    def __post_init__(self) -> None:
        _check_range("fixed", self.tokens, self.tokens)

    def at(self, u: Float64Array) -> Int32Array:
        return np.full(len(u), self.tokens, dtype=np.int32)


@dataclass(frozen=True)
class Uniform:
    """Each of low..high, both included, equally likely."""

    low: int
    high: int

    def __post_init__(self) -> None:
        _check_range("uniform", self.low, self.high)

    def at(self, u: Float64Array) -> Int32Array:
        return (self.low + np.floor(u * (self.high - self.low + 1))).astype(np.int32)


@dataclass(frozen=True)
class Normal:
    """Normal with this mean and standard deviation, rounded, then clamped to [low, high]."""

    mean: float
    stdev: float
    low: int = 1
    high: int = MAX_TOKENS

    def __post_init__(self) -> None:
        _check_positive("normal", "mean", self.mean)
        if self.stdev != 0:
            _check_positive("normal", "stdev", self.stdev)
        _check_range("normal", self.low, self.high)

    def at(self, u: Float64Array) -> Int32Array:
        return _clamp(self.mean + self.stdev * _standard_normal(u), self.low, self.high)


@dataclass(frozen=True)
class LogNormal:
    """Log-normal whose own mean and standard deviation (not those of its logarithm) are given, rounded, then clamped."""

    mean: float
    stdev: float
    low: int = 1
    high: int = MAX_TOKENS

    def __post_init__(self) -> None:
        _check_positive("lognormal", "mean", self.mean)
        _check_positive("lognormal", "stdev", self.stdev)
        _check_range("lognormal", self.low, self.high)

    def at(self, u: Float64Array) -> Int32Array:
        sigma2 = np.log1p((self.stdev / self.mean) ** 2)
        return _clamp(np.exp(np.log(self.mean) - sigma2 / 2 + np.sqrt(sigma2) * _standard_normal(u)), self.low, self.high)


@dataclass(frozen=True)
class Exponential:
    """Exponential with this mean, rounded, then clamped."""

    mean: float
    low: int = 1
    high: int = MAX_TOKENS

    def __post_init__(self) -> None:
        _check_positive("exponential", "mean", self.mean)
        _check_range("exponential", self.low, self.high)

    def at(self, u: Float64Array) -> Int32Array:
        return _clamp(-self.mean * np.log1p(-u), self.low, self.high)


@dataclass(frozen=True)
class Zipf:
    """P(k) proportional to k ** -alpha over low..high: bounded, so that any alpha >= 0 is a distribution."""

    alpha: float
    low: int = 1
    high: int = 4096

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 100:
            raise WorkloadError(f"zipf lengths: alpha is {self.alpha:g}; it must lie in [0, 100]")
        _check_range("zipf", self.low, self.high)

    def at(self, u: Float64Array) -> Int32Array:
        mass = np.arange(self.low, self.high + 1, dtype=np.float64) ** -self.alpha
        cumulative = np.cumsum(mass)
        picked = np.searchsorted(cumulative, u * cumulative[-1], side="right")
        return np.asarray(self.low + np.minimum(picked, len(mass) - 1), dtype=np.int32)


@dataclass(frozen=True)
class Empirical:
    """Lengths seen elsewhere (a trace), drawn with replacement."""

    values: Int32Array

    def __post_init__(self) -> None:
        if len(self.values) == 0:
            raise WorkloadError("empirical lengths: there are no values to draw from")
        _check_range("empirical", int(np.min(self.values)), int(np.max(self.values)))

    def at(self, u: Float64Array) -> Int32Array:
        ordered = np.sort(self.values)
        return ordered[np.minimum((u * len(ordered)).astype(np.int64), len(ordered) - 1)].astype(np.int32)


@dataclass(frozen=True)
class Histogram:
    """Bin k holds lengths edges[k] .. edges[k + 1] - 1, equally likely within a bin, with weight counts[k]."""

    edges: tuple[int, ...]
    counts: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.edges) != len(self.counts) + 1 or not self.counts:
            raise WorkloadError(
                f"histogram lengths: {len(self.edges)} edges for {len(self.counts)} counts; there must be one edge more than counts"
            )
        if any(b <= a for a, b in zip(self.edges, self.edges[1:], strict=False)):
            raise WorkloadError("histogram lengths: the edges must increase")
        _check_weights("histogram lengths: counts", self.counts)
        _check_range("histogram", self.edges[0], self.edges[-1])

    def at(self, u: Float64Array) -> Int32Array:
        bins, within = _choose(u, np.asarray(self.counts, dtype=np.float64))
        edges = np.asarray(self.edges, dtype=np.float64)
        return np.asarray(np.floor(edges[bins] + within * (edges[bins + 1] - edges[bins])), dtype=np.int32)


@dataclass(frozen=True)
class Mixture:
    """Component k with probability proportional to weights[k]."""

    components: tuple[Lengths, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.components) != len(self.weights) or not self.components:
            raise WorkloadError(f"mixture of lengths: {len(self.components)} components for {len(self.weights)} weights")
        _check_weights("mixture of lengths: weights", self.weights)

    def at(self, u: Float64Array) -> Int32Array:
        chosen, within = _choose(u, np.asarray(self.weights, dtype=np.float64))
        out = np.empty(len(u), dtype=np.int32)
        for k, component in enumerate(self.components):
            rows = chosen == k
            out[rows] = component.at(within[rows])
        return out


def _choose(u: Float64Array, weights: Float64Array) -> tuple[npt.NDArray[np.int64], Float64Array]:
    """Class of each uniform, and the uniform left over within its class (one uniform serves both choices)."""
    edges = np.concatenate([[0.0], np.cumsum(weights / weights.sum())])
    last = int(np.flatnonzero(weights)[-1])
    chosen = np.minimum(np.searchsorted(edges, u, side="right") - 1, last)
    width = np.maximum(edges[chosen + 1] - edges[chosen], np.finfo(np.float64).tiny)
    return chosen, np.clip((u - edges[chosen]) / width, 0.0, np.nextafter(1.0, 0.0))


def _standard_normal(u: Float64Array) -> Float64Array:
    from scipy.special import ndtri

    return np.asarray(ndtri(np.maximum(u, 2.0**-54)), dtype=np.float64)


class Pairs(Protocol):
    """A joint distribution of prompt and output length."""

    def sample(self, n: int, rng: np.random.Generator) -> tuple[Int32Array, Int32Array]: ...


@dataclass(frozen=True)
class Correlated:
    """Two distributions with a Gaussian copula: `correlation` is that of the underlying normals; 0 makes them independent.

    Source: Nelsen, "An Introduction to Copulas" (2006), section 2.3. Spearman's rank correlation of the result is
    6 / pi * asin(correlation / 2) before rounding to whole tokens.
    """

    isl: Lengths
    osl: Lengths
    correlation: float = 0.0

    def __post_init__(self) -> None:
        if not -1 <= self.correlation <= 1:
            raise WorkloadError(f"length correlation is {self.correlation:g}; it must lie in [-1, 1]")

    def sample(self, n: int, rng: np.random.Generator) -> tuple[Int32Array, Int32Array]:
        first, second = rng.random(n), rng.random(n)
        if self.correlation:
            from scipy.special import ndtr

            rest = np.sqrt(1 - self.correlation**2)
            second = np.asarray(ndtr(self.correlation * _standard_normal(first) + rest * _standard_normal(second)))
            second = np.clip(second, 0.0, np.nextafter(1.0, 0.0))
        return self.isl.at(first), self.osl.at(second)


@dataclass(frozen=True)
class FromPairs:
    """Rows of a trace drawn with replacement, prompt and output length together, which keeps their dependence exactly."""

    input_tokens: Int32Array
    output_tokens: Int32Array

    def __post_init__(self) -> None:
        if len(self.input_tokens) == 0 or len(self.input_tokens) != len(self.output_tokens):
            raise WorkloadError(f"length pairs: {len(self.input_tokens)} prompt lengths for {len(self.output_tokens)} output lengths")

    def sample(self, n: int, rng: np.random.Generator) -> tuple[Int32Array, Int32Array]:
        rows = (rng.random(n) * len(self.input_tokens)).astype(np.int64)
        return self.input_tokens[rows].astype(np.int32), self.output_tokens[rows].astype(np.int32)


def around(tokens: int, range_ratio: float) -> Lengths:
    """vLLM's `--random-range-ratio r`: uniform over [tokens * (1 - r), tokens * (1 + r)], rounded outwards; 0 is a fixed length.

    (SGLang's flag of the same name means [tokens * r, tokens]; that meaning is not offered, to have one.)
    """
    if not 0 <= range_ratio < 1:
        raise WorkloadError(f"--random-range-ratio is {range_ratio:g}; it must lie in [0, 1)")
    if range_ratio == 0:
        return Fixed(tokens)
    return Uniform(max(1, int(np.floor(tokens * (1 - range_ratio)))), int(np.ceil(tokens * (1 + range_ratio))))


KINDS: dict[str, type] = {
    "fixed": Fixed,
    "uniform": Uniform,
    "normal": Normal,
    "lognormal": LogNormal,
    "exponential": Exponential,
    "zipf": Zipf,
}
"""Distributions that fit on a line, by name. A workload file has them too, with the fields of their classes, and `OF_FILES`."""
OF_FILES: dict[str, type] = {"histogram": Histogram, "mixture": Mixture}


def parse(text: str) -> Lengths:
    """A length flag: `128`, or a distribution of `KINDS` in short form (`shortform`).

    >>> parse("normal:mean=512,stdev=64")
    Normal(mean=512.0, stdev=64.0, low=1, high=10000000)
    """
    if ":" in text:
        return build(text, KINDS, "length distribution")  # type: ignore[no-any-return]
    if not text.strip().lstrip("-").isdecimal() or len(text) > MOST_DIGITS:
        raise WorkloadError(f"'{shown(text)}' is not a length: give a whole number, or a distribution such as uniform:64,256")
    return Fixed(int(text))


def summary(values: Sequence[int] | Int32Array) -> dict[str, float]:
    """Mean, stdev, and linearly interpolated percentiles of lengths, for printing."""
    array = np.asarray(values, dtype=np.float64)
    p50, p90, p99 = np.percentile(array, [50, 90, 99])
    return {
        "mean": float(array.mean()),
        "stdev": float(array.std()),
        "min": float(array.min()),
        "p50": float(p50),
        "p90": float(p90),
        "p99": float(p99),
        "max": float(array.max()),
    }
