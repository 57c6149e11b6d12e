"""Speed-up of each precision over the widest one measured (bf16 where there is one), batch by batch.

A ratio's interval is Welch's on the log scale, so a bar whose interval crosses 1.0 has not been shown to be faster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtllm_dashboards.errors import DashboardError
from trtllm_dashboards.plots import Material, style
from trtllm_dashboards.points import Point, grouped, having, points, ratio, varying

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE = "output_tokens_per_s"
BASES = ("bf16", "fp16", "fp32")


def values(point: Point) -> list[float]:
    return [row.figures[FIGURE] for row in point.rows if FIGURE in row.figures]


def draw(material: Material) -> Figure:
    found = having(points(material.sets), FIGURE)
    precisions = list(dict.fromkeys(p.cell.precision for p in found))
    base = next((b for b in BASES if b in precisions), None)
    if base is None or len(precisions) < 2:
        raise DashboardError(
            f"The precision plot needs two precisions or more, one of them {', '.join(BASES)}; found {', '.join(precisions) or 'none'}."
        )
    sheet = style.Sheet(f"Speed-up over {base}, output throughput", "")
    panel_by = varying(found, ("precision", "kv_dtype", "batch", "request_rate"))
    groups = {k: v for k, v in grouped(found, panel_by).items() if len({p.cell.precision for p in v}) > 1}
    if not groups:
        raise DashboardError(f"No case was measured both in {base} and in another precision.")
    groups = style.limited(groups, sheet)
    shown = [p for members in groups.values() for p in members]
    sheet.subtitle = style.subtitle(shown)
    others = [p for p in precisions if p != base]
    legend = style.looks(others)
    drawing, axes = sheet.panels(list(groups), sharey=True)
    drawn = []
    for ax, members in zip(axes, groups.values(), strict=True):
        bases = {(p.cell.batch, p.cell.request_rate): p for p in members if p.cell.precision == base}
        loads = sorted(bases)
        width = 0.8 / len(others)
        for index, precision in enumerate(others):
            for point in (p for p in members if p.cell.precision == precision and (p.cell.batch, p.cell.request_rate) in bases):
                at = (point.cell.batch, point.cell.request_rate)
                gain = ratio(values(point), values(bases[at]))
                if gain is None:
                    continue
                x = loads.index(at) + (index - (len(others) - 1) / 2) * width
                alone = gain.n == 1
                color = legend[precision].color
                ax.bar(x, gain.mean, width * 0.92, color="white" if alone else color, edgecolor=color, linewidth=1)
                ax.errorbar(x, gain.mean, [[gain.mean - gain.low], [gain.high - gain.mean]], color=style.INK, elinewidth=0.9, capsize=2)
                ax.annotate(f"{gain.mean:.2f}", (x, gain.high), (0, 2), textcoords="offset points", fontsize=6.5, ha="center")
                drawn.append(gain)
        ax.axhline(1, color=style.INK, linewidth=0.9)
        ax.set_xticks(range(len(loads)), [f"{rate:g}/s" if rate else f"{batch}" for batch, rate in loads])
        ax.grid(visible=False, axis="x")
        ax.set_ylim(bottom=0)
        ax.set_xlabel("batch size (sequences in flight)" if any(batch for batch, _ in loads) else "request rate")
        ax.set_ylabel(f"throughput / {base} throughput (ratio)")
        ax.tick_params(labelleft=True)
    known = ["Bars: 95% t interval of the ratio (Welch)"] if any(gain.n > 1 for gain in drawn) else []
    single = ["hollow: a single run on one side, spread unknown"] if any(gain.n == 1 for gain in drawn) else []
    sheet.notes.append("; ".join([*known, *single, f"line at 1: {base}."]))
    return sheet.finish(drawing, {k: style.Look(v.color, "s", "") for k, v in legend.items()}, marker_only=True)
