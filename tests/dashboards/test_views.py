"""The pages of what was recorded: a gate's verdict, limits in the address, one number for one cell, the keyboard, and axe-core."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser import Browser

from trtllm_dashboards import profile_page
from trtllm_dashboards.html import contents, page, render
from trtllm_dashboards.html.payload import build
from trtllm_dashboards.points import points
from trtllm_dashboards.sources import load
from trtllm_results.compare.align import compare
from trtllm_results.compare.published import beside
from trtllm_results.cost import COST, Price, priced
from trtllm_results.metrics.registry import brief
from trtllm_results.record.row import Row
from trtllm_results.store.selection import ResultSet
from trtllm_results.store.table import Store, read_rows

pytestmark = pytest.mark.browser
RECORDED = Path(__file__).parents[2] / "results" / "recorded" / "h100"
PROFILE_READY = "document.readyState === 'complete'"
RATE = "output_tokens_per_s"


@pytest.fixture(scope="module")
def h100(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the recorded H100 results, with their profiles; of a copy, since profiles' pages are written beside them."""
    folder = tmp_path_factory.mktemp("recorded") / "h100"
    for path in RECORDED.iterdir():
        if path.is_dir() and path.name != "gate":
            shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("*.html", "trace.json.gz"))
    return render(folder, folder.parent / "page.html", title="h100")


def text(browser: Browser, selector: str) -> str:
    return str(browser.js(f"document.querySelector({json.dumps(selector)}).textContent"))


def test_one_cell_has_one_number_everywhere(browser: Browser, h100: Path) -> None:
    browser.open(h100.as_uri())
    rows = [row for rows in load([str(RECORDED)]).sets.values() for row in rows]
    ours = {one.ours.key: one.ours_tokens_per_s for one in beside(rows)}
    for point in points(load([str(RECORDED)]).sets):
        rate = point.get(RATE)
        assert rate is not None
        half = (rate.high - rate.low) / 2 if rate.n > 1 else None
        said = brief(rate.mean) if half is None else f"{brief(rate.mean)} ± {brief(float(f'{half:.2g}'))}"
        shown = browser.js(f"((i) => [withError(i, '{RATE}'), pointOf(i, 'load', '{RATE}').text])(state.data.keys.indexOf('{point.key}'))")
        assert shown[0] == said
        assert f"output throughput {said} tok/s" in shown[1]
        if point.key in ours:
            assert brief(ours[point.key]) == brief(rate.mean)
        own = ResultSet("own", tuple(row for row in rows if row.key == point.key))
        assert compare([own, replace(own, name="again")]).changes[0].base_value == pytest.approx(rate.mean)
    browser.js("openDetail(state.data.keys.indexOf('81b71deda436825a'))")
    places = ["#headline", "#tiles .tile", "#table tbody tr", "#detail", "#precisions tbody tr"]
    assert all("34,111 ± 160" in text(browser, place) for place in places)
    published = "[...document.querySelectorAll('#published tbody tr')].filter((r) => r.textContent.includes('llama-3.1-8b fp8 128/128'))"
    assert set(browser.js(f"{published}.map((r) => r.cells[2].textContent)")) == {"34,111 ± 160"}
    assert "GPT" not in text(browser, "#headline")


def test_every_chart_has_distinct_ticks_apart_from_titles_and_units(browser: Browser, h100: Path) -> None:
    browser.open(h100.as_uri())
    faults = browser.js("""(() => {
        const faults = [];
        const cases = [...document.querySelectorAll('#case option')].map((o) => o.value);
        for (const name of cases) {
            state.case = name; state.series = null; staleCharts();
            for (const node of document.querySelectorAll('#charts .chart:not([hidden]) .plot, #front')) {
                drawPlot(node);
                const label = `${name}: ${node.plotSpec.label}`;
                for (const kind of ['xtick', 'ytick']) {
                    const ticks = [...node.querySelectorAll(`.${kind}`)], texts = ticks.map((t) => t.textContent);
                    if (new Set(texts).size < texts.length) faults.push(`${label}: ${kind} twice in ${texts}`);
                    if (texts.length < 1) faults.push(`${label}: no ${kind}`);
                }
                for (const title of node.querySelectorAll('.xtitle:last-of-type, .ytitle')) {
                    if (!node.plotSpec.x.categories && !/\\(.+\\)/.test(title.parentElement.textContent)) faults.push(`${label}: no unit`);
                }
                const boxes = [...node.querySelectorAll('.axis text')].map((t) => [t.textContent, t.getBBox()]);
                const before = (p, q) => p.x + p.width <= q.x || p.y + p.height <= q.y + 2;
                for (const [i, [a, p]] of boxes.entries()) {
                    for (const [b, q] of boxes.slice(i + 1)) if (!before(p, q) && !before(q, p)) faults.push(`${label}: '${a}' on '${b}'`);
                }
            }
        }
        if (/\\d[eE][+-]\\d/.test(document.body.innerText)) faults.push('a power of ten');
        for (const head of document.querySelectorAll('#table th.num')) {
            const counted = ['GPUs', 'requests', 'repeats'].includes(head.textContent);
            if (!counted && !head.querySelector('.unit')) faults.push(`no unit: ${head.textContent}`);
        }
        const open = caseRows.some((i) => num(i, 'request_rate')), closed = caseRows.some((i) => !num(i, 'request_rate'));
        if (open && closed) faults.push('a case of both loops');
        return faults;
    })()""")
    assert faults == []
    browser.js("state.case = [...document.querySelectorAll('#case option')].find((o) => o.value.includes('1000/200')).value; staleCharts()")
    assert browser.js("loadTitle()") == "request rate (req/s)"


def test_a_failed_gate_looks_failed_and_its_runs_are_drawn(browser: Browser, tmp_path: Path) -> None:
    said = json.loads((RECORDED / "gate" / "ab.json").read_text())
    browser.open(render(RECORDED / "gate" / "ab", tmp_path / "page.html").as_uri())
    assert text(browser, "#headline").startswith("FAIL: output (-2.6%)")
    assert "all fine" not in text(browser, "body > main")
    gate = browser.js("state.data.gates[0]")
    for finding, own in zip(said["findings"], gate["findings"], strict=True):
        assert {name: pytest.approx(value) if isinstance(value, float) else value for name, value in finding.items()} == {
            name: own[name] for name in finding
        }
    assert browser.js("document.querySelectorAll('.gate .plot:first-child .point').length") == 20
    assert "No kernel is named" in text(browser, ".gate")
    assert browser.js("state.data.dimensions.arm.names") == ["A, t", "B, .slow"]
    assert browser.js("state.rows.map((i) => dim(i, 'version'))") == ["newest", "newest"]
    assert "24,998" in text(browser, "#table")  # the mean of the blocks' runs, as the verdict has it


def test_a_gate_with_both_arms_profiled_names_the_kernel(browser: Browser, tmp_path: Path) -> None:
    shutil.copytree(RECORDED / "gate" / "ab", tmp_path / "ab")
    shutil.copy(RECORDED / "gate" / "ab.json", tmp_path)
    template = json.loads((RECORDED / "profile-fp8-128-256-b64" / "profile.json").read_text())
    for arm, key, slower in (("a", "d9975a3a210bb276", 1.0), ("b", "abe84567418d2bf2", 1.4)):
        longer = {name: slower if name.endswith("layernorm") else 1.0 for name in template["roles"]}
        roles = {name: us * longer[name] for name, us in template["roles"].items()}
        changed = {**template, "roles": roles, "cell": {**template["cell"], "cell_key": key}}
        (tmp_path / "ab" / "profiles" / arm).mkdir(parents=True)
        (tmp_path / "ab" / "profiles" / arm / "profile.json").write_text(json.dumps(changed))
    content = contents(load([str(tmp_path / "ab")]), "ab", lambda profile, key: "")
    (tmp_path / "page.html").write_text(page(content))
    browser.open((tmp_path / "page.html").as_uri())
    assert re.search(r"Slower mostly in .*layernorm: ", text(browser, ".gate"))


def test_limits_choose_cells_and_stand_in_the_address(browser: Browser, h100: Path) -> None:
    browser.open(h100.as_uri())
    for name, limit in (("ttft", 100), ("tpot", 3.3)):
        box = f"document.getElementById('limit-{name}')"
        browser.js(f"{box}.value = {limit}; {box}.dispatchEvent(new Event('input'))")
    address = browser.js("location.href")
    assert address.endswith("#slo=ttft:100,tpot:3.3")
    names = "[...document.querySelectorAll('#cards h3')].map((h) => h.textContent)"
    found = browser.js(names)
    wanted = [
        point.cell.batch
        for point in sorted(points(load([str(RECORDED / "llama-3.1-8b-fp8")]).sets), key=lambda p: -p.cell.batch)
        if (point.cell.isl, point.cell.osl) == (128, 256) and _below(point, "ttft_p99_ms", 100) and _below(point, "tpot_p99_ms", 3.3)
    ]
    assert [int(re.findall(r"batch (\d+)", name)[0]) for name in found] == wanted == [16, 8, 1]
    browser.open(address)
    assert browser.js(names) == found
    assert browser.js("document.getElementById('limit-tpot').value") == "3.3"
    assert browser.js("document.querySelectorAll('.heat.misses').length") > 0
    assert "3.49 USD/h" in text(browser, "#price-note")
    priced_rows = [priced(row, Price(3.49)) for row in read_rows(RECORDED / "llama-3.1-8b-fp8")]
    shapes = {(p.cell.batch, p.cell.isl, p.cell.osl): p.get(COST) for p in points(priced_rows)}
    cost = shapes[16, 128, 256]
    assert cost is not None
    assert f"cost{brief(cost.mean)} ± " in browser.js("document.querySelector('#cards dl').textContent")
    title = browser.js("document.querySelector('#cards dd[title]').title")
    assert title == f"{brief(cost.low)} to {brief(cost.high)}, by the interval of throughput"


def _below(point: Any, figure: str, limit: float) -> bool:
    found = point.get(figure)
    return found is not None and found.mean <= limit


def test_the_keyboard_reaches_everything_and_keeps_its_place(browser: Browser, h100: Path) -> None:
    browser.open(h100.as_uri())
    active = "document.activeElement.dataset.key"
    browser.js("document.querySelector('[data-key=\"sort batch\"]').focus()")
    browser.key("Enter")
    assert browser.js(active) == "sort batch"
    assert browser.js("document.querySelector('th[aria-sort=descending]').textContent").startswith("batch")
    browser.js("document.querySelector('details[data-name=precision] summary').click()")
    box = "document.querySelector('details[data-name=precision] input[value=bf16]')"
    browser.js(f"{box}.focus(); {box}.click()")
    assert browser.js(active) == "filter precision bf16"
    browser.key("Escape")
    assert browser.js("document.querySelectorAll('details[open]').length") == 0
    assert browser.js(active) == "filter precision"
    browser.js("document.querySelector('#reset').click(); document.getElementById('curves').scrollIntoView()")
    browser.until("document.querySelectorAll('#charts .point').length > 0")
    assert browser.js("document.querySelectorAll('#charts .plot svg .point[tabindex=\"0\"]').length") == browser.js(
        "document.querySelectorAll('#charts .plot svg').length"
    )
    browser.js("document.querySelector('#charts .point').focus()")
    browser.key("ArrowRight")
    label = browser.js("document.activeElement.getAttribute('aria-label')")
    assert "batch 8" in label
    browser.key("Enter")
    browser.until("document.querySelector('#detail').open", 5)
    assert "batch 8" in text(browser, "#detail-h")
    browser.key("Escape")
    browser.until("!document.querySelector('#detail').open", 5)
    assert browser.js("document.activeElement.getAttribute('aria-label')") == label
    row = "document.querySelector('#table tbody button')"
    browser.js(f"{row}.focus()")
    browser.key("Enter")
    assert browser.js("document.querySelector('#detail').open")


def test_the_drill_down_shows_repeats_profile_and_what_went_on(browser: Browser, h100: Path) -> None:
    browser.open(f"{h100.as_uri()}#cell=81b71deda436825a")
    browser.js("document.querySelector('#detail .strip').scrollIntoView()")
    browser.until("document.querySelectorAll('#detail .plot.strip .point').length === 12", 10)
    link = browser.js("document.querySelector('#detail a[href*=profile]').href")
    assert browser.js("document.querySelectorAll('#detail .requests rect').length") > 100
    assert browser.js("state.data.within[state.data.keys.indexOf('81b71deda436825a')].telemetry.power_w.length") > 100
    assert browser.js("state.data.profiles.filter((p) => p.cells.length && p.href).length") == 4  # the fifth is of a cell not recorded
    assert browser.js("document.querySelectorAll('#profiles tbody a').length") == 5
    browser.open(link, ready=PROFILE_READY)
    assert "Ceilings measured on NVIDIA H100" in text(browser, "#ceilings")
    back = browser.js("document.querySelector('#back a').href")
    assert back == f"{h100.as_uri()}#cell=81b71deda436825a"


def test_axe_finds_nothing_on_either_page(browser: Browser, h100: Path, tmp_path: Path) -> None:
    """On a page of few cells, since its colours are checked one element after another."""
    stores = [str(h100.parent / "h100" / name) for name in ("llama-3.1-8b-fp8", "llama-3.1-8b-bf16")]
    few = render(stores, tmp_path / "page.html", where=["isl=2048"])
    browser.open(few.as_uri())
    assert browser.violations() == []
    browser.open(few.as_uri(), scheme="dark")
    browser.js("openDetail(state.data.keys.indexOf('151eb4272d5a9afb'))")
    assert browser.violations() == []
    profile = h100.parent / "h100" / "profile-fp8-128-256-b64" / profile_page.PAGE_FILE
    browser.open(profile.as_uri(), width=390, scheme="dark", ready=PROFILE_READY)
    assert browser.violations() == []
    assert browser.js("document.documentElement.scrollWidth") <= 390
    assert browser.errors == []


def test_kernels_sort_by_the_keyboard_and_ops_have_rows(browser: Browser, h100: Path) -> None:
    profile = h100.parent / "h100" / "profile-fp8-128-128-b2048" / profile_page.PAGE_FILE
    browser.open(profile.as_uri(), ready=PROFILE_READY)
    browser.js("[...document.querySelectorAll('#kernels th button')].find((b) => b.textContent === 'calls').focus()")
    browser.key("Enter")
    calls = browser.js("[...document.querySelectorAll('#kernels tbody tr')].map((r) => Number(r.cells[4].textContent))")
    assert calls == sorted(calls, reverse=True)
    assert browser.js("document.activeElement.textContent") == "calls"
    assert "by time: gate_up_silu, paged_attention" in browser.js("document.querySelector('#timeline canvas').getAttribute('aria-label')")


def test_what_cannot_be_read_or_compared_is_told_in_a_sentence(browser: Browser, tmp_path: Path, sweep_rows: list[Row]) -> None:
    Store(tmp_path / "runs" / "good").append(*sweep_rows[:2])
    other = replace(sweep_rows[3], environment=replace(sweep_rows[3].environment, gpu="NVIDIA Other"))
    Store(tmp_path / "runs" / "other").append(other)
    (tmp_path / "runs" / "bad").mkdir()
    (tmp_path / "runs" / "bad" / "results.parquet").write_text("no parquet")
    browser.open(render(tmp_path / "runs", tmp_path / "page.html").as_uri())
    notes = text(browser, "#notes")
    assert "Left out: " in notes
    assert "bad/results.parquet" in notes
    assert "Measured on 2 devices (Other, Synthetic 80GB)" in notes
    (tmp_path / "empty.html").write_text(page(contents(load([str(tmp_path / "runs" / "other")]), "one", lambda p, k: "")))
    browser.open((tmp_path / "empty.html").as_uri())
    assert "Every cell ran once" in text(browser, "#notes")
    assert "one run, spread unknown" in text(browser, "#headline")
    assert browser.errors == []


def test_a_prediction_is_never_told_as_a_measurement(browser: Browser, tmp_path: Path, sweep_rows: list[Row]) -> None:
    one = sweep_rows[0]
    made = [replace(one, cell=replace(one.cell, target="predicted"), figures={**one.figures, RATE: 9e9}, row_id="p" * 32)]
    for rows, beginning in (
        ([*made, *sweep_rows], "Fastest: "),
        (made, "Nothing here was measured. Predicted fastest: 9,000,000,000 tok/s"),
    ):
        (tmp_path / "page.html").write_text(page(build({"": rows})))
        browser.open((tmp_path / "page.html").as_uri())
        assert text(browser, "#headline").startswith(beginning)
        assert ("9,000,000,000" in text(browser, "#headline")) == (rows == made)
    assert "predicted by the step model, not measured" in text(browser, "#tiles")


def test_the_briefs_cases_over_gpus_stand_beside_ours(browser: Browser, h100: Path) -> None:
    browser.open(h100.as_uri())
    titles = browser.js("[...document.querySelectorAll('#gpus h3')].map((h) => h.textContent)")
    assert titles == ["gptj-6b, 128/128", "gptj-6b, 2048/128", "llama-2-7b, 128/128", "llama-3-8b, 128/128"]
    last = "document.querySelector('#gpus-cases article:last-child')"
    assert browser.js(f"[...{last}.querySelectorAll('h4')].map((h) => h.textContent)") == ["H100", "A100", "L40S"]
    lines = browser.js(f"[...{last}.querySelector('.gpu').querySelectorAll('li')].map((l) => l.textContent)")
    assert lines == [
        "34,111 ± 160 tok/s, ours fp8, batch 2,048",
        "28,837 tok/s, NVIDIA v0.17 fp8",
        "16,708 tok/s, brief fp8",
    ]
    widths = browser.js(f"[...{last}.querySelectorAll('.length')].map((l) => parseFloat(l.style.width))")
    assert widths[1] / widths[0] == pytest.approx(28837 / 34111, rel=1e-3)


def test_sets_named_together_are_compared_with_the_verdict_first(browser: Browser, tmp_path: Path, sweep_rows: list[Row]) -> None:
    before = [row for row in sweep_rows if row.cell.isl == 128 and row.status == "ok"]
    slower = {64: 0.8, 256: 1.3}
    after = [
        replace(r, figures={**r.figures, RATE: r.figures[RATE] * slower.get(r.cell.batch, 1.0)}, row_id=f"b{r.row_id[1:]}") for r in before
    ]
    Store(tmp_path / "before").append(*before)
    Store(tmp_path / "after").append(*after)
    browser.open(render([tmp_path / "before", tmp_path / "after"], tmp_path / "page.html").as_uri())
    cells = len({row.key for row in before})
    undecided = cells - 2 * cells // 6
    wanted = f"after against before: {cells // 6} slower, {cells // 6} faster, {undecided} inconclusive of {cells} shared cells"
    assert text(browser, "#headline").startswith(wanted)
    assert text(browser, "#comparison tbody tr td:last-child") == "slower"
    browser.js("document.getElementById('more-changes').click()")
    shown = browser.js("[...document.querySelectorAll('#comparison tbody tr')].map((r) => [...r.cells].map((c) => c.textContent))")
    assert len(shown) == 3 * cells
    mean = sum(r.figures[RATE] for r in before[:3]) / 3
    line = next(one for one in shown if one[0] == before[0].cell.label and one[1] == "output")
    assert line[3:5] == [brief(mean), brief(mean)]
    assert line[-2:] == ["3/3", "inconclusive"]
