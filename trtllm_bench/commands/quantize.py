"""`quantize`: a checkpoint of codes from a wide model, calibrated on a text: fp8 from measured ranges (`calibration.quantize`), integers
layer by layer (`calibration.integers`). `build` reads either like any other."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from trtllm_bench.commands import _options as options
from trtllm_bench.errors import BenchError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from trtllm_engines.calibration.integers import Integers, Recipe
    from trtllm_engines.calibration.ranges import Ranges


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hugging Face folder with config.json, weights and tokenizer.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write, new or empty.")],
    precision: Annotated[
        str, typer.Option("--precision", help="fp8, fp8_rowwise, int4 (int4_awq, int4_gptq), int8_wo, int8_sq (SmoothQuant) or w4a8.")
    ] = "fp8",
    method: Annotated[
        str | None, typer.Option("--method", help="rtn, awq, gptq or smoothquant, for integers (default: what suits the precision).")
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option("--group-size", help="Columns that share a scale: 16, 32, 64 or 128; 0: whole rows (default 128 for int4)."),
    ] = None,
    asymmetric: Annotated[bool, typer.Option("--asymmetric", help="Integer weights with zero points.")] = False,
    act_order: Annotated[
        str | None,
        typer.Option("--act-order", help="GPTQ: none, static (groups stay in place, the default) or group (columns get an index)."),
    ] = None,
    damping: Annotated[
        float | None, typer.Option("--damping", help="GPTQ: added to the diagonal, as a share of its mean (default: found by trial).")
    ] = None,
    dataset: Annotated[
        Path | None, typer.Option("--dataset", help="Text to calibrate on: .txt, or .jsonl with text, prompt or input_ids (default: ours).")
    ] = None,
    calib_size: Annotated[int, typer.Option("--calib-size", min=1, help="Most windows of text.")] = 128,
    calib_seq_len: Annotated[int, typer.Option("--calib-seq-len", min=2, help="Tokens of a window.")] = 512,
    kv_dtype: Annotated[
        str | None, typer.Option("--kv-dtype", help="Of fp8 checkpoints: fp8 (default), or none to leave out the KV cache's scales.")
    ] = None,
    device: options.Device = "auto",
) -> None:
    """Calibrate a model and write it as a checkpoint in fp8, int8 or int4.

    Examples:
      trtllm-bench quantize smollm2 --out smollm2-fp8
      trtllm-bench quantize llama-8b --precision int4_awq --out llama-8b-awq
    """
    from trtllm_bench.targets.native import device_of
    from trtllm_engines.calibration.integers import METHODS, Recipe, named

    _tell_of_codes(model)
    chosen, implied = named(precision)
    text = Text(dataset, calib_size, calib_seq_len, device_of(device))
    of_gptq = {"--act-order": act_order, "--damping": damping}
    if chosen not in METHODS:
        of_integers = {"--method": method, "--group-size": group_size, "--asymmetric": asymmetric or None, **of_gptq}
        _refuse(of_integers, "integers", f"--precision is {precision}")
        _fp8(model, out, chosen, kv_dtype or "fp8", text)
        return
    _refuse({"--kv-dtype": kv_dtype}, "fp8", f"--precision is {precision}")
    if implied is not None and method not in (None, implied):
        raise BenchError(f"--precision {precision} is --method {implied}, not {method}; give --precision {chosen}")
    given: dict[str, Any] = {"act_order": act_order, "damping": damping}
    recipe = Recipe(
        chosen, method or implied, group_size, not asymmetric, **{name: value for name, value in given.items() if value is not None}
    )
    layout = recipe.layout()
    if recipe.chosen_method == "rtn" and dataset is not None:
        typer.echo(f"note: rtn reads no text, so --dataset {dataset} is not used; give --method to calibrate", err=True)
    if recipe.chosen_method != "gptq":
        _refuse(of_gptq, "gptq", f"the method is {recipe.chosen_method}")
    elif not layout.grid.group:
        _refuse({"--act-order": act_order}, "groups of columns", "a scale is of a whole row")
    _integers(model, out, recipe, text)


def _tell_of_codes(model: str) -> None:
    """Says on standard error where `model` is quantized already."""
    from trtllm_engines.checkpoints.checkpoint_precision import checkpoint_plan

    stated = checkpoint_plan(model)
    if stated is not None and any(rule.scheme.weights is not None for rule in stated.rules):
        said = f"{model} is quantized already ({stated.name}), and its values are rounded a second time"
        typer.echo(f"note: {said}; quantize the original where there is one", err=True)


def _refuse(given: Mapping[str, object], purpose: str, instead: str) -> None:
    """Raises `BenchError` for the first of these options that was given, since it would have no effect."""
    for option, value in given.items():
        if value is not None:
            said = option if value is True else f"{option} {value}"
            raise BenchError(f"{said} is for {purpose}, and {instead}; leave it out")


class Text(NamedTuple):
    """What to calibrate on, and where."""

    dataset: Path | None
    windows: int
    length: int
    device: str

    def read(self, tokens: int, windows: int) -> str:
        return f"calibrated on {tokens:,} tokens in {windows} windows of {self.dataset or 'the text that ships with the project'}\n"


def _fp8(model: str, out: Path, precision: str, kv_dtype: str, text: Text) -> None:
    import time

    from trtllm_bench.build_progress import build_progress
    from trtllm_dashboards.tables import plain_console
    from trtllm_engines.calibration.quantize import quantize

    began = time.perf_counter()
    with build_progress() as report:
        made = quantize(
            model,
            out,
            precision=precision,
            dataset=text.dataset,
            samples=text.windows,
            length=text.length,
            kv_dtype=kv_dtype,
            device=text.device,
            progress=report,
        )
    console = plain_console()
    console.print(text.read(made.tokens, made.windows))
    console.print(_table(made.ranges, kv_dtype == "fp8"))
    size = made.nbytes / 2**20
    console.print(
        f"\n{out}: {made.modules} products in fp8, {size:,.1f} MiB, written in {time.perf_counter() - began:.1f} s", soft_wrap=True
    )
    console.print(f"build it: trtllm-bench build --model {shlex.quote(str(out))} --precision {precision}", soft_wrap=True)


def _integers(model: str, out: Path, recipe: Recipe, text: Text) -> None:
    import time

    from trtllm_bench.build_progress import build_progress
    from trtllm_dashboards.tables import plain_console
    from trtllm_engines.calibration.integers import quantize_integers

    began = time.perf_counter()
    with build_progress() as report:
        made = quantize_integers(
            model,
            out,
            recipe,
            dataset=text.dataset,
            samples=text.windows,
            length=text.length,
            device=text.device,
            progress=report,
        )
    console = plain_console()
    if made.windows:
        console.print(text.read(made.tokens, made.windows))
    console.print(_error_table(made))
    grid, seconds = made.layout.grid, time.perf_counter() - began
    unit = f"group of {grid.group}" if grid.group else "row"
    console.print(
        f"\n{out}: {len(made.errors)} products in int{grid.bits}, one {'scale' if grid.symmetric else 'scale and zero point'} per {unit}, "
        f"by {made.method}; {made.nbytes / 2**20:,.1f} MiB, written in {seconds:.1f} s",
        soft_wrap=True,
    )
    console.print(f"build it: trtllm-bench build --model {shlex.quote(str(out))} --precision {recipe.precision}", soft_wrap=True)


def _error_table(made: Integers) -> Table:
    """What rounding changed by kind of product, over the layers."""
    from statistics import median

    from rich.table import Table

    table = Table(title="error of rounding, rms over rms, median over the layers", title_justify="left", box=None, pad_edge=False)
    kinds: dict[str, list[str]] = {}
    for module in made.errors:
        kinds.setdefault(module.rpartition(".")[2], []).append(module)
    table.add_column("product")
    chosen = {name: values for name, values in (("alpha", made.alphas), ("damping", made.dampings)) if values}
    for column in ("layers", "weights", *(["outputs"] if made.windows else []), *chosen):
        table.add_column(column, justify="right")
    for kind, modules in kinds.items():
        errors = [made.errors[module] for module in modules]
        cells = [f"{median(one.weight for one in errors):.4f}"]
        if made.windows:
            cells.append(f"{median(one.output or 0.0 for one in errors):.4f}")
        for values in chosen.values():
            of_kind = [values[module] for module in modules if module in values]
            cells.append(f"{median(of_kind):.2f}" if of_kind else "")
        table.add_row(kind, str(len(modules)), *cells)
    return table


def _table(ranges: Ranges, cache: bool) -> Table:
    """Largest magnitudes by kind of tensor, over the layers."""
    from statistics import median

    from rich.table import Table

    kinds: dict[str, list[float]] = {}
    for name, value in ranges.inputs.items():
        kinds.setdefault(f"input of {name.rpartition('.')[2]}", []).append(value)
    for name, value in ranges.cache.items() if cache else ():
        kinds.setdefault("cached keys" if name.endswith("k_scale") else "cached values", []).append(value)
    table = Table(title="largest magnitudes over the layers", title_justify="left", box=None, pad_edge=False)
    table.add_column("tensor")
    for column in ("layers", "least", "median", "largest"):
        table.add_column(column, justify="right")
    for kind, values in kinds.items():
        table.add_row(kind, str(len(values)), *(f"{value:.3g}" for value in (min(values), median(values), max(values))))
    return table
