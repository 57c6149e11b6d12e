"""Power bounds a step's clock, and constants follow recorded runs: by made-up kernels and runs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trtllm_bench.analysis import fit
from trtllm_bench.analysis.fit import Phase, PhaseFigures, RecordedRun, changed, errors, follows, write
from trtllm_bench.analysis.kernel_times import FORMATS, KINDS, KernelTimes, KernelWork, clock_within, watts
from trtllm_bench.analysis.step_constants import FOLDER, constants_for, read_file
from trtllm_bench.roofline.hardware import Hardware, published
from trtllm_results.record.cell import Cell
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Row

H100 = published("h100")
CONSTANTS = constants_for("h100")


def work(*kernels: tuple[str, str, float, float], hardware: Hardware = H100) -> KernelWork:
    """Of (kind, format, MB, GFLOP)."""
    kinds, formats, megabytes, gflop = zip(*kernels, strict=True)
    return KernelWork(
        count=np.ones(len(kernels)),
        bytes=np.array(megabytes) * 1e6,
        flop=np.array(gflop) * 1e9,
        kind=np.array([KINDS.index(kind) for kind in kinds]),
        format=np.array([FORMATS.index(one) for one in formats]),
        flops_per_s=np.array([hardware.flops(one) for one in formats]),
        decode_attention=np.array([kind == "attention" for kind in kinds]),
        split=np.zeros(len(kernels), bool),
        even=np.zeros(len(kernels), bool),
        pairs=np.zeros(len(kernels)),
        tiles=np.zeros(len(kernels)),
        codes=np.zeros(len(kernels), np.intp),
        values=np.zeros(len(kernels)),
        scales=np.zeros(len(kernels)),
    )


PRODUCTS = work(("gemm", "fp8", 100.0, 500.0), ("gemm", "bf16", 100.0, 100.0), ("attention", "bf16", 300.0, 5.0))
READS = work(("gemv", "fp8", 500.0, 1.0))


def times_of(kernels: KernelWork, hardware: Hardware = H100) -> KernelTimes:
    return kernels.times(CONSTANTS, hardware, overlap=True)


def test_a_step_within_the_limit_runs_at_the_boost_clock_and_one_beyond_it_draws_the_limit() -> None:
    assert clock_within(times_of(READS), CONSTANTS, 692.0, 10.0) == 1.0
    times, clocks = times_of(PRODUCTS), []
    for limit in (2000.0, 692.0, 500.0):
        clock = clock_within(times, CONSTANTS, limit, 10.0)
        drawn = watts(times, CONSTANTS, clock, times.total_us(clock) + 10.0)
        assert drawn < limit if clock == 1 else drawn == pytest.approx(limit, rel=0.002)
        clocks.append(clock)
    assert clocks[0] == 1.0 > clocks[1] > clocks[2] > 0.3
    assert times.total_us(clocks[2]) > times.total_us(clocks[1]) > times.total_us(1.0)


def test_arithmetic_is_as_measured_at_the_clock_it_was_measured_at() -> None:
    times = times_of(work(("gemm", "fp8", 0.001, 1280.0)))
    _, compute, _ = times.at(CONSTANTS.clock_share["fp8"])
    assert compute[0] == pytest.approx(1000.0) == times.at(None)[1][0]
    _, faster, _ = times.at(1.0)
    assert faster[0] == pytest.approx(1000.0 * CONSTANTS.clock_share["fp8"])


def test_more_sms_take_in_more_and_unknown_ones_bound_nothing() -> None:
    read, more, unknown = (times_of(READS, replace(H100, sms=sms)).at(1.0)[0][0] for sms in (132, 264, 0))
    assert read > more > unknown
    assert unknown == pytest.approx(500e6 / (H100.bytes_per_s * CONSTANTS.bandwidth_share["gemv"]) * 1e6)


def made_up(kernels: KernelWork, slower: float) -> RecordedRun:
    """A run that took so many times what the constants say."""
    phase = Phase(kernels, np.zeros(len(kernels.count), np.intp), np.ones(1), np.zeros(1), PhaseFigures())
    run = RecordedRun([], [phase], H100, 692.0, quantized=False)
    seconds, _, _ = run.predicted(CONSTANTS)
    figures = {"duration_s": slower * seconds}
    return replace(run, rows=[Row(Cell("m", "fp8", 1, 128, 128), Environment(gpu="NVIDIA H100"), figures=figures)])


def test_constants_move_to_what_runs_took() -> None:
    runs = [made_up(PRODUCTS, 1.04), made_up(READS, 1.04)]
    assert errors(runs, CONSTANTS) == pytest.approx([0.04, 0.04])
    fitted = fit.fit(runs, CONSTANTS)
    assert fitted.keys() == fit.FREE.keys() == fit.START.keys()
    assert max(map(abs, errors(runs, changed(CONSTANTS, fitted)))) < 0.02


def test_a_group_left_out_has_the_error_that_a_fit_of_the_others_gives() -> None:
    runs = [made_up(PRODUCTS, 1.04), made_up(READS, 0.97), made_up(work(("rows", "bf16", 400.0, 0.0)), 1.06)]
    constants = changed(CONSTANTS, fit.fit([runs[0], runs[2]], CONSTANTS))
    (error,) = errors([runs[1]], constants)
    assert fit.left_out(runs, CONSTANTS, ["a", "b", "a"])[1] == pytest.approx(error, abs=0.002)


def test_fitted_constants_are_written_in_place(tmp_path: Path) -> None:
    file = shutil.copy(FOLDER / "h100.toml", tmp_path / "h100.toml")
    write(Path(file), {"power.static_w": 123.4, "pdl_us.gemv": 0.5})
    before, after = read_file(FOLDER / "h100.toml"), read_file(tmp_path / "h100.toml")
    assert (after["power"]["static_w"]["value"], after["pdl_us"]["gemv"]["value"]) == (123.4, 0.5)
    assert after["kernel_us"] == before["kernel_us"]


def test_runs_of_engines_before_revisions_and_of_other_precisions_are_not_followed() -> None:
    here = Environment(gpu="NVIDIA H100", git_revision="4cbcc34")
    assert follows(Row(Cell("m", "bf16", 1, 128, 128), here))
    assert not follows(Row(Cell("m", "int4", 1, 128, 128), here))
    assert not follows(Row(Cell("m", "bf16", 1, 128, 128), replace(here, git_revision="")))
