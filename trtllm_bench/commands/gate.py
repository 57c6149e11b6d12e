"""`gate`: the regression gate. Exit 0 pass, 1 fail, 2 inconclusive, 3 it could not be judged (bad input, a run that failed)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtllm_bench import interrupts

if TYPE_CHECKING:
    from trtllm_results.gate.config import GateConfig
    from trtllm_results.gate.run import Runner
    from trtllm_results.gate.verdict import GateReport
    from trtllm_results.record.row import Row

HELP = """Did it get slower? Interleaved A/B runs, or a stored baseline.

Examples:
  trtllm-bench gate run --a main --b HEAD -- --model tiny-llama
  trtllm-bench gate check runs/today --baseline baseline.json
"""
app = typer.Typer(help=HELP, no_args_is_help=True, add_completion=False)

Config = Annotated[Path | None, typer.Option("--config", help="TOML with margins, alpha and block counts (docs/gate.md).")]
Margins = Annotated[list[str] | None, typer.Option("--margin", help="FIGURE=LOSS, such as output_tokens_per_s=2%; repeatable.")]
Junit = Annotated[Path | None, typer.Option("--junit", help="Write the verdicts as JUnit XML.")]
AsJson = Annotated[Path | None, typer.Option("--json", help="Write the whole report as JSON.")]
Markdown = Annotated[Path | None, typer.Option("--markdown", help="Write the report as Markdown.")]
Github = Annotated[bool, typer.Option("--github", help="Print GitHub annotations; fill the step summary when there is one.")]
Out = Annotated[Path | None, typer.Option("--out", help="Keep every run in this result store.")]
BaselineFile = Annotated[Path, typer.Option("--baseline", help="Baseline file.")]
KeepLoaded = Annotated[
    bool, typer.Option("--keep-loaded", help="Load each arm once, both at a time, instead of a process a run: quicker, less independent.")
]
Flags = Annotated[list[str] | None, typer.Argument(metavar="[-- FLAGS]...", help="After --: flags of throughput, the same for both.")]


def _judging(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose exit code is a verdict: whatever else goes wrong, a full disk or a fault of ours, must not end in that of `fail`."""

    @functools.wraps(command)
    def judging(*given: Any, **values: Any) -> None:
        try:
            command(*given, **values)
        except Exception as error:
            error.no_verdict = True  # type: ignore[attr-defined]
            raise

    return judging


@app.command("run")
@_judging
def run(
    a: Annotated[str, typer.Option("--a", help="Reference: an engine folder, a git revision, or the folder of a checkout.")],
    b: Annotated[str, typer.Option("--b", help="Candidate: an engine folder, a git revision, or the folder of a checkout.")],
    flags: Flags = None,
    config: Config = None,
    margin: Margins = None,
    blocks: Annotated[int | None, typer.Option("--blocks", help="ABBA blocks before the first look.")] = None,
    max_blocks: Annotated[int | None, typer.Option("--max-blocks", help="Cap on blocks.")] = None,
    looks: Annotated[int | None, typer.Option("--looks", help="Looks between the two; 1: exactly --blocks blocks.")] = None,
    warmup: Annotated[int, typer.Option("--warmup-runs", min=0, help="Discarded runs of each arm first.")] = 1,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of the blocks' orders; drawn and printed when absent.")] = None,
    keep_loaded: KeepLoaded = False,
    out: Out = None,
    junit: Junit = None,
    as_json: AsJson = None,
    markdown: Markdown = None,
    github: Github = False,
) -> None:
    """Run A and B in interleaved blocks on this machine until the verdict is clear or the cap is reached.

    Examples:
      trtllm-bench gate run --a main --b HEAD -- --model tiny-llama
      trtllm-bench gate run --a old.engine --b new.engine --blocks 5 -- --isl 64
    """
    from trtllm_results.gate.run import run_gate
    from trtllm_results.gate.stored import keep_report
    from trtllm_results.store.files import check_writable

    settings = _settings(config, margin, blocks, max_blocks, looks)
    check_writable(junit, as_json, markdown)
    with _runner(a, b, list(flags or []), out, keep_loaded, warmup) as (runner, name_a, name_b):
        report = run_gate(runner, settings, name_a, name_b, warmup, _progress, seed)
    if out is not None:
        keep_report(out, report)
    _finish(report, junit, as_json, markdown, github)


@app.command("check")
@_judging
def check(
    candidate: Annotated[str, typer.Argument(help="Result store of the candidate, at least two repeats per cell.")],
    baseline: BaselineFile,
    config: Config = None,
    margin: Margins = None,
    noise: Annotated[
        Path | None, typer.Option("--noise", help="Noise file of gate calibrate: widens the errors by the session noise.")
    ] = None,
    junit: Junit = None,
    as_json: AsJson = None,
    markdown: Markdown = None,
    github: Github = False,
) -> None:
    """Judge a result store against the stored baseline; look for slow drift over its history.

    Examples:
      trtllm-bench gate check runs/today --baseline baseline.json
      trtllm-bench gate check runs/today --baseline b.json --junit gate.xml
    """
    from trtllm_results.gate import baseline as baselines
    from trtllm_results.gate.calibrate import load_noise
    from trtllm_results.store import selection

    settings = _settings(config, margin)
    one = selection.load_set(candidate)
    report = baselines.check(baselines.load(baseline), one.rows, settings, load_noise(noise), one.name)
    _finish(report, junit, as_json, markdown, github)


@app.command("accept")
def accept(
    store: Annotated[str, typer.Argument(help="Result store that becomes the baseline.")],
    baseline: BaselineFile,
    note: Annotated[str, typer.Option("--note", help="Why it moves; kept in the history.")] = "",
    same_state: Annotated[
        bool, typer.Option("--same-state", help="Another day's session of the newest state: teaches gate check how much days differ.")
    ] = False,
) -> None:
    """Make these results the baseline. Nothing else moves it; the old ones stay in its history.

    Examples:
      trtllm-bench gate accept runs/today --baseline baseline.json
      trtllm-bench gate accept runs/a --baseline b.json --note "new kernels"
    """
    from trtllm_results.gate import baseline as baselines
    from trtllm_results.gate.sessions import FEWEST_SESSIONS
    from trtllm_results.store import selection

    new = baselines.accept_into(baseline, selection.load_set(store).rows, note, same_state)
    sessions = len(new.states[-1])
    typer.echo(f"{baseline}: {len(new.current.cells)} cells accepted as session {sessions} of state {len(new.states)}")
    if sessions < FEWEST_SESSIONS:
        typer.echo(f"gate check learns from {FEWEST_SESSIONS} sessions of a state how much days differ; add them with --same-state")


@app.command("history")
def history(baseline: BaselineFile, config: Config = None, margin: Margins = None) -> None:
    """Every state the baseline has had, with the change to the one before, and any drift.

    Examples:
      trtllm-bench gate history --baseline baseline.json
      trtllm-bench gate history --baseline b.json --margin ttft_p50_ms=5%
    """
    from trtllm_dashboards.tables import Column, plain_console, sentence, show
    from trtllm_results.gate import baseline as baselines
    from trtllm_results.metrics.registry import common_words

    settings, stored = _settings(config, margin), baselines.load(baseline)
    console = plain_console()
    lines = baselines.history_records(stored, list(settings.margins))
    shared, labels = common_words([str(line["cell"]) for line in lines])
    lines = [line | {"cell": label} for line, label in zip(lines, labels, strict=True)]
    title = f"baseline {stored.name}; values are geometric means of a session's runs" + (f": {shared}" if shared else "")
    columns = [Column("accepted", hoist=False), Column("revision", hoist=False, priority=2), Column("cell", whole=True), Column("figure")]
    columns += [
        Column("value", kind="number"),
        Column("change", kind="percent"),
        Column("total", kind="percent"),
        Column("note", priority=1),
    ]
    show(lines, columns, title=title, console=console)
    for text in baselines.drift(stored, settings):
        sentence(console, f"drift: {text}", "bold red")


@app.command("calibrate")
def calibrate(
    engine: Annotated[str, typer.Option("--engine", help="What to run against itself: an engine folder, a git revision, or a checkout.")],
    flags: Flags = None,
    blocks: Annotated[int, typer.Option("--blocks", min=3, help="A/A blocks of four runs.")] = 8,
    keep_loaded: KeepLoaded = False,
    config: Config = None,
    margin: Margins = None,
    out: Out = None,
    noise: Annotated[Path | None, typer.Option("--noise", help="Write the noise floor here, for gate check --noise.")] = None,
) -> None:
    """Measure the noise floor with A against A: detectable effects, and how often the gate would be wrong here.

    Examples:
      trtllm-bench gate calibrate --engine main -- --model tiny-llama
      trtllm-bench gate calibrate --engine tiny.engine --noise noise.json
    """
    from trtllm_dashboards.tables import Column, plain_console, show
    from trtllm_results.gate import calibrate as calibration
    from trtllm_results.gate.run import run_blocks
    from trtllm_results.metrics.registry import title
    from trtllm_results.store.files import check_writable

    settings = _settings(config, margin)
    check_writable(noise)
    with _runner(engine, engine, list(flags or []), out, keep_loaded, 1) as (runner, _, _):
        measured = run_blocks(runner, blocks, warmup=1, on_block=_progress)
    floors = calibration.noise_floor(measured, settings)
    if noise is not None:
        calibration.save(floors, noise)
    console = plain_console()
    lines = [
        {"figure": title(one.figure), "run": one.run_sd, "drift": one.drift_sd, "block": one.block_sd, "mean": one.mean}
        | {f"n{n}": loss for n, loss in one.detectable.items()}
        | {"wrong": one.false_fail_rate, "pass": one.pass_rate}
        for one in floors
    ]
    columns = [Column("figure")] + [Column(name, f"{name} sd", kind="percent") for name in ("run", "drift", "block")]
    columns += [Column(f"n{n}", f"by {n}", kind="percent") for n in floors[0].detectable]
    heading = f"noise floor over {len(measured.runs)} A/A blocks (seed {measured.seed}); loss beyond the margin that gate run finds "
    show(lines, columns, title=heading + "by so many blocks with power 0.8", console=console)
    for one in floors:
        low, high = (f"{sd:.2%}" for sd in one.block_sd_interval)
        console.print(f"{one.figure}: block sd {one.block_sd:.2%} (95% interval {low} to {high})", soft_wrap=True)
        console.print(f"{one.figure}: arithmetic mean of the blocks' ln(B/A) {one.mean:+.2%}", soft_wrap=True)
        console.print(f"{one.figure}: A against A would fail {one.false_fail_rate:.1%} and pass {one.pass_rate:.1%} of the time.")
    if noise is not None:
        console.print(f"written: {noise}")


@contextmanager
def _runner(a: str, b: str, flags: list[str], out: Path | None, keep_loaded: bool, warmup: int) -> Iterator[tuple[Runner, str, str]]:
    """The runner of both arms and their names; unpacked revisions are removed at the end, whatever ends it."""
    from trtllm_bench.measure.place import open_store
    from trtllm_results.gate.runners import CommandRunner, Stopped, arm_command, named_apart, stoppable

    kept = f"the finished runs are in {out}" if out is not None else "nothing was kept (--out keeps every run)"
    try:
        with interrupts.keeping(lambda: kept), stoppable(), ExitStack() as cleanup:
            first, second = named_apart(arm_command(a, flags, cleanup), arm_command(b, flags, cleanup), a, b)
            store = open_store(out) if out is not None else None
            runner = cleanup.enter_context(CommandRunner(first, second, store, _report_run, keep_loaded, warmup))
            yield runner, first.name, second.name
    except Stopped as stop:
        typer.echo(f"trtllm-bench: stopped by {stop.signal}; {kept}", err=True)
        raise


def _report_run(arm: str, row: Row) -> None:
    rate = row.figures.get("output_tokens_per_s")
    typer.echo(f"  {arm}  {rate:,.1f} tok/s" if rate else f"  {arm}  {row.status}", err=True)


def _progress(done: int, cap: int) -> None:
    typer.echo(f"block {done} of at most {cap}", err=True)


def _settings(
    config: Path | None, margins: list[str] | None, blocks: int | None = None, max_blocks: int | None = None, looks: int | None = None
) -> GateConfig:
    """The configuration file with the flags laid over it; `--blocks` alone raises the cap with it."""
    from dataclasses import replace

    from trtllm_bench.spec.named_values import named_values
    from trtllm_results.gate.config import load_config, parse_margin

    settings = load_config(config)
    losses = named_values("--margin", margins, "FIGURE=LOSS, such as output_tokens_per_s=2%")
    given = {name: parse_margin(loss) for name, loss in losses.items()}
    blocks = settings.blocks if blocks is None else blocks
    return replace(
        settings,
        margins=given or settings.margins,
        blocks=blocks,
        max_blocks=max(settings.max_blocks, blocks) if max_blocks is None else max_blocks,
        looks=settings.looks if looks is None else looks,
    )


def _finish(report: GateReport, junit: Path | None, as_json: Path | None, markdown: Path | None, github: bool) -> None:
    import os

    from trtllm_results.gate import report as gate_text
    from trtllm_results.store.files import write_text

    for path, text in ((junit, gate_text.to_junit), (as_json, gate_text.to_json), (markdown, gate_text.to_markdown)):
        if path is not None:
            write_text(path, text(report))
    if github and (summary := os.environ.get("GITHUB_STEP_SUMMARY")):
        with open(summary, "a", encoding="utf-8") as handle:
            handle.write(gate_text.to_markdown(report))
    _print(report)
    if github:
        typer.echo(gate_text.to_annotations(report), nl=False)
    raise typer.Exit(report.exit_code)


def _print(report: GateReport) -> None:
    from trtllm_bench.commands._verdict_table import show_verdicts
    from trtllm_dashboards.tables import Column, plain_console, sentence
    from trtllm_results.gate import report as gate_text
    from trtllm_results.metrics.registry import common_words, title

    console = plain_console()
    lines = gate_text.records(report)
    shared, labels = common_words([line["cell"] for line in lines])
    for line, finding, label in zip(lines, report.findings, labels, strict=True):
        line |= {"interval": gate_text.interval_text(finding), "cell": label, "figure": title(line["figure"])}
        if line["detectable"] is not None:
            line["detectable"] *= -finding.judged.sign
    columns = [
        Column("cell", whole=True),
        Column("figure"),
        Column("unit"),
        Column("a", "A", kind="number"),
        Column("b", "B", kind="number"),
        Column("change", kind="percent"),
        Column("interval", f"{1 - 2 * report.alpha:.0%} interval"),
        Column("detectable", kind="percent", priority=2),
        Column("verdict", kind="verdict"),
    ]
    blocks = f" after {report.blocks} blocks" if report.blocks else ""
    order = "" if report.seed is None else f", block orders drawn with seed {report.seed}"
    heading = f"A = {report.a}, B = {report.b}{blocks}{order}; {gate_text.MEANS}" + (f": {shared}" if shared else "")
    show_verdicts(lines, columns, ("cell", "figure"), heading, console)
    for text in gate_text.explanations(report):
        sentence(console, text, "dim")
    for text in report.drift:
        sentence(console, f"drift: {text}", "bold red")
    for text in report.warnings:
        sentence(console, f"note: {text}", "yellow")
    style = {"pass": "bold green", "fail": "bold red", "inconclusive": "bold yellow"}[report.verdict]
    sentence(console, gate_text.headline(report), style)
