"""Cost and tokens per energy: the arithmetic, the price list and its source, the interval, and the columns of the commands."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest

from trtllm_bench.__main__ import main
from trtllm_dashboards.points import points
from trtllm_results.cost import COST, PER_JOULE, PER_MEGAWATT, Price, cost_per_million, list_prices, priced
from trtllm_results.errors import ResultsError
from trtllm_results.gpus import SHEETS
from trtllm_results.record.cell import Cell
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import INTERVAL, PREDICTED, Row
from trtllm_results.store.table import Store


def row(rate: float, repeat: int = 0, gpu: str = "NVIDIA H100 80GB HBM3", tp: int = 1, precision: str = "fp8") -> Row:
    figures = {"output_tokens_per_s": rate, "energy_per_output_token_j": 0.02, "output_tokens_per_s_per_user": 50.0}
    figures["output_tokens_per_s_per_gpu"] = rate / tp
    return Row(Cell("llama-3.1-8b", precision, 64, 128, 128, tp=tp), Environment(gpu=gpu), repeat=repeat, figures=figures)


def test_cost_and_tokens_per_energy() -> None:
    assert cost_per_million(3.6, 1, 1000.0) == pytest.approx(1.0), "3.6 USD/h are 0.001 USD/s, in which a thousand tokens are made"
    one = priced(row(1000.0, tp=2), Price(3.6))
    assert one.figures[COST] == pytest.approx(2.0)
    assert one.figures[PER_JOULE] == pytest.approx(50.0)
    assert one.figures[PER_MEGAWATT] == pytest.approx(50e6), "of a megawatt, 50 tokens a joule are 50 million tokens a second"
    assert one.key == row(1000.0, tp=2).key
    assert COST not in priced(row(1000.0), None).figures
    assert COST not in priced(row(1000.0, gpu=""), Price(3.6)).figures


def test_the_list_says_where_it_is_from() -> None:
    prices = list_prices()
    assert {"H100", "H200"} <= set(prices) <= {name.upper() for name in SHEETS}, "by the names of classes"
    assert all(one.as_of == "2026-09-25" and one.page.startswith("https://") and one.read_by for one in prices.values())
    listed = Price.parse("list")
    assert listed.of("NVIDIA H200") == 4.59
    assert listed.of("NVIDIA GeForce GTX 1080") is None
    assert listed.of("NVIDIA H100 PCIe") is None, "the list has the SXM board"
    assert listed.of("NVIDIA A100-SXM4-80GB MIG 3g.40gb") is None, "and whole ones"
    assert Price(2.0).notes([row(1.0, gpu="")]) == ["cost: no GPU took part in these results, so nothing is priced"]
    assert listed.notes([row(1.0), row(1.0, gpu="Tesla V100")]) == [
        "H100 3.49 USD/h: list price as of 2026-09-25, from https://www.runpod.io/pricing (H100 SXM 80 GB, Secure Cloud, on demand)",
        "Tesla V100 has no list price here; give --gpu-price-per-hour in USD",
    ]


@pytest.mark.parametrize("text", ["0", "-1", "free", "nan", "inf", ""])
def test_a_price_is_a_number_above_zero_or_the_list(text: str) -> None:
    with pytest.raises(ResultsError, match="give US dollars above 0 for an hour of one GPU, or list"):
        Price.parse(text)


def test_commands_show_cost_with_the_interval_of_throughput(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    store = Store(tmp_path / "a")
    for index, rate in enumerate((990.0, 1000.0, 1010.0)):
        store.append(row(rate, index))
    assert main(["results", "show", str(tmp_path / "a"), "--gpu-price-per-hour", "3.6"]) == 0
    half = 4.302653 * 10 / 3**0.5
    said = capsys.readouterr().out
    assert f"1.0000 USD per million output tokens (95% interval {1000 / (1000 + half):.4f} to {1000 / (1000 - half):.4f})" in said
    assert "cost: 3.6 USD for an hour of one GPU, as given; the GPUs alone" in said
    assert main(["results", "ls", str(tmp_path / "a"), "--gpu-price-per-hour", "list"]) == 0
    said = capsys.readouterr().out
    assert "USD/Mtok" in said
    assert "0.9792" in said, "990 tokens/s at 3.49 USD/h"
    assert main(["results", "ls", str(tmp_path / "a"), "--gpu-price-per-hour", "nothing"]) == 3
    assert "--gpu-price-per-hour is 'nothing'" in capsys.readouterr().err
    assert main(["results", "show", str(tmp_path / "a"), "--gpu-price-per-hour", ""]) == 3
    assert "--gpu-price-per-hour is empty" in capsys.readouterr().err, "a script's unset variable"


def test_the_interval_of_a_cost_is_that_of_throughput_inverted() -> None:
    (measured,) = points([priced(row(rate, index), Price(3.6)) for index, rate in enumerate((900.0, 1000.0, 1100.0))])
    rate, cost = measured.get("output_tokens_per_s"), measured.get(COST)
    assert rate is not None
    assert cost is not None
    assert (cost.mean, cost.low, cost.high, cost.n) == pytest.approx((1.0, 1000 / rate.high, 1000 / rate.low, 3))
    cell = replace(row(1000.0).cell, target=PREDICTED)
    (predicted,) = points([priced(replace(row(1000.0), cell=cell, extra={INTERVAL: {"low": 800.0, "high": 1250.0}}), Price(3.6))])
    cost = predicted.get(COST)
    assert cost is not None
    assert (cost.mean, cost.low, cost.high, cost.n) == pytest.approx((1.0, 0.8, 1.25, 0))


def test_where_the_interval_of_throughput_reaches_0_cost_has_no_upper_end(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    store = Store(tmp_path / "a")
    for index, rate in enumerate((10.0, 1000.0, 1990.0)):
        store.append(row(rate, index))
    assert main(["results", "show", str(tmp_path / "a"), "--gpu-price-per-hour", "3.6"]) == 0
    assert "upwards, since that of throughput reaches 0)" in capsys.readouterr().out
    assert main(["plot", "cost", str(tmp_path / "a"), "--gpu-price-per-hour", "3.6", "--out", str(tmp_path / "cost.png")]) == 0


def test_compare_judges_cost_as_the_inverse_of_throughput(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name, scale in (("a", 1.0), ("b", 2.0)):
        store = Store(tmp_path / name)
        for index, rate in enumerate((990.0, 1000.0, 1010.0)):
            store.append(row(scale * rate, index))
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--gpu-price-per-hour", "3.6", "--format", "csv"]) == 0
    rows = {one["figure"]: one for one in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    assert set(rows) == {"output_tokens_per_s", COST, PER_JOULE, PER_MEGAWATT}
    rate, cost = rows["output_tokens_per_s"], rows[COST]
    assert float(cost["change"]) == pytest.approx(-0.5)
    assert 1 + float(cost["high"]) == pytest.approx(1 / (1 + float(rate["low"])))
    assert 1 + float(cost["low"]) == pytest.approx(1 / (1 + float(rate["high"])))
    assert (rate["verdict"], cost["unit"]) == ("faster", "USD")
    assert main(["compare", str(tmp_path / "a"), "--pareto", "--gpu-price-per-hour", "3.6", "--format", "csv"]) == 0
    (front,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert float(front[COST]) == pytest.approx(1.0), "of the mean throughput, not the mean of three costs"
