"""Figures of accuracy: intervals over windows, changes in pairs, and the table of quality beside speed."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from trtllm_dashboards.quality import interval, print_quality, quality_markdown
from trtllm_results.compare.quality import beside_speed, front
from trtllm_results.metrics.quality import WindowSums, task_figures, text_figures
from trtllm_results.metrics.registry import QUALITY
from trtllm_results.record.cell import Cell
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Row
from trtllm_results.stats import block_interval, share_interval


@pytest.mark.parametrize("blocks", [40, 8, 3, 2])
def test_an_interval_over_blocks_covers_the_truth_as_often_as_it_says(blocks: int) -> None:
    """Values of a block depend on each other; 95% intervals over the blocks hold the true mean in 90 to 99% of 200 trials."""
    generator = np.random.default_rng(4)
    counts = generator.integers(20, 30, blocks)
    held = 0
    for _ in range(200):
        sums = (generator.normal(1.0, 0.5, blocks) + generator.normal(0, 1, (blocks, 25)).mean(1)) * counts
        found = block_interval(sums, counts)
        held += found.low <= 1.0 <= found.high
    assert 180 <= held <= 198
    assert block_interval(sums, counts) == block_interval(sums, counts)
    assert math.isnan(block_interval([3.0], [2]).low)


def test_intervals_of_shares_and_divergences_stay_where_those_can_be() -> None:
    found = text_figures(WindowSums(np.full(2, 9.0), np.full(2, 9.0), np.array([0.0, 9.0]), np.array([0.0, 9.0])))
    assert (found["kl_divergence_low"], found["top1_agreement_low"], found["top1_agreement_high"]) == (0, 0, 1)


def test_a_share_has_wilsons_interval() -> None:
    """Of 8 in 10: 0.4902 and 0.9433 (Newcombe 1998 gives such tables; scipy's `proportion_ci` the same numbers)."""
    found = share_interval(8, 10)
    assert (found.low, found.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert share_interval(10, 10).high == pytest.approx(1)
    assert 0.7 < share_interval(10, 10).low < 0.75


def test_a_change_in_pairs_is_known_better_than_either_perplexity() -> None:
    generator = np.random.default_rng(5)
    tokens = np.full(30, 100.0)
    wide = generator.normal(2.5, 0.6, 30) * tokens
    narrow = wide + generator.normal(0.02, 0.01, 30) * tokens
    found = text_figures(WindowSums(tokens, narrow, tokens * 0.03, tokens * 0.9, wide))
    assert found.keys() <= QUALITY.keys()
    assert found["perplexity"] == pytest.approx(math.exp(narrow.sum() / 3000))
    assert found["perplexity_change"] == pytest.approx(math.exp((narrow.sum() - wide.sum()) / 3000) - 1)
    assert found["perplexity_change_low"] < 0.02 < found["perplexity_change_high"]
    own = found["perplexity_high"] / found["perplexity_low"] - 1
    assert found["perplexity_change_high"] - found["perplexity_change_low"] < own / 20
    assert (found["kl_divergence"], found["top1_agreement"], found["accuracy_tokens"]) == (pytest.approx(0.03), pytest.approx(0.9), 3000)
    alone = text_figures(WindowSums(tokens[:1], wide[:1]))
    assert set(alone) == {"perplexity", "accuracy_tokens"}, "one window has no interval, and no reference no change"
    assert set(text_figures(WindowSums(tokens, 800 * tokens))) == {"accuracy_tokens"}, "beyond the largest number"
    assert task_figures(8, 10)["task_accuracy"] == 0.8


def row(precision: str, speed: float, batch: int = 8, repeat: int = 0, **figures: float) -> Row:
    cell = Cell("m", precision, batch, 128, 128, engine_fingerprint=precision)
    extra = {"accuracy": {"text": "t.txt", "length": 256}}
    return Row(cell, Environment(cpu="x"), repeat=repeat, figures={"output_tokens_per_s": speed, **figures}, extra=extra)


WIDE = {"perplexity": 10.0, "accuracy_tokens": 4096.0}
FP8 = {**WIDE, "perplexity": 10.1, "perplexity_change": 0.01, "perplexity_change_low": 0.004, "perplexity_change_high": 0.016}
INT4 = {**WIDE, "perplexity": 12.0, "perplexity_change": 0.2, "perplexity_change_low": 0.18, "perplexity_change_high": 0.22}
SLOW = {**WIDE, "perplexity": 13.0, "perplexity_change": 0.3}


def test_speed_and_quality_stand_side_by_side_with_the_front() -> None:
    rows = [row("bf16", 100, **WIDE), row("fp8", 180, **FP8), row("fp8", 200, repeat=1, **FP8), row("int4", 300, **INT4)]
    rows += [row("nf4", 150, **SLOW), row("bf16", 500, batch=64, **WIDE), row("fp32", 1.0)]
    lines = beside_speed(rows)
    assert [(line.row.cell.precision, line.row.cell.batch, line.speedup, line.on_front) for line in lines] == [
        ("bf16", 8, 1.0, True),
        ("fp8", 8, 1.9, True),
        ("int4", 8, 3.0, True),
        ("nf4", 8, 1.5, False),
        ("bf16", 64, 1.0, True),
    ]
    assert lines[1].record()["perplexity_change"] == 0.01
    stream = io.StringIO()
    print_quality(lines, Console(file=stream, width=80))
    text = stream.getvalue()
    assert "+1.00 ±0.60" in text
    assert "4,096 tokens of t.txt" in " ".join(text.split())
    assert max(map(len, text.splitlines()[:-1])) <= 80
    assert interval({"x": 0.5}, "x", 100, 1) == "50.0"
    assert interval({}, "x", 100, 1) == ""


def test_the_front_has_what_nothing_beats_in_both() -> None:
    assert front([(1, 1), (2, 2), (2, 3), (0.5, 1), (3, 3)]) == [True, True, False, False, True]
    assert front([(1, 1), (1, 1)]) == [True, True]


def test_engines_on_two_devices_are_no_repeats_of_each_other_and_no_alternatives() -> None:
    """An H100 and an H200 run the same engine (one fingerprint): their mean is no speed of either. A second version counts alone."""
    here = [row("bf16", 1000.0, **WIDE), row("fp8", 1800.0, **FP8)]
    there = [
        replace(one, environment=Environment(gpu="NVIDIA H200"), figures={**one.figures, "output_tokens_per_s": 5000.0}) for one in here
    ]
    later = [
        replace(one, environment=Environment(cpu="x", driver="2"), started_at="9", figures={**WIDE, "output_tokens_per_s": 2000.0})
        for one in here[:1]
    ]
    lines = beside_speed([*here, *there, *later])
    assert [(line.row.environment.device, line.row.cell.precision, line.output_tokens_per_s, line.speedup) for line in lines] == [
        ("x", "bf16", 2000.0, 1.0),
        ("x", "fp8", 1800.0, 0.9),
        ("NVIDIA H200", "bf16", 5000.0, 1.0),
        ("NVIDIA H200", "fp8", 5000.0, 1.0),
    ]
    assert [line.on_front for line in lines] == [True, False, True, False]
    stream = io.StringIO()
    print_quality(lines, Console(file=stream, width=80))
    assert [line for line in stream.getvalue().splitlines() if line.startswith("accuracy")] == [
        "accuracy beside speed on x: m b8 128/128",
        "accuracy beside speed on H200: m b8 128/128",
    ]


def test_perplexities_of_two_texts_are_not_set_against_each_other() -> None:
    other = replace(row("int4", 3000.0, **INT4), extra={"accuracy": {"text": "u.txt", "length": 256}})
    lines = beside_speed([row("fp8", 1800.0, **FP8), other])
    assert [line.on_front for line in lines] == [True, True]
    assert "4,096 tokens of t.txt" in quality_markdown(lines)
    assert "4,096 tokens of u.txt" in quality_markdown(lines)
