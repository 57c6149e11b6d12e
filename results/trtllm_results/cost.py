"""What a token costs: dollars at a price for an hour of a GPU, and energy as tokens per joule and tokens/s per megawatt.

A price is given by whoever asks, or taken from a small table of list prices (`results/published/gpu_prices.csv`: one public page, one day,
told with each use). Prices of one GPU differ by a factor of four between providers and by the month, so no price is assumed silently. Only
the GPUs are paid for here, all hours used: egress, storage and idle hours are not in it. Power is the boards', without host and cooling.
Cost is inverse to throughput, so its interval is that of throughput, inverted.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache

from trtllm_results.compare.published import folder
from trtllm_results.errors import ResultsError
from trtllm_results.gpus import gpu_class, has_sheet_rates
from trtllm_results.record.row import Row

LIST = "list"
COST, PER_JOULE, PER_MEGAWATT = "cost_per_million_output_tokens_usd", "output_tokens_per_j", "output_tokens_per_s_per_mw"
ADDED = (COST, PER_JOULE, PER_MEGAWATT)
_SHORT = {COST: ("cost", "USD/Mtok"), PER_JOULE: ("energy", "tok/J"), PER_MEGAWATT: ("power", "tok/s/MW")}


@dataclass(frozen=True)
class ListPrice:
    """One GPU of a class for an hour, as a public page had it on a day."""

    gpu: str
    usd_per_gpu_hour: float
    as_of: str
    product: str
    page: str
    read_by: str
    """Who transcribed the page."""

    @property
    def text(self) -> str:
        return f"{self.gpu} {self.usd_per_gpu_hour:.2f} USD/h: list price as of {self.as_of}, from {self.page} ({self.product})"


@cache
def list_prices() -> dict[str, ListPrice]:
    """By GPU class."""
    with open(folder() / "gpu_prices.csv", newline="") as handle:
        prices = [
            ListPrice(line["gpu"], float(line["usd_per_gpu_hour"]), line["as_of"], line["product"], line["page"], line["read_by"])
            for line in csv.DictReader(handle)
        ]
    return {one.gpu: one for one in prices}


def listed_price(gpu: str) -> ListPrice | None:
    """Of a GPU by the name its driver gives it; None where its board is not in the list: an H100 PCIe has not the price of an H100 SXM."""
    return list_prices().get(gpu_class(gpu)) if has_sheet_rates(gpu) else None


@dataclass(frozen=True)
class Price:
    """Of an hour of one GPU: the same for all, or each GPU's list price where `usd_per_hour` is None."""

    usd_per_hour: float | None

    @classmethod
    def parse(cls, text: str) -> Price:
        """`3.49`, or `list`. Raises `ResultsError`."""
        if text.strip().lower() == LIST:
            return cls(None)
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 0 < value < float("inf"):
            raise ResultsError(f"--gpu-price-per-hour is '{text}'; give US dollars above 0 for an hour of one GPU, or {LIST}")
        return cls(value)

    def of(self, gpu: str) -> float | None:
        """None where the GPU has no list price, or there is no GPU."""
        if not gpu:
            return None
        if self.usd_per_hour is not None:
            return self.usd_per_hour
        listed = listed_price(gpu)
        return None if listed is None else listed.usd_per_gpu_hour

    def notes(self, rows: Iterable[Row]) -> list[str]:
        """Where the prices of these rows come from, one sentence per GPU."""
        rows = list(rows)
        if not any(row.environment.gpu for row in rows):
            return ["cost: no GPU took part in these results, so nothing is priced"]
        if self.usd_per_hour is not None:
            return [f"cost: {self.usd_per_hour:g} USD for an hour of one GPU, as given; the GPUs alone"]
        listed = {name: listed_price(name) for name in sorted({row.environment.gpu for row in rows if row.environment.gpu})}
        missing = "has no list price here; give --gpu-price-per-hour in USD"
        return list(dict.fromkeys(f"{name} {missing}" if price is None else price.text for name, price in listed.items()))


def check_priced(figures: Iterable[str], price: Price | None) -> None:
    """Raises `ResultsError` where a cost is asked for and no price is given."""
    if price is None and COST in figures:
        raise ResultsError(f"{COST} needs a price; add --gpu-price-per-hour, in USD or {LIST}")


def cost_per_million(usd_per_hour: float, gpus: int, output_tokens_per_s: float) -> float:
    """US dollars for a million output tokens."""
    return usd_per_hour * gpus / 3600 / output_tokens_per_s * 1e6


def priced(row: Row, price: Price | None) -> Row:
    """The row with cost (where a price is known) and tokens per energy (where energy was measured)."""
    figures = dict(row.figures)
    rate, each = figures.get("output_tokens_per_s", 0.0), figures.get("energy_per_output_token_j", 0.0)
    hour = None if price is None else price.of(row.environment.gpu)
    if hour is not None and rate > 0:
        figures[COST] = cost_per_million(hour, row.cell.gpus, rate)
    if each > 0:
        figures[PER_JOULE] = 1 / each
        figures[PER_MEGAWATT] = 1e6 / each
    return replace(row, figures=figures, stored_key=row.key)


def short(figure: str) -> str:
    """The heading of a column."""
    return _SHORT[figure][0]


def short_unit(figure: str) -> str:
    return _SHORT[figure][1]


def places(figure: str) -> int:
    """Digits behind the point in a column."""
    return {COST: 4, PER_JOULE: 2}.get(figure, 0)
