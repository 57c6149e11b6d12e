"""`quantize`: ranges measured over a text, and the fp8 checkpoint written from them. `build --precision fp8` reads it as any other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trtllm_bench.commands import _options as options

if TYPE_CHECKING:
    from rich.table import Table

    from trtllm_engines.calibration.ranges import Ranges


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hugging Face folder with config.json, weights and tokenizer.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write, new or empty.")],
    precision: Annotated[
        str, typer.Option("--precision", help="fp8 (a scale a tensor) or fp8_rowwise (a scale a row, inputs scaled as they come).")
    ] = "fp8",
    dataset: Annotated[
        Path | None, typer.Option("--dataset", help="Text to calibrate on: .txt, or .jsonl with text, prompt or input_ids (default: ours).")
    ] = None,
    calib_size: Annotated[int, typer.Option("--calib-size", min=1, help="Most windows of text.")] = 128,
    calib_seq_len: Annotated[int, typer.Option("--calib-seq-len", min=2, help="Tokens of a window.")] = 512,
    kv_dtype: Annotated[str, typer.Option("--kv-dtype", help="fp8, or none to leave out the KV cache's scales.")] = "fp8",
    device: options.Device = "auto",
) -> None:
    """Calibrate a model and write it as an fp8 checkpoint.

    Examples:
      trtllm-bench quantize smollm2 --out smollm2-fp8
      trtllm-bench quantize smollm2 --precision fp8_rowwise --out smollm2-rows
    """
    import time

    from trtllm_bench.build_progress import build_progress
    from trtllm_bench.targets.native import device_of
    from trtllm_dashboards.tables import plain_console
    from trtllm_engines.calibration.quantize import quantize

    began = time.perf_counter()
    with build_progress() as report:
        made = quantize(
            model,
            out,
            precision=precision,
            dataset=dataset,
            samples=calib_size,
            length=calib_seq_len,
            kv_dtype=kv_dtype,
            device=device_of(device),
            progress=report,
        )
    console = plain_console()
    console.print(
        f"calibrated on {made.tokens:,} tokens in {made.windows} windows of {dataset or 'the text that ships with the project'}\n"
    )
    console.print(_table(made.ranges, kv_dtype == "fp8"))
    size = made.nbytes / 2**20
    console.print(
        f"\n{out}: {made.modules} products in fp8, {size:,.1f} MiB, written in {time.perf_counter() - began:.1f} s", soft_wrap=True
    )
    console.print(f"build it: trtllm-bench build --model {out} --precision {precision}", soft_wrap=True)


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
