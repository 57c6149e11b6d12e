"""Nsight's exports: a recording of Nsight Compute on an H100, two of Nsight Systems on A100s (by others: it was not installed where an H100
was at hand), small files built after NVIDIA's documented schemas for what those lack, and how the tools are called."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import stat
from collections import Counter
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from trtllm_bench.__main__ import main
from trtllm_bench.errors import BenchError, RunFailure
from trtllm_bench.profiling import nsys
from trtllm_bench.profiling.capture import Capture
from trtllm_bench.profiling.cell import ProfileRequest, RankCollector
from trtllm_bench.profiling.counters import CountedKernel, collect, shapes_of
from trtllm_bench.profiling.nsys import without
from trtllm_bench.profiling.window import SeenStep
from trtllm_bench.roofline.counts import StepShape
from trtllm_bench.tracing import nsight
from trtllm_bench.tracing.ncu_export import read_ncu
from trtllm_bench.tracing.nsys_export import read_nsys
from trtllm_bench.tracing.trace import Event
from trtllm_engines.compiler.plan import ParallelLayout
from trtllm_engines.runtime import rank_trace


def export(path: Path, old: bool = False) -> Path:
    """A window with three kernels, a copy each way, a fill, and ranges of two domains. `old`: a version with fewer columns and tables."""
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE StringIds (id INTEGER PRIMARY KEY, value TEXT)")
        names = ["decode_grouped", "void at::native::reduce_kernel<512>", "nvjet_tst_64x8", "trtllm", "step"]
        database.executemany("INSERT INTO StringIds VALUES (?, ?)", list(enumerate(names, 1)))
        more = "" if old else ", streamId INTEGER, graphNodeId INTEGER, demangledName INTEGER"
        database.execute(f"CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INTEGER, end INTEGER, shortName INTEGER{more})")
        for start, end, name in ((3000, 4500, 2), (1000, 2000, 1), (5000, 5250, 3)):
            row = (start, end, name) if old else (start, end, name, 7, 11, name)
            database.execute(f"INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES ({', '.join('?' * len(row))})", row)
        if not old:
            database.execute("CREATE TABLE CUPTI_ACTIVITY_KIND_MEMCPY (start INTEGER, end INTEGER, copyKind INTEGER, streamId INTEGER)")
            database.executemany("INSERT INTO CUPTI_ACTIVITY_KIND_MEMCPY VALUES (?, ?, ?, 7)", [(500, 600, 1), (6000, 6100, 2)])
            database.execute("CREATE TABLE CUPTI_ACTIVITY_KIND_MEMSET (start INTEGER, end INTEGER, streamId INTEGER)")
            database.execute("INSERT INTO CUPTI_ACTIVITY_KIND_MEMSET VALUES (4600, 4700, 7)")
            columns = "start INTEGER, end INTEGER, eventType INTEGER, text TEXT, textId INTEGER, domainId INTEGER"
            database.execute(f"CREATE TABLE NVTX_EVENTS ({columns})")
            events = [(0, None, 75, None, 4, 3), (400, 6200, 59, None, 5, 3), (450, 480, 59, "launch decode", None, 3)]
            database.executemany("INSERT INTO NVTX_EVENTS VALUES (?, ?, ?, ?, ?, ?)", [*events, (0, 9, 59, "torch", None, 0)])
    database.close()
    return path


def test_an_nsys_export_gives_device_events_and_our_ranges(tmp_path: Path) -> None:
    events, ranges = read_nsys(export(tmp_path / "r.sqlite"))
    assert events == [
        Event("Memcpy HtoD", 0.5, 0.1, "memcpy", 7),
        Event("decode_grouped", 1.0, 1.0, "kernel", 7),
        Event("void at::native::reduce_kernel<512>", 3.0, 1.5, "kernel", 7),
        Event("Memset", 4.6, 0.1, "memset", 7),
        Event("nvjet_tst_64x8", 5.0, 0.25, "kernel", 7),
        Event("Memcpy DtoH", 6.0, 0.1, "memcpy", 7),
    ]
    assert [(one.name, one.start_us) for one in ranges] == [("step", 0.4), ("launch decode", 0.45)]


def test_an_export_of_another_version_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    events, ranges = read_nsys(export(tmp_path / "r.sqlite", old=True))
    assert [event.name for event in events] == ["decode_grouped", "void at::native::reduce_kernel<512>", "nvjet_tst_64x8"]
    assert ranges == []


@pytest.mark.parametrize(
    ("name", "domain", "kinds", "kernel", "ranges"),
    [
        ("nsys_saxpy_mpi", "MPI", {"kernel": 5, "memcpy": 15}, "saxpy(double *, double *, double *, double, int)", 17),
        ("nsys_cloverleaf", "trtllm", {"kernel": 40, "memcpy": 40}, "void clover::par_ranged", 0),
    ],
)
def test_exports_that_nsight_systems_wrote_are_read(
    tmp_path: Path, name: str, domain: str, kinds: dict[str, int], kernel: str, ranges: int
) -> None:
    """Origin and licence in data/ORIGIN.md."""
    path = tmp_path / "report.sqlite"
    with closing(sqlite3.connect(path)) as database:
        database.executescript((Path(__file__).parent / "data" / f"{name}.sql").read_text())
        total_ns = database.execute("SELECT SUM(end - start) FROM CUPTI_ACTIVITY_KIND_KERNEL").fetchone()[0]
    events, named = read_nsys(path, domain)
    assert Counter(event.kind for event in events) == kinds
    assert [event.start_us for event in events] == sorted(event.start_us for event in events)
    ours = [event for event in events if event.kind == "kernel"]
    assert all(event.name.startswith(kernel) for event in ours)
    assert sum(event.duration_us for event in ours) == pytest.approx(total_ns / 1e3)
    assert {event.name for event in events if event.kind == "memcpy"} <= {"Memcpy HtoD", "Memcpy DtoH"}
    assert len(named) == ranges
    assert not ranges or {"MPI_Init", "MPI_Send", "MPI_Recv"} <= {event.name for event in named}


def test_the_export_of_several_processes_is_read_of_one(tmp_path: Path) -> None:
    """A recording of others, and its events a second later as if another process had made them too."""
    path = tmp_path / "report.sqlite"
    with closing(sqlite3.connect(path)) as database:
        database.executescript((Path(__file__).parent / "data" / "nsys_saxpy_mpi.sql").read_text())
        (first,) = {number >> 24 & 0xFFFFFF for (number,) in database.execute("SELECT globalPid FROM CUPTI_ACTIVITY_KIND_KERNEL")}
        alone = read_nsys(path, "MPI")
        for table, column in (
            ("CUPTI_ACTIVITY_KIND_KERNEL", "globalPid"),
            ("CUPTI_ACTIVITY_KIND_MEMCPY", "globalPid"),
            ("NVTX_EVENTS", "globalTid"),
        ):
            database.execute(f"CREATE TEMP TABLE copy AS SELECT * FROM {table} WHERE end IS NOT NULL")
            database.execute(f"UPDATE copy SET start = start + 1000000000, end = end + 1000000000, {column} = {column} + {1 << 24}")
            database.execute(f"INSERT INTO {table} SELECT * FROM copy")
            database.execute("DROP TABLE copy")
        database.commit()
    assert read_nsys(path, "MPI", first) == alone
    later = read_nsys(path, "MPI", first + 1)
    assert [(one.name, one.start_us - 1e6) for one in later[0]] == [(one.name, pytest.approx(one.start_us)) for one in alone[0]]
    assert len(later[1]) == len(alone[1]) == 17
    assert len(read_nsys(path, "MPI")[0]) == 2 * len(alone[0])
    with pytest.raises(BenchError, match="holds no kernels of process 7"):
        read_nsys(path, "MPI", 7)
    with pytest.raises(BenchError, match="holds no kernels of process 7"):
        read_nsys(export(tmp_path / "old.sqlite", old=True), process=7)


def test_ranks_under_nsight_systems_tell_it_when_and_the_first_ones_kernels_are_analysed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    cudart = SimpleNamespace(cudaProfilerStart=lambda: called.append("start"), cudaProfilerStop=lambda: called.append("stop"))
    monkeypatch.setattr(rank_trace.torch.cuda, "synchronize", lambda: called.append("synchronize"))
    monkeypatch.setattr(rank_trace.torch.cuda, "cudart", lambda: cudart)
    monkeypatch.setattr(rank_trace.dist, "barrier", lambda: called.append("meet"))

    def record(request: object, collector: RankCollector) -> Capture:
        assert collector.recorder == "nsys"
        for rank in (0, 1):
            trace = rank_trace.RankTrace(rank, True, collector.recorder, "off")
            trace.obey(rank_trace.order(None))
            trace.obey(rank_trace.order(collector.folder))
            collector.written.append(rank_trace.trace_file(collector.folder, rank))
        return Capture("e", "sm_90", "cuda", "GPU", {}, {}, (), 0, {}, {}, ("one",))

    monkeypatch.setattr(nsys, "record", record)
    request = cast(ProfileRequest, SimpleNamespace(layout=ParallelLayout(2)))
    monkeypatch.setattr(nsys.nsight, "find", lambda tool: tool)
    monkeypatch.setattr(nsys.nsight, "run", lambda command, tool: nsys.inside(request, tmp_path))
    asked: list[int | None] = []
    monkeypatch.setattr(nsys, "read_nsys", lambda path, process: (asked.append(process), ([], []))[1])
    monkeypatch.setattr(nsys, "analyse", lambda recorded, events, collector, command: (recorded, None))
    monkeypatch.setattr(nsys, "write", lambda profile, folder: None)
    recorded = cast(Capture, nsys.profile_with_nsys(["profile"], tmp_path, "profile"))
    assert called == ["synchronize", "start", "synchronize", "meet", "stop"] * 2
    assert asked == [os.getpid()]
    assert recorded.processes == (os.getpid(), os.getpid())
    assert recorded.notes == ("one", "the kernels are those of rank 0 of 2; nsys.nsys-rep has every rank")


def test_files_that_are_no_export_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no Nsight Systems export at"):
        read_nsys(tmp_path / "none.sqlite")
    (tmp_path / "text.sqlite").write_text("not a database, and longer than the header of one, to be sure of it" * 4)
    with pytest.raises(BenchError, match="is no SQLite export"):
        read_nsys(tmp_path / "text.sqlite")
    sqlite3.connect(tmp_path / "empty.sqlite").execute("CREATE TABLE other (x)").connection.close()
    with pytest.raises(BenchError, match="holds no kernels"):
        read_nsys(tmp_path / "empty.sqlite")


@pytest.mark.parametrize("name", ["nsys_cloverleaf", "nsys_saxpy_mpi"])
def test_an_export_cut_short_or_damaged_is_refused_or_read_and_never_a_traceback(name: str, tmp_path: Path) -> None:
    path, rng = tmp_path / "a #1.sqlite", np.random.default_rng(0)
    with closing(sqlite3.connect(path)) as database:
        database.executescript((Path(__file__).parent / "data" / f"{name}.sql").read_text())
    whole = path.read_bytes()
    for size in rng.integers(100, len(whole), 30):
        path.write_bytes(whole[:size])
        with pytest.raises(BenchError, match=r"is cut short|is no SQLite export"):
            read_nsys(path)
    for _ in range(60):
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[rng.integers(100, len(whole), 20)] = rng.integers(0, 256, 20)
        path.write_bytes(damaged.tobytes())
        with contextlib.suppress(BenchError):
            read_nsys(path)


STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
RAW = f'''==PROF== Connected to process 42
==PROF== Profiling "decode_grouped": 0%....50%....100% - 9 passes
"ID","Kernel Name","Block Size","Grid Size","gpu__time_duration.sum","dram__throughput.avg.pct_of_peak_sustained_elapsed",\
"dram__bytes.sum.per_second","launch__registers_per_thread","sm__warps_active.avg.pct_of_peak_sustained_active",\
"{STALL.format("long_scoreboard")}","{STALL.format("wait")}","{STALL.format("long_scoreboard_not_issued")}"
"","","","","ns","%","Tbyte/s","register/thread","%","inst","inst","inst"
"0","decode_grouped","(32, 1, 1)","(8, 64, 1)","12,345","81.5","2.5","168","18.2","7.9","1.5","3"
"1","decode_grouped","(32, 1, 1)","(8, 64, 1)","12,300","0.8","2.5","168","18.2","7.9","","3"
==PROF== Disconnected
'''
DETAILS = """"ID","Kernel Name","Block Size","Grid Size","Section Name","Metric Name","Metric Unit","Metric Value"
"0","gemv","(128, 1, 1)","(512, 1, 1)","GPU Speed Of Light Throughput","Duration","us","21.4"
"0","gemv","(128, 1, 1)","(512, 1, 1)","GPU Speed Of Light Throughput","DRAM Throughput","%","88.1"
"0","gemv","(128, 1, 1)","(512, 1, 1)","GPU Speed Of Light Throughput","Memory Throughput","%","88.1"
"0","gemv","(128, 1, 1)","(512, 1, 1)","Memory Workload Analysis","Memory Throughput","Tbyte/s","2.7"
"0","gemv","(128, 1, 1)","(512, 1, 1)","Launch Statistics","Registers Per Thread","register/thread","72"
"""


def test_the_raw_page_of_ncu_is_read_in_its_units() -> None:
    first, second = read_ncu(RAW)
    assert (first.kernel, first.grid, first.block) == ("decode_grouped", "(8, 64, 1)", "(32, 1, 1)")
    assert first.figures == pytest.approx(
        {"duration_s": 12.345e-6, "dram_share": 0.815, "dram_bytes_per_s": 2.5e12, "registers": 168, "occupancy": 0.182}
    )
    assert list(first.stalls.items()) == [("long scoreboard", 7.9), ("wait", 1.5)]
    assert second.figures["dram_share"] == pytest.approx(0.008)
    assert list(second.stalls) == ["long scoreboard"]


def test_a_recording_of_the_decode_attention_kernel_on_an_h100_is_read() -> None:
    path = Path(__file__).parents[2] / "results" / "recorded" / "h100" / "profile-fp8-128-128-b2048" / "ncu.csv"
    found = read_ncu(path.read_text())
    assert [(one.kernel, one.grid) for one in found] == [("decode_attention", "(8, 2048, 1)")] * 2
    for one in found:
        assert 250e-6 < one.figures["duration_s"] < 320e-6
        assert 0.8 < one.figures["dram_share"] < 0.95
        assert one.figures["registers"] == 94
        assert one.figures["occupancy"] < one.figures["occupancy_limit"] < 0.35
        assert next(iter(one.stalls)) == "long scoreboard"
        assert "selected" not in one.stalls


def test_the_details_page_of_ncu_is_read_too() -> None:
    (only,) = read_ncu(DETAILS)
    expected = {"duration_s": 21.4e-6, "dram_share": 0.881, "memory_share": 0.881, "dram_bytes_per_s": 2.7e12, "registers": 72}
    assert only.figures == pytest.approx(expected)


def test_ncu_that_measured_nothing_says_why() -> None:
    with pytest.raises(BenchError, match="NVreg_RestrictProfilingToAdminUsers=0"):
        read_ncu("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission\n")
    with pytest.raises(BenchError, match="measured no kernel"):
        read_ncu("==WARNING== No kernels were profiled.\n")


@pytest.mark.parametrize("text", [RAW, DETAILS], ids=["raw", "details"])
def test_a_csv_cut_anywhere_gives_no_wrong_figure(text: str) -> None:
    whole = read_ncu(text)
    for cut in range(len(text)):
        try:
            found = read_ncu(text[:cut])
        except BenchError:
            continue
        for one, full in zip(found, whole, strict=False):
            assert one.figures.items() <= full.figures.items()


def fake_tool(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


TARGET = CountedKernel("llama-3.1-8b", "fp8", "decode_grouped", 64, 128, 128, 8192)


def test_what_a_tool_says_in_another_encoding_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tool(tmp_path, "ncu", "printf 'kein Ger\\344t' >&2; exit 9", monkeypatch)
    with pytest.raises(RunFailure, match="ncu ended with code 9: kein Ger\N{REPLACEMENT CHARACTER}t"):
        collect(TARGET, tmp_path / "out")


def test_ncu_is_run_around_the_op_and_its_csv_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "answer.csv").write_text(RAW)
    copy = 'while [ "$1" != "--log-file" ]; do shift; done; cp "$(dirname "$0")/answer.csv" "$2"; echo "$@" > "$(dirname "$0")/said"'
    fake_tool(tmp_path, "ncu", copy, monkeypatch)
    assert [one.kernel for one in collect(TARGET, tmp_path / "out")] == ["decode_grouped"] * 2
    assert (tmp_path / "out" / "ncu.csv").read_text() == RAW
    said = (tmp_path / "said").read_text()
    assert "-m trtllm_bench.profiling.counters" in said
    assert json.loads(said[said.index("{") :])["sequences"] == 64


def test_a_tool_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tool(tmp_path, "ncu", "echo 'no such device' >&2; exit 9", monkeypatch)
    with pytest.raises(RunFailure, match="ncu ended with code 9: no such device"):
        collect(TARGET, tmp_path / "out")


def test_the_cell_is_met_half_way_through_its_outputs() -> None:
    shapes = dict(shapes_of(TARGET))
    assert shapes["decode"].kv_lens.tolist() == [192] * 64
    assert (shapes["prefill"].tokens, shapes["prefill"].sequences) == (8192, 64)


def test_without_a_tool_one_sentence_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nsight, "_PLACES", {"nsys": (), "ncu": ()})
    monkeypatch.setenv("PATH", str(tmp_path))
    for flags in (["--nsys"], ["--ncu", "decode"]):
        assert main(["profile", "--device", "cpu", *flags, "--out", str(tmp_path / "p")]) == 3
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert f"install {nsight.TOOLS[flags[0][2:]]}" in said


def test_commands_ask_for_graph_nodes_and_unlocked_clocks(tmp_path: Path) -> None:
    assert "--cuda-graph-trace=node" in nsight.nsys_command("nsys", ["x"], tmp_path / "r")
    command = nsight.ncu_command("ncu", ["x", "y"], tmp_path / "log")
    assert command[-2:] == ["x", "y"]
    assert command[command.index("--clock-control") + 1] == "none"
    assert command[command.index("--page") + 1] == "raw"


def test_the_inner_command_is_the_outer_one_without_the_tool() -> None:
    given = ["profile", "--model", "m", "--nsys", "--out", "x", "--ncu=decode", "--isl", "8"]
    assert without(given, ("--nsys",), ("--ncu", "--out")) == ["profile", "--model", "m", "--isl", "8"]


def test_what_a_run_leaves_is_read_back(tmp_path: Path) -> None:
    shape = StepShape.decode(2, 9) + StepShape.prefill(1, 4)
    step = SeenStep(5, shape, shape.symbols, False)
    left = Capture("e", "sm_90", "cuda", "GPU", {"label": "x"}, {"a": 1.0}, (step,), 0, {"done_s": [1.0]}, {}, ("note",))
    left.save(tmp_path / "steps.json")
    found = Capture.load(tmp_path / "steps.json")
    assert (found.seen[0].symbols, found.notes, found.cell) == (shape.symbols, ("note",), {"label": "x"})
    assert np.array_equal(found.seen[0].shape.kv_lens, shape.kv_lens)
    with pytest.raises(RunFailure, match="left no account of its steps"):
        Capture.load(tmp_path / "none.json")
