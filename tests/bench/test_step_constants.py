"""The step model's constants are data: each has its record and command, and a prediction says when they are another GPU's."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from trtllm_bench.analysis.model_errors import coverage, predicted
from trtllm_bench.analysis.peers import summary
from trtllm_bench.analysis.step_constants import FOLDER, SECTIONS, constants_for, read_file
from trtllm_bench.errors import BenchError
from trtllm_results.compare.published import load

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(FOLDER.glob("*.toml"))


@pytest.mark.parametrize("name", ["h100", "H100", "NVIDIA H100 80GB HBM3"])
def test_the_h100s_constants_are_its_own(name: str) -> None:
    constants = constants_for(name)
    assert (constants.gpu, constants.fitted, constants.note) == ("h100", True, "")
    assert constants.bandwidth_share["skinny"] == 0.9935
    assert constants.prefill_time["uncached_triton"] == 586 / 439


def test_the_h200s_constants_are_of_todays_engine_and_those_of_its_earlier_runs_the_h100s() -> None:
    today, earlier = constants_for("NVIDIA H200"), constants_for("NVIDIA H200", "29ae1e3c0de")
    assert (today.gpu, today.fitted, today.earlier, today.engine) == ("h200", True, False, "")
    assert constants_for("NVIDIA H200", "8905072abcd") is constants_for("NVIDIA H200", "0123456") is today
    assert not any((today.requests_first, today.norms_apart, today.keys_by_tiles))
    before = replace(today, norms_apart=True, keys_by_tiles=True)
    assert constants_for("NVIDIA H200", "523b8c61234") == before
    assert constants_for("NVIDIA H200", "444f27e1234") == replace(before, requests_first=True)
    assert (earlier.gpu, earlier.fitted, earlier.earlier, earlier.requests_first) == ("h100", False, True, True)
    assert earlier.note == "the step model's constants are not fitted to NVIDIA H200: they are the H100's"
    assert "GEMV" in earlier.engine


@pytest.mark.parametrize("name", ["a100", "NVIDIA L40S"])
def test_constants_that_are_not_a_gpus_own_say_so(name: str) -> None:
    constants = constants_for(name)
    assert (constants.gpu, constants.fitted) == ("h100", False)
    assert constants.note == f"the step model's constants are not fitted to {name}: they are the H100's"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_constant_has_its_record_and_the_command_that_made_it(file: Path) -> None:
    data = read_file(file)
    assert data["gpu"] == file.stem
    for section, names in SECTIONS.items():
        for name in names:
            constant = data[section][name]
            assert constant["unit"]
            assert constant["what"]
            assert bool(constant["record"]) == bool(constant["command"])
            record = ROOT / constant["record"]
            if not constant["record"]:
                continue
            text = next(path for path in (record, record / "profile.json", record / "results.json") if path.is_file()).read_text()
            assert json.dumps(constant["command"]) in re.sub(r'("command"):"', r'\1: "', text), f"{section}.{name}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_curve_of_reductions_is_the_recorded_one(file: Path) -> None:
    links = read_file(file)["all_reduce"]
    recorded = json.loads((ROOT / links["record"]).read_text())
    assert links["bytes"] == [int(size) for size in recorded["all_reduce_us"]]
    assert links["us"] == pytest.approx(list(recorded["all_reduce_us"].values()), rel=1e-4)
    assert links["copy_bytes_per_s"] == pytest.approx(recorded["peer_copy_bytes_per_s"], rel=1e-5)


def test_a_curve_is_met_at_its_points_and_scales_with_ranks() -> None:
    curve = constants_for("h200").all_reduce
    assert curve.one_shot_us(16384, 2) == pytest.approx(3.5667)
    assert curve.one_shot_us(2**20, 2) == pytest.approx(6.8974)
    assert curve.one_shot_us(3 * 2**19, 2) == pytest.approx((6.8974 + 9.8552) / 2, rel=1e-3)
    assert curve.two_shot_us(2**23, 2) == pytest.approx(24.4978)
    assert curve.two_shot_us(2**26, 2) == pytest.approx(161.98, rel=1e-3)
    assert curve.one_shot_us(2**20, 4) - 3.5667 == pytest.approx(3 * (6.8974 - 3.5667))
    fixed = 2 * 15.3985 - 24.4978
    assert curve.two_shot_us(2**23, 4) - fixed == pytest.approx(1.5 * (24.4978 - fixed))
    assert curve.send_us(387e6) == pytest.approx(3.5667 + 1000, rel=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("[step.norm]", "[step.power]"), r"lacks step\.norm and has step\.power that is unknown"),
        (lambda text: text.replace("value = 16.0", 'value = "16"'), r"step\.between_us must have value, unit, .*must be a number"),
        (lambda text: text + "[", "cannot be read as TOML"),
        (lambda text: text.replace("row_elements", "elements"), "all_reduce must have gpus, row_elements, bytes, us"),
        (
            lambda text: text.replace("earlier = true", ""),
            "engine must have earlier, revisions, requests_first, norms_apart, keys_by_tiles, what",
        ),
        (lambda text: text.replace('["29ae1e3"', '["1234567"'), "requests_first may list only revisions of the engine"),
    ],
)
def test_damaged_constants_are_refused(change: object, message: str, tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text(change((FOLDER / "h100.toml").read_text()))  # type: ignore[operator]
    with pytest.raises(BenchError, match=message):
        read_file(file)


def test_other_engines_points_are_predicted_to_their_size() -> None:
    """TensorRT-LLM's 70B in fp8 on two H200 at four requests: what is predicted there is our engine, which made 405 tokens/s (+25%)
    at 444f27e; constants follow later kernels too."""
    small = [one for one in coverage(load(), "h200")[0] if 0 < one.concurrency * one.osl <= 4096]
    few = [one for one in small if one.model == "llama-3.1-70b" and one.source.startswith("TensorRT-LLM")]
    found = list(predicted([one for one in few if (one.isl, one.tp) == (1024, 2)]))
    assert [point.theirs.concurrency for point in found] == [4]
    assert found[0].predicted == pytest.approx(405, rel=0.07)
    error = f"{found[0].predicted / found[0].theirs.output_tokens_per_s - 1:+.0%}"
    assert summary(found) == [f"TensorRT-LLM H200 llama-3.1-70b fp8 tp 2: 1 points, median {error}, {error} to {error}"]
