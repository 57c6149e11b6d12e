"""When requests arrive: exact point processes, as seconds from the start of the run.

Every process is drawn from its own definition and left as drawn: a Poisson process of n requests ends when it ends, it is not
stretched to a chosen length (some load generators rescale the last arrival to n / rate, which removes the count's variance and is
no longer Poisson). Rates that change over time are unit-rate Poisson processes through the inverse of the cumulative rate
(Cinlar, "Introduction to Stochastic Processes", 1975, section 4.7), which is exact too, not thinned.

The first n times of a longer draw with the same seed are the same times, so adding requests does not change those before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from trtllm_workloads.errors import WorkloadError
from trtllm_workloads.shortform import build, spelled, text_of

Float64Array = npt.NDArray[np.float64]


class Arrivals(Protocol):
    """An arrival process."""

    def times(self, n: int, rng: np.random.Generator) -> Float64Array:
        """The first n arrivals, seconds, non-decreasing, none below 0."""


SMALLEST, LARGEST = 1e-9, 1e9
"""Rates (requests/s) and times (s) lie between these; beyond them arrival times overflow or are all the same."""


def _need_rate(kind: str, name: str, value: float) -> None:
    if not value > 0:
        raise WorkloadError(f"{kind} arrivals: {name} is {value:g}; it must be above 0")
    if not SMALLEST <= value <= LARGEST:
        raise WorkloadError(f"{kind} arrivals: {name} is {value:g}; it must lie between {SMALLEST:g} and {LARGEST:g}")


def _need_rate_or_zero(kind: str, name: str, value: float) -> None:
    if not 0 <= value <= LARGEST:
        raise WorkloadError(f"{kind} arrivals: {name} is {value:g}; it must lie between 0 and {LARGEST:g}")


def _exponentials(n: int, rng: np.random.Generator) -> Float64Array:
    return -np.log1p(-rng.random(n))


@dataclass(frozen=True)
class AtOnce:
    """Everything at time 0."""

    def times(self, n: int, rng: np.random.Generator) -> Float64Array:
        return np.zeros(n)


@dataclass(frozen=True)
class Constant:
    """Request k at k / rate."""

    rate: float

    def __post_init__(self) -> None:
        _need_rate("constant", "rate", self.rate)

    def times(self, n: int, rng: np.random.Generator) -> Float64Array:
        return np.arange(n, dtype=np.float64) / self.rate


@dataclass(frozen=True)
class Poisson:
    """Independent exponential gaps with mean 1 / rate; the first arrival is one gap after the start."""

    rate: float

    def __post_init__(self) -> None:
        _need_rate("poisson", "rate", self.rate)

    def times(self, n: int, rng: np.random.Generator) -> Float64Array:
        return np.cumsum(_exponentials(n, rng)) / self.rate


@dataclass(frozen=True)
class Gamma:
    """Independent gamma gaps, shape `burstiness`, mean 1 / rate: gap CV = burstiness ** -0.5.

    `burstiness` as in vLLM: 1 is Poisson, below 1 burstier, above 1 more regular.
    """

    rate: float
    burstiness: float = 1.0

    def __post_init__(self) -> None:
        _need_rate("gamma", "rate", self.rate)
        if not 1e-3 <= self.burstiness <= 1e6:
            raise WorkloadError(f"gamma arrivals: burstiness is {self.burstiness:g}; it must lie between 0.001 and 1e+06")

    def times(self, n: int, rng: np.random.Generator) -> Float64Array:
        from scipy.special import gammaincinv

        gaps = np.asarray(gammaincinv(self.burstiness, rng.random(n)), dtype=np.float64)
        return np.cumsum(gaps) / (self.burstiness * self.rate)


@dataclass(frozen=True)
class LinearRamp:
    """Poisson whose rate goes linearly from `start` to `end` requests/s over `duration_s`, then stays at `end`."""

    start: float
    end: float
    duration_s: float

    def __post_init__(self) -> None:
        _need_rate_or_zero("linear ramp", "start", self.start)
        _need_rate("linear ramp", "end", self.end)
        _need_rate("linear ramp", "duration_s", self.duration_s)

    def times(self, n: int, rng: np.random.Generator) -> Float64Array:
        unit = np.cumsum(_exponentials(n, rng))
        slope = (self.end - self.start) / self.duration_s
        during = self.duration_s * (self.start + self.end) / 2
        left = np.minimum(unit, during)
        # start * t + slope * t^2 / 2 = left, in the form that does not cancel when the slope is near 0
        root = np.sqrt(np.maximum(self.start**2 + 2 * slope * left, 0.0))
        inside = np.divide(2 * left, self.start + root, out=np.zeros(n), where=left > 0)
        return np.asarray(np.where(unit <= during, inside, self.duration_s + (unit - during) / self.end), dtype=np.float64)


@dataclass(frozen=True)
class ExponentialRamp:
    """Poisson whose rate goes geometrically from `start` to `end` requests/s over `duration_s`, then stays at `end`."""

    start: float
    end: float
    duration_s: float

    def __post_init__(self) -> None:
        for name in ("start", "end", "duration_s"):
            _need_rate("exponential ramp", name, getattr(self, name))

    def times(self, n: int, rng: np.random.Generator) -> Float64Array:
        growth = np.log(self.end / self.start) / self.duration_s
        if abs(growth) * self.duration_s < 1e-9:
            return Poisson(self.end).times(n, rng)
        unit = np.cumsum(_exponentials(n, rng))
        during = (self.end - self.start) / growth
        inside = np.log1p(np.minimum(unit, during) * growth / self.start) / growth
        return np.asarray(np.where(unit <= during, inside, self.duration_s + (unit - during) / self.end), dtype=np.float64)


@dataclass(frozen=True)
class RateSeries:
    """Poisson with rate rates[k] from k * step_s to (k + 1) * step_s, the series repeating."""

    rates: tuple[float, ...]
    step_s: float

    def __post_init__(self) -> None:
        _need_rate("rate series", "step_s", self.step_s)
        for rate in self.rates:
            _need_rate_or_zero("rate series", "a rate", rate)
        if not any(self.rates):
            raise WorkloadError("rate series: give rates of at least 0, one of them above 0")

    def times(self, n: int, rng: np.random.Generator) -> Float64Array:
        unit = np.cumsum(_exponentials(n, rng))
        cumulative = np.concatenate([[0.0], np.cumsum(self.rates)]) * self.step_s
        period, left = np.divmod(unit, cumulative[-1])
        # side="right" passes over silent steps, whose cumulative rate does not grow: k is a step with a rate above 0
        k = np.searchsorted(cumulative, left, side="right") - 1
        return np.asarray(
            (period * len(self.rates) + k) * self.step_s + (left - cumulative[k]) / np.asarray(self.rates)[k], dtype=np.float64
        )


@dataclass(frozen=True)
class OnOff:
    """Poisson bursts: `rate` requests/s for `on_s` seconds, `off_rate` for `off_s`, over and over."""

    rate: float
    on_s: float
    off_s: float
    off_rate: float = 0.0

    def __post_init__(self) -> None:
        for name in ("rate", "on_s", "off_s"):
            _need_rate("on/off", name, getattr(self, name))
        _need_rate_or_zero("on/off", "off_rate", self.off_rate)

    def times(self, n: int, rng: np.random.Generator) -> Float64Array:
        unit = np.cumsum(_exponentials(n, rng))
        on, off = self.rate * self.on_s, self.off_rate * self.off_s
        period, left = np.divmod(unit, on + off)
        in_off = self.on_s + np.divide(left - on, self.off_rate, out=np.zeros(n), where=self.off_rate > 0)
        return period * (self.on_s + self.off_s) + np.where(left < on, left / self.rate, in_off)


KINDS: dict[str, type] = {
    "at-once": AtOnce,
    "constant": Constant,
    "poisson": Poisson,
    "gamma": Gamma,
    "linear-ramp": LinearRamp,
    "exponential-ramp": ExponentialRamp,
    "on-off": OnOff,
    "rate-series": RateSeries,
}


def rate_of(process: Arrivals) -> float | None:
    """Requests/s of a process that has one rate throughout, else None.

    The times drawn have another: of Poisson arrivals it differs from run to run, and n at constant gaps take n - 1 of them.
    """
    return process.rate if isinstance(process, Constant | Poisson | Gamma) else None


def parse(text: str) -> Arrivals:
    """An arrival flag: a process of `KINDS` in short form (`shortform`).

    >>> parse("on-off:rate=30,on_s=5,off_s=10")
    OnOff(rate=30.0, on_s=5.0, off_s=10.0, off_rate=0.0)
    """
    return build(text, KINDS, "arrival process")  # type: ignore[no-any-return]


def spelling(settings: str | Mapping[str, Any]) -> str:
    """The one spelling of a process, given as an arrival flag or as a table of its settings (`kind`, `rate`, ...). Raises `WorkloadError`.

    >>> spelling("on-off:rate=30.0,on_s=5,off_s=10")
    'on-off:30,5,10'
    """
    return spelled(parse(settings if isinstance(settings, str) else text_of(settings)), KINDS)


def chosen(request_rate: float | None, burstiness: float = 1.0, process: str | None = None) -> Arrivals | None:
    """The process that `--request-rate` with `--burstiness`, or `--arrivals` alone, asks for; None where nothing is asked.

    Raises:
        WorkloadError: both are given, or a burstiness that nothing would use.
    """
    if process is None:
        if request_rate is None and burstiness != 1:
            raise WorkloadError("--burstiness shapes the gaps of --request-rate; give both")
        return None if request_rate is None else from_flags(request_rate, burstiness)
    if request_rate is not None:
        raise WorkloadError("--request-rate and --arrivals each say when requests arrive; give one of them")
    if burstiness != 1:
        raise WorkloadError(
            f"--burstiness shapes the gaps of --request-rate, and --arrivals is given; write --arrivals gamma:RATE,{burstiness:g}"
        )
    return parse(process)


def from_flags(request_rate: float | None, burstiness: float = 1.0) -> Arrivals:
    """Open-loop flags as vLLM's users know them: no or infinite `--request-rate` is all at once, `--burstiness` shapes the gaps."""
    if request_rate is None or np.isposinf(request_rate):
        return AtOnce()
    return Poisson(request_rate) if burstiness == 1.0 else Gamma(request_rate, burstiness)
