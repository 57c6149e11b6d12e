"""`refit`: other weights for an engine, without compiling anything."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtllm_bench.commands import _options as options


def command(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="Engine folder made by build.")],
    weights: Annotated[str, typer.Option("--weights", help="dummy, or a folder or .gguf file with weights of the same shapes.")],
    seed: Annotated[int, options.option("seed", min=0, help="Seed of dummy weights (default 0).")] = 0,
) -> None:
    """Swap an engine's weights without recompiling it.

    Examples:
      trtllm-bench refit llama.engine --weights llama-3.1-8b-tuned
      trtllm-bench refit llama.engine --weights dummy --seed 1
    """
    import time

    from trtllm_bench.build_progress import build_progress
    from trtllm_engines.engine.build import refit

    began = time.perf_counter()
    with build_progress() as report:
        refit(engine, weights, seed=seed, progress=report)
    typer.echo(f"{engine}: weights are now {weights}, nothing was recompiled ({time.perf_counter() - began:.1f} s)")
