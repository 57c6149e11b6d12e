"""`profile` on a CPU, from the command line to the folder it writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trtllm_bench.__main__ import main
from trtllm_bench.errors import BenchError
from trtllm_bench.measure.from_row import spec_of_row
from trtllm_bench.profiling.record import CellProfile
from trtllm_bench.tracing.trace import merged, read_json
from trtllm_results.record.cell import Cell
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Row
from trtllm_results.store.table import Store

pytestmark = pytest.mark.usefixtures("own_cache")

RECORDED = Path(__file__).resolve().parents[2] / "results" / "recorded"
SHAPE = ("--device", "cpu", "--isl", "16", "--osl", "12", "--num-requests", "8", "--concurrency", "4", "--max-num-tokens", "64")


def test_a_profile_accounts_for_every_op_of_its_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", *SHAPE, "--steps", "4-9", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "tiny-llama fp32 b4 16/12" in said
    assert "6 steps of" in said
    assert "\n* " not in said, "an op of which there are several has its name"
    profile = CellProfile.load(tmp_path)
    assert [step.number for step in profile.steps] == list(range(4, 10))
    assert {(step.phase, step.tokens) for step in profile.steps} == {("decode", 4)}
    calls = {row.role: row.calls for row in profile.kernels}
    layers = 4
    assert calls["layers.*.mlp.down_proj"] == 6 * layers
    assert calls["lm_head"] == 6
    assert sum(profile.parts().values()) == pytest.approx(profile.window_us)
    assert profile.window_us == pytest.approx(profile.busy_us + profile.gap_inside_us + profile.gap_before_us)
    assert profile.free_step_us is None or profile.free_step_us > 0


def test_the_trace_shows_steps_and_ops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", *SHAPE, "--steps", "3-4", "--out", str(tmp_path)]) == 0
    ours = [event for event in read_json(tmp_path / "trace.json.gz")["traceEvents"] if event.get("cat") == "trtllm"]
    tracks = {name: [event for event in ours if event["tid"] == name] for name in ("steps", "ops")}
    assert [event["name"].split(":")[0] for event in tracks["steps"]] == ["step 1", "step 2", "step 3", "step 4"]
    assert sum(event["name"] == "lm_head" for event in tracks["ops"]) == 4
    page = (tmp_path / "profile.html").read_text()
    embedded = page.split('type="application/json">')[1].split("</script>")[0]
    assert len(json.loads(embedded)["steps"]) == 2


def test_ranks_are_on_one_timeline_with_what_they_exchange(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", *SHAPE, "--tp", "2", "--steps", "3-4", "--out", str(tmp_path)]) == 0
    assert "the kernels are those of rank 0 of 2; the trace has every rank" in capsys.readouterr().out
    trace = read_json(tmp_path / "trace.json.gz")["traceEvents"]
    spans = []
    for rank in range(2):
        ours = [event for event in trace if event.get("cat") == "trtllm" and event["pid"] == f"rank {rank}: trtllm"]
        steps = [event for event in ours if event["tid"] == "steps"]
        assert [event["name"].split(":")[0] for event in steps] == ["step 1", "step 2", "step 3", "step 4"]
        exchanged = [event for event in ours if event["tid"] == "communication"]
        assert len(exchanged) == 4 * 2 * 4  # two reductions a layer
        assert {event["name"] for event in exchanged} < {event["name"] for event in ours if event["tid"] == "ops"}
        spans.append([(event["ts"], event["ts"] + event["dur"]) for event in steps])
    for (begin, end), (other_begin, other_end) in zip(*spans, strict=True):
        assert max(begin, other_begin) < min(end, other_end)  # ranks compute a step together
    profile = CellProfile.load(tmp_path)
    assert sum(row.calls for row in profile.kernels if row.bound == "communication") == 2 * 2 * 4


def test_clocks_of_ranks_are_brought_together() -> None:
    def content(base: int, at: float) -> dict[str, Any]:
        named = {"ph": "M", "name": "process_name", "pid": 7, "args": {"name": "python"}}
        return {"baseTimeNanoseconds": base, "traceEvents": [named, {"ph": "X", "pid": 7, "ts": at, "dur": 2.0, "name": "x", "id": 3}]}

    found = merged([content(5_000_000, 10.0), content(5_004_000, 7.5)])["traceEvents"]
    assert [event["pid"] for event in found] == ["rank 0: 7"] * 2 + ["rank 1: 7"] * 2
    assert [event["args"]["name"] for event in found if event["ph"] == "M"] == ["rank 0: python", "rank 1: python"]
    assert [(event["ts"], event["id"]) for event in found if event["ph"] == "X"] == [(10.0, "0:3"), (11.5, "1:3")]


@pytest.mark.parametrize(
    ("flags", "sentence", "code"),
    [
        (("--steps", "9-2"), "--steps 9-2 is not a range of steps", 3),
        (("--steps", "500-510"), "the window begins at step 500", 1),
        (("--model", "no-such"), "no-such", 3),
        (("--replicas", "2"), "--replicas is 2, and a profile is of one engine; leave --replicas out", 3),
        (("--tp", "2", "--nnodes", "2", "--rdzv-endpoint", "127.0.0.1:29400"), "traces of several hosts are not brought together", 3),
    ],
)
def test_mistakes_are_one_sentence(
    flags: tuple[str, ...], sentence: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", *SHAPE, *flags, "--out", str(tmp_path / "p")]) == code
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said


def test_a_folder_that_cannot_be_written_is_told_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("trtllm_bench.profiling.cell.profile_cell", lambda *given: pytest.fail("it was measured"))
    assert main(["profile", *SHAPE, "--out", str(tmp_path / "file" / "p")]) == 3
    assert f"cannot write {tmp_path / 'file' / 'p' / 'profile.json'}" in capsys.readouterr().err


def test_a_damaged_profile_says_so(tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text('{"kernels": []}')
    with pytest.raises(ValueError, match="is not a profile of this version"):
        CellProfile.load(tmp_path)
    with pytest.raises(ValueError, match="make one with trtllm-bench profile"):
        CellProfile.load(tmp_path / "none")


def test_a_profile_by_whose_figures_nothing_can_be_divided_says_so(tmp_path: Path) -> None:
    recorded = json.loads((RECORDED / "h100" / "profile-fp8-128-128-b1" / "profile.json").read_text())
    first, *others = recorded["kernels"]
    for damage, says in (({"steps": []}, "its 0 steps took 0 us"), ({"kernels": [{**first, "calls": 0}, *others]}, "has 0 calls")):
        (tmp_path / "profile.json").write_text(json.dumps({**recorded, **damage}))
        with pytest.raises(BenchError, match=says):
            CellProfile.load(tmp_path)


def test_a_measured_cell_is_run_again_and_linked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "runs"
    assert main(["throughput", *SHAPE, "--max-lag-ms", "1000", "--out", str(store)]) == 0
    capsys.readouterr()
    assert main(["profile", str(store), "--steps", "3-5"]) == 0
    row = Store(store).rows()[0]
    profile = CellProfile.load(store / str(row.extra["profile"]))
    assert profile.cell["label"] == row.cell.label
    assert profile.cell["cell_key"] == row.key
    assert len(profile.steps) == 3
    assert main(["profile", str(store), "--isl", "9"]) == 3
    assert "CELL already says model" in capsys.readouterr().err


def test_cells_that_cannot_be_made_again_are_refused() -> None:
    row = Row(Cell("m", "fp32", 4, 8, 8, target="native", weights_hash="dummy-3"), Environment())
    spec = spec_of_row(row)
    assert (spec.engine.seed, spec.workload.seed, spec.load.concurrency) == (3, 3, 4)
    bursts = replace(row.cell, request_rate=4.8, settings={"arrivals": "on-off:9,1,1", "open_loop": True})
    workload = spec_of_row(replace(row, cell=bursts)).workload
    assert (workload.arrivals, workload.request_rate, workload.open_loop) == ("on-off:9,1,1", 0, True)
    gamma = replace(row.cell, request_rate=4.8, settings={"burstiness": 0.5, "open_loop": True})
    assert spec_of_row(replace(row, cell=gamma)).workload.burstiness == 0.5
    for change, sentence in (
        ({"target": "http"}, "was served by http"),
        ({"workload": "azure"}, "ran dataset azure"),
        ({"weights_hash": "0a1b"}, "weights of a checkpoint"),
    ):
        with pytest.raises(BenchError, match=sentence):
            spec_of_row(replace(row, cell=replace(row.cell, **change)))  # type: ignore[arg-type]
