"""The command line's manners: names, exit codes, one sentence for every mistake, no traceback."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import refused, run

from trtllm_bench.__main__ import main
from trtllm_results.record.environment import visible_devices
from trtllm_results.store.table import Store


def test_help_lists_every_command_once(capsys: pytest.CaptureFixture[str]) -> None:
    from trtllm_bench.app import CommandFolder

    code, out, _ = run(capsys, "--help")
    listed = [line.split()[0] for line in out.splitlines() if line.startswith("  ") and line.split() and line.split()[0] in CommandFolder()]
    assert code == 0
    assert sorted(listed) == sorted(CommandFolder())
    assert {"sweep", "throughput", "latency", "build", "generate", "inspect", "doctor", "fetch", "refit"} <= set(listed)
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Usage"),
        (["nonsense"], "No such command 'nonsense'"),
        (["swep"], "Did you mean 'sweep'"),
        (["sweep", "--nonsense"], "No such option"),
        (["gate", "run", "--a", "main", "--b", "HEAD", "--model", "tiny-llama"], "\nAfter --: flags of throughput"),
        (
            ["prepare-dataset", "random", "--num-requests", "2", "--out", "x.jsonl"],
            "\nWrite it before the word random: trtllm-bench prepare-dataset --out ... random",
        ),
        (["sweep", "--repeats", "many"], "--repeats"),
        (["sweep", "--target", "null", "--out", ""], "--out is empty; give a value, or leave it out"),
        (["compare", "runs/a", ""], "RESULTS is empty; give a value, or leave it out"),
        (["generate", "--engine-dir", "nowhere.engine", ""], "nowhere.engine"),
        (["throughput", "--isl", "0"], "--isl"),
        (["throughput", "--osl", "-3"], "--osl"),
        (
            ["throughput", "--target", "fake", "--endpoint", "chat"],
            "--endpoint says how to ask a server, and the target is fake; leave it out",
        ),
        (["sweep", "--target", "null,fake", "--extra-body", '{"top_k": 1}'], "--extra-body says how to ask a server"),
        (["search", "--target", "fake", "--goodput", "ttft:5", "--prompts", "text"], "--prompts says how to ask a server"),
        (["throughput", "--target", "fake", "--skip-bad-rows"], "--skip-bad-rows leaves out a dataset's rows; give --dataset too"),
        (["throughput", "--engine-dir", "x.engine", "--weights", "y"], "--engine-dir already has its weights; leave --weights out"),
        (["throughput", "--tp", str(2**63)], "--tp must be at most 9223372036854775807"),
        (["sweep", "--tp", str(2**63)], "--tp must be at most 9223372036854775807"),
        (["generate", "--temperature", "nan"], "--temperature must be a finite number, not nan"),
        (["search", "--goodput", "ttft:5", "--max-seconds", "nan"], "--max-seconds must be a finite number, not nan"),
        (["search", "--goodput", "ttft:5", "--max-seconds", "0"], "--max-seconds is 0; it must be above 0"),
        (["search", "--goodput", "ttft:5", "--start", "5", "--highest", "1"], "--start is 5 and --highest is 1"),
        (["inspect", "y" * 300], "File name too long"),
        (["throughput", "--target", "http://[::1"], "'http://[::1' is not a server address"),
        (["throughput", "--target", "http://h:99999"], "'http://h:99999' is not a server address"),
        (["results", "import", "a", "b.json", "--set", "tp=1", "--set", "tp=2"], "--set tp is given twice, as 1 and 2; give it once"),
        (["results", "import", "a", "b.json", "--set", "tp"], "--set tp: write FIELD=VALUE"),
        (
            ["gate", "check", "a", "--baseline", "b", "--margin", "mfu=1%", "--margin", "mfu=2%"],
            "--margin mfu is given twice, as 1% and 2%",
        ),
        (["throughput", "--target", "null", "--arrivals", "gamma:5,rate=6"], "rate is given twice; give it once"),
        (
            ["prepare-dataset", "--lora-pick", "zipf", "random", "--num-requests", "2", "--isl", "2", "--osl", "2"],
            "--lora-pick says how --num-loras are spread; give both",
        ),
    ],
)
def test_usage_mistakes_end_in_3_with_a_sentence(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    code, out, err = run(capsys, *arguments)
    assert code == 3
    assert says in out + err


def test_underscores_and_hyphens_are_the_same(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    grid = ["--target", "null", "--isl", 4, "--osl", 2, "--out"]
    assert run(capsys, "sweep", *grid, tmp_path / "a", "--batch-size", 2, "--num-requests", 3)[0] == 0
    assert run(capsys, "sweep", *grid, tmp_path / "b", "--batch_size", 2, "--num_requests", 3)[0] == 0
    cells = [Store(tmp_path / name).rows()[0].cell for name in "ab"]
    assert cells[0] == cells[1]
    assert (cells[0].batch, cells[0].num_requests) == (2, 3)


def test_the_model_may_stand_before_the_command_as_in_nvidias_tool(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    common = ["sweep", "--target", "null", "--batch-size", 1, "--isl", 4, "--osl", 2, "--out"]
    assert run(capsys, "--model", "first", *common, tmp_path / "a")[0] == 0
    assert run(capsys, "--model", "first", *common, tmp_path / "b", "--model", "second")[0] == 0
    assert [Store(tmp_path / name).rows()[0].cell.model for name in "ab"] == ["first", "second"]


def test_doctor_says_what_it_found_as_text_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "doctor")
    assert max(map(len, out.splitlines())) <= 80
    assert "Python" in out
    json_code, out, _ = run(capsys, "doctor", "--json")
    report = json.loads(out)
    assert json_code == code == (0 if report["ok"] else 1)
    assert all(check["fix"] for check in report["checks"] if check["state"] != "ok")
    assert {"Python", "packages", "disk", "kernel compiler"} <= {check["what"] for check in report["checks"]}


def test_doctor_stops_when_a_dependency_is_out_of_range(monkeypatch: pytest.MonkeyPatch) -> None:
    from trtllm_bench import machine

    monkeypatch.setattr(machine, "requires", lambda _: ["numpy>=1", "rich>=99", "no-such-package-here"])
    check = next(machine._packages())
    assert check.state == "stop"
    assert "rich" in check.found
    assert "no-such-package-here is missing" in check.found
    assert "numpy" not in check.found


def test_hidden_gpus_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    from trtllm_bench import machine

    def read(index: int) -> dict[str, object]:
        return {"gpu": f"G{visible_devices(4)[index]}", "gpu_count": len(visible_devices(4))} if visible_devices(4) else {}

    monkeypatch.setattr(machine, "read_gpu", read)
    for chosen, visible in (("", []), ("-1", []), ("1", [1]), ("0,3", [0, 3]), ("GPU-abc", ["GPU-abc"]), ("7", [])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
        assert visible_devices(4) == visible
        assert [gpu["gpu"] for gpu in machine.gpus()] == [f"G{one}" for one in visible]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_devices(2) == [0, 1]


@pytest.mark.parametrize(
    ("capability", "driver", "stops"), [("9.0", "580.82", set()), ("9.0", "470.1", {"driver"}), ("7.5", "580.1", {"architecture"})]
)
def test_doctor_judges_the_gpu(monkeypatch: pytest.MonkeyPatch, capability: str, driver: str, stops: set[str]) -> None:
    from trtllm_bench import machine

    found = [{"gpu": "X", "compute_capability": capability, "driver": driver, "cuda": "13.0", "gpu_memory_gib": 80.0}]
    checks = [check for check in machine._gpu_checks(found) if check.what != "torch"]
    assert {check.what for check in checks if check.state == "stop"} == stops
    assert all(check.fix for check in checks if check.state == "stop")


@pytest.mark.parametrize(("driver", "state"), [("580.65.06", "ok"), ("590.1", "ok"), ("580.60.02", "stop"), ("575.99", "stop")])
def test_doctor_wants_the_driver_that_torchs_cuda_needs(monkeypatch: pytest.MonkeyPatch, driver: str, state: str) -> None:
    """As engines do, whose machine code is of the same CUDA: to the last number."""
    import torch

    from trtllm_bench import machine

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check = machine._torch_cuda(driver)
    assert check.state == state
    assert state == "ok" or "driver 580.65.06 or newer" in check.fix


def test_an_unexpected_error_is_one_sentence_and_debug_shows_where(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from trtllm_bench import machine

    def broken(_: Path) -> list[object]:
        raise RuntimeError("boom")

    monkeypatch.setattr(machine, "checks", broken)
    code, _, err = run(capsys, "doctor")
    assert code == 1
    assert "boom" in err
    assert len(err.splitlines()) == 1
    assert main(["doctor", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--batch-size", "0"], "--batch-size must be at least 1, not 0"),
        (["--isl", "-5"], "--isl must be at least 1, not -5"),
        (["--osl", "1,x"], "--osl takes whole numbers separated by commas"),
        (["--isl", ","], "--isl needs at least one value"),
        (["--target", "vlm"], "unknown target 'vlm'"),
        (["--dataset", "none.jsonl"], "none.jsonl"),
        (["--resume"], "--resume needs --out"),
        (["--resume", "--out", "nowhere"], "no sweep to resume in nowhere"),
        (["missing.toml"], "no sweep specification at missing.toml"),
        (["--request-rate", "0"], "--request-rate"),
        (["--dataset", "a", "--isl", "3"], "two sources of lengths"),
    ],
)
def test_a_bad_sweep_is_refused_before_anything_is_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, "sweep", "--target", "null", *arguments)
    assert code == 3
    assert says in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_toml_is_read_and_flags_win(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text('model = "m"\ntarget = "null"\nbatch-size = [1, 2]\nisl = 4\nosl = [2, 3]\nrepeats = 2\n')
    assert run(capsys, "sweep", tmp_path / "s.toml", "--repeats", 1, "--out", tmp_path / "out")[0] == 0
    rows = Store(tmp_path / "out").rows()
    assert [(row.cell.batch, row.cell.osl, row.repeat) for row in rows] == [(1, 2, 0), (2, 2, 0), (1, 3, 0), (2, 3, 0)]


@pytest.mark.parametrize(
    ("toml", "says"),
    [("isl = ", "not valid TOML"), ("wat = 1", "unknown field wat"), ("isl = 0", "isl must be at least 1"), ("repeats = 'x'", "repeats")],
)
def test_a_bad_sweep_toml_names_the_file_and_the_field(capsys: pytest.CaptureFixture[str], tmp_path: Path, toml: str, says: str) -> None:
    (tmp_path / "s.toml").write_text(toml)
    code, _, err = run(capsys, "sweep", tmp_path / "s.toml", "--target", "null", "--out", tmp_path / "out")
    assert code == 3
    assert says in err
    assert "s.toml" in err


def test_a_second_sweep_into_the_same_folder_is_refused_without_resume(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["sweep", "--target", "null", "--batch-size", 1, "--isl", 4, "--osl", 2, "--out", tmp_path]
    assert run(capsys, *arguments)[0] == 0
    code, _, err = run(capsys, *arguments)
    assert code == 3
    assert "--resume" in err
    code, out, _ = run(capsys, "sweep", "--resume", "--out", tmp_path)
    assert code == 0
    assert "measured before" in out


def test_a_sweep_of_relative_paths_goes_on_from_another_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name of a model or dataset is part of a cell as it was given, so it stays and the sweep works where it leads somewhere."""
    (tmp_path / "start").mkdir()
    monkeypatch.chdir(tmp_path / "start")
    Path("d.jsonl").write_text('{"input_ids": [1, 2], "output_tokens": 2}\n')
    assert run(capsys, "sweep", "--target", "null", "--dataset", "d.jsonl", "--batch-size", "1,2", "--out", "runs")[0] == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, out, err = run(capsys, "sweep", "--resume", "--out", "../start/runs")
    assert code == 0, err
    assert out.count("measured before") == 2
    assert Path.cwd() == tmp_path / "elsewhere"
    assert "go on there" in refused(capsys, "sweep", "--resume", "--out", "../start/runs", "--repeats", 2)
    (tmp_path / "start" / "d.jsonl").unlink()
    assert "d.jsonl" in refused(capsys, "sweep", "--resume", "--out", "../start/runs")


def test_sweep_output_fits_a_log(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    grid = ["--batch-size", "1,16", "--isl", "128,2048", "--osl", 8, "--num-requests", 16, "--repeats", 2]
    code, out, _ = run(capsys, "sweep", "--target", "null", *grid, "--out", "o")
    assert code == 0
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("name", ["o[/x]", "bs=1", "a@b=[red]c", ":smile:", "with space"])
def test_any_folder_name_is_taken_and_read_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, "sweep", "--target", "null", "--batch-size", 1, "--isl", 4, "--osl", 2, "--model", "m[/b]", "--out", name)
    assert code == 0
    assert f"results in {name}\n" in out
    assert "m[/b] on" in out
    for spec in (name, f"./{name}", f"set={name}"):
        code, out, _ = run(capsys, "results", "ls", spec)
        assert (code, "m[/b]" in out) == (0, True)


def test_a_folder_whose_name_is_no_text_is_taken(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["sweep", "--target", "null", "--batch-size", "1", "--isl", "4", "--osl", "2", "--out", os.fsdecode(b"n\xff")]
    monkeypatch.setattr(sys, "argv", ["trtllm-bench", *arguments])
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]
    assert main(arguments) == 0
    assert [row.to_flat()["command"][-7:] for row in Store(tmp_path / os.fsdecode(b"n\xff")).rows()] == ["n\\udcff"]


def test_streams_take_any_character_and_show_no_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import warnings

    from trtllm_bench.__main__ import _prepare_streams

    written = [io.BytesIO(), io.BytesIO()]
    for name, into in zip(("stdout", "stderr"), written, strict=True):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(into, encoding="ascii", write_through=True))
    monkeypatch.setattr(sys, "warnoptions", [])
    with warnings.catch_warnings():
        _prepare_streams()
        print("\u2500\udcff")
        warnings.warn("for programmers", UserWarning, stacklevel=1)
    assert [into.getvalue() for into in written] == [b"\\u2500\\udcff\n", b""]


def test_standard_streams_that_are_closed_stay_taken(tmp_path: Path) -> None:
    """Otherwise the next file that is opened is written to as if it were one of them."""
    script = """
import sys
from trtllm_bench.__main__ import _prepare_streams
_prepare_streams()
print("out"), print("err", file=sys.stderr)
with open(sys.argv[1], "w") as file:
    file.write(f"{sys.stdin.read()!r} {file.fileno()}")
"""
    python = " ".join(map(shlex.quote, [sys.executable, "-c", script, str(tmp_path / "file")]))
    subprocess.run(["sh", "-c", f"exec {python} <&- >&- 2>&-"], check=True, cwd=Path(__file__).parents[2])
    assert (tmp_path / "file").read_text() == "'' 3"


def test_output_that_nobody_reads_ends_like_any_other_tool_and_says_what_is_kept(tmp_path: Path) -> None:
    """`| head`: 128 + SIGPIPE. 1 is a verdict of the gate."""

    def run_unread(*arguments: str) -> tuple[int, str]:
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [sys.executable, "-m", "trtllm_bench", *arguments], stdout=writer, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False
        )
        os.close(writer)
        return done.returncode, done.stderr

    assert run_unread("prepare-dataset", "random", "--num-requests", "2", "--isl", "2", "--osl", "2") == (141, "")
    grid = ["--target", "null", "--batch-size", "1", "--isl", "4", "--osl", "2", "--num-requests", "2"]
    code, said = run_unread("sweep", *grid, "--out", "a b")
    assert code == 141
    assert said.endswith(
        "nobody reads standard output any more; 0 finished measurements are kept; go on with: trtllm-bench sweep --resume --out 'a b'\n"
    )


def test_doctor_says_that_results_cannot_go_into_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "runs"):
        code, said, _ = run(capsys, "doctor", "--json", "--out", out)
        disk = next(check for check in json.loads(said)["checks"] if check["what"] == "disk")
        assert (code, disk["state"]) == (1, "stop")
        assert "file is a file, and results go into a folder" in disk["found"]


def test_a_path_below_the_home_folder_may_be_written_with_a_tilde(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell leaves that of `--out=~/a` and `base=~/a` alone."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    grid = ["--target", "null", "--batch-size", 1, "--isl", 4, "--osl", 2, "--num-requests", 2]
    assert run(capsys, "sweep", *grid, "--out=~/a")[0] == 0
    assert run(capsys, "throughput", *grid, "--out=~/b", "--report-json=~/b.json")[0] == 0
    assert run(capsys, "results", "export", "base=~/a", "~/a.csv")[0] == 0
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["a", "a.csv", "b", "b.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_a_store_that_cannot_be_made_is_refused_before_anything_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "throughput", "--target", "null", "--isl", 4, "--osl", 2, "--num-requests", 2, "--out", "/dev/null")
    assert (code, out) == (3, "")
    assert "cannot create the result store /dev/null" in err


@pytest.mark.parametrize("command", [["throughput"], ["latency"], ["search", "--goodput", "e2e:5"]])
def test_a_store_that_is_there_and_cannot_be_written_is_refused_before_anything_is_measured(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: list[str]
) -> None:
    """As on a disk that is read-only. Nothing is said of what is kept, since nothing was measured."""
    (tmp_path / "results.parquet").mkdir()
    code, out, err = run(capsys, *command, "--target", "null", "--isl", 4, "--osl", 2, "--out", tmp_path)
    assert (code, "good" in out or "tok/s" in out) == (3, False)
    assert err == f"trtllm-bench: cannot write {tmp_path / 'results.parquet'}: Is a directory\n"


def test_ceilings_that_cannot_be_kept_are_not_measured(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRTLLM_BENCH_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("trtllm_bench.roofline.ceilings.measure", lambda *_: pytest.fail("measured"))
    assert "cannot write" in run(capsys, "ceilings", "--device", "cpu")[2]


def test_a_store_whose_utilisation_is_to_be_filled_in_is_looked_for_before_anything_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, own_cache: None
) -> None:
    monkeypatch.setattr("trtllm_bench.roofline.ceilings.measure", lambda *_: pytest.fail("measured"))
    assert "no result store at nowhere" in refused(capsys, "ceilings", "--device", "cpu", "--again", "--apply", "nowhere")


def test_a_folder_that_was_deleted_underneath_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert "the current folder no longer exists" in refused(capsys, "sweep", "--target", "null", code=1)


def test_documents_are_read_with_bounds() -> None:
    """Of whatever a user may name: a pipe is waited for, a device has no end, and what is nested deep raises a RecursionError."""
    import ast

    root = Path(__file__).parents[2]
    unbounded = set()
    for folder in ("trtllm_bench", "results", "dashboards", "engines", "workloads"):
        for path in (root / folder).rglob("*.py"):
            text = path.read_text()
            for node in ast.walk(ast.parse(text)) if "json.loads" in text or "tomllib.loads" in text else ():
                parses = isinstance(node, ast.Call) and ast.unparse(node.func) in (
                    "json.loads",
                    "json.load",
                    "tomllib.loads",
                    "tomllib.load",
                )
                if parses and any(isinstance(one, ast.Attribute) and one.attr.startswith("read_") for one in ast.walk(node)):
                    unbounded.add(path.name)
    of_ours = {"links.py", "nsys.py", "prediction_error.py", "new_folder.py"}
    """A file that this process has made, that ships with the package, or that was read with bounds before."""
    assert unbounded == of_ours | {"spec.py"}  # of workloads, which bounds it there


def test_only_one_place_makes_consoles() -> None:
    """Rich reads brackets in paths and labels as markup unless told not to."""
    import ast

    root = Path(__file__).parents[2]
    makers = {
        path.relative_to(root).as_posix()
        for folder in ("trtllm_bench", "results", "dashboards", "engines", "kernels", "workloads")
        for path in (root / folder).rglob("*.py")
        if "Console(" in (text := path.read_text())
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Console"
    }
    assert makers == {"dashboards/trtllm_dashboards/tables.py"}


def test_results_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(capsys, "sweep", "--target", "null", "--batch-size", "1,2", "--isl", 4, "--osl", 2, "--out", tmp_path / "a")[0] == 0
    stored = Store(tmp_path / "a").rows()
    listed = json.loads(run(capsys, "results", "ls", tmp_path / "a", "--where", "batch=2", "--json")[1])
    assert [(one["store"], one["batch"], one["row_id"]) for one in listed] == [("a", 2, stored[1].row_id)]
    shown = json.loads(run(capsys, "results", "show", tmp_path / "a", stored[0].key, "--json")[1])
    assert [(one["row_id"], one["settings"], one["isl"]) for one in shown] == [(stored[0].row_id, dict(stored[0].cell.settings), 4)]


def test_results_clean_says_what_it_removed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(capsys, "sweep", "--target", "null", "--batch-size", 1, "--isl", 4, "--osl", 2, "--out", tmp_path / "a")[0] == 0
    left = tmp_path / "a" / "requests" / "0123456789abcdef-r0-01234567.parquet"
    left.write_bytes(b"x" * 2**20)
    code, out, _ = run(capsys, "results", "clean", tmp_path / "a")
    assert (code, out.splitlines()) == (0, [f"removed {left}", "1 files, 1.0 MiB freed"])
    assert run(capsys, "results", "clean", tmp_path / "a")[1] == "nothing to remove\n"
    assert "does not exist" in refused(capsys, "results", "clean", tmp_path / "none")


def test_short_version_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "-V")[1] == run(capsys, "--version")[1]
    assert run(capsys, "-V")[1].startswith("trtllm-bench ")


def test_shells_complete_commands_and_options() -> None:
    def completed(words: str) -> list[str]:
        asked = {"_TRTLLM_BENCH_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
        run = subprocess.run(
            [sys.executable, "-m", "trtllm_bench"], env={**os.environ, **asked}, capture_output=True, text=True, check=False
        )
        return run.stdout.split()

    assert completed("trtllm-bench sw") == ["sweep"]
    assert completed("trtllm-bench results cl") == ["clean"]
    assert "--max-lag-ms" in completed("trtllm-bench sweep --max")
