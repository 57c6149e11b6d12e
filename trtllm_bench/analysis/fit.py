"""Fits the step model's constants to whole runs recorded on one GPU: their rates, and the power and clock that telemetry saw.

    python -m trtllm_bench.analysis.fit                  # what the constants would be, and the errors they leave
    python -m trtllm_bench.analysis.fit --folds 5        # and the errors on runs left out, a fifth at a time
    python -m trtllm_bench.analysis.fit --write          # into step_models/h100.toml
    python -m trtllm_bench.analysis.fit --gpu h200       # the same of the H200
    python docs/records.py --fit                         # constants of the H200, then every table and interval that follows from them

Each constant starts from what single kernels gave (`START`, `STARTS`) and is held to it as far as `FREE` says: whole runs of a few models
cannot tell a kernel's bandwidth from its fixed time. A residual is a rate's error over 1.5% and a constant's change over its freedom; and,
of the steps that only decode and of those with prompts, each where they took more than 3 s, their time's error over 3%, their clock's over
4%, and their power's over 6% where that is a mean of more than 6 s. Such a phase has one clock, as the limit acts over many steps. With one
clock for a whole run, decode steps over long contexts came out too slow and at too high a clock, and prompts the other way.

Constants are of one GPU and one engine: runs of the other GPU of the architecture take no part, nor do runs at other revisions than its
file lists. Constants of quantized GEMMs (`QUANTIZED_FREE`) follow only runs of quantized engines, with all others kept as plain runs gave
them.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from trtllm_bench.analysis.cells import constants_of, hardware_of, is_quantized, plans_of
from trtllm_bench.analysis.check import predict_again
from trtllm_bench.analysis.kernel_times import KINDS, LOADED_AS, KernelWork, clock_within, watts
from trtllm_bench.analysis.step_constants import FOLDER, QUANTIZED_GPU, StepConstants, constants_for, read_anew
from trtllm_bench.analysis.step_model import StepModel
from trtllm_bench.errors import BenchError
from trtllm_bench.roofline.costs import step_seconds
from trtllm_bench.roofline.counts import StepShape
from trtllm_bench.roofline.hardware import Hardware
from trtllm_results.compare.published import folder, recorded_stores
from trtllm_results.record.row import Row
from trtllm_results.store.table import Store
from trtllm_results.versions import newest, versions

Moves = np.ndarray[tuple[int], np.dtype[np.float64]]
"""Logarithms of constants over their starts."""
Slopes = np.ndarray[tuple[int, int], np.dtype[np.float64]]
"""Of residuals, by those."""

FREE: Mapping[str, float] = {
    **{f"bandwidth_share.{kind}": 0.01 for kind in KINDS if kind not in LOADED_AS},
    **{f"stream_tb_per_s.{kind}": 0.3 for kind in ("gemv", "gemm", "attention", "rows")},
    "stream_tb_per_s.skinny": 0.15,
    "pdl_us.gemv": 0.3,
    "pdl_us.skinny": 0.2,
    "pdl_us.rows": 0.2,
    "kernel_us.attention": 0.1,
    "kernel_us.merge": 0.3,
    "peak_share.skinny": 0.2,
    "clock_share.fp8": 0.1,
    "clock_share.bf16": 0.1,
    "clock_share.attention": 0.02,
    "energy_pj.fp8": 0.3,
    "energy_pj.bf16": 0.3,
    "energy_pj.vector": 0.5,
    "energy_pj.byte": 0.5,
    "energy_pj.kv_byte": 0.5,
    "energy_pj.dram_byte": 0.3,
    "power.static_w": 0.2,
    "power.clock_w": 0.5,
    "power.exponent": 0.2,
    "power.fixed_exponent": 0.5,
}
"""Relative change of a constant that weighs as much as an error of one deviation."""
TODAY_FREE: Mapping[str, float] = {
    "attention.pair_us": 0.3,
    "attention.tile_us": 0.2,
    "attention.even_bandwidth_share": 0.02,
    "attention.even_stream_tb_per_s": 0.3,
    "attention.even_us": 0.1,
    "attention.even_pair_us": 0.3,
}
"""The same of constants of kernels that only today's engine has."""
PLAIN_FREE = {**FREE, **TODAY_FREE}
QUANTIZED_FREE: Mapping[str, float] = {
    **{f"decoding_cycles.{name}": 0.3 for name in ("int4", "int4_fp8", "int8", "fp8", "fp4", "nf4", "scale")},
    "quantized_share.packed_bf16": 0.1,
    "quantized_share.packed_fp8": 0.1,
    "quantized_share.row_scaled_int8": 0.1,
    "quantized_share.skinny_int8": 0.1,
    "quantized_us.packed": 0.2,
    "quantized_pj.code": 0.5,
    "quantized_pj.flop_share": 0.2,
    "energy_pj.int8": 0.3,
    "stream_tb_per_s.gemv": 0.3,
    "pdl_us.gemv": 0.3,
}
"""The same for the constants that follow runs of quantized engines."""
START: Mapping[str, float] = {
    "bandwidth_share.gemv": 1.06,
    "bandwidth_share.skinny": 1.0,
    "bandwidth_share.gemm": 0.88,
    "bandwidth_share.attention": 1.0,
    "bandwidth_share.rows": 1.0,
    "stream_tb_per_s.gemv": 7.0,
    "stream_tb_per_s.skinny": 8.0,
    "stream_tb_per_s.gemm": 6.0,
    "stream_tb_per_s.attention": 5.0,
    "stream_tb_per_s.rows": 5.0,
    "pdl_us.gemv": 1.1,
    "pdl_us.skinny": 1.0,
    "pdl_us.rows": 1.2,
    "kernel_us.attention": 4.5,
    "kernel_us.merge": 1.9,
    "peak_share.skinny": 0.55,
    "clock_share.fp8": 0.72,
    "clock_share.bf16": 0.78,
    "clock_share.attention": 0.875,
    "energy_pj.fp8": 0.65,
    "energy_pj.bf16": 1.1,
    "energy_pj.vector": 15.0,
    "energy_pj.byte": 65.0,
    "energy_pj.kv_byte": 90.0,
    "energy_pj.dram_byte": 50.0,
    "power.static_w": 110.0,
    "power.clock_w": 40.0,
    "power.exponent": 1.3,
    "power.fixed_exponent": 0.46,
}
"""Bandwidths, fixed times, the rate of skinny GEMMs: single kernels of `kernels` and of profiles (results/recorded/h100). Clocks: GEMMs of
a second at the power limit, prompts' attention alone. Joules and watts: what such GEMMs and plain reads draw, shared out."""
STARTS: Mapping[str, Mapping[str, float]] = {
    "h200": {
        "bandwidth_share.skinny": 1.04,
        "bandwidth_share.attention": 0.96,
        "stream_tb_per_s.skinny": 10.0,
        "pdl_us.skinny": 0.8,
        "clock_share.attention": 1.0,
        "attention.pair_us": 0.0015,
        "attention.tile_us": 0.017,
        "attention.even_bandwidth_share": 1.04,
        "attention.even_stream_tb_per_s": 12.0,
        "attention.even_us": 9.25,
        "attention.even_pair_us": 0.0025,
        "quantized_pj.flop_share": 0.85,
        "pdl_us.rows": 1.5,
        "kernel_us.attention": 4.0,
        "kernel_us.merge": 0.1,
        "decoding_cycles.int4": 0.022,
        "decoding_cycles.int4_fp8": 0.02,
        "decoding_cycles.int8": 0.04,
        "decoding_cycles.fp8": 0.04,
        "decoding_cycles.fp4": 0.035,
        "decoding_cycles.nf4": 0.047,
        "decoding_cycles.scale": 0.43,
        "quantized_share.packed_bf16": 1.0,
        "quantized_share.packed_fp8": 0.8,
        "quantized_share.row_scaled_int8": 1.4,
        "quantized_share.skinny_int8": 0.95,
        "quantized_us.packed": 0.8,
        "quantized_pj.code": 13.0,
        "stream_tb_per_s.gemv": 11.0,
        "pdl_us.gemv": 0.75,
        "energy_pj.int8": 0.65,
    }
}
"""Where the H200's kernels of today say another thing (results/recorded/h200/profile-fp8-128-256-b1-444f27e and -b64-444f27e)."""
STEP = 1e-3
"""Of a constant's logarithm, over which its slopes are taken."""
RATE, PHASE_RATE, CLOCK, POWER = 0.015, 0.03, 0.04, 0.06
TOLERANCE = 1e-4
"""A fit ends when the sum of squares changes by less than this share."""
LEAST_S = 6.0
"""From which on power of a phase is a mean; its time and clock are from half of that on."""
MOST_SHAPES = 200


@dataclass(frozen=True)
class Phase:
    """The steps of a run that only decode, or those with prompts: the work of their kernels, those of all steps one after another, and what
    was measured of it."""

    work: KernelWork
    step: np.ndarray[tuple[int], np.dtype[np.intp]]
    """Of each kernel, which of `steps`."""
    steps: np.ndarray[tuple[int], np.dtype[np.float64]]
    """How often there was each."""
    host_us: np.ndarray[tuple[int], np.dtype[np.float64]]
    measured: PhaseFigures

    def predicted(self, constants: StepConstants, hardware: Hardware, limit_w: float) -> tuple[float, float, float]:
        """(seconds, joules, share of the boost clock)."""
        times = self.work.times(constants, hardware, overlap=True)
        between = constants.step["between_us"] * float(self.steps.sum())
        clock = clock_within(times, constants, limit_w, between)
        memory, compute, fixed = times.at(clock)
        alone = self.work.count / self.steps[self.step]
        device = np.bincount(self.step, alone * (times.joined(memory, compute) + fixed), len(self.steps)) + constants.step["between_us"]
        total_us = float((self.steps * np.maximum(device, self.host_us)).sum())
        return total_us * 1e-6, watts(times, constants, clock, total_us) * total_us * 1e-6, clock


@dataclass(frozen=True)
class PhaseFigures:
    """Means over the repeats; 0 where that was not recorded."""

    seconds: float = 0.0
    power_w: float = 0.0
    clock_mhz: float = 0.0


@dataclass(frozen=True)
class RecordedRun:
    """One cell's phases, each with a clock of its own."""

    rows: Sequence[Row]
    phases: Sequence[Phase]
    hardware: Hardware
    limit_w: float
    quantized: bool

    def figure(self, name: str) -> float:
        return statistics.fmean(row.figures.get(name, 0.0) for row in self.rows)

    def predicted(self, constants: StepConstants) -> tuple[float, float, float]:
        """(seconds, watts, share of the boost clock), the last two means over time."""
        seconds, joules, clocks = zip(*(phase.predicted(constants, self.hardware, self.limit_w) for phase in self.phases), strict=True)
        return sum(seconds), sum(joules) / sum(seconds), float(np.average(clocks, weights=seconds))

    def residuals(self, constants: StepConstants) -> list[float]:
        """By how many deviations each measured figure differs from what is predicted, as a logarithm."""
        each = [phase.predicted(constants, self.hardware, self.limit_w) for phase in self.phases]
        total_s = sum(seconds for seconds, _, _ in each)
        distances = [np.log(self.figure("duration_s") / total_s) / RATE]
        for phase, (seconds, joules, clock) in zip(self.phases, each, strict=True):
            measured = phase.measured
            if measured.seconds > LEAST_S / 2:
                distances.append(np.log(measured.seconds / seconds) / PHASE_RATE)
                if measured.clock_mhz:
                    distances.append(np.log(clock * self.hardware.boost_mhz / measured.clock_mhz) / CLOCK)
                if measured.power_w and measured.seconds > LEAST_S:
                    distances.append(np.log(joules / seconds / min(measured.power_w, self.limit_w)) / POWER)
        return distances


def recorded_run(rows: Sequence[Row], store: Store | None = None) -> RecordedRun:
    """Of the repeats of one cell, with what `store` holds of its steps. Raises `BenchError` for a GPU whose power limit is not known."""
    row = rows[-1]
    cell, hardware = row.cell, hardware_of(row.environment)
    if not hardware.power_w:
        raise BenchError(f"{cell.label}: the power limit of {row.environment.gpu} is not known")
    model = StepModel(plans_of(row)[0], hardware, constants=constants_of(row))
    seen: list[tuple[StepShape, int]] = []
    predict_again(row, hardware, seen.extend)
    measured = measured_phases(rows, store)
    phases = []
    for decoding in (True, False):
        if shapes := _fewer([(shape, count) for shape, count in seen if (shape.phase == "decode") == decoding]):
            phases.append(_phase(model, shapes, measured[decoding]))
    limit = hardware.power_w * model.constants.power["held"]
    return RecordedRun(rows, phases, hardware, limit, is_quantized(row))


def _phase(model: StepModel, shapes: Sequence[tuple[StepShape, int]], measured: PhaseFigures) -> Phase:
    works, index, host = [], [], []
    for place, (shape, count) in enumerate(shapes):
        kernels = [(cost, n * count) for cost, n in model.kernels(shape) if cost.kind != "communication"]
        works.append(model.work(kernels, shape))
        index += [place] * len(kernels)
        host.append(model.step(shape).host_us)
    work = KernelWork(**{one.name: np.concatenate([getattr(each, one.name) for each in works]) for one in fields(KernelWork)})
    return Phase(work, np.array(index, np.intp), np.array([count for _, count in shapes], float), np.array(host), measured)


def measured_phases(rows: Sequence[Row], store: Store | None) -> dict[bool, PhaseFigures]:
    """Of the steps that only decode (True), and of those with prompts: from the step logs and samples of telemetry."""
    each: dict[bool, list[PhaseFigures]] = {True: [], False: []}
    for row in rows:
        logged = None if store is None else store.read_side("steps", row)
        sampled = None if store is None else store.read_side("samples", row)
        if logged is None or sampled is None:
            continue
        steps, samples = ({name: table.column(name).to_numpy() for name in table.column_names} for table in (logged, sampled))
        taken, decoding = step_seconds(steps), steps["context_tokens"] == 0
        when = samples["time_s"]
        during = decoding[np.minimum(np.searchsorted(steps["done_s"], when), len(decoding) - 1)]
        within = (when >= steps["launched_s"][0]) & (when <= steps["done_s"][-1])
        for phase, figures in each.items():
            here = within & (during == phase)
            power, clock = (float(samples[name][here].mean()) if here.any() else 0.0 for name in ("power_w", "sm_clock_mhz"))
            figures.append(PhaseFigures(float(taken[decoding == phase].sum()), power, clock))
    return {phase: _mean(figures) for phase, figures in each.items()}


def _mean(figures: Sequence[PhaseFigures]) -> PhaseFigures:
    columns = zip(*((one.seconds, one.power_w, one.clock_mhz) for one in figures), strict=True)
    return PhaseFigures(*map(statistics.fmean, columns)) if figures else PhaseFigures()


def _fewer(shapes: Sequence[tuple[StepShape, int]]) -> list[tuple[StepShape, int]]:
    """No more than `MOST_SHAPES`: of neighbours in phase, tokens and cache one stands for all."""
    ordered = sorted(shapes, key=lambda one: (one[0].phase, one[0].tokens, one[0].kv_tokens))
    if len(ordered) <= MOST_SHAPES:
        return ordered
    groups = (ordered[part[0] : part[-1] + 1] for part in np.array_split(np.arange(len(ordered)), MOST_SHAPES))
    return [(group[len(group) // 2][0], sum(count for _, count in group)) for group in groups]


@lru_cache(maxsize=1)
def recorded_runs(root: Path, gpu: str) -> tuple[RecordedRun, ...]:
    """The runs that constants follow: one for every such cell of fixed lengths on one GPU."""
    stores = {row.row_id: store for store, row in _stored(root / gpu)}
    rows = (row for row in fixed_lengths(root / gpu) if row.cell.gpus == 1)
    return tuple(recorded_run(repeats, stores[repeats[-1].row_id]) for repeats in followed(rows))


def followed(rows: Iterable[Row]) -> list[tuple[Row, ...]]:
    """The repeats of each cell that constants follow. Of today's engine, whose kernels change, only the last version of a case counts."""
    chosen = [row for row in rows if follows(row)]
    earlier = versions(row for row in chosen if constants_of(row).earlier)
    return earlier + newest(row for row in chosen if not constants_of(row).earlier)


def fixed_lengths(folder: Path) -> list[Row]:
    """The `ok` rows in a folder's stores with fixed lengths and a closed loop."""
    return [row for _, row in _stored(folder) if row.status == "ok" and not row.cell.named_workload and not row.cell.request_rate]


def _stored(folder: Path) -> Iterator[tuple[Store, Row]]:
    for path in recorded_stores(folder):
        store = Store(path, create=False)
        yield from ((store, row) for row in store.rows())


def follows(row: Row) -> bool:
    """Whether constants follow such a run, which must be of the engine that its GPU's constants are for. Rows without a revision are of an
    engine whose kernels did not overlap. Runs of quantized engines count on one GPU only (`QUANTIZED_GPU`)."""
    environment, constants = row.environment, constants_of(row)
    of_engine = bool(environment.git_revision) and environment.git_revision.startswith(constants.revisions)
    return of_engine and constants.fitted and (constants.gpu == QUANTIZED_GPU or not is_quantized(row))


def changed(constants: StepConstants, values: Mapping[str, float]) -> StepConstants:
    """With other values, by `section.name`."""
    sections: dict[str, Any] = {}
    for name, value in values.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, dict(getattr(constants, section)))[key] = value
    return replace(constants, **sections)


def fit(runs: Sequence[RecordedRun], constants: StepConstants) -> dict[str, float]:
    """Values of the constants in `PLAIN_FREE` and, where there are runs of quantized engines, of those in `QUANTIZED_FREE`, by name."""
    plain, quantized = ([run for run in runs if run.quantized == kind] for kind in (False, True))
    values = Search(constants, PLAIN_FREE).of(plain)
    return values | (Search(changed(constants, values), QUANTIZED_FREE).of(quantized) if quantized else {})


class Search:
    """For the values of some constants with which runs come out as measured, all others being as they are."""

    def __init__(self, constants: StepConstants, free: Mapping[str, float]) -> None:
        """`free`: as `FREE`. Constants without a start for this GPU stay as they are."""
        self._constants = constants
        self._start = {**START, **STARTS.get(constants.gpu, {})}
        self._free = {name: freedom for name, freedom in free.items() if name in self._start}

    def of(self, runs: Sequence[RecordedRun]) -> dict[str, float]:
        return self._values(self._moves(runs))

    def without(self, runs: Sequence[RecordedRun], groups: Sequence[Collection[int]]) -> list[dict[str, float]]:
        """The values that the others of `runs` give, for each group of places left out. All start from what all runs give, with the slopes
        there."""
        whole = self._moves(runs)
        slopes = [self._slopes([run], whole) for run in runs]
        values = []
        for group in groups:
            rest = [place for place in range(len(runs)) if place not in group]
            known = np.concatenate([self._distances, *(slopes[place] for place in rest)])
            values.append(self._values(self._moves([runs[place] for place in rest], whole, known)))
        return values

    def _moves(self, runs: Sequence[RecordedRun], first: Moves | None = None, slopes: Slopes | None = None) -> Moves:
        """Logarithms of the values over their starts. `first`: where the search begins; `slopes`: at every point, where they are known."""
        from scipy.optimize import least_squares

        def slopes_at(moves: Moves) -> Slopes:
            return np.concatenate([self._distances, self._slopes(runs, moves)]) if slopes is None else slopes

        def residuals_at(moves: Moves) -> Moves:
            return self._residuals(runs, moves)

        begin = np.zeros(len(self._free)) if first is None else first
        return np.asarray(least_squares(residuals_at, begin, slopes_at, ftol=TOLERANCE, max_nfev=25).x)

    def _slopes(self, runs: Sequence[RecordedRun], moves: Moves) -> Slopes:
        """[residuals of `runs`, constants]."""
        begin = self._residuals(runs, moves)[len(moves) :]
        steps = np.eye(len(moves)) * STEP
        return np.stack([(self._residuals(runs, moves + step)[len(moves) :] - begin) / STEP for step in steps], axis=1)

    @property
    def _distances(self) -> Slopes:
        """The same of the constants' distances to their starts."""
        return np.diag(1 / np.array(list(self._free.values())))

    def _residuals(self, runs: Sequence[RecordedRun], moves: Moves) -> Moves:
        trial = changed(self._constants, self._values(moves))
        return np.concatenate([moves / list(self._free.values()), *(run.residuals(trial) for run in runs)])

    def _values(self, moves: Moves) -> dict[str, float]:
        return {name: self._start[name] * float(np.exp(move)) for name, move in zip(self._free, moves, strict=True)}


def errors(runs: Iterable[RecordedRun], constants: StepConstants) -> list[float]:
    """Predicted / measured - 1 of output tokens/s."""
    return [run.figure("duration_s") / run.predicted(constants)[0] - 1 for run in runs]


def left_out(runs: Sequence[RecordedRun], constants: StepConstants, groups: Sequence[Hashable]) -> list[float]:
    """Each run's error by constants that were fitted without its group. `groups`: the group of each run. A group of quantized runs is left
    out of the quantized fit only: the plain runs all stay in (if there are none, `constants` stay as they are)."""
    errors_of = [0.0] * len(runs)
    for kind, free in ((False, PLAIN_FREE), (True, QUANTIZED_FREE)):
        places = [place for place, run in enumerate(runs) if run.quantized == kind]
        if not places:
            continue
        chosen, members = [runs[place] for place in places], list(dict.fromkeys(groups[place] for place in places))
        within = [[at for at, place in enumerate(places) if groups[place] == group] for group in members]
        search = Search(constants, free)
        for group, values in zip(within, search.without(chosen, within), strict=True):
            for at, error in zip(group, errors([chosen[at] for at in group], changed(constants, values)), strict=True):
                errors_of[places[at]] = error
        if not kind:
            constants = changed(constants, search.of(chosen))
    return errors_of


def write(file: Path, values: Mapping[str, float]) -> None:
    """Into the `value` line of each constant."""
    text = file.read_text(encoding="utf-8")
    for name, value in values.items():
        text = re.sub(rf"(\[{re.escape(name)}\]\nvalue = ).*", rf"\g<1>{value:.4g}", text)
    file.write_text(text, encoding="utf-8")
    read_anew()


GROUPS: Mapping[str, Callable[[RecordedRun], Hashable]] = {
    "precision": lambda run: (run.rows[0].cell.precision, run.rows[0].cell.model),
    "lengths": lambda run: (run.rows[0].cell.isl, run.rows[0].cell.osl),
}
"""What the runs that `--hold-out` leaves out together have in common. A precision is held out model by model."""


def _tell(what: str, runs: Sequence[RecordedRun], errors: Sequence[float]) -> None:
    for kind in (False, True):
        chosen = [error for run, error in zip(runs, errors, strict=True) if run.quantized == kind]
        if chosen:
            worst = max(chosen, key=abs)
            name = "quantized" if kind else "plain"
            print(f"{what}: {len(chosen)} {name} runs, median error {statistics.median(map(abs, chosen)):.1%}, worst {worst:+.1%}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m trtllm_bench.analysis.fit")
    parser.add_argument("--gpu", default="h100", help="whose recorded runs to follow")
    parser.add_argument("--folds", type=int, default=0, help="also the errors on runs left out, so many parts one after another")
    parser.add_argument("--hold-out", choices=GROUPS, help="also the error of each run by constants fitted without all runs alike in this")
    parser.add_argument("--write", action="store_true", help="write the constants into the GPU's file")
    options = parser.parse_args(arguments)
    root, constants = folder().parent / "recorded", constants_for(options.gpu)
    runs = recorded_runs(root, options.gpu)
    values = fit(runs, constants)
    fitted = changed(constants, values)
    print("\n".join(f"{name} = {value:.4g}" for name, value in values.items()))
    for run, error in zip(runs, errors(runs, fitted), strict=True):
        _, drawn, clock = run.predicted(fitted)
        mhz = clock * run.hardware.boost_mhz
        told = f"{drawn:.0f} W ({run.figure('power_mean_w'):.0f}), {mhz:.0f} MHz ({run.figure('sm_clock_mean_mhz'):.0f})"
        print(f"{run.rows[0].cell.label}: {error:+.1%}; {told}")
    _tell(f"{options.gpu}, in sample", runs, errors(runs, fitted))
    if options.folds:
        parts = [place % options.folds for place in range(len(runs))]
        _tell(f"{options.gpu}, left out by {options.folds} folds", runs, left_out(runs, constants, parts))
    if options.hold_out:
        alike = list(map(GROUPS[options.hold_out], runs))
        _tell(f"{options.gpu}, each {options.hold_out} left out", runs, left_out(runs, constants, alike))
    if options.write:
        write(FOLDER / f"{options.gpu}.toml", values)


if __name__ == "__main__":
    main()
