"""`sweep --accuracy` over a tiny engine: every row has its quality, tables show it, and a resumed sweep keeps it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import refused, run
from test_quantize_command import model  # noqa: F401  (a fixture)

from trtllm_bench.measure.accuracy import AccuracySpec, widest_first
from trtllm_bench.spec.measurement import MeasurementSpec
from trtllm_bench.sweep.settle import settled, with_room
from trtllm_bench.sweep.spec import SweepSpec
from trtllm_results.store.table import Store, read_rows

pytestmark = pytest.mark.usefixtures("own_cache")


def test_a_sweep_measures_quality_beside_speed(capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path) -> None:  # noqa: F811
    text = tmp_path / "text.jsonl"
    text.write_text("\n".join(json.dumps({"input_ids": [(7 * start + step) % 128 for step in range(24)]}) for start in range(6)) + "\n")
    grid = ["--batch-size", 2, "--isl", 8, "--osl", 2, "--num-requests", 2, "--device", "cpu", "--max-seq-len", 32]
    asked = ["sweep", "--model", model, "--precision", "fp8_rowwise,fp32", *grid, "--accuracy", f"{text},task", "--accuracy-windows", 5]
    code, said, _ = run(capsys, *asked, "--out", tmp_path / "out")
    assert code == 0
    rows = {row.cell.precision: row for row in read_rows(tmp_path / "out")}
    wide, narrow = rows["fp32"].figures, rows["fp8_rowwise"].figures
    assert wide["accuracy_tokens"] == narrow["accuracy_tokens"] == 5 * 12
    assert wide["perplexity_low"] < wide["perplexity"] < wide["perplexity_high"]
    assert "perplexity_change" not in wide, "it is the reference, although it was named second"
    assert narrow["perplexity"] / wide["perplexity"] - 1 == pytest.approx(narrow["perplexity_change"])
    assert 0 < narrow["kl_divergence"] < 0.05
    assert 0.6 < narrow["top1_agreement"] < 1
    assert rows["fp8_rowwise"].extra["accuracy"]["against"] == "fp32"
    assert "accuracy beside speed" in said
    words = " ".join(said.split())
    assert "no accuracy: engine" in words
    assert "has no tokenizer, which the task needs" in words
    assert "60 tokens of text.jsonl, second halves of windows of 32" in words
    assert "no accuracy: engine" in " ".join(run(capsys, "compare", tmp_path / "out", "--accuracy")[1].split())
    code, said, _ = run(capsys, "compare", tmp_path / "out", "--accuracy", "--format", "json")
    assert all("has no tokenizer, which the task needs" in line["not_scored"] for line in json.loads(said))
    assert {line["precision"]: line["perplexity"] for line in json.loads(said)} == {
        precision: row.figures["perplexity"] for precision, row in rows.items()
    }
    code, said, _ = run(capsys, "sweep", "--resume", "--out", tmp_path / "out")
    assert code == 0
    assert "accuracy beside speed" in said
    plain = ["sweep", "--model", model, "--precision", "fp32", *grid, "--out", tmp_path / "plain"]
    assert run(capsys, *plain)[0] == 0
    assert "no result carries accuracy; measure it" in refused(capsys, "compare", tmp_path / "plain", "--accuracy")
    (row,) = read_rows(tmp_path / "plain")
    Store(tmp_path / "unscored").append(replace(row, extra={"accuracy": {"task": True, "failed": "it has no tokenizer"}}))
    assert "no result carries accuracy: it has no tokenizer" in refused(capsys, "compare", tmp_path / "unscored", "--accuracy")


def test_what_cannot_be_scored_is_refused_before_anything_is_built(
    capsys: pytest.CaptureFixture[str],
    model: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    text = tmp_path / "t.txt"
    text.write_text("words")
    grid = ["--batch-size", 1, "--isl", 8, "--osl", 2, "--device", "cpu", "--out", tmp_path / "o"]
    assert "those of tiny-llama are random" in refused(capsys, "sweep", "--model", "tiny-llama", *grid, "--accuracy", text)
    assert "no such file" in refused(capsys, "sweep", "--model", "tiny-llama", *grid, "--accuracy", tmp_path / "no.txt")
    assert "takes one text, task, or both" in refused(capsys, "sweep", "--model", "tiny-llama", *grid, "--accuracy", f"{text},{text}x")
    damaged = tmp_path / "damaged.jsonl"
    for content, said in (("", "holds no text"), ('{"input_ids": [1, 2, 999]}', "holds token id 999"), ("[", "is not JSON")):
        damaged.write_text(content)
        assert said in refused(capsys, "sweep", "--model", model, "--precision", "fp32", *grid, "--accuracy", damaged)
    with pytest.raises(ValueError, match="reads the logits of our own engine"):
        AccuracySpec.of(["task"], 1, [MeasurementSpec.of({"target": "http://127.0.0.1:1"})])
    assert not (tmp_path / "o").exists()


def test_engines_of_short_cells_take_whole_windows() -> None:
    points = settled(SweepSpec.of(model="tiny-llama", precision="fp32", batch_size=1, isl="8,600", osl=8, device="cpu"))
    assert [point.spec.engine.max_seq_len for engine in with_room(points, 512) for point in engine] == [608, 608]
    points = settled(SweepSpec.of(model="tiny-llama", precision="fp32", batch_size=1, isl=8, osl=8, device="cpu"))
    assert [point.spec.engine.max_seq_len for engine in with_room(points, 512) for point in engine] == [512]


def test_the_widest_engine_runs_first() -> None:
    names = [("fp8", "auto"), ("bf16", "fp8"), ("bf16", "auto"), ("fp32", "auto"), ("fp8_rowwise", "bf16")]
    specs = [MeasurementSpec.of({"model": "m", "precision": precision, "kv_dtype": kv}) for precision, kv in names]
    assert [names[index] for index in widest_first(specs)] == [
        ("fp32", "auto"),
        ("bf16", "auto"),
        ("bf16", "fp8"),
        ("fp8_rowwise", "bf16"),
        ("fp8", "auto"),
    ]


def test_a_checkpoint_of_several_schemes_runs_after_wider_codes_and_before_narrower() -> None:
    """It has no scheme by name: what counts are the codes that it holds, int8 and int4 here."""
    folder = Path(__file__).parents[1] / "engines" / "data" / "quantized" / "llmcompressor-mixed"
    named = ["int4", "mixed", "int8_wo", "bf16"]
    specs = [MeasurementSpec.of({"model": str(folder) if name == "mixed" else "m", "precision": name}) for name in named]
    assert [named[index] for index in widest_first(specs)] == ["bf16", "int8_wo", "mixed", "int4"]
