"""Speed-up by precision: matched across stores, the best against the best, and no verdict without repeats."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from trtllm_dashboards import looks
from trtllm_dashboards.points import load_axis, points
from trtllm_dashboards.precisions import pairs, values
from trtllm_dashboards.sources import load
from trtllm_results.record.row import Row

RECORDED = Path(__file__).parents[2] / "results" / "recorded" / "h100"


def test_recorded_precisions_are_matched_across_their_two_stores() -> None:
    best, matched = pairs(points(load([str(RECORDED)]).sets))
    assert (matched.point.cell.label, matched.base.cell.label) == ("llama-3.1-8b fp8 b512 2048/128", "llama-3.1-8b bf16 b512 2048/128")
    assert (matched.repeats, matched.verdict, matched.low, matched.best) == ((3, 1), "inconclusive", None, True)
    assert (best.point.cell.batch, best.base.cell.batch, best.best, best.verdict) == (2048, 1024, True, "faster")
    logs = [np.log(values(one)) for one in (best.point, best.base)]
    interval = stats.ttest_ind(*logs, equal_var=False).confidence_interval(0.95)
    assert (best.low, best.high) == pytest.approx((math.exp(interval.low), math.exp(interval.high)))


def test_a_difference_within_the_noise_is_inconclusive(make_rows: Callable[..., list[Row]], make_grid: Callable[..., Any]) -> None:
    cells = make_grid(precisions=("bf16",), shapes=((128, 128),), batches=(8,))
    rows = make_rows([*cells, dataclasses.replace(cells[0], precision="fp8")])
    speeds = (100.0, 102.0, 98.0, 103.0, 101.0, 104.0)
    rows = [dataclasses.replace(row, figures={"output_tokens_per_s": speed}) for row, speed in zip(rows, speeds, strict=True)]
    (pair,) = pairs(points(rows))
    assert pair.ratio == pytest.approx(1.0267, abs=1e-3)
    assert pair.verdict == "inconclusive"


def test_the_best_are_compared_at_one_layout(make_rows: Callable[..., list[Row]], make_grid: Callable[..., Any]) -> None:
    rows = make_rows(make_grid(precisions=("fp8", "bf16"), shapes=((128, 128),), batches=(8, 64), tps=(1, 2)))
    found = pairs(points(rows))
    assert len(found) == 4
    assert all(one.point.cell.tp == one.base.cell.tp for one in found)
    assert [(one.point.cell.batch, one.point.cell.tp) for one in found if one.best] == [(64, 1), (64, 2)]


def test_precisions_have_looks_of_their_own_at_three_to_one() -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colours, paper in ((looks.LIGHT, "#ffffff"), (looks.DARK, "#161b22")):
        for colour in colours:
            low, high = sorted((luminance(colour), luminance(paper)))
            assert (high + 0.05) / (low + 0.05) >= 3
    assert len({looks.place(name, 0) for name in looks.PRECISIONS}) == len(looks.PRECISIONS) < len(looks.SYMBOLS) == len(looks.LIGHT)


def test_the_load_axis_is_named_for_its_loop(make_rows: Callable[..., list[Row]], make_grid: Callable[..., Any]) -> None:
    closed = points(make_rows(make_grid(precisions=("fp8",), shapes=((128, 128),), batches=(8,))))
    opened = [dataclasses.replace(one, cell=dataclasses.replace(one.cell, request_rate=4.0)) for one in closed]
    assert load_axis(closed) == "batch size (sequences in flight)"
    assert load_axis(opened) == "request rate (req/s)"
