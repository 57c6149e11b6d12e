"""Comparison: alignment, intervals, verdict words, bad input, the Pareto front, and ours beside published figures."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtllm_dashboards.html.comparison import compared
from trtllm_results.compare import published
from trtllm_results.compare import report as compare_text
from trtllm_results.compare.align import compare, fronts, pareto
from trtllm_results.errors import ResultsError
from trtllm_results.gate.baseline import measured_cells
from trtllm_results.metrics.registry import brief
from trtllm_results.record.cell import Cell
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Row
from trtllm_results.store import selection
from trtllm_results.store.selection import ResultSet

H100 = Environment(gpu="NVIDIA H100 80GB HBM3", driver="580.1")


def rows(
    rate: float | list[float], batch: int = 64, environment: Environment = H100, figure: str = "output_tokens_per_s", **cell: object
) -> list[Row]:
    settings = {"model": "llama-3.1-8b", "precision": "fp8", "kv_dtype": "fp8", "isl": 128, "osl": 128, "batch": batch} | cell
    rates = rate if isinstance(rate, list) else [rate]
    return [
        Row(cell=Cell(**settings), environment=environment, repeat=i, figures={figure: value})  # type: ignore[arg-type]
        for i, value in enumerate(rates)
    ]


def sets(a: list[Row], b: list[Row]) -> list[ResultSet]:
    return [ResultSet("before", tuple(a)), ResultSet("after", tuple(b))]


GOODPUT = "goodput_requests_per_s"
BASE = [100.0, 100.4, 99.8, 100.1]


def test_a_real_change_is_named_with_its_interval() -> None:
    (change,) = compare(sets(rows(BASE), rows([x * 0.97 for x in BASE]))).changes
    assert change.verdict == "slower"
    assert change.change == pytest.approx(-0.03)
    assert change.interval is not None
    assert change.interval.low < -0.03 < change.interval.high < 0
    (latency,) = compare(
        sets(rows(BASE, figure="ttft_p50_ms"), rows([x * 0.97 for x in BASE], figure="ttft_p50_ms")), ["ttft_p50_ms"]
    ).changes
    assert latency.verdict == "faster", "less time is faster"


def test_no_change_is_same_and_noise_is_inconclusive() -> None:
    assert compare(sets(rows(BASE), rows(BASE[::-1]))).changes[0].verdict == "same"
    noisy = [100.0, 120.0, 80.0, 101.0]
    assert compare(sets(rows(noisy), rows([90.0, 115.0, 84.0, 99.0]))).changes[0].verdict == "inconclusive"


def test_repeats_that_met_the_same_arrivals_are_compared_in_pairs() -> None:
    luck = np.random.default_rng(7).normal(1.0, 0.2, 5)
    before = [20.0 * one for one in luck]
    after = [20.0 * one * 1.03 * wobble for one, wobble in zip(luck, (1.001, 0.999, 1.0, 1.002, 0.998), strict=True)]
    drawn: dict[str, object] = {"figure": "ttft_p99_ms", "request_rate": 4.0, "workload_hash": "w"}

    def change(*others: Row) -> tuple[str, float | None]:
        (one,) = compare(sets(rows(before, **drawn), list(others)), ["ttft_p99_ms"]).changes  # type: ignore[arg-type]
        assert one.change == pytest.approx(0.03, abs=0.001) or len(others) < 5
        return one.verdict, one.rank_p_value

    assert change(*rows(after, **drawn)) == ("slower", None)  # type: ignore[arg-type]
    for apart in (drawn | {"workload_hash": "other"}, drawn | {"settings": {"replay": True}}):
        assert change(*rows(after, **apart))[0] == "inconclusive"  # type: ignore[arg-type]
    assert change(*rows(after, **drawn)[:4])[0] == "inconclusive", "one has no fellow"  # type: ignore[arg-type]
    assert change(*rows(after, **drawn), *rows(after, **drawn))[1] is not None, "each is there twice"  # type: ignore[arg-type]
    closed = drawn | {"request_rate": 0.0}
    (unpaired,) = compare(sets(rows(before, **closed), rows(after, **closed)), ["ttft_p99_ms"]).changes  # type: ignore[arg-type]
    assert unpaired.verdict == "inconclusive"


def test_one_repeat_gives_a_change_and_no_verdict() -> None:
    (change,) = compare(sets(rows(100.0), rows(50.0))).changes
    assert (change.verdict, change.interval) == ("inconclusive", None)
    assert change.change == pytest.approx(-0.5)
    assert "one repeat" in compare_text.to_markdown(compare(sets(rows(100.0), rows(50.0))))


def test_holm_keeps_accidents_quiet() -> None:
    rng = np.random.default_rng(4)
    words = 0
    for _ in range(40):
        a = [r for batch in range(1, 11) for r in rows(rng.normal(100, 2, 4).tolist(), batch)]
        b = [r for batch in range(1, 11) for r in rows(rng.normal(100, 2, 4).tolist(), batch)]
        words += any(change.verdict in ("faster", "slower") for change in compare(sets(a, b)).changes)
    assert words / 40 <= 0.12


def test_same_is_as_rare_a_mistake_as_a_change() -> None:
    """60 comparisons of 30 cells that all truly gained 1.01%: uncorrected, 45% of them call some cell the same."""
    rng = np.random.default_rng(9)
    wrong = 0
    for _ in range(60):
        a = [r for batch in range(1, 31) for r in rows(rng.normal(100, 0.2, 5).tolist(), batch)]
        b = [r for batch in range(1, 31) for r in rows((101.01 * np.exp(rng.normal(0, 0.002, 5))).tolist(), batch)]
        changes = compare(sets(a, b)).changes
        wrong += any(change.verdict == "same" for change in changes)
    assert wrong / 60 <= 0.08


def test_what_the_words_promise_is_told() -> None:
    both = compare(sets(rows(BASE, 1) + rows([100.0, 120.0, 80.0, 101.0], 8), rows(BASE, 1) + rows([90.0, 115.0, 84.0, 99.0], 8)))
    together, same, undecided = compare_text.explanations(both)
    assert together.startswith("2 comparisons judged together")
    assert (same[:5], "does not mean that both are the same" in undecided) == ("same:", True)
    assert "geometric means over repeats" in compare_text.to_markdown(both)
    assert compare_text.explanations(compare(sets(rows(100.0), rows(50.0))))[0].startswith("inconclusive")


def test_cells_align_by_what_was_asked_and_the_rest_is_listed() -> None:
    failed = Row(cell=rows(1.0, 512)[0].cell, environment=H100, status="oom", reason="out of memory")
    found = compare(sets(rows(BASE, 1) + rows(BASE, 8) + rows(BASE, 512), rows(BASE, 1) + rows(BASE, 64) + [failed]))
    assert [change.cell["batch"] for change in found.changes] == [1]
    assert [why for _, why in found.left_out] == ["only in before", "only in after", "oom in after: out of memory"]


def test_bad_input_is_one_sentence_each() -> None:
    with pytest.raises(ResultsError, match=r"no cell in common \(they differ in isl\)"):
        compare(sets(rows(BASE), rows(BASE, isl=2048)))
    with pytest.raises(ResultsError, match="say --across-gpus"):
        compare(sets(rows(BASE), rows(BASE, environment=Environment(gpu="A100"))))
    for bad in (0.0, -5.0, math.nan):
        with pytest.raises(ResultsError, match="cannot be compared"):
            compare(sets(rows(BASE), rows([100.0, bad])))
    with pytest.raises(ResultsError, match="two result sets"):
        compare(sets(rows(BASE), rows(BASE))[:1])
    for some in (sets([], rows(BASE)), sets(rows(BASE), [])):
        with pytest.raises(ResultsError, match="has no result to compare; name another set, or another filter"):
            compare(some)
    beside = compare(sets(rows(BASE, 1) + rows(BASE, 8), rows(BASE, 1) + rows([100.0, 0.0], 8)))
    assert [change.cell["batch"] for change in beside.changes] == [1], "a zero costs its own cell"
    assert "is 0; a measurement like that cannot be compared" in beside.left_out[0][1]
    with pytest.raises(ResultsError, match="no figure 'speed'"):
        compare(sets(rows(BASE), rows(BASE)), ["speed"])
    with pytest.raises(ResultsError, match="not a field cells are aligned by"):
        compare(sets(rows(BASE), rows(BASE)), ignore=["colour"])


def test_predictions_are_neither_ours_beside_published_figures_nor_a_baseline() -> None:
    predicted, measured = rows(33_000.0, 2048, num_requests=8192, target="predicted"), rows(31_000.0, 2048, num_requests=8192)
    assert {one.ours_tokens_per_s for one in published.beside(predicted + measured)} == {31_000.0}
    for refused in (lambda: published.beside(predicted), lambda: measured_cells(predicted)):
        with pytest.raises(ResultsError, match="predictions"):
            refused()
    assert compared({"predicted": predicted, "a": measured, "b": measured}) is not None
    assert compared({"predicted": predicted, "a": measured}) is None


def test_across_gpus_notes_what_differs() -> None:
    found = compare(sets(rows(BASE), rows(BASE, environment=Environment(gpu="A100", driver="580.1"))), across_gpus=True)
    assert found.notes == ("gpu differs: before NVIDIA H100 80GB HBM3; after A100",)


def test_goodput_under_other_limits_is_no_change_and_other_settings_are_noted() -> None:
    def limited(ttft: float, warmup: int) -> list[Row]:
        both = [rows(BASE, figure=name, settings={"slo_ms": {"ttft": ttft}, "warmup": warmup}) for name in (GOODPUT, "requests_per_s")]
        return [dataclasses.replace(one, figures={**one.figures, **other.figures}) for one, other in zip(*both, strict=True)]

    figures = [GOODPUT, "requests_per_s"]
    found = compare(sets(limited(200, 2), limited(400, 5)), figures)
    assert [change.figure for change in found.changes] == ["requests_per_s"]
    assert [reason for _, reason in found.left_out] == [f"{GOODPUT} counts within other limits: ttft:200 in before, ttft:400 in after"]
    assert found.notes == ("settings differ: warmup 2 in before, 5 in after; goodput ttft:200 in before, ttft:400 in after",)
    alike = compare(sets(limited(200, 2), limited(200, 2)), figures)
    assert (len(alike.changes), alike.left_out, alike.notes) == (2, (), ())


def test_other_chips_of_one_kind_are_named_with_their_clocks() -> None:
    def on(chip: str, clock: float | None, batch: int = 64) -> list[Row]:
        measured = rows(BASE, batch, environment=dataclasses.replace(H100, gpu_uuid=chip))
        return [dataclasses.replace(r, figures={**r.figures, **({"sm_clock_mean_mhz": clock} if clock else {})}) for r in measured]

    a, b = "GPU-3a1caa28-ab68", "GPU-aeec124c-f0b0"
    (note,) = compare(sets(on(a, 1500.0) + on(b, 1000.0, batch=8), on(b, 1400.0))).notes
    assert note.startswith("not the same GPUs: before 3a1caa28 at 1,500 MHz; after aeec124c at 1,400 MHz.")
    (note,) = compare(sets(on(a, None) + on(b, None), on(b, None))).notes
    assert "before 3a1caa28, aeec124c; after aeec124c." in note
    uneven = compare(sets(on(a, 1500.0) + on(a, 1000.0, batch=8), on(b, 1500.0) + on(b, 1000.0, batch=8) * 3)).notes[0]
    assert uneven.count("at 1,250 MHz") == 2, "a mean over cells, however often each was repeated"
    assert compare(sets(on(a, 1500.0), on(a, 1400.0))).notes == ()
    assert compare(sets(on(a, 1500.0), on("", 1400.0))).notes == ()
    other = rows(BASE, environment=Environment(gpu="A100", driver="580.1", gpu_uuid=b))
    assert len(compare(sets(on(a, 1500.0), other), across_gpus=True).notes) == 1


def test_one_store_split_by_precision() -> None:
    mixed = rows(BASE) + rows([x / 1.6 for x in BASE], precision="bf16", kv_dtype="bf16")
    found = compare(selection.split_by(mixed, "precision"), ignore=["precision", "kv_dtype"])
    assert (found.sets, found.changes[0].verdict) == (("fp8", "bf16"), "slower")
    with pytest.raises(ResultsError, match="nothing to compare by model"):
        selection.split_by(mixed, "model")


def test_outputs_agree_with_each_other() -> None:
    found = compare(sets(rows(BASE, 1) + rows(BASE, 8), rows(BASE, 1) + rows([x * 2 for x in BASE], 8)))
    from_json = json.loads(compare_text.to_json(found))["changes"]
    assert [one["verdict"] for one in from_json] == ["same", "faster"]
    assert compare_text.to_csv(compare_text.records(found)).splitlines()[2].split(",")[-2] == "faster"
    assert "| +100.0% |" in compare_text.to_markdown(found)


def test_filters() -> None:
    mixed = rows(100.0, 1) + rows(200.0, 64) + rows(300.0, 64, precision="bf16")
    assert [r.figures["output_tokens_per_s"] for r in selection.keep(mixed, ["batch>=64", "precision!=bf16"])] == [200.0]
    assert len(selection.keep(mixed, ["output_tokens_per_s > 150"])) == 2
    assert len(selection.keep(mixed, ["gpu=NVIDIA H100 80GB HBM3", "env_driver=580.1"])) == 3
    assert selection.keep(mixed, ["ttft_p50_ms<5"]) == []
    for bad, message in (("batch", "not understood"), ("colour=red", "no field 'colour'"), ("batch>many", "'many' is not")):
        with pytest.raises(ResultsError, match=message):
            selection.keep(mixed, [bad])


@given(st.lists(st.tuples(st.floats(1, 1e3), st.floats(1, 1e3)), max_size=30))
@settings(max_examples=60, deadline=None)
def test_pareto_front_is_exactly_the_unbeaten_rows(points: list[tuple[float, float]]) -> None:
    def row(speed: float, throughput: float) -> Row:
        figures = {"output_tokens_per_s_per_user": speed, "output_tokens_per_s_per_gpu": throughput}
        return Row(cell=Cell("m", "fp8", 1, 1, 1), environment=H100, figures=figures)

    front = {
        (r.figures["output_tokens_per_s_per_user"], r.figures["output_tokens_per_s_per_gpu"]) for r in pareto([row(*p) for p in points])
    }
    beaten = {p for p in points for q in points if q[0] >= p[0] and q[1] >= p[1] and q != p}
    assert front == set(points) - beaten


def test_a_front_is_of_one_workload_and_a_cell_counts_once_by_its_mean() -> None:
    def run(batch: int, isl: int, speed: float, throughput: float, repeat: int = 0, rate: float = 0.0) -> Row:
        figures = {"output_tokens_per_s_per_user": speed, "output_tokens_per_s_per_gpu": throughput}
        return Row(Cell("m", "fp8", batch, isl, 128, request_rate=rate), H100, repeat=repeat, figures=figures)

    rows = [run(1, 128, 100.0, 100.0), run(1, 128, 110.0, 120.0, 1), run(64, 128, 50.0, 3000.0), run(64, 2048, 20.0, 900.0)]
    beaten, open_loop = run(8, 128, 40.0, 500.0), run(64, 128, 10.0, 10.0, rate=4.0)
    found = [
        (name, one.cell.batch, one.figures["output_tokens_per_s_per_gpu"], count) for name, one, count in fronts([*rows, beaten, open_loop])
    ]
    assert found == [
        ("m 128/128", 64, 3000.0, 1),
        ("m 128/128", 1, 110.0, 2),
        ("m 2048/128", 64, 900.0, 1),
        ("m 128/128 open loop", 64, 10.0, 1),
    ]


def test_ours_beside_published() -> None:
    found = published.beside(rows(33_000.0, 2048, num_requests=8192) + rows(20_000.0, 64, num_requests=512))
    sources = {(one.theirs.source, published.gpu_class(one.theirs.gpu)): one for one in found}
    nvidia = sources[("TensorRT-LLM perf-overview v0.17", "H100")]
    assert nvidia.ours_tokens_per_s == 33_000.0, "the fastest cell stands for ours"
    assert nvidia.ratio == pytest.approx(33_000 / nvidia.theirs.output_tokens_per_s)
    brief = [one for one in found if one.theirs.source == "project brief"]
    assert {published.gpu_class(one.theirs.gpu) for one in brief} == {"H100", "A100", "L40S"}
    assert "llama-3-8b there (same shapes)" in brief[0].differs
    assert brief[0].here == "8192 requests, up to 2048 running"
    assert any("A100 has no FP8" in part for one in brief for part in one.differs)
    assert found[0].same_gpu
    vllm = [one for one in found if one.theirs.measured]
    assert {one.theirs.requests for one in vllm} == {4096, 8192}
    assert "ours / theirs" in compare_text.beside_markdown(found)


def test_published_fixed_batches_match_only_the_same_batch() -> None:
    found = published.beside(rows(240.0, 1, osl=256, num_requests=1) + rows(11_000.0, 64, osl=256, num_requests=64))
    assert {(one.ours.cell.batch, one.theirs.requests) for one in found} == {(1, 1), (64, 64)}
    waves = published.beside(rows(340.0, 1, osl=256, num_requests=8) + rows(16_000.0, 64, osl=256, num_requests=256))
    assert {(one.ours.cell.batch, one.theirs.requests) for one in waves} == {(1, 1), (64, 64)}, "256 requests, 64 at once, are not 256"
    assert {one.theirs.requests for one in published.beside(rows(22_000.0, 512, osl=256, num_requests=256))} == {256}


def test_published_near_lengths_match_and_say_so() -> None:
    found = published.beside(rows(2_000.0, isl=1920, model="gptj-6b"))
    assert any("ISL 2048 there, 1920 here" in one.differs for one in found)
    with pytest.raises(ResultsError, match="published counterpart"):
        published.beside(rows(10.0, model="tiny-llama"))


def test_copies_are_beside_no_figure_of_one_gpu() -> None:
    """Two copies have the throughput of two GPUs; a figure of other precisions by its first word."""
    with pytest.raises(ResultsError, match="published counterpart"):
        published.beside(rows(66_000.0, 2048, replicas=2))
    found, _ = published.beside(rows(600.0, 1, osl=256, num_requests=8, precision="int4"))
    assert (found.theirs.precision, found.theirs.output_tokens_per_s) == ("int4", 200.2)
    assert found.differs[-1].endswith("weights int4 (GPTQ in groups of 128 by Marlin)")


def test_end_to_end_points_meet_cells_of_the_same_concurrency() -> None:
    h200 = Environment(gpu="NVIDIA H200")

    def cells(batch: int, rate: float, num_requests: int = 1024) -> list[Row]:
        cell = Cell("llama-3.1-70b", "fp8", batch, 1024, 1024, num_requests=num_requests)
        return [Row(cell=cell, environment=h200, figures={"output_tokens_per_s": rate})]

    found = published.beside(cells(64, 2_000.0) + cells(100, 2_500.0))
    points = [one for one in found if one.theirs.concurrency]
    assert {(one.ours.cell.batch, one.theirs.concurrency, one.theirs.source) for one in points} == {
        (64, 64, "TensorRT-LLM of unknown version (AIConfigurator)"),
        (64, 64, "vLLM of unknown version (AIConfigurator)"),
    }
    ours = next(one for one in points if one.theirs.source.startswith("TensorRT"))
    assert ours.theirs.output_tokens_per_s == pytest.approx(64 * 1024 / (ours.theirs.ttft_ms + ours.theirs.tpot_ms * 1023) * 1e3, rel=1e-3)
    assert ours.ratio == pytest.approx(2_000 / ours.theirs.output_tokens_per_s)
    assert any("64 requests at once" in part for part in ours.differs)
    unstated = [one for one in published.load() if not one.precision]
    assert len(unstated) == 147
    assert all("precision not stated" in one.method for one in unstated)


def test_an_implausible_figure_is_told_beside_ours() -> None:
    found = published.beside(rows(33_000.0, 2048, num_requests=8192))
    (brief,) = (one for one in found if one.theirs.implausible)
    assert (brief.theirs.gpu, brief.theirs.output_tokens_per_s) == ("A100-80GB", 12_085)
    records = [one for one in compare_text.beside_records(found) if one["implausible"]]
    assert len(records) == 1
    assert records[0]["implausible"].startswith("implausible: it implies 350 TFLOP/s where an A100 does at most 312 in bf16; likely")
    assert "implies 350 TFLOP/s" in compare_text.beside_markdown(found)


def test_boards_of_one_class_and_other_rates_are_told_apart() -> None:
    found = published.beside(rows(20_000.0, 2048, environment=Environment(gpu="NVIDIA H100 PCIe")))
    (nvidia,) = (one for one in found if one.theirs.source == "TensorRT-LLM perf-overview v0.17" and one.theirs.gpu.startswith("H100"))
    assert not nvidia.same_gpu
    assert nvidia.differs[0] == "H100 there, H100 PCIe here"


def test_a_bar_in_a_name_ends_no_cell_of_a_table() -> None:
    text = compare_text.to_markdown(compare(sets(rows(BASE, model="a|b"), rows(BASE, model="a|b"))))
    (line,) = [line for line in text.splitlines() if "128/128" in line]
    assert line.startswith("| a\\|b fp8 b64 128/128 | output_tokens_per_s")


def test_ours_that_cannot_be_is_told_beside_theirs() -> None:
    found = published.beside(rows(60_000.0, 2048, num_requests=8192))
    assert {one.doubt is not None for one in found} == {True}
    (first, *_) = compare_text.beside_records(found)
    assert first["ours_implausible"].startswith("implausible: it implies ")
    assert f"here: {first['ours_implausible']}" in compare_text.beside_markdown(found)


def test_another_engine_is_not_taken_for_ours() -> None:
    """Its runs stand beside published figures too, apart and by its name; what attention of prompts multiplies is told."""
    found = published.beside(rows(20_000.0, 2048, num_requests=8192) + rows(30_000.0, 2048, num_requests=8192, target="vllm"))
    assert {(one.ours.cell.target, one.ours_tokens_per_s) for one in found} == {("native", 20_000.0), ("vllm", 30_000.0)}
    assert {one.here for one in found} == {"8192 requests, up to 2048 running", "vllm, 8192 requests, up to 2048 running"}
    narrow = published.beside(rows(20_000.0, 2048, settings={"context_attention": "fp8"}))
    assert narrow[0].here == "all requests, up to 2048 running, attention of prompts in fp8"


def test_every_published_figure_has_a_source_and_a_method() -> None:
    assert len(published.load()) == 268 + 53 + 503
    assert all(one.source and one.method and one.output_tokens_per_s > 0 and one.tp >= 1 for one in published.load())
    assert len({one.as_row().row_id for one in published.load() if not one.measured}) > 200


def test_values_are_brief_and_never_powers_of_ten() -> None:
    assert [brief(value) for value in (24951.3, 999.94, 7.0042, 0.03912, 1e7, 0.0)] == [
        "24,951",
        "999.9",
        "7.004",
        "0.03912",
        "10,000,000",
        "0",
    ]
