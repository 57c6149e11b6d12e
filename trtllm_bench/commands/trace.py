"""`trace info`: what is in a recorded trace, printed to fit 80 columns, and drawn on request."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trtllm_bench.commands import _options as flags
from trtllm_bench.errors import BenchError

if TYPE_CHECKING:
    from trtllm_workloads.traces import Trace
    from trtllm_workloads.traces.info import TraceInfo

HELP = """Look into recorded traces (prepare-dataset makes datasets of them).

Examples:
  trtllm-bench trace info requests.csv
  trtllm-bench trace info requests.csv --json
"""
app = typer.Typer(add_completion=False, no_args_is_help=True, help=HELP)
SCATTERED = 4000
"""Most requests drawn as points."""


@app.callback()
def _group() -> None:
    """Look into recorded traces (prepare-dataset makes datasets of them)."""


File = Annotated[Path, typer.Argument(metavar="FILE", help="Azure, BurstGPT, Mooncake, Qwen-Bailian, ShareGPT, or NVIDIA's JSON lines.")]
Format = Annotated[str | None, typer.Option("--format", help="Its format (default: seen from its first line).")]
Window = Annotated[tuple[float, float] | None, typer.Option("--window", metavar="FROM TO", help="Only arrivals between these seconds.")]
MaxInput = Annotated[int | None, typer.Option("--max-input", min=1, help="Leave out longer prompts.")]
MaxTotal = Annotated[int | None, typer.Option("--max-total", min=1, help="Leave out rows with more prompt and output tokens together.")]
Sample = Annotated[float, typer.Option("--sample", help="Keep each row with this probability.")]
TimeScale = Annotated[float, typer.Option("--time-scale", help="Multiply arrival times; 0.1 replays ten times as fast.")]
Jitter = Annotated[bool, typer.Option("--jitter", help="Spread rows that share an instant over the time to the next.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of sampling, jitter and prompts.")]


@app.command("info")
def info_command(
    file: File,
    format: Format = None,
    skip_bad_rows: flags.SkipBadRows = False,
    window: Window = None,
    max_input: MaxInput = None,
    max_total: MaxTotal = None,
    sample: Sample = 1.0,
    time_scale: TimeScale = 1.0,
    jitter: Jitter = False,
    seed: Seed = 0,
    plot: Annotated[Path | None, typer.Option("--plot", help="Also draw it: a .png or .svg file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Lengths, rate over time, burstiness, sessions, and the most a prefix cache could save.

    Examples:
      trtllm-bench trace info requests.csv
      trtllm-bench trace info requests.csv --plot requests.png --json
    """
    from trtllm_workloads.traces.info import info

    trace = _filtered(file, format, skip_bad_rows, window, max_input, max_total, sample, time_scale, jitter, seed)
    figures = info(trace)
    if plot is not None:
        if plot.suffix not in (".png", ".svg"):
            raise BenchError(f"--plot {plot}: the file must end in .png or .svg")
        _draw(trace, figures, plot)
    if as_json:
        import json

        typer.echo(json.dumps(figures.to_json(), indent=2))
        return
    for line in _lines(file, trace, figures):
        typer.echo(line)
    if plot is not None:
        typer.echo(f"drawn in {plot}")


def _filtered(
    file: Path,
    format: str | None,
    skip_bad_rows: bool,
    window: tuple[float, float] | None,
    max_input: int | None,
    max_total: int | None,
    sample: float,
    time_scale: float,
    jitter: bool,
    seed: int,
) -> Trace:
    from trtllm_workloads import WorkloadError
    from trtllm_workloads.synthetic import generator
    from trtllm_workloads.traces import filters, read_trace

    trace = read_trace(file, format=format, skip_bad_rows=skip_bad_rows)
    if jitter:
        trace = filters.jitter(trace, generator(seed, "jitter"))
    if window is not None:
        trace = filters.window(trace, *window)
    trace = filters.shorter_than(trace, max_input=max_input, max_total=max_total)
    if sample != 1:
        trace = filters.sample(trace, sample, generator(seed, "sample"))
    if time_scale != 1:
        trace = filters.time_scale(trace, time_scale)
    if len(trace) == 0:
        raise WorkloadError(f"{file}: no row is left after the filters")
    return trace


def _lines(file: Path, trace: Trace, figures: TraceInfo) -> list[str]:
    from trtllm_workloads.traces.info import bars, histogram

    lines = [
        f"{file.name}: {figures.requests:,} request{'s' * (figures.requests != 1)}"
        + (f", {figures.skipped:,} bad row{'s' * (figures.skipped > 1)} left out" if figures.skipped else "")
    ]
    if figures.duration_s > 0:
        lines.append(f"  {_span(figures.duration_s)}, {figures.rate_per_s:.3g} requests/s, gap CV {figures.gap_cv:.2f} (Poisson: 1)")
        if figures.distinct_times < 0.5 * figures.requests:
            step = figures.duration_s / max(figures.distinct_times - 1, 1)
            lines.append(f"  times lie on a grid of about {step:.3g} s: {figures.distinct_times:,} instants; --jitter spreads them")
    elif trace.timed:
        lines.append("  all at one instant: no rate")
    else:
        lines.append("  no timestamps: lengths only")
    lines += ["", f"  {'tokens':<8}" + "".join(f"{name:>9}" for name in figures.input_tokens)]
    for name, row in (("prompt", figures.input_tokens), ("output", figures.output_tokens)):
        lines.append(f"  {name:<8}" + "".join(f"{value:>9,.0f}" for value in row.values()))
    if figures.rank_correlation == figures.rank_correlation:
        lines.append(f"  rank correlation of prompt and output length {figures.rank_correlation:+.2f}")
    if figures.sessions:
        lines.append(f"  {figures.sessions:,} sessions of {figures.turns_mean:.2f} turns on average")
    if figures.block_tokens:
        lines.append(
            f"  an endless prefix cache would hit {figures.prefix_hit_blocks:.1%} of blocks ({figures.block_tokens} tokens each) "
            f"and skip\n  {figures.prefix_hit_tokens:.1%} of prompt tokens"
        )
    lines.append("")
    for name, values in (("prompt", trace.input_tokens), ("output", trace.output_tokens)):
        edges, counts = histogram(values)
        lines.append(f"  {name:<8}{bars(counts)}  {edges[0]:,.0f} .. {edges[-1] - 1:,.0f} tokens, log scale")
    if figures.rate_series:
        lines.append(f"  {'rate':<8}{bars(figures.rate_series, 48)}  peak {max(figures.rate_series):.3g}/s")
    return lines


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _draw(trace: Trace, figures: TraceInfo, path: Path) -> None:
    import numpy as np

    from trtllm_dashboards.plots import style
    from trtllm_workloads.files import replacing
    from trtllm_workloads.traces.info import histogram

    with style.themed():
        looks = {name: style.Look(color, "s", "-") for name, color in zip(("prompt", "output"), style.PALETTE, strict=False)}
        sheet = style.Sheet(f"{trace.name}: {len(trace):,} requests", _means(figures))
        drawing, axes = sheet.panels(["Lengths", "Prompt against output", "Arrivals"][: 3 if figures.rate_series else 2])
        for one, values in zip(looks.values(), (trace.input_tokens, trace.output_tokens), strict=True):
            edges, counts = histogram(values)
            axes[0].stairs(counts, edges, color=one.color, fill=True, alpha=0.18)
            axes[0].stairs(counts, edges, color=one.color, linewidth=1.4)
            axes[0].axvline(float(values.mean()), color=one.color, linewidth=1.0, linestyle=":")
        axes[0].set(xscale="log", xlabel="tokens", ylabel="requests")
        style.compact_axis(axes[0])
        kept = np.linspace(0, len(trace) - 1, min(len(trace), SCATTERED)).astype(np.int64)
        axes[1].scatter(trace.input_tokens[kept], trace.output_tokens[kept], s=3, alpha=0.35, linewidths=0, color=style.INK)
        axes[1].set(xscale="log", yscale="log", xlabel="prompt (tokens)", ylabel="output (tokens)")
        sheet.notes.append(
            "Dotted: mean." + (f" {len(kept):,} requests drawn as points, evenly spaced by arrival." if len(kept) < len(trace) else "")
        )
        if figures.rate_series:
            axes[2].stairs(
                figures.rate_series, np.linspace(0, figures.duration_s, len(figures.rate_series) + 1), color=style.PALETTE[0], linewidth=1.4
            )
            axes[2].axhline(figures.rate_per_s, color=style.SOFT, linewidth=1.0, linestyle=":")
            axes[2].set(xlabel="time since the first arrival (s)", ylabel="rate (requests/s)", ylim=(0, None))
        figure = sheet.finish(drawing, looks, marker_only=True)
        with replacing(path, binary=True) as stream:
            figure.savefig(stream, format=path.suffix[1:], dpi=160, facecolor="white")


def _means(figures: TraceInfo) -> str:
    parts = [f"mean prompt {figures.input_tokens['mean']:,.0f}, output {figures.output_tokens['mean']:,.0f} tokens"]
    if figures.duration_s > 0:
        parts.append(f"{figures.rate_per_s:.3g} requests/s, gap CV {figures.gap_cv:.2f} (Poisson: 1)")
    if figures.block_tokens:
        parts.append(f"an endless prefix cache hits {figures.prefix_hit_blocks:.1%} of blocks")
    return "; ".join(parts)
