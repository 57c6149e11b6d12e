"""Speed-up of each precision over bf16 (or fp16, or fp32) in cells that differ in nothing else, with the interval of the ratio.

The pairs, their intervals and verdicts are those of `trtllm_dashboards.precisions`, which the page has too: a cell's counterpart may lie in
another result set, and the best of each precision stand beside each other whatever their batch. Values stand beside the bars since a ratio
is read, not guessed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from trtllm_dashboards.errors import DashboardError
from trtllm_dashboards.plots import Material, style
from trtllm_dashboards.points import points, varying
from trtllm_dashboards.precisions import BASES, FIGURE, Pair, pairs
from trtllm_results.metrics.registry import brief

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMED = ("device", "target", "model", "shape", "tp", "pp", "replicas", "workload")
HIDDEN = ("source", "precision", "kv_dtype")
MOST = 24
FEWEST = 4
"""Places of bars, so that the axis has room for its name."""
ROW = 0.3
"""Inches of a bar."""
BARS, BESIDE = 5.0, 0.75
"""Inches of the axes, and of what stands beside them but the names of bars."""
NAME_CHARACTER, REMARK_CHARACTER = 0.068, 0.052
"""Inches, of bars' names and of what is said at their ends."""
HATCH = "////"


def draw(material: Material) -> Figure:
    plotted = points(material.sets)
    precisions = list(dict.fromkeys(p.cell.precision for p in plotted if p.get(FIGURE) is not None))
    if len(precisions) < 2 or not set(BASES) & set(precisions):
        raise DashboardError(
            f"the precision plot needs two precisions or more, one of them {', '.join(BASES)}; found {', '.join(precisions) or 'none'}"
        )
    found_pairs = pairs(plotted)
    bases = list(dict.fromkeys(pair.base.cell.precision for pair in found_pairs))
    if not found_pairs:
        raise DashboardError(f"no case was measured both in one of {', '.join(BASES)} and in another precision")
    sheet = style.Sheet(
        f"Speed-up over {' or '.join(bases)}, output throughput", style.subtitle([p.point for p in found_pairs[:MOST]], *HIDDEN)
    )
    if len(found_pairs) > MOST:
        sheet.notes.append(f"{MOST} of {len(found_pairs)} pairs shown; narrow with --where.")
    shown = found_pairs[:MOST]
    sheet.mark_doubts(point for pair in shown for point in (pair.base, pair.point))
    named = [name for name in NAMED if name in varying([pair.point for pair in shown])]
    legend = {name: _bar_look(look) for name, look in style.looks(pair.point.cell.precision for pair in shown).items()}
    caches: dict[str, set[str]] = {}
    for pair in shown:
        caches.setdefault(pair.point.cell.precision, set()).add(pair.point.cell.kv_dtype)
    names = [_name(pair, named, caches) for pair in shown]
    width = max(9.0, BARS + BESIDE + NAME_CHARACTER * max(map(len, names)))
    drawing, (ax,) = sheet.panels([""], width=width, height=0.75 + ROW * max(len(shown), FEWEST))
    _bars(ax, shown, names, legend)
    ax.set_xlabel(f"throughput / {' or '.join(bases)} throughput (ratio)")
    if any(pair.low is not None for pair in shown):
        sheet.notes.append("Bars: 95% t interval of the ratio of geometric means (Welch); verdicts hold over all pairs together (Holm).")
    if any(pair.low is None for pair in shown):
        sheet.notes.append("Hollow: a single run on one side, spread unknown, so no verdict.")
    if any(pair.best for pair in shown):
        sheet.notes.append("Best: the fastest of the batches measured for each precision, which need not be the same.")
    return sheet.finish(drawing, legend, marker_only=True)


def _bar_look(look: style.Look) -> style.Look:
    """A series that shares its color with an earlier one, and differs in its line, is hatched as a bar."""
    return style.Look(look.color, "s", "", "" if look.line == style.LINES[0] else HATCH)


def _bars(ax: Axes, shown: list[Pair], names: list[str], legend: dict[str, style.Look]) -> None:
    limit = 1.9
    for at, pair in enumerate(shown):
        look = legend[pair.point.cell.precision]
        end, verdict = pair.ratio, "one run"
        face = "white" if pair.low is None or look.hatch else look.color
        ax.barh(at, pair.ratio, height=0.72, color=face, edgecolor=look.color, hatch=look.hatch or None, linewidth=1)
        if pair.low is not None and pair.high is not None:
            bar = [[pair.ratio - pair.low], [pair.high - pair.ratio]]
            ax.errorbar(pair.ratio, at, xerr=bar, color=style.INK, elinewidth=0.9, capsize=2)
            end, verdict = pair.high, pair.verdict
        rates = [rate for one in (pair.point, pair.base) if (rate := one.get(FIGURE)) is not None]
        figures = " against ".join(brief(rate.mean) for rate in rates)
        remark = f"{pair.ratio:.2f} x, {verdict}: {figures} tok/s"
        style.remark(ax, remark, (end, at), (5, 0), va="center", color=style.INK)
        limit = max(limit, end * BARS / (BARS - 0.1 - REMARK_CHARACTER * len(remark)))
    ax.set_yticks(range(len(shown)), names)
    ax.tick_params(axis="y", colors=style.INK, length=0)
    ax.set_ylim(max(len(shown), FEWEST) - 0.5, -0.6)
    ax.axvline(1, color=style.INK, linewidth=0.9)
    ax.grid(visible=False, axis="y")
    ax.set_xlim(0, limit)
    ax.set_ylabel("case and batch\n(sequences in flight)")


def _name(pair: Pair, named: list[str], caches: Mapping[str, Collection[str]]) -> str:
    """`2048/128, fp8, batch 512`; of the best ones `128/128, best: fp8 at batch 2,048, bf16 at 1,024`. The type of the KV cache is named
    for a precision that is shown with several (`caches`, by precision)."""
    point, base = pair.point.cell, pair.base.cell
    precision = f"{point.precision} kv {point.kv_dtype}" if len(caches[point.precision]) > 1 else point.precision
    if pair.best:
        load = f"best: {precision} at batch {point.batch:,}, {base.precision} at {base.batch:,}"
    else:
        load = f"{precision}, {point.request_rate:g} req/s" if point.request_rate else f"{precision}, batch {point.batch:,}"
    return ", ".join([*(pair.point.names[name] for name in named if pair.point.names[name]), load])
