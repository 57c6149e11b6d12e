"""The look of every figure: palette, panels, header, footer, saving.

Colours and markers are those of `trtllm_dashboards.looks`, which the pages have too. Figures are built on
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

from trtllm_dashboards import looks as looks_of
from trtllm_dashboards.errors import NotWritten, OutputError
from trtllm_dashboards.numbers import compact
from trtllm_dashboards.points import Estimate, Point, common
from trtllm_results.errors import WriteError
from trtllm_results.store.files import atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import Formatter

PALETTE = looks_of.LIGHT
_MARKERS = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D", "down": "v", "plus": "P", "cross": "X", "star": "*"}
MARKERS = tuple(_MARKERS[symbol] for symbol in looks_of.SYMBOLS)
Line = Literal["-", "--", ":", "-.", ""]
LINES: tuple[Line, ...] = ("-", "--", ":", "-.")
INK, SOFT, RULE = "#1f2328", "#656d76", "#d8dee4"
HELD = "\x00"
"""Stands for a space at which no line is broken."""
MAX_PANELS = 9
PANEL_WIDTH, PANEL_HEIGHT = 4.3, 3.1
FORMATS = ("png", "svg")
DOUBTFUL = "†"
"""Marks a figure that its GPU cannot reach; the footer says why."""
MOST_DOUBTS = 3
"""Told one by one in a footer."""

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
    "text.parse_math": False,  # a model's name may hold dollar signs
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
    hatch: str = ""
    """Of a bar; bars with one are drawn on white."""


def look(label: str, index: int) -> Look:
    """How series number `index`, called `label`, is drawn. Of series of one colour the symbols differ too: a single point has no line."""
    index = looks_of.place(label, index)
    turn = index // len(PALETTE)
    return Look(PALETTE[index % len(PALETTE)], MARKERS[(index + turn) % len(MARKERS)], LINES[turn % len(LINES)])


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """A look a series. The first series of a precision has that precision's; the others share what is left."""
    unique = list(dict.fromkeys(labels))
    places: dict[str, int] = {}
    for label in unique:
        precision = next((part for part in label.split(", ") if part in looks_of.PRECISIONS), None)
        place = looks_of.place(precision, -1) if precision is not None else -1
        if place >= 0 and place not in places.values():
            places[label] = place
    free = (index for index in range(len(unique) + len(PALETTE)) if index not in places.values())
    return {label: look("", places[label] if label in places else next(free)) for label in unique}


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
        names: float = 0.0,
    ) -> tuple[Figure, list[Axes]]:
        """A grid of one axes a title, unused places left empty; `height` in inches, one for all lines or one each. `names`: of each
        panel's width, the inches that names beside its y axis take; titles stand above what is left."""
        from matplotlib.figure import Figure

        columns = 2 if len(titles) == 4 else min(columns, len(titles))
        lines = math.ceil(len(titles) / columns)
        heights = [height] * lines if isinstance(height, int | float) else list(height)
        figure = Figure(figsize=(max(columns * width, 6.4), sum(heights) + 1.0))
        grid = figure.subplots(lines, columns, squeeze=False, sharey=sharey, height_ratios=heights)
        axes = [ax for row in grid for ax in row]
        for ax, title in zip(axes, titles, strict=False):
            if title:
                ax.set_title(_fitting(title, width - names))
        for ax in axes[len(titles) :]:
            ax.remove()
        return figure, axes[: len(titles)]

    def mark_doubts(self, shown: Iterable[Point]) -> None:
        """Notes which of the points shown have a throughput that their GPUs cannot reach, and why."""
        doubts = [f"{DOUBTFUL} {p.rows[0].label}: {doubt.text}." for p in shown if (doubt := p.implausible) is not None]
        doubts = list(dict.fromkeys(doubts))
        self.notes += doubts[:MOST_DOUBTS]
        if len(doubts) > MOST_DOUBTS:
            self.notes.append(f"{DOUBTFUL} and {len(doubts) - MOST_DOUBTS} more are implausible; `results show` says why.")

    def finish(self, figure: Figure, legend: Mapping[str, Look] | None = None, *, marker_only: bool = False) -> Figure:
        """Header, legend and footer at fixed heights in inches; where they take more than an inch, the figure grows for them."""
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch

        width, height = figure.get_size_inches()
        left = 0.12 / width
        subtitle = _wrapped(self.subtitle, int(width * 15.5))
        footer = [line for note in self.notes for line in _wrapped(note, int(width * 17))]
        bottom = 0.10 + 0.16 * len(footer)
        ncols, lines = 1, 0
        if legend and (len(legend) > 1 or next(iter(legend))):
            longest = max(len(label) for label in legend)
            ncols = max(1, min(len(legend), int((width - 0.2) / (0.55 + 0.075 * longest))))
            lines = math.ceil(len(legend) / ncols)
        height += max(0.0, 0.40 + 0.19 * len(subtitle) + 0.21 * lines + bottom + 0.12 - 1.0)
        figure.set_size_inches(width, height)
        top = 0.10
        figure.text(left, 1 - top / height, self.title, size=13, weight="bold", va="top")
        top += 0.30
        for line in subtitle:
            figure.text(left, 1 - top / height, line, size=9, color=SOFT, va="top")
            top += 0.19
        if legend and lines:
            handles = [
                Patch(facecolor="white", edgecolor=v.color, hatch=v.hatch, label=k)
                if v.hatch
                else Line2D([], [], color=v.color, marker=v.marker, linestyle="" if marker_only else v.line, label=k)
                for k, v in legend.items()
            ]
            figure.legend(
                handles=handles,
                loc="upper left",
                ncols=ncols,
                bbox_to_anchor=(left, 1 - top / height),
                borderaxespad=0.0,
                borderpad=0.1,
                columnspacing=1.6,
            )
            top += 0.21 * lines + 0.06
        for index, line in enumerate(footer):
            figure.text(left, (bottom - 0.04 - 0.16 * index) / height, line, size=7.5, color=SOFT, va="top")
        figure.set_layout_engine("constrained", rect=(0, bottom / height, 1, 1 - (top + 0.06 + bottom) / height), w_pad=0.08, h_pad=0.06)
        return figure


def _fitting(title: str, width: float) -> str:
    """A panel's title in lines no wider than the panel (inches), broken between its parts."""
    import textwrap

    held = title.replace(" ", HELD).replace(f",{HELD}", ", ")
    return "\n".join(textwrap.wrap(held, int(width * 10.5), break_long_words=False, break_on_hyphens=False)).replace(HELD, " ")


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width) if text else []


def front_line(ax: Axes, places: Sequence[tuple[float, float]]) -> None:
    """Draws a Pareto front through `places` (x, y), as a broad grey line below the series."""
    ax.plot([x for x, _ in places], [y for _, y in places], color="#9aa4af", linewidth=5, alpha=0.35, solid_capstyle="round", zorder=1)


def errorbars(ax: Axes, xs: Sequence[float], estimates: Sequence[Estimate], style: Look, *, scale: float = 1.0, line: bool = True) -> None:
    """Means with their intervals; a point of a single repeat is hollow and has no bar, and so is a prediction, with the bar of its own."""
    means = [e.mean * scale for e in estimates]
    if line:
        ax.plot(xs, means, color=style.color, linestyle=style.line, zorder=2)
    for alone in (False, True):
        chosen = [(x, e) for x, e in zip(xs, estimates, strict=True) if (e.n < 2) is alone]
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


def span(estimates: Iterable[Estimate], *, positive: bool = False) -> tuple[float, float]:
    """The least and the most that `errorbars` draws of them, finite ends of bars included; of `positive` values, for a logarithmic axis."""
    values = [value for e in estimates for value in (e.low, e.mean, e.high) if math.isfinite(value) and (value > 0 or not positive)]
    return min(values), max(values)


def remark(ax: Axes, text: str, at: tuple[float, float], offset: tuple[float, float] = (5, -8), **more: Any) -> None:
    """A small grey note beside a point."""
    ax.annotate(text, at, offset, textcoords="offset points", **{"fontsize": 7, "color": SOFT, **more})


def remarks(ax: Axes, texts: Iterable[tuple[str, tuple[float, float]]], offset: tuple[float, float]) -> None:
    """`remark` for each (text, place) that does not lie upon an earlier one; call it when the axes have their limits."""
    taken: list[tuple[float, float]] = []
    for text, at in texts:
        x, y = ax.transAxes.inverted().transform(ax.transData.transform(at))
        if not any(abs(x - left) < 0.07 and abs(y - low) < 0.07 for left, low in taken):
            remark(ax, text, at, offset)
            taken.append((x, y))


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
    if 0 in counts:
        parts.append(f"{'hollow too' if 1 in counts else 'hollow'}: predicted, bars are the interval of throughput")
    text = "; ".join(parts)
    return text[:1].upper() + text[1:] + "." if parts else ""


def limited(groups: Mapping[str, list[Point]], sheet: Sheet, most: int = MAX_PANELS, what: str = "panels") -> dict[str, list[Point]]:
    """The `most` largest groups, in their order; the footer says what was left out."""
    if len(groups) <= most:
        return dict(groups)
    kept = sorted(groups, key=lambda key: -len(groups[key]))[:most]
    sheet.notes.append(f"{most} of {len(groups)} {what} shown, those with most points; narrow with --where.")
    return {key: value for key, value in groups.items() if key in kept}


def subtitle(plotted: Sequence[Point], *ignore: str) -> str:
    return common(plotted, ignore)


def log_axis(ax: Axes, which: str, values: Sequence[float], *, every: bool = False) -> None:
    """A base-2 axis with a plain-number tick at each measured value (thinned to what fits), or base 10 when `every` is False.

    Less than half a decade is ticked as a linear axis would be: a logarithmic one has room for one round number at most.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axis = ax.xaxis if which == "x" else ax.yaxis
    (ax.set_xscale if which == "x" else ax.set_yscale)("log", base=2 if every else 10)
    positive = [v for v in values if v > 0]
    decades = math.log10(max(positive) / min(positive)) if positive else 1
    if every:
        axis.set_major_locator(FixedLocator(_thinned(sorted(set(positive)))))
    elif decades < 0.5:
        axis.set_major_locator(MaxNLocator(nbins=5))
    else:
        axis.set_major_locator(LogLocator(base=10, subs=(1.0,) if decades > 2.5 else (1.0, 2.0, 5.0), numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}") if every else plain_ticks())


def _thinned(ticks: Sequence[float]) -> list[float]:
    """The largest, and below it what a label's width apart leaves."""
    kept: list[float] = []
    gap = 0.115 * math.log2(ticks[-1] / ticks[0]) if ticks else 0.0
    for tick in reversed(ticks):
        if not kept or math.log2(kept[-1] / tick) >= gap:
            kept.append(tick)
    return kept[::-1]


def compact_axis(ax: Axes, which: str = "y", *, zero: bool = True) -> None:
    """Plain numbers, from zero to a little above what is drawn."""
    (ax.yaxis if which == "y" else ax.xaxis).set_major_formatter(plain_ticks())
    if zero and which == "y":
        ax.set_ylim(0, _above(ax.dataLim.y1))
    elif zero:
        ax.set_xlim(0, _above(ax.dataLim.x1))


def _above(highest: float) -> float:
    return highest * 1.08 if 0 < highest < math.inf else 1.0


def plain_ticks() -> Formatter:
    """Writes all ticks of an axis in one way: as many decimals as tell them apart, `k` and `M` where all are large, no power of ten."""
    from matplotlib.ticker import Formatter

    class Plain(Formatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return tick_texts([x])[0]

        def format_ticks(self, values: Any) -> list[str]:
            return tick_texts([float(value) for value in values])

    return Plain()


def tick_texts(values: Sequence[float]) -> list[str]:
    """`0`, `24.2k`, `24.4k`: distinct for distinct values."""
    sizes = sorted(abs(v) for v in values if v)
    if not sizes:
        return ["0" for _ in values]
    if sizes[-1] / sizes[0] > 50:  # a logarithmic axis: each in its own scale
        return [compact(v) for v in values]
    scale, suffix = next(((s, t) for s, t in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if sizes[-1] >= 10 * s), (1.0, ""))
    for places in range(9):
        texts = [f"{v / scale:,.{places}f}" for v in values]
        if all(abs(float(text.replace(",", "")) * scale - v) <= 1e-6 * sizes[-1] for text, v in zip(texts, values, strict=True)):
            break
    return [f"{text}{suffix}" if value else "0" for text, value in zip(texts, values, strict=True)]


def save(figure: Figure, out: Path, name: str, formats: Sequence[str]) -> Iterator[Path]:
    """Write `out/name.<format>` for each format."""
    for file_format in formats:
        if file_format not in FORMATS:
            raise OutputError(f"cannot write figures as '{file_format}'; use {' or '.join(FORMATS)}")
        path = out / f"{name}.{file_format}"
        metadata = {"Date": None} if file_format == "svg" else {"Software": None}
        write = partial(figure.savefig, format=file_format, dpi=160, metadata=metadata, facecolor="white")
        try:
            with themed():
                atomically(path, write)
        except WriteError as error:
            raise NotWritten(path, error) from error
        yield path
