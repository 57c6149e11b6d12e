"""A sweep as jobs of a cluster: really run by submitit's local executor, and submitted to a Slurm whose commands are scripts."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

import pytest
from command_line import refused, run

from trtllm_bench.errors import BenchError, RunFailure
from trtllm_bench.sweep.cluster_view import ClusterView
from trtllm_bench.sweep.jobs import Cluster, JobPart, job_parts
from trtllm_bench.sweep.spec import SweepSpec
from trtllm_bench.sweep.submit import executor_of, submit
from trtllm_results.record.row import Row
from trtllm_results.store.table import Store

GRID = ["--isl", "8", "--osl", "16", "--num-requests", "8", "--warmup", "0", "--max-lag-ms", "10000", "--batch-size", "1,2"]


def test_a_sweep_becomes_a_job_for_each_target_precision_and_layout(tmp_path: Path) -> None:
    spec = SweepSpec.of(model="tiny-llama", precision="fp32,bf16", tp="1,2", concurrency="1,8", isl="8,16", repeats=3)
    parts = job_parts(spec, tmp_path)
    assert [part.name for part in parts] == ["fp32-tp1", "fp32-tp2", "bf16-tp1", "bf16-tp2"]
    assert [part.cells for part in parts] == [12] * 4
    assert {point.spec for part in parts for point in part.spec.points} == {point.spec for point in spec.points}
    assert [part.first.engine.gpus for part in parts] == [1, 2, 1, 2]
    (whole,) = job_parts(SweepSpec.of(target="http://127.0.0.1:8000", concurrency="1,8"), tmp_path)
    assert whole.name == "http-127.0.0.1-8000"


def test_jobs_that_are_stopped_go_on_and_one_that_fails_leaves_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = ["sweep", "--cluster", "local", "--target", "fake,native", "--precision", "fp32", "--kv-dtype", "int3", *GRID]
    show = ClusterView.row

    def stop(view: ClusterView, part: JobPart, row: Row) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ClusterView, "row", stop)
        code, _, _ = run(capsys, *grid, "--num-requests", "48", "--out", tmp_path)
    assert code == 130
    first = Store(tmp_path).rows()
    assert [(row.cell.batch, row.status) for row in first] == [(1, "ok")]
    (error,) = (tmp_path / "jobs" / "fake" / "log").glob("*_log.err")
    assert "KeyboardInterrupt" in error.read_text()
    assert not (tmp_path / "jobs" / "native").exists()

    monkeypatch.setattr(ClusterView, "row", show)
    code, out, _ = run(capsys, *grid[:3], "--resume", "--out", tmp_path)
    assert code == 1, "a job that failed has left cells without a result"
    assert "2 of 4 measurements have no result; --resume tries these again and keeps the others" in out
    rows = Store(tmp_path).rows()
    assert [(row.cell.target, row.cell.batch, row.status) for row in rows] == [
        ("fake", 1, "ok"),
        ("fake", 2, "ok"),
        ("native", 1, "failed"),
        ("native", 2, "failed"),
    ]
    assert rows[0].row_id == first[0].row_id
    assert {row.command for row in rows[:2]} == {first[0].command}
    assert rows[2].reason.startswith("the job of native failed: unknown KV cache dtype 'int3'; supported are auto, fp32")
    side = Store(tmp_path).read_side("requests", rows[1])
    assert side is not None
    assert side.num_rows == 48
    lines = [re.sub(" +", " ", line) for line in out.splitlines()]
    assert any(re.match(r"\[2/4\] tiny-llama fp32 b2 8/16 [\d.]+ tok/s", line) for line in lines)
    assert any(re.match(r"fake done in \d+ s", line) for line in lines)
    assert any(line.startswith("native failed: unknown KV cache dtype 'int3'; supported are auto, fp32") for line in lines)


SLURM = {
    "sbatch": """
        import pathlib, shutil
        number = len(list(pathlib.Path(HERE).glob("*.sh"))) + 1
        if "--partition=closed" in pathlib.Path(sys.argv[1]).read_text():
            sys.exit("sbatch: error: invalid partition specified: closed")
        shutil.copy(sys.argv[1], f"{HERE}/{number}.sh")
        print(f"Submitted batch job {number}")
    """,
    "sacct": """
        import pathlib
        cancelled = pathlib.Path(HERE, "cancelled").read_text().split() if pathlib.Path(HERE, "cancelled").exists() else []
        print("JobID|State|NodeList")
        for number in range(1, 1 + len(list(pathlib.Path(HERE).glob("*.sh")))):
            print(f"{number}|{'CANCELLED' if str(number) in cancelled else 'PENDING' if number < 3 else 'NODE_FAIL'}|n{number}")
    """,
    "scancel": """
        open(f"{HERE}/cancelled", "a").write(sys.argv[1] + " ")
    """,
    "srun": "",
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of scripts that stand for Slurm's commands; it takes the submitted files, and runs nothing."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, body in SLURM.items():
        (folder / name).write_text(f"#!{sys.executable}\nimport sys\nHERE = {str(folder)!r}\n{textwrap.dedent(body)}")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr("trtllm_bench.sweep.cluster.POLL_S", {"slurm": 0.05})
    return folder


def test_slurm_gets_a_file_for_each_job_and_is_told_to_cancel_them(
    slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["--cluster", "slurm", "--partition", "h100", "--account", "bench", "--timeout-min", "30"]
    options = ["--cluster-option", "qos=high", "--cluster-option", "cpus-per-task=8", "--cluster-option", "reservation=maintenance"]
    ended: list[str] = []

    def stop(view: ClusterView, part: JobPart, reason: str) -> None:
        ended.append(reason)
        raise KeyboardInterrupt

    monkeypatch.setattr(ClusterView, "ended", stop)
    monkeypatch.setattr("submitit.SlurmJob._results_timeout_s", 0)
    grid = ["--model", "llama-3.1-8b", "--precision", "fp8", "--tp", "1,2,4", *GRID]
    code, out, _ = run(capsys, "sweep", *asked, *options, *grid, "--out", tmp_path / "runs")
    assert code == 130
    assert re.search(r"tp2 +job 2 pending", out)
    assert ended == ["job 3 ended (node_fail) without a result"]
    assert (slurm / "cancelled").read_text().split() == ["1", "2"]
    flags = {line.removeprefix("#SBATCH --") for line in (slurm / "2.sh").read_text().splitlines() if line.startswith("#SBATCH")}
    assert {
        "partition=h100",
        "account=bench",
        "time=30",
        "gpus-per-node=2",
        "qos=high",
        "cpus-per-task=8",
        "reservation=maintenance",
        "job-name='trtllm-bench tp2'",
    } <= flags
    assert [f"gpus-per-node={n}" in (slurm / f"{i}.sh").read_text() for i, n in ((1, 1), (3, 4))] == [True, True]
    said = Cluster.of("slurm", "h100", "bench", None, 30, ["qos=high"])
    assert said is not None
    assert said.flags == "--cluster slurm --partition h100 --account bench --timeout-min 30 --cluster-option qos=high"


def test_what_slurm_does_not_take_is_the_reason_of_its_cells(slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--cluster", "slurm", "--partition", "closed", "--model", "tiny-llama", "--precision", "fp32"]
    code, out, _ = run(capsys, "sweep", *asked, *GRID, "--out", tmp_path / "runs")
    assert code == 1
    rows = Store(tmp_path / "runs").rows()
    assert [row.status for row in rows] == ["failed", "failed"]
    assert "it was not taken" in rows[0].reason
    assert "invalid partition specified: closed" in out


@pytest.mark.parametrize(
    ("last_line", "flags", "said"),
    [
        (
            "Invalid partition name specified",
            ["--partition", "closed"],
            "Invalid partition name specified; --partition is closed; give one that sinfo lists",
        ),
        (
            "No partition specified or system default partition",
            [],
            "No partition specified or system default partition; --partition was not given; give one that sinfo lists",
        ),
        (
            "Invalid account or account/partition combination specified",
            ["--partition", "closed", "--account", "a"],
            "combination specified; --account is a; give one that sacctmgr show associations lists for you",
        ),
        (
            "Invalid qos specification",
            ["--cluster-option", "qos=high"],
            "--cluster-option qos is high; give one that sacctmgr show qos lists",
        ),
        (
            "Requested time limit is invalid (missing or exceeds some limit)",
            ["--timeout-min", "9000"],
            "--timeout-min is 9000; give no more than the TIMELIMIT that sinfo lists",
        ),
        (
            "Unable to contact slurm controller (connect failure)",
            [],
            "it was not taken: Unable to contact slurm controller (connect failure)",
        ),
    ],
)
def test_what_slurm_does_not_take_says_which_flag_to_change(
    slurm: Path, tmp_path: Path, last_line: str, flags: list[str], said: str
) -> None:
    """sbatch's errors are those of Slurm's `slurm_strerror`; it names a partition on a line of its own before."""
    first = "sbatch: error: invalid partition specified: closed\n" if "name" in last_line else ""
    error = f"{first}sbatch: error: Batch job submission failed: {last_line}"
    (slurm / "sbatch").write_text(f"#!{sys.executable}\nimport sys\nsys.exit({error!r})\n")
    given = dict(zip(flags[::2], flags[1::2], strict=True))
    cluster = Cluster.of(
        "slurm",
        given.get("--partition"),
        given.get("--account"),
        None,
        int(given.get("--timeout-min", 0)) or None,
        [given["--cluster-option"]] if "--cluster-option" in given else None,
    )
    assert cluster is not None
    (part,) = job_parts(SweepSpec.of(model="tiny-llama", precision="fp32"), tmp_path / "runs")
    part.folder.mkdir(parents=True)
    with pytest.raises(RunFailure) as caught:
        submit(cluster, part, "")
    assert str(caught.value).endswith(said)
    assert "sbatch:" not in str(caught.value)


def test_local_jobs_take_the_first_of_the_gpus_that_may_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (part,) = job_parts(SweepSpec.of(target="fake", concurrency=1), tmp_path)

    def visible(named: str | None, gpus: int) -> list[int]:
        if named is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        executor = executor_of(Cluster("local", gpus_per_node=gpus), part)
        assert executor.parameters["gpus_per_node"] == len(executor.parameters["visible_gpus"])
        return list(executor.parameters["visible_gpus"])

    assert [visible(None, 2), visible("2,3,5", 2), visible("2", 2), visible("2,3", 0)] == [[0, 1], [2, 3], [2], []]
    with pytest.raises(BenchError, match="CUDA_VISIBLE_DEVICES is 'GPU-1a', and local jobs take GPUs by number"):
        visible("GPU-1a", 1)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--partition", "h100"], "--partition is of jobs on a cluster; add --cluster slurm or local"),
        (["--cluster", "lsf"], "--cluster is 'lsf'; choose slurm or local"),
        (["--cluster", "local", "--account", "a"], "--account is for Slurm; leave it out with --cluster local"),
        (["--cluster", "local", "--predict"], "--predict works on this machine only; leave --cluster out"),
        (["--cluster", "slurm", "--cluster-option", "qos"], "--cluster-option qos: write NAME=VALUE, such as qos=high"),
        (["--cluster", "slurm", "--cluster-option", "qos=a", "--cluster-option", "qos=b"], "--cluster-option qos is given twice"),
        (["--cluster", "slurm", "--cluster-option", "a_b=1", "--cluster-option", "a-b=2"], "a-b is given twice, as 1 and 2"),
        (["--cluster", "slurm", "--model", "no-such"], "no-such"),
        (["--cluster", "slurm", "--model", "tiny-llama"], "there is no srun here; run it on a host that submits to Slurm"),
        (["--cluster", "local", "--api-key", "k"], "give the key in $OPENAI_API_KEY, which jobs inherit"),
    ],
)
def test_a_mistake_is_one_sentence_and_submits_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, flags: list[str], said: str
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert said in refused(capsys, "sweep", *GRID, *flags, "--out", tmp_path / "runs")
    assert not (tmp_path / "runs" / "jobs").exists()
    assert not (tmp_path / "runs").exists()


def test_without_submitit_it_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    said = refused(capsys, "sweep", "--cluster", "local", "--target", "fake", *GRID, "--out", tmp_path / "runs")
    assert said == "trtllm-bench: --cluster needs submitit; install it with: python3 -m pip install 'trtllm-bench[cluster]'"
