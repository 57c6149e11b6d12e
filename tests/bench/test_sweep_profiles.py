"""`sweep --profile` and `--predict`: cells chosen, profiled and linked; a grid predicted for a GPU that is not here."""

from __future__ import annotations

from pathlib import Path

import pytest

from trtllm_bench.__main__ import main
from trtllm_bench.analysis.cells import find_cell
from trtllm_bench.analysis.explain import breakdown
from trtllm_bench.errors import BenchError
from trtllm_bench.profiling.record import CellProfile
from trtllm_bench.sweep.predicted import keep_predictions
from trtllm_bench.sweep.profiles import choose, parse_which
from trtllm_dashboards.html import contents
from trtllm_dashboards.html.profiles import linked as linked_page
from trtllm_dashboards.sources import load
from trtllm_results.record.cell import Cell
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Row
from trtllm_results.store.table import Store, read_rows
from trtllm_workloads.request import Workload

pytestmark = pytest.mark.usefixtures("own_cache")

GRID = ("--device", "cpu", "--isl", "8", "--osl", "8", "--batch-size", "1,2", "--max-num-tokens", "64", "--max-lag-ms", "1000")


def row(batch: int, **figures: float) -> Row:
    return Row(Cell("m", "fp32", batch, 8, 8), Environment(), figures=figures)


def test_the_worst_cells_use_the_least_of_their_ceilings() -> None:
    rows = [row(1, mbu=0.5, mfu=0.1), row(2, mbu=0.2, mfu=0.3), row(4, mbu=0.1, mfu=0.9), row(8, mbu=0.05)]
    assert [one.cell.batch for one in choose(rows, 2)] == [8, 2]
    assert [one.cell.batch for one in choose(rows, None)] == [8, 2, 1, 4]
    without = [row(1, output_tokens_per_s=10.0), row(4, output_tokens_per_s=20.0)]
    assert [one.cell.batch for one in choose(without, 1)] == [4]


def test_which_cells_is_a_word_or_a_number() -> None:
    assert (parse_which("worst"), parse_which("all"), parse_which("3")) == (1, None, 3)
    for text in ("some", "0", "-1"):
        with pytest.raises(BenchError, match="give worst, all, or how many"):
            parse_which(text)


def test_a_sweep_links_its_worst_cell_to_a_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "runs"
    assert main(["sweep", *GRID, "--profile", "worst", "--out", str(folder)]) == 0
    assert "profile.html" in capsys.readouterr().out
    rows = Store(folder).rows()
    linked = [one for one in rows if "profile" in one.extra]
    assert (len(rows), len(linked)) == (2, 1)
    cell = find_cell(f"{folder}@{linked[0].key}")
    assert cell.profile == folder / str(linked[0].extra["profile"])
    profile = CellProfile.load(cell.profile)
    assert profile.cell["batch"] == linked[0].cell.batch
    assert breakdown(cell).source == "profile"
    assert breakdown(cell).per_token_us == pytest.approx(profile.window_us / profile.tokens_out)
    assert main(["explain", f"{folder}@{linked[0].key}"]) == 0
    said = capsys.readouterr().out
    assert "by its profile" in said
    assert "were profiled:" in said
    content = contents(load([str(folder)]), "", lambda found, key: linked_page(found, tmp_path / "page", "page.html", key))
    links = {content["keys"][cell]: one["href"] for one in content["profiles"] for cell in one["cells"]}
    assert (tmp_path / "page" / links[linked[0].key]).resolve() == cell.profile.resolve() / "profile.html"


def test_a_grid_is_predicted_for_a_gpu_that_is_not_here_and_kept_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = ("--batch-size", "1,8", "--isl", "32", "--osl", "16", "--model", "smollm2-135m")
    assert main(["sweep", "--predict", "--gpu", "a100", "--precision", "bf16,fp8", *shape, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "A100 (by the step model), target predicted" in said
    assert said.count("ok") >= 2
    assert "fp8 b1 32/16" in said
    assert "sm_80 has no fp8" in said
    assert "predicted from counts and ceilings, not measured" in said
    assert "4 of 4 predicted rows are new" in said
    rows = Store(tmp_path).rows()
    assert {(row.predicted, row.environment.gpu) for row in rows} == {(True, "A100 (by the step model)")}
    assert all(row.extra["predicted"][0].startswith("predicted from counts") for row in rows if row.status == "ok")
    assert keep_predictions(Store(tmp_path), [row for row in rows if row.status == "ok"]) == 0


def test_cells_that_cannot_be_are_told_apart_by_the_cache_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = ["--model", "tiny-llama", "--precision", "fp8", "--kv-dtype", "fp16,fp32", "--batch-size", "1", "--isl", "8", "--osl", "8"]
    assert main(["sweep", "--predict", "--gpu", "h100", *grid, "--out", str(tmp_path)]) == 1
    rows = read_rows(tmp_path)
    assert [(row.cell.kv_dtype, row.status) for row in rows] == [("fp16", "failed"), ("fp32", "failed")]
    assert len({row.key for row in rows}) == 2
    assert "fp8 kv-fp32 b1 8/8: an engine in fp8 can keep its KV cache in" in " ".join(capsys.readouterr().out.split())


def test_a_prediction_that_cannot_be_draws_no_prompts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sequence too long for the model, a precision that the GPU lacks and a cache without room; drawing took half a minute."""

    def drawn(workload: Workload) -> str:
        raise AssertionError("prompts were drawn")

    monkeypatch.setattr(Workload, "content_hash", property(drawn))
    sweep = ["sweep", "--predict", "--batch-size", "1", "--osl", "16", "--out", str(tmp_path)]
    assert main([*sweep, "--gpu", "h200", "--model", "tiny-llama", "--precision", "bf16", "--isl", "9999999"]) == 1
    assert main([*sweep, "--gpu", "a100", "--model", "tiny-llama", "--precision", "fp8", "--isl", "32"]) == 1
    assert (
        main(
            [
                *sweep,
                "--gpu",
                "l40s",
                "--model",
                "tiny-llama",
                "--precision",
                "bf16",
                "--isl",
                "32",
                "--kv-cache-free-gpu-mem-fraction",
                "1e-7",
            ]
        )
        == 1
    )
    reasons = [row.reason for row in Store(tmp_path).rows()]
    assert all(
        phrase in reason
        for phrase, reason in zip(("10,000,015 tokens", "sm_80 has no fp8", "less than eight pages of KV cache"), reasons, strict=True)
    )
    assert [row.cell.isl for row in Store(tmp_path).rows()] == [9999999, 32, 32]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--predict", "--gpu", "tpu"), "no data sheet of GPU 'tpu'"),
        (("--gpu", "h100"), "add --predict"),
        (("--predict", "--gpu", "h100", "--profile", "all"), "--profile is for measuring, and --predict measures nothing"),
        (("--predict", "--gpu", "h100", "--accuracy", "task"), "--accuracy is for measuring"),
        (("--predict", "--gpu", "h100", "--repeats", "3"), "--repeats is for measuring"),
        (("--predict", "--gpu", "h100", "--resume"), "--resume is for measuring"),
        (("--predict", "--gpu", "h100", "--target", "null"), "--predict is for this tool's engine, and the target is 'null'"),
        (("--accuracy-windows", "4"), "--accuracy-windows is for a text to score"),
        (("--profile", "some"), "give worst, all"),
        (("--profile", "worst", "--target", "fake"), "fake is another target"),
        (("--profile", "worst", "--replicas", "1,2"), "the grid has 2 replicas of one; leave --replicas out"),
    ],
)
def test_mistakes_are_one_sentence(flags: tuple[str, ...], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", *GRID, *flags, "--out", str(tmp_path / "r")]) == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert sentence in said


def test_a_prediction_over_several_gpus_says_whose_communication_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    shape = ("--batch-size", "8", "--isl", "32", "--osl", "16", "--model", "llama-3.1-8b", "--precision", "bf16")
    assert main(["sweep", "--predict", "--gpu", "h200", "--tp", "1,2,3", *shape]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "the same load on more GPUs" in said
    assert "does not divide by --tp 3" in said
    assert "communication is that of two H200" in said


def test_a_prediction_needs_a_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trtllm_results.record.environment.read_gpu", lambda index: {})
    assert main(["sweep", "--predict", *GRID]) == 3
    assert "add --gpu with one of a100, l40s, h100, h200, b200" in capsys.readouterr().err
