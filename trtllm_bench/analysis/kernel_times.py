"""How long a step's kernels take at a clock, and which clock the power limit leaves them.

A kernel's time is the p-norm of three, near whose ridges each is felt: its bytes at the memory's bandwidth; its bytes at what the SMs can
take in; its FLOP at the rate of its number format. The last two go with the clock, and so does, less than in proportion, the fixed time in
which the chip fills and drains. A GEMM over packed weights first decodes them, in the same warps that multiply: each code, and each scale,
takes a number of SM cycles each time that the weight is read. Tensor cores work meanwhile in part: that time and the time of its FLOP are
joined by a norm between a sum and the larger of the two (`DECODING_NORM`).

Power is what the board draws at rest, what the clock costs, and joules a FLOP and a byte. Voltage falls with the clock, so all but the
memory's own share does too, as `clock ** exponent`. A step that would draw more than the limit runs at the clock at which it does not.
Large steps are bound by this alone: one H100 and one H200 take the same 20 mJ a token of Llama-3.1-8B at 128/128.

Bandwidth, limit, SMs and boost clock are a GPU's data sheet's, all else is of the architecture. So a GPU of an architecture that was
measured is predicted without having been seen; of another one nothing is known of power, and its rates are what such a GPU sustains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trtllm_bench.analysis.step_constants import PACKED, StepConstants
from trtllm_bench.roofline.counts import OpCost
from trtllm_bench.roofline.hardware import Hardware

Array = npt.NDArray[np.float64]
KINDS = ("gemv", "skinny", "gemm", "attention", "rows", "packed", "row_scaled", "packed_mma")
LOADED_AS: Mapping[str, str] = {"packed": "skinny", "row_scaled": "gemm", "packed_mma": "gemm"}
"""Kinds that share another kind's constants for memory and fixed time."""
COMPUTED_AS: Mapping[str, str] = {"packed_mma": "skinny"}
"""And for arithmetic."""
FORMATS = ("fp8", "bf16", "int8")
"""Whose clocks and joules are known; all others go by bf16's."""
REFERENCE_SMS, REFERENCE_MHZ = 132, 1980.0
"""Of the H100, whose SMs take in what `stream_tb_per_s` says; of hardware whose SMs are not known, nothing bounds that."""
DECODING_NORM = 1.5
"""Of which times of decoding and of FLOP are joined: 1, 2 and 3 leave larger errors of runs, left out of the fit or not."""
LEAST_CLOCK = 0.3
CLOCK_TOLERANCE = 1e-6
"""To which a clock is found: slopes of a fit are taken over far more."""


@dataclass(frozen=True)
class Codes:
    """What a GEMM over a packed weight decodes."""

    format: str
    """One of `PACKED`."""
    values: float
    """Number of codes, times how often the weight is read."""
    scales: float
    """Number of group scales, times the same."""


@dataclass(frozen=True)
class Kernel:
    """A kernel of a step. `count`: how many times its time counts. `decodes`: whether it is decode attention, `even`: with an equal share
    of keys for each SM. `codes`: what it decodes. `pairs`: of a sequence and a KV head, which a persistent kernel takes one after another.
    `tiles`: of a prompt's queries and a head."""

    cost: OpCost
    count: float
    kind: str
    decodes: bool = False
    even: bool = False
    codes: Codes | None = None
    pairs: int = 0
    tiles: int = 0


@dataclass(frozen=True)
class KernelWork:
    """Of the kernels of a step, one entry each: how many of them, what one moves and computes, its kind and number format."""

    count: Array
    bytes: Array
    flop: Array
    kind: npt.NDArray[np.intp]
    """Of `KINDS`."""
    format: npt.NDArray[np.intp]
    """Of `FORMATS`."""
    flops_per_s: Array
    """The ceiling of each one's format, as measured over a second."""
    decode_attention: npt.NDArray[np.bool_]
    split: npt.NDArray[np.bool_]
    """Decode attention of so few sequences that each is divided, and its parts are merged by another kernel."""
    even: npt.NDArray[np.bool_]
    """Decode attention with equal shares, the merge of its parts included."""
    pairs: Array
    """Pairs of a sequence and a KV head that decode."""
    tiles: Array
    """Tiles of a prompt's queries and a head."""
    codes: npt.NDArray[np.intp]
    """Index in `PACKED` of the weight's format; 0 for a weight that is not packed, which has no `values`."""
    values: Array
    """Codes that one such kernel decodes."""
    scales: Array
    """Group scales that one such kernel decodes."""

    @classmethod
    def of(cls, kernels: Iterable[Kernel], hardware: Hardware, split: bool = False) -> KernelWork:
        each = list(kernels)
        costs, codes = [one.cost for one in each], [one.codes or Codes(PACKED[0], 0.0, 0.0) for one in each]
        return cls(
            count=np.array([one.count for one in each], float),
            bytes=np.array([cost.bytes for cost in costs], float),
            flop=np.array([cost.flop for cost in costs], float),
            kind=np.array([KINDS.index(one.kind) for one in each], np.intp),
            format=np.array([FORMATS.index(cost.compute if cost.compute in FORMATS else "bf16") for cost in costs], np.intp),
            flops_per_s=np.array([hardware.flops(cost.compute) for cost in costs], float),
            decode_attention=np.array([one.decodes for one in each], bool),
            split=np.array([one.decodes and split and not one.even for one in each], bool),
            even=np.array([one.even for one in each], bool),
            pairs=np.array([one.pairs for one in each], float),
            tiles=np.array([one.tiles for one in each], float),
            codes=np.array([PACKED.index(one.format) for one in codes], np.intp),
            values=np.array([one.values for one in codes], float),
            scales=np.array([one.scales for one in codes], float),
        )

    def times(self, constants: StepConstants, hardware: Hardware, overlap: bool) -> KernelTimes:
        """`overlap`: kernels begin before those before them end (PDL)."""
        sms = hardware.sms * hardware.boost_mhz / (REFERENCE_SMS * REFERENCE_MHZ) if hardware.sms else np.inf
        share, stream, fixed = (
            np.array([values.get(kind, values.get(LOADED_AS.get(kind, ""), 0.0)) for kind in KINDS])[self.kind]
            for values in (
                constants.bandwidth_share,
                constants.stream_tb_per_s,
                {**constants.kernel_us, **(constants.pdl_us if overlap else {}), **constants.quantized_us},
            )
        )
        share, stream, fixed = (
            np.where(self.even, constants.attention[name], usual)
            for name, usual in (("even_bandwidth_share", share), ("even_stream_tb_per_s", stream), ("even_us", fixed))
        )
        peaks = {**constants.peak_share, **constants.quantized_share}
        computed = [COMPUTED_AS.get(kind, kind) for kind in KINDS]
        peak = np.array([[peaks.get(f"{kind}_{name}", peaks.get(kind, 0.0)) for name in FORMATS] for kind in computed])[
            self.kind, self.format
        ]
        rate = self.flops_per_s * peak
        cycles = constants.decoding_cycles
        decoding = self.values * np.array([cycles[name] for name in PACKED])[self.codes] + self.scales * cycles["scale"]
        picojoules = constants.energy_pj
        per_flop = np.array([picojoules[name] for name in FORMATS])[self.format]
        per_flop = np.where(self.kind == KINDS.index("gemv"), picojoules["vector"], per_flop)
        per_flop = np.where(self.values > 0, constants.quantized_pj["flop_share"] * per_flop, per_flop)
        per_byte = np.where(self.decode_attention, picojoules["kv_byte"], picojoules["byte"])
        per_code = constants.quantized_pj["code"]
        held = np.where(
            self.kind == KINDS.index("attention"),
            constants.clock_share["attention"],
            np.array([constants.clock_share[name] for name in FORMATS])[self.format],
        )
        return KernelTimes(
            count=self.count,
            dram_us=self.bytes / (hardware.bytes_per_s * share) * 1e6,
            stream_us=self.bytes / (stream * 1e12 * sms) * 1e6,
            compute_us=np.divide(self.flop, rate, out=np.zeros_like(rate), where=rate > 0) * 1e6,
            compute_clock=held,
            decoding_us=decoding / (sms * REFERENCE_SMS * REFERENCE_MHZ),
            fixed_us=fixed
            + constants.kernel_us["merge"] * self.split
            + np.where(self.even, constants.attention["even_pair_us"], constants.attention["pair_us"]) * self.pairs
            + constants.attention["tile_us"] * self.tiles,
            core_j=(np.where(rate > 0, self.flop * per_flop, 0.0) + self.bytes * per_byte + self.values * per_code) * 1e-12,
            dram_j=self.bytes * picojoules["dram_byte"] * 1e-12,
            norm=constants.step["norm"],
            fixed_exponent=constants.power["fixed_exponent"],
        )


@dataclass(frozen=True)
class KernelTimes:
    """Microseconds and joules of one kernel of each entry: memory, SMs, decoding and fixed time at the boost clock; arithmetic at the share
    `compute_clock` of it, where its rate was measured. Joules at the boost clock."""

    count: Array
    dram_us: Array
    stream_us: Array
    compute_us: Array
    compute_clock: Array
    decoding_us: Array
    fixed_us: Array
    core_j: Array
    dram_j: Array
    norm: float
    fixed_exponent: float

    def at(self, clock: float | None) -> tuple[Array, Array, Array]:
        """(memory, compute, fixed) at this share of the boost clock. None: the clock is not known; rates are as measured."""
        if clock is None:
            return self._memory(1.0), _with_decoding(self.compute_us, self.decoding_us), self.fixed_us
        compute = _with_decoding(self.compute_us * self.compute_clock, self.decoding_us) / clock
        return self._memory(clock), compute, self.fixed_us / clock**self.fixed_exponent

    def _memory(self, clock: float) -> Array:
        return np.asarray((self.dram_us**self.norm + (self.stream_us / clock) ** self.norm) ** (1 / self.norm))

    def joined(self, memory: Array, compute: Array) -> Array:
        return np.asarray((memory**self.norm + compute**self.norm) ** (1 / self.norm))

    def total_us(self, clock: float | None) -> float:
        memory, compute, fixed = self.at(clock)
        return float((self.count * (self.joined(memory, compute) + fixed)).sum())


def _with_decoding(compute: Array, decoding: Array) -> Array:
    return np.asarray((compute**DECODING_NORM + decoding**DECODING_NORM) ** (1 / DECODING_NORM))


def watts(times: KernelTimes, constants: StepConstants, clock: float, total_us: float) -> float:
    """Mean power of a step of `total_us`."""
    power = constants.power
    joules = float((times.count * (times.core_j * clock ** power["exponent"] + times.dram_j)).sum())
    return float(power["static_w"] + power["clock_w"] * clock ** (1 + power["exponent"]) + joules / (total_us * 1e-6))


def clock_within(times: KernelTimes, constants: StepConstants, limit_w: float, other_us: float, least_us: float = 0.0) -> float:
    """Share of the boost clock, at most 1, at which a step draws no more than the limit on average. `other_us`: time in which no kernel of
    these runs; `least_us`: what the step takes at least."""

    def drawn(clock: float) -> float:
        return watts(times, constants, clock, max(times.total_us(clock) + other_us, least_us))

    if drawn(1.0) <= limit_w:
        return 1.0
    return _root(lambda clock: drawn(clock) - limit_w, LEAST_CLOCK, 1.0)


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a rising function is 0, to `CLOCK_TOLERANCE`; `low` where it is above 0 all the way.

    The Illinois method: Dowell and Jarratt, BIT 11, 1971.
    """
    below, above = function(low), function(high)
    if below >= 0:
        return low
    side = 0
    while high - low > CLOCK_TOLERANCE:
        middle = (low * above - high * below) / (above - below)
        value = function(middle)
        if abs(value) < CLOCK_TOLERANCE:
            return middle
        if value < 0:
            low, below, above, side = middle, value, above / 2 if side < 0 else above, -1
        else:
            high, above, below, side = middle, value, below / 2 if side > 0 else below, 1
    return (low + high) / 2
