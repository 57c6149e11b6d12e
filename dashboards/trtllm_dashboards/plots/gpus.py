"""The brief's cases over GPUs: one panel per case, one group per GPU, with ours, NVIDIA's published figure and the brief's.

Bars lie, so that each can be named where it ends. A prediction is hatched: it must not be read as a measurement, in print either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtllm_dashboards.gpu_comparison import KINDS, Case, compare_gpus, recorded_rows
from trtllm_dashboards.plots import Material, style
from trtllm_results.metrics.registry import brief

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {"ours": style.PALETTE[0], "predicted": style.PALETTE[0], "nvidia": "#8C959F", "brief": "#D0D7DE"}
HATCH = "////"
BAR, GAP = 0.24, 0.6
"""Inches of a bar; bars between two GPUs."""


def draw(material: Material) -> Figure:
    rows = material.rows or recorded_rows()
    found = compare_gpus(rows, material.published)
    sheet = style.Sheet("Output throughput over GPUs: the brief's cases", "beside what NVIDIA published, and ours on top; one GPU each")
    slots = max(_slots(case) for case in found.cases)
    drawing, axes = sheet.panels([case.title for case in found.cases], columns=2, width=6.6, height=0.7 + BAR * slots)
    for ax, case in zip(axes, found.cases, strict=True):
        _bars(ax, case, slots)
    sheet.notes += [f"{style.DOUBTFUL} {text}." for text in found.doubts]
    sheet.notes += [f"{note[:1].upper()}{note[1:]}." for note in found.notes]
    if not any(bar.kind in ("ours", "predicted") for case in found.cases for bars in case.bars.values() for bar in bars):
        sheet.notes.append("Nothing of ours here: name results, or run this in a checkout, which has what was recorded.")
    measured = [bar.rate for case in found.cases for bars in case.bars.values() for bar in bars if bar.kind == "ours"]
    sheet.notes.append("NVIDIA's: the highest it published for the case. Published figures carry no interval.")
    if any(rate.n > 1 for rate in measured):
        sheet.notes.append(style.uncertainty_note([rate for rate in measured if rate.n > 1]))
    if any(bar.kind == "predicted" for case in found.cases for bars in case.bars.values() for bar in bars):
        sheet.notes.append("Bars of predictions: the interval told with them.")
    shown = {bar.kind for case in found.cases for bars in case.bars.values() for bar in bars}
    legend = {
        text: style.Look(COLORS[kind], "s", "", HATCH if kind == "predicted" else "") for kind, text in KINDS.items() if kind in shown
    }
    return sheet.finish(drawing, legend, marker_only=True)


def _slots(case: Case) -> float:
    return sum(max(len(bars), 1) + GAP for bars in case.bars.values())


def _bars(ax: Axes, case: Case, slots: float) -> None:
    at, places, highest = 0.0, [], 0.0
    for gpu, bars in case.bars.items():
        places.append((at + (max(len(bars), 1) - 1) / 2, gpu))
        for bar in bars:
            rate = bar.rate
            predicted = bar.kind == "predicted"
            color = COLORS[bar.kind]
            ax.barh(
                at,
                rate.mean,
                height=0.8,
                color="white" if predicted else color,
                edgecolor=color,
                hatch=HATCH if predicted else None,
                linewidth=0.8,
            )
            if rate.n != 1:
                ax.errorbar(
                    rate.mean, at, xerr=[[rate.mean - rate.low], [rate.high - rate.mean]], color=style.INK, elinewidth=1, capsize=2.5
                )
            mark = f" {style.DOUBTFUL}" if bar.doubt else ""
            style.remark(ax, f"{brief(rate.mean)}{mark}  {bar.detail}", (rate.high, at), (5, 0), va="center", color=style.INK)
            highest = max(highest, rate.high)
            at += 1
        at += GAP if bars else 1 + GAP
    ax.set_yticks([place for place, _ in places], [gpu for _, gpu in places])
    ax.tick_params(axis="y", colors=style.INK, length=0)
    ax.set_ylim(slots - 0.5, -0.7)
    ax.grid(visible=False, axis="y")
    ax.set_xlim(0, highest * 1.42)
    style.compact_axis(ax, "x", zero=False)
    ax.set_xlabel("output throughput (tok/s)")
