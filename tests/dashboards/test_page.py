"""The dashboard in a real headless Chromium: it renders, is silent on console and network, filters, drills down, follows a live
sweep, and is quick with 5,000 cells. What browser it needs is said in `browser.py`.
"""

from __future__ import annotations

import asyncio
import json
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browser import Browser

from trtllm_dashboards.html import page, render
from trtllm_dashboards.html.payload import build
from trtllm_dashboards.html.serve import Watch, listening
from trtllm_results.record.row import Row
from trtllm_results.store.layout import PROGRESS
from trtllm_results.store.lock import RUN_LOCK, locked
from trtllm_results.store.table import Store

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, sweep_rows: list[Row]) -> Path:
    """A page of 55 cells, written from a store on disk as a user would."""
    folder = tmp_path_factory.mktemp("report")
    Store(folder / "sweep").append(*sweep_rows)
    return render(folder / "sweep", folder / "page.html")


def test_page_renders_without_console_error_or_network_request(browser: Browser, report: Path) -> None:
    browser.open(report.as_uri())
    for y in range(0, 4000, 400):
        browser.js(f"scrollTo(0, {y})")
        time.sleep(0.15)
    assert browser.js("document.querySelectorAll('#charts .chart:not([hidden])').length") == 8
    browser.until("[...document.querySelectorAll('#charts .chart:not([hidden])')].every((chart) => chart.querySelector('.main-svg'))")
    assert browser.errors == []
    assert [url for url in browser.requests if not url.startswith(("data:", "blob:"))] == [report.as_uri()]
    assert browser.js("document.querySelector('#headline').textContent").startswith("Fastest: ")


def test_the_page_forbids_every_outside_request(browser: Browser, report: Path) -> None:
    browser.open(report.as_uri())
    assert browser.js("fetch('https://example.com/').then(() => 'sent', () => 'refused')") == "refused"
    image = "const i = new Image(); i.onerror = () => r('refused'); i.onload = () => r('sent'); i.src = 'https://example.com/x.png';"
    assert browser.js(f"new Promise((r) => {{ {image} }})") == "refused"
    assert all("Content Security Policy" in error for error in browser.errors)


def test_summary_and_table_show_the_numbers_of_the_rows(browser: Browser, report: Path, sweep_rows: list[Row]) -> None:
    browser.open(report.as_uri())
    by_cell: dict[str, list[float]] = {}
    for row in sweep_rows:
        if row.status == "ok":
            by_cell.setdefault(row.key, []).append(row.figures["output_tokens_per_s"])
    top = max(sum(v) / len(v) for v in by_cell.values())
    column = browser.js("[...document.querySelectorAll('#table thead th')].findIndex((h) => h.textContent.startsWith('output'))")
    shown = browser.js(f"document.querySelector('#table tbody tr').cells[{column}].textContent")
    assert float(shown.split(" ±")[0].replace(",", "")) == pytest.approx(top, rel=1e-4)
    assert "1 of 55 cells did not finish" in browser.js("document.querySelector('#headline').textContent")


def search(browser: Browser, text: str) -> None:
    browser.js(f"(() => {{ const box = document.getElementById('find'); box.value = {text!r}; box.dispatchEvent(new Event('input')); }})()")


def test_filters_change_what_every_part_shows(browser: Browser, report: Path) -> None:
    browser.open(report.as_uri())
    assert browser.js("document.querySelector('#counted').textContent") == "55 of 55 cells"
    before = browser.js("document.querySelector('#tiles').textContent")
    choose = 'document.querySelector(\'details[data-name="{}"] input[value="{}"]\').click()'
    browser.js(choose.format("precision", "fp8"))
    assert browser.js("document.querySelector('#counted').textContent") == "37 of 55 cells"
    assert browser.js("[...document.querySelectorAll('#table tbody tr')].every((r) => !r.textContent.includes('fp8'))")
    assert browser.js("document.querySelector('#tiles').textContent") != before
    browser.until("tracesOf(CHARTS[0]).map((t) => t.name).join() === 'bf16,int8'", 10)
    search(browser, "2048/128 batch 64")
    assert browser.js("document.querySelector('#counted').textContent") == "2 of 55 cells"
    browser.js("document.querySelector('#reset').click()")
    assert browser.js("document.querySelector('#counted').textContent") == "55 of 55 cells"
    assert browser.errors == []


def test_no_cell_left_is_said_and_not_an_error(browser: Browser, report: Path) -> None:
    browser.open(report.as_uri())
    search(browser, "nothing like this")
    assert "No cell passes" in browser.js("document.querySelector('#headline').textContent")
    assert browser.errors == []


def test_sorting_turns_around_and_pages_follow(browser: Browser, report: Path) -> None:
    browser.open(report.as_uri())
    column = "[...document.querySelectorAll('#table thead th')].findIndex((h) => h.textContent.startsWith('batch'))"
    browser.js(f"document.querySelectorAll('#table thead th button')[{column}].click()")
    first = browser.js(f"document.querySelector('#table tbody tr').cells[{column}].textContent")
    browser.js(f"document.querySelectorAll('#table thead th button')[{column}].click()")
    assert (first, browser.js(f"document.querySelector('#table tbody tr').cells[{column}].textContent")) == ("4,096", "1")
    assert browser.js("document.querySelectorAll('#table tbody tr').length") == 50
    browser.js("document.querySelector('#next').click()")
    assert browser.js("document.querySelectorAll('#table tbody tr').length") == 5


def test_a_cell_opens_to_its_percentiles_environment_and_command(browser: Browser, report: Path) -> None:
    browser.open(report.as_uri())
    browser.js("document.querySelector('#table tbody tr').click()")
    assert browser.js("document.querySelector('#detail').open")
    assert (
        browser.js("[...document.querySelectorAll('#percentiles tbody tr')].map((r) => r.cells[0].textContent).join()")
        == "TTFT,TPOT,ITL,E2E"
    )
    text = browser.js("document.querySelector('#detail').textContent")
    for wanted in (
        "trtllm-bench throughput --model synthetic-8b --precision fp8",
        "580.65.06",
        "95% t interval",
        "output tokens of completed requests",
    ):
        assert wanted in text
    assert browser.js("location.hash").startswith("#cell=")
    browser.until("document.querySelectorAll('#detail-plot .main-svg').length > 0")
    assert browser.errors == []


def test_a_failed_cell_says_why(browser: Browser, report: Path) -> None:
    browser.open(report.as_uri())
    browser.js("openDetail([...Array(state.data.n).keys()].find((i) => !ok(i)))")
    assert "oom: out of memory at 4096 sequences" in browser.js("document.querySelector('#detail').textContent")


def test_a_link_to_a_cell_opens_it(browser: Browser, report: Path, sweep_rows: list[Row]) -> None:
    browser.open(f"{report.as_uri()}#cell={sweep_rows[0].key}")
    browser.until("document.querySelector('#detail').open", 5)
    assert "batch 1" in browser.js("document.querySelector('#detail-h').textContent")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_the_width_in_both_themes(browser: Browser, report: Path, width: int, scheme: str) -> None:
    browser.open(report.as_uri(), width=width, scheme=scheme)
    assert browser.js("document.documentElement.scrollWidth") <= width
    dark = browser.js("getComputedStyle(document.body).backgroundColor") == "rgb(14, 17, 22)"
    assert dark == (scheme == "dark")
    browser.js("openDetail(0)")
    assert browser.js("document.querySelector('#detail').getBoundingClientRect().right") <= width


def test_the_theme_button_overrides_the_system(browser: Browser, report: Path) -> None:
    browser.open(report.as_uri(), scheme="light")
    browser.js("document.querySelector('#theme').click(); document.querySelector('#theme').click()")
    assert browser.js("document.documentElement.dataset.theme") == "dark"
    browser.js("document.querySelector('#theme').click()")
    assert browser.js("document.documentElement.dataset.theme") == "light"


def test_text_from_results_cannot_become_markup(
    browser: Browser, tmp_path: Path, make_rows: Callable[..., list[Row]], make_grid: Callable[..., Any]
) -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    rows = make_rows(make_grid(models=(evil, "plain"), shapes=((128, 128),)))
    (tmp_path / "page.html").write_text(page(build({evil: rows}, evil)))
    browser.open((tmp_path / "page.html").as_uri())
    browser.js("document.querySelector('#charts').scrollIntoView()")
    browser.until("document.querySelector('.chart .main-svg') !== null")
    browser.js("openDetail(0)")
    assert browser.js("document.querySelectorAll('img').length") == 0
    assert evil in browser.js("document.querySelector('#detail-h').textContent")
    assert browser.errors == []


def test_a_live_page_shows_cells_as_they_are_measured(browser: Browser, tmp_path: Path, sweep_rows: list[Row]) -> None:
    store = Store(tmp_path / "sweep")
    told = {"state": "running", "done": 0, "total": 30, "now": "fp8 b1 128/128 #1", "requests": 8, "left_s": None, "at": time.time()}
    store.write(PROGRESS, lambda handle: handle.write(json.dumps(told).encode()))
    started: queue.Queue[tuple[asyncio.AbstractEventLoop, asyncio.Event, str]] = queue.Queue()

    async def run() -> None:
        stop = asyncio.Event()
        async with listening(Watch([str(store.path)], title="live"), poll_s=0.05) as address:
            started.put((asyncio.get_running_loop(), stop, address))
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    loop, stop, address = started.get(timeout=20)
    try:
        with locked(store.path, RUN_LOCK, 0.0, "being measured into"):
            browser.open(address)
            running = browser.js("document.querySelector('#progress').textContent")
            assert "0 of 30 measurements done, time left not known yet. Now: fp8 b1 128/128 #1, 8 requests." in running
            assert browser.js("document.querySelector('#headline').textContent") == "No cell has been measured yet."
            assert "all fine" not in browser.js("document.querySelector('main').textContent")
            store.append(*sweep_rows[:3])
            store.write(PROGRESS, lambda handle: handle.write(json.dumps(told | {"done": 3, "left_s": 90}).encode()))
            browser.until("document.querySelector('#progress').textContent.includes('about 1 min')", 15)
            assert "none failed so far" in browser.js("document.querySelector('#tiles').textContent")
        assert browser.js("document.querySelector('#counted').textContent") == "1 of 1 cells"
        browser.js("openDetail(0)")
        store.append(*sweep_rows[3:30])
        browser.until("document.querySelector('#counted').textContent === '10 of 10 cells'", 15)
        browser.until("document.querySelectorAll('.chart .point').length > 0", 15)
        store.write(PROGRESS, lambda handle: handle.write(json.dumps(told | {"done": 30, "state": "ended"}).encode()))
        browser.until("document.querySelector('#progress').textContent.includes('Sweep ended: 30 of 30')", 15)
        assert browser.js("document.querySelector('#live').textContent") == "live"
        assert browser.js("document.querySelector('#detail').open")
        assert {url.split("/")[2] for url in browser.requests if url.startswith("http")} == {address.split("/")[2]}
        assert browser.errors == []
    finally:
        browser.call("Page.navigate", url="about:blank")
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
    assert not thread.is_alive()


def test_five_thousand_cells_are_ready_within_a_second_and_a_half_of_processor_time(
    browser: Browser, tmp_path: Path, make_rows: Callable[..., list[Row]], make_grid: Callable[..., Any]
) -> None:
    shapes = [(i, o) for i in (128, 256, 512, 1024, 2048, 4096) for o in (128, 512, 1024, 2048)] + [(8192, 128)]
    batches = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    cells = make_grid(
        models=("synthetic-8b", "synthetic-70b"), precisions=("fp8", "bf16", "int8", "int4"), batches=batches, shapes=shapes, tps=(1, 2, 4)
    )
    rows = make_rows(cells[:5000], repeats=1)
    assert len(rows) == 5000
    path = tmp_path / "page.html"
    path.write_text(page(build({"": rows}, "five thousand")))
    assert path.stat().st_size < 3e6
    before = browser.cpu_s()
    browser.open(path.as_uri())
    ready = browser.cpu_s() - before
    assert browser.js("document.querySelector('#counted').textContent") == "5,000 of 5,000 cells"
    drawn = "[...cards.values()].filter((c) => c.plot.plotSpec).map((c) => new Set(c.plot.plotSpec.series.map((s) => s.look.color)).size)"
    assert max(browser.js(drawn)) == 8
    assert browser.js("allSeries.length") > 8
    assert browser.js("state.series.size") == 8
    assert browser.errors == []
    before = browser.cpu_s()
    browser.js("document.querySelector('details[data-name=precision] input[value=fp8]').click()")
    assert browser.js("document.querySelector('#counted').textContent") == "3,500 of 5,000 cells"
    answered = browser.cpu_s() - before
    print(f"processor time: {ready:.2f} s until the charts are ready, {answered:.3f} s for a filter")
    assert ready < 1.5
    assert answered < 0.5
