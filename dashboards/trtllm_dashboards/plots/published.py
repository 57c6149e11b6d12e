"""Ours beside published figures, one panel per case: other tools and other GPUs (H100, A100, L40S) as bars of one length scale.

Ours has an interval when it was repeated; a published figure has none. What differs in method is in `compare --against published`, row by
row, and the footer says so: a bar chart cannot carry a paragraph a bar.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtllm_dashboards.plots import Material, style
from trtllm_dashboards.points import estimate
from trtllm_results.compare.published import Beside, Published, beside
from trtllm_results.gpus import gpu_class
from trtllm_results.metrics.registry import brief
from trtllm_results.record.cell import OWN_TARGET

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURE = "output_tokens_per_s"
OURS, SAME, OTHER = style.PALETTE[0], "#8C959F", "#D0D7DE"
MOST, COLUMNS = 6, 2


def case(one: Beside) -> str:
    cell = one.ours.cell
    tp = f" tp {cell.tp}" if cell.tp > 1 else ""
    at_once = f", {one.theirs.at_once} at once" if one.theirs.at_once else ""
    return f"{cell.model} {cell.precision}{tp}, {cell.isl}/{cell.osl}{at_once}"


def _whose(one: Beside) -> str:
    """Our GPU, and what served unless it was our engine."""
    target = one.ours.cell.target
    return gpu_class(one.ours.environment.device) + ("" if target == OWN_TARGET else f", {target}")


def draw(material: Material) -> Figure:
    found = beside(material.rows, material.published)
    several = len({_whose(one) for one in found}) > 1
    cases: dict[str, list[Beside]] = {}
    for one in found:
        cases.setdefault(case(one) + f", ours on {_whose(one)}" * several, []).append(one)
    sheet = style.Sheet("Output throughput beside published figures", "")
    if len(cases) > MOST:
        sheet.notes.append(f"{MOST} of {len(cases)} cases shown, those with most counterparts; narrow with --where.")
    cases = dict(sorted(cases.items(), key=lambda item: -len(item[1]))[:MOST])
    bars = [len({one.theirs for one in cases_of_panel}) + 1 for cases_of_panel in cases.values()]
    slots = [max(bars[i - i % COLUMNS : i - i % COLUMNS + COLUMNS]) for i in range(len(bars))]
    heights = [0.75 + 0.24 * slots[i] for i in range(0, len(bars), min(COLUMNS, len(bars)))]
    drawing, axes = sheet.panels(list(cases), columns=COLUMNS, width=6.2, height=heights)
    for ax, cases_of_panel, room in zip(axes, cases.values(), slots, strict=True):
        _bars(ax, cases_of_panel, material, room)
    shown = {one.theirs for cases_of_panel in cases.values() for one in cases_of_panel}
    doubts = sorted(
        f"{name(theirs)}, {theirs.output_tokens_per_s:,.0f}: {doubt.text}" for theirs in shown if (doubt := theirs.implausible) is not None
    )
    doubts += sorted({f"ours, {title}: {one.doubt.text}" for title, found in cases.items() for one in found if one.doubt is not None})
    sheet.notes += [f"{style.DOUBTFUL} {text}." for text in doubts]
    legend = {"ours": OURS, "others on the same kind of GPU": SAME, "others on another GPU": OTHER}
    sheet.notes.append(
        "Published figures carry no interval; methods differ: `trtllm-bench compare --against published` says how, row by row."
    )
    return sheet.finish(drawing, {name: style.Look(color, "s", "") for name, color in legend.items()}, marker_only=True)


def _bars(ax: Axes, cases: list[Beside], material: Material, slots: int) -> None:
    mine = cases[0]
    theirs = sorted({one.theirs: one for one in cases}.values(), key=lambda one: -one.theirs.output_tokens_per_s)
    runs = [
        r.figures[FIGURE]
        for r in material.rows
        if r.cell == mine.ours.cell and r.key == mine.ours.key and r.status == "ok" and FIGURE in r.figures
    ]
    spread = estimate(runs)
    entries = [(f"ours, {_whose(mine)}" + f" {style.DOUBTFUL}" * (mine.doubt is not None), mine.ours_tokens_per_s, OURS)]
    entries += [
        (
            text + f" {style.DOUBTFUL}" * (one.theirs.implausible is not None),
            one.theirs.output_tokens_per_s,
            SAME if one.same_gpu else OTHER,
        )
        for text, one in zip(names_apart([one.theirs for one in theirs]), theirs, strict=True)
    ]
    for index, (_, value, color) in enumerate(entries):
        ax.barh(index, value, height=0.72, color=color)
        label = brief(value) if index == 0 else f"{brief(value)}  (ours {mine.ours_tokens_per_s / value:.2f} x)"
        end = spread.high if index == 0 and spread else value
        style.remark(ax, label, (end, index), (4, 0), va="center", color=style.INK)
    if spread and spread.n > 1:
        ax.errorbar(
            spread.mean, 0, xerr=[[spread.mean - spread.low], [spread.high - spread.mean]], color=style.INK, elinewidth=1, capsize=2.5
        )
    ax.set_yticks(range(len(entries)), [text for text, _, _ in entries])
    ax.tick_params(axis="y", colors=style.INK, length=0)
    ax.set_ylim(slots - 0.5, -0.5)
    ax.grid(visible=False, axis="y")
    ax.set_xlim(0, max(value for _, value, _ in entries) * 1.38)
    style.compact_axis(ax, "x", zero=False)
    ax.set_xlabel("output throughput, all GPUs (tok/s)")


def names_apart(figures: list[Published]) -> list[str]:
    """What each is called, no two alike: source and GPU, where needed the number of requests, and at last which of several runs it is."""
    names = [name(one) for one in figures]
    names = [f"{text}, {one.requests} requests" if names.count(text) > 1 else text for text, one in zip(names, figures, strict=True)]
    return [f"{text} ({names[:at].count(text) + 1})" if names.count(text) > 1 else text for at, text in enumerate(names)]


def name(theirs: Published) -> str:
    source = theirs.source.replace("TensorRT-LLM perf-overview", "TensorRT-LLM")
    kv = f", kv {theirs.kv_dtype}" if theirs.kv_dtype and theirs.kv_dtype != theirs.precision else ""
    return f"{source}, {gpu_class(theirs.gpu)}{kv}"
