"""The sweep's terminal output: the estimate, the lines of a log, the live line of a terminal, the table."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from trtllm_bench.sweep.progress import Estimate, SweepView, duration
from trtllm_bench.sweep.spec import SweepSpec, work_of
from trtllm_bench.sweep.table import print_table, summarise
from trtllm_results.cost import Price
from trtllm_results.record.cell import Cell
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import INTERVAL, Row
from trtllm_results.store.lock import RUN_LOCK, locked
from trtllm_results.store.progress import read_progress
from trtllm_results.store.table import Store

SPEC = SweepSpec.of(model="llama-3.1-8b", precision=("bf16",), batch_size=(1, 512), isl=(2048,), osl=(128,), repeats=2)
CASES = SPEC.points
ROW = Row(
    cell=Cell("llama-3.1-8b", "bf16", 1, 2048, 128),
    environment=Environment(gpu="NVIDIA H100 80GB HBM3"),
    figures={"output_tokens_per_s": 100.0, "ttft_p50_ms": 20.0, "tpot_p50_ms": 8.5, "e2e_p99_ms": 1200.0, "power_mean_w": 400.0},
)


def console(terminal: bool) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, width=80, force_terminal=terminal, color_system=None, highlight=False), stream


def test_the_estimate_scales_with_the_work_left() -> None:
    estimate = Estimate(100)
    assert estimate.seconds() is None
    assert estimate.seconds(elapsed=2, work_done=10) == pytest.approx(18)
    estimate.done(10, 5.0)
    assert estimate.seconds() == pytest.approx(45)
    assert estimate.seconds(elapsed=5) == pytest.approx(40)
    estimate.done(40, None)
    assert estimate.seconds() == pytest.approx(25)
    assert estimate.seconds(elapsed=1000) == 0


def test_the_estimate_follows_recent_cells() -> None:
    estimate = Estimate(1000)
    estimate.done(10, 10.0)
    for _ in range(10):
        estimate.done(10, 1.0)
    left = estimate.seconds()
    assert left is not None
    assert left == pytest.approx(0.1 * 890, rel=0.02)


def test_engines_to_come_are_in_the_estimate() -> None:
    estimate = Estimate(100, engines=4)
    estimate.ready(60.0)
    assert estimate.seconds(elapsed=2, work_done=10) == pytest.approx(18 + 3 * 60)
    estimate.done(25, 5.0)
    assert estimate.seconds() == pytest.approx(15 + 3 * 60)
    assert estimate.seconds(elapsed=20) == pytest.approx(15 + 2 * 60 + 40), "20 s into making the second"
    estimate.ready(None)
    assert estimate.seconds() == pytest.approx(15 + 2 * 60)
    estimate.ready(20.0)
    assert estimate.seconds() == pytest.approx(15 + 40)


def test_time_to_make_an_engine_ready_is_seen_in_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that is not made, as when all of its cells were measured before, says nothing of the others."""
    now = [0.0]
    monkeypatch.setattr("trtllm_bench.sweep.progress.time.perf_counter", lambda: now[0])
    out, stream = console(terminal=False)
    spec = SweepSpec.of(precision="bf16,fp8,int4", batch_size=1, isl=8, osl=8, num_requests=8)
    first, second, third = spec.points
    with SweepView(spec, out) as view:
        view.preparing("bf16")
        view.skipped(first, 0)
        view.preparing("fp8")
        now[0] = 90.0
        view.started(second, 0, 8)
        view.finished(second, ROW, 2.0)
    assert "(2.0 s, 1 min 32 s left)" in stream.getvalue()
    assert third.label.startswith("int4")


def test_more_work_is_estimated_for_more_tokens() -> None:
    def work(batch: int, osl: int, requests: int) -> float:
        (point,) = SweepSpec.of(precision="fp32", batch_size=batch, isl=8, osl=osl, num_requests=requests).points
        return work_of(point.spec)

    assert work(1, 8, 8) < work(1, 64, 8)
    assert work(64, 8, 64) > work(64, 8, 32)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (61, "1 min 01 s"), (3599, "59 min 59 s"), (7500, "2 h 05 min")]
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_log_gets_one_line_a_cell_and_the_time_left() -> None:
    out, stream = console(terminal=False)
    with SweepView(SPEC, out) as view:
        view.preparing("bf16")
        view.started(CASES[0], 0, 8)
        view.finished(CASES[0], ROW, 4.0)
        view.skipped(CASES[1], 0)
        view.finished(CASES[0], replace(ROW, repeat=1, status="oom", reason="CUDA out of memory"), 0.0)
        view.finished(CASES[1], replace(ROW, repeat=1, warnings=("the GPU was throttled",)), 9.0)
    lines = stream.getvalue().splitlines()
    assert "\x1b" not in stream.getvalue()
    assert lines[1].startswith("[1/4] bf16 b1 2048/128   #1      100.0 tok/s  (4.0 s, ")
    assert lines[1].endswith(" left)")
    assert lines[2] == "[2/4] bf16 b512 2048/128 #1  measured before"
    assert lines[3] == "[3/4] bf16 b1 2048/128   #2  oom: CUDA out of memory"
    assert lines[4] == "[4/4] bf16 b512 2048/128 #2      100.0 tok/s  TTFT 20.0 ms  (9.0 s)"
    assert lines[5].strip() == "the GPU was throttled"
    assert max(map(len, lines)) <= 80


def test_a_terminal_gets_a_live_line_that_fits() -> None:
    out, _ = console(terminal=True)
    with SweepView(SPEC, out) as view:
        view.started(CASES[1], 1, 2048)
        view.requests_done(1024)
        line = view._line()
    assert line.cell_len <= 80
    assert "1024/2048 requests" in line.plain
    assert "left" in line.plain


def rows() -> list[Row]:
    other = replace(ROW, cell=replace(ROW.cell, batch=512))
    return [
        ROW,
        replace(ROW, repeat=1, figures={**ROW.figures, "output_tokens_per_s": 110.0}),
        replace(other, figures={}, status="oom", reason="CUDA out of memory"),
        replace(other, repeat=1, figures={"output_tokens_per_s": 5000.0}, warnings=("the GPU was throttled",)),
    ]


def test_the_table_has_a_line_a_cell_with_mean_and_spread() -> None:
    first, second = summarise(rows())
    assert (first["output_tokens_per_s"], first["status"]) == (105.0, "ok")
    assert first["spread"] == pytest.approx(100 * 7.0711 / 105, rel=1e-3)
    assert (second["output_tokens_per_s"], second["status"]) == (5000.0, "oom")
    assert "spread" not in second


def test_the_table_fits_80_columns_and_says_why_cells_failed() -> None:
    out, stream = console(terminal=False)
    print_table(rows(), out)
    text = stream.getvalue()
    assert "llama-3.1-8b on NVIDIA H100 80GB HBM3" in text
    assert "figures are arithmetic means over a cell's repeats" in text
    assert "bf16 b512 2048/128: CUDA out of memory" in text
    assert "bf16 b512 2048/128: the GPU was throttled" in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80


def test_at_a_price_the_table_has_the_cost_of_the_mean_rate_and_of_the_ends_of_its_interval() -> None:
    rates = [replace(ROW, repeat=number, figures={"output_tokens_per_s": rate}) for number, rate in enumerate((100.0, 300.0))]
    (line,) = summarise(rates, price=Price.parse("3.6"))
    assert line["cost_per_million_output_tokens_usd"] == pytest.approx(3.6 / 3600 / 200 * 1e6)
    powered = replace(
        ROW, extra={INTERVAL: {"low": 80.0, "high": 125.0}}, figures={"output_tokens_per_s": 100.0, "energy_per_output_token_j": 4.0}
    )
    (line,) = summarise([powered], price=Price.parse("3.6"))
    assert (line["cost_low"], line["cost_high"]) == (pytest.approx(8.0), pytest.approx(12.5))
    assert (line["output_tokens_per_j"], line["output_tokens_per_s_per_mw"]) == (0.25, 250_000)
    assert not any(name.startswith("cost") for name in summarise([powered])[0])
    assert "cost_per_million_output_tokens_usd" not in summarise([replace(ROW, status="failed", figures={})], price=Price.parse("3.6"))[0]
    out, stream = console(terminal=False)
    print_table([powered], out, price=Price.parse("list"))
    assert "list price as of" in stream.getvalue()
    assert max(len(line.rstrip()) for line in stream.getvalue().splitlines() if "USD/h" not in line) <= 80


def test_models_in_folders_are_told_apart_by_the_ends_of_their_paths() -> None:
    out, stream = console(terminal=False)
    names = ["/a/long/folder/of/models/first/int4", "/a/long/folder/of/models/second/int4"]
    print_table([replace(ROW, cell=replace(ROW.cell, model=name)) for name in names], out, ["model"])
    words = stream.getvalue().split()
    assert [word for word in words if word.startswith(("first", "second"))] == ["first/int4", "second/int4"]
    assert f"{names[0]}," in words


def test_an_axis_that_no_row_sets_has_no_column_and_one_that_some_set_has_dashes() -> None:
    out, stream = console(terminal=False)
    limited = replace(ROW, cell=replace(ROW.cell, settings={"slo_ms": {"ttft": 500.0}}))
    print_table([ROW, limited], out, ["duration", "goodput"])
    text = stream.getvalue()
    assert "None" not in text
    assert "duration" not in text
    assert [line.split()[0] for line in text.splitlines() if line.split()[-1:] == ["ok"]] == ["-", "ttft:500"]


def test_a_reason_in_brackets_is_printed_as_it_is() -> None:
    out, stream = console(terminal=False)
    print_table([ROW, replace(ROW, repeat=1, status="failed", reason="[/src/pair.cc:537] reset [by peer]")], out)
    assert "[/src/pair.cc:537] reset [by peer]" in stream.getvalue()


def test_layouts_have_figures_per_gpu_and_a_table_of_speed_up() -> None:
    out, stream = console(terminal=False)
    rate = {"output_tokens_per_s": 150.0, "output_tokens_per_s_per_gpu": 75.0}
    copies = replace(ROW, cell=replace(ROW.cell, replicas=2), figures={"output_tokens_per_s": 196.0, "output_tokens_per_s_per_gpu": 98.0})
    print_table([ROW, replace(ROW, cell=replace(ROW.cell, tp=2), figures=rate), copies], out, ["tp", "replicas"])
    text = re.sub(r"[ ]+", " ", stream.getvalue().partition("the same load on more GPUs")[2])
    assert "one GPU 1 100 1.00 100" in text
    assert "tp2 2 150 1.50 75" in text
    assert "x2 2 196 1.96 98" in text


@pytest.mark.parametrize(("size", "of_each", "matched"), [(64, 32, True), (63, 32, True), (64, 64, True), (64, 48, False)])
def test_copies_are_beside_one_engine_of_their_size(size: int, of_each: int, matched: bool) -> None:
    """Where no size is given, engines are built for the sequences in flight, which copies share."""

    def row(replicas: int, size: int, rate: float) -> Row:
        cell = replace(ROW.cell, replicas=replicas, settings={**ROW.cell.settings, "max_batch_size": size})
        return replace(ROW, cell=cell, figures={"output_tokens_per_s": rate})

    out, stream = console(terminal=False)
    print_table([row(1, size, 100.0), row(2, of_each, 196.0)], out, ["replicas"])
    assert ("1.96" in stream.getvalue()) is matched


def test_power_and_rate_columns_appear_only_where_they_say_something() -> None:
    out, stream = console(terminal=False)
    print_table([ROW], out)
    assert "power" in stream.getvalue()
    assert "means" not in stream.getvalue(), "one repeat is not a mean"
    assert "rate" not in stream.getvalue()
    out, stream = console(terminal=False)
    print_table([replace(ROW, cell=replace(ROW.cell, request_rate=3.5), figures={"output_tokens_per_s": 1.0})], out)
    assert "power" not in stream.getvalue()
    assert "3.5" in stream.getvalue()


def test_the_folder_says_how_far_the_sweep_is(tmp_path: Path) -> None:
    store = Store(tmp_path)
    told = []
    with locked(tmp_path, RUN_LOCK, 0.0, "being measured into"), SweepView(SPEC, console(False)[0], store) as view:
        view.preparing("bf16")
        told.append(read_progress(tmp_path))
        view.started(CASES[0], 0, 8)
        view.finished(CASES[0], ROW, 2.0)
        view.started(CASES[1], 0, 16)
        told.append(read_progress(tmp_path))
    told.append(read_progress(tmp_path))
    first, second, last = (one for one in told if one is not None)
    assert (first["state"], first["done"], first["total"], first["left_s"]) == ("running", 0, 4, None)
    assert (second["done"], second["requests"], second["now"]) == (1, 16, f"{CASES[1].label} #1")
    assert second["left_s"] == pytest.approx(2.0 / work_of(CASES[0].spec) * (work_of(CASES[0].spec) + 2 * work_of(CASES[1].spec)), abs=0.1)
    assert (last["state"], last["done"]) == ("ended", 1)


def test_a_sweep_that_was_killed_is_not_said_to_run(tmp_path: Path) -> None:
    assert read_progress(tmp_path) is None
    with locked(tmp_path, RUN_LOCK, 0.0, "being measured into"):
        found = read_progress(tmp_path)
        assert found is not None
        assert (found["state"], found["total"]) == ("running", 0)
    SweepView(SPEC, console(False)[0], Store(tmp_path)).preparing("bf16")
    found = read_progress(tmp_path)
    assert found is not None
    assert found["state"] == "interrupted"
    (tmp_path / "progress.json").write_text('{"state": 3}')
    assert read_progress(tmp_path) is None
