"""The look of every figure: palette, panels, header, footer, saving.

Colours are Okabe and Ito's (2008), told apart under all common colour-vision deficiencies; yellow is left out, it is too pale on white.
Colour is never the only cue: the marker changes with it. A precision keeps its colour in every figure. Figures are built on
`matplotlib.figure.Figure` and not on pyplot, which would keep global state and open windows; the style applies within `themed` only, so a
caller's own matplotlib settings stay as they are. Saved SVGs are byte-identical for equal input.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trtllm_dashboards.errors import NotWritten, OutputError
from trtllm_dashboards.numbers import compact
from trtllm_dashboards.points import Estimate, Point, common
from trtllm_results.errors import WriteError
from trtllm_results.store.files import atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#5B4A9E", "#555555")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
Line = Literal["-", "--", ":", "-.", ""]
LINES: tuple[Line, ...] = ("-", "--", ":", "-.")
PRECISION_ORDER = ("fp8", "fp8_rowwise", "bf16", "fp16", "int8_sq", "int8_wo", "int4", "w4a8", "nvfp4_wo", "mxfp4_wo", "int8", "fp32")
"""Index into palette and markers."""
INK, SOFT, RULE = "#1f2328", "#656d76", "#d8dee4"
MAX_PANELS = 9
PANEL_WIDTH, PANEL_HEIGHT = 4.3, 3.1
FORMATS = ("png", "svg")

RC: Mapping[str, object] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "text.color": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "legend.frameon": False,
    "svg.hashsalt": "trtllm-bench",
    "svg.fonttype": "none",
}


@contextmanager
def themed() -> Iterator[None]:
    """Draws and saves in this style; matplotlib's settings are restored afterwards."""
    import matplotlib

    with matplotlib.rc_context(RC):  # type: ignore[arg-type]
        yield


@dataclass(frozen=True)
class Look:
    color: str
    marker: str
    line: Line


def look(label: str, index: int) -> Look:
    """How series number `index`, called `label`, is drawn."""
    words = [word for part in label.split(",") for word in part.split() if word in PRECISION_ORDER]
    if len(words) == 1 and label.strip() == words[0]:
        index = PRECISION_ORDER.index(words[0])
    return Look(PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)], LINES[index // len(PALETTE) % len(LINES)])


def looks(labels: Iterable[str]) -> dict[str, Look]:
    return {label: look(label, index) for index, label in enumerate(dict.fromkeys(labels))}


@dataclass
class Sheet:
    """A figure under construction: panels, what the header says, and notes for the footer."""

    title: str
    subtitle: str = ""
    notes: list[str] = field(default_factory=list)

    def panels(
        self,
        titles: Sequence[str],
        *,
        columns: int = 3,
        width: float = PANEL_WIDTH,
        height: float | Sequence[float] = PANEL_HEIGHT,
        sharey: bool = False,
    ) -> tuple[Figure, list[Axes]]:
        """A grid of one axes a title, unused places left empty; `height` in inches, one for all lines or one each."""
        from matplotlib.figure import Figure

        columns = min(columns, len(titles))
        lines = math.ceil(len(titles) / columns)
        heights = [height] * lines if isinstance(height, int | float) else list(height)
        figure = Figure(figsize=(max(columns * width, 6.4), sum(heights) + 1.0))
        grid = figure.subplots(lines, columns, squeeze=False, sharey=sharey, height_ratios=heights)
        axes = [ax for row in grid for ax in row]
        for ax, title in zip(axes, titles, strict=False):
            if len(titles) > 1 or title:
                ax.set_title(title)
        for ax in axes[len(titles) :]:
            ax.remove()
        return figure, axes[: len(titles)]

    def finish(self, figure: Figure, legend: Mapping[str, Look] | None = None, *, marker_only: bool = False) -> Figure:
        """Header, legend and footer at fixed heights in inches, the panels in what is left."""
        from matplotlib.lines import Line2D

        width, height = figure.get_size_inches()
        left = 0.12 / width
        wrap = int(width * 15.5)
        top = 0.10
        figure.text(left, 1 - top / height, self.title, size=13, weight="bold", va="top")
        top += 0.30
        for line in _wrapped(self.subtitle, wrap):
            figure.text(left, 1 - top / height, line, size=9, color=SOFT, va="top")
            top += 0.19
        if legend and (len(legend) > 1 or next(iter(legend))):
            handles = [
                Line2D([], [], color=v.color, marker=v.marker, linestyle="" if marker_only else v.line, label=k) for k, v in legend.items()
            ]
            longest = max(len(label) for label in legend)
            ncols = max(1, min(len(legend), int((width - 0.2) / (0.55 + 0.075 * longest))))
            figure.legend(
                handles=handles,
                loc="upper left",
                ncols=ncols,
                bbox_to_anchor=(left, 1 - top / height),
                borderaxespad=0.0,
                borderpad=0.1,
                columnspacing=1.6,
            )
            top += 0.21 * math.ceil(len(legend) / ncols) + 0.06
        footer = [line for note in self.notes for line in _wrapped(note, int(width * 17))]
        bottom = 0.10 + 0.16 * len(footer)
        for index, line in enumerate(footer):
            figure.text(left, (bottom - 0.04 - 0.16 * index) / height, line, size=7.5, color=SOFT, va="top")
        figure.set_layout_engine("constrained", rect=(0, bottom / height, 1, 1 - (top + 0.06 + bottom) / height), w_pad=0.08, h_pad=0.06)
        return figure


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width) if text else []


def errorbars(ax: Axes, xs: Sequence[float], estimates: Sequence[Estimate], style: Look, *, scale: float = 1.0, line: bool = True) -> None:
    """Means with their intervals; a point of a single repeat is hollow and has no bar."""
    means = [e.mean * scale for e in estimates]
    if line:
        ax.plot(xs, means, color=style.color, linestyle=style.line, zorder=2)
    for alone in (False, True):
        chosen = [(x, e) for x, e in zip(xs, estimates, strict=True) if (e.n == 1) is alone]
        if chosen:
            ax.errorbar(
                [x for x, _ in chosen],
                [e.mean * scale for _, e in chosen],
                yerr=[[(e.mean - e.low) * scale for _, e in chosen], [(e.high - e.mean) * scale for _, e in chosen]],
                fmt=style.marker,
                color=style.color,
                markerfacecolor="white" if alone else style.color,
                elinewidth=1.0,
                capsize=2.5,
                zorder=3,
            )


def remark(ax: Axes, text: str, at: tuple[float, float], offset: tuple[float, float] = (5, -8), **more: Any) -> None:
    """A small grey note beside a point."""
    ax.annotate(text, at, offset, textcoords="offset points", **{"fontsize": 7, "color": SOFT, **more})


def uncertainty_note(estimates: Iterable[Estimate]) -> str:
    """What the bars of these estimates mean."""
    counts = {e.n for e in estimates}
    parts = []
    if any(n >= 3 for n in counts):
        parts.append("Bars: 95% t interval over repeats")
    if 2 in counts:
        parts.append("two repeats: bar spans both" if parts else "Bars span the two repeats")
    if 1 in counts:
        parts.append("hollow: one run, spread unknown")
    text = "; ".join(parts)
    return text[:1].upper() + text[1:] + "." if parts else ""


def limited(groups: Mapping[str, list[Point]], sheet: Sheet, most: int = MAX_PANELS, what: str = "panels") -> dict[str, list[Point]]:
    """The `most` largest groups, in their order; the footer says what was left out."""
    if len(groups) <= most:
        return dict(groups)
    kept = sorted(groups, key=lambda key: -len(groups[key]))[:most]
    sheet.notes.append(f"{most} of {len(groups)} {what} shown, those with most points; narrow with --where.")
    return {key: value for key, value in groups.items() if key in kept}


def subtitle(found: Sequence[Point], *ignore: str) -> str:
    return common(found, ignore)


def log_axis(ax: Axes, which: str, values: Sequence[float], *, every: bool = False) -> None:
    """A base-2 axis with a plain-number tick at each measured value (thinned to what fits), or base 10 when `every` is False."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    axis = ax.xaxis if which == "x" else ax.yaxis
    (ax.set_xscale if which == "x" else ax.set_yscale)("log", base=2 if every else 10)
    if every:
        ticks = _thinned(sorted(set(values)))
        axis.set_major_locator(FixedLocator(ticks))
    else:
        positive = [v for v in values if v > 0]
        decades = math.log10(max(positive) / min(positive)) if positive else 1
        axis.set_major_locator(LogLocator(base=10, subs=(1.0,) if decades > 2.5 else (1.0, 2.0, 5.0), numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if every and value < 1e5 else compact(value)))


def _thinned(ticks: Sequence[float], gap: float = 0.9) -> list[float]:
    kept: list[float] = []
    for tick in ticks:
        if not kept or math.log2(tick / kept[-1]) >= gap * max(1.0, math.log2(ticks[-1] / ticks[0]) / 10):
            kept.append(tick)
    return kept


def compact_axis(ax: Axes, which: str = "y", *, zero: bool = True) -> None:
    """Plain numbers with k and M, starting at zero."""
    from matplotlib.ticker import FuncFormatter

    (ax.yaxis if which == "y" else ax.xaxis).set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    if zero and which == "y":
        ax.set_ylim(bottom=0)
    elif zero:
        ax.set_xlim(left=0)


def save(figure: Figure, out: Path, name: str, formats: Sequence[str]) -> Iterator[Path]:
    """Write `out/name.<format>` for each format."""
    for file_format in formats:
        if file_format not in FORMATS:
            raise OutputError(f"Cannot write figures as '{file_format}'; use {' or '.join(FORMATS)}.")
        path = out / f"{name}.{file_format}"
        metadata = {"Date": None} if file_format == "svg" else {"Software": None}
        write = partial(figure.savefig, format=file_format, dpi=160, metadata=metadata, facecolor="white")
        try:
            with themed():
                atomically(path, write)
        except WriteError as error:
            raise NotWritten(path, error) from error
        yield path
