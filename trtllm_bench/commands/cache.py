"""`cache`: what was built and fetched on the way, and how to be rid of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

HELP = """List and clean the engines that commands built on the way.

Examples:
  trtllm-bench cache ls
  trtllm-bench cache clean --max-gib 50
"""
app = typer.Typer(help=HELP, no_args_is_help=True, add_completion=False)
AsJson = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]


@app.command("ls")
def ls(as_json: AsJson = False) -> None:
    """List cached engines with last use (UTC) and size, longest unused first.

    Examples:
      trtllm-bench cache ls
      trtllm-bench cache ls --json
    """
    from datetime import UTC, datetime

    from trtllm_engines.engine import cache
    from trtllm_kernels.files import cache_folder

    listing: dict[str, Any] = {
        "folder": str(cache_folder()),
        "bytes": cache.total_bytes(),
        "limit_bytes": cache.limit_bytes(),
        "engines": [
            {
                "name": one.path.name,
                "path": str(one.path),
                "bytes": one.total_bytes,
                "own_bytes": one.own_bytes,
                "used": datetime.fromtimestamp(one.used_s, UTC).isoformat(timespec="seconds"),
            }
            for one in cache.engines()
        ],
    }
    if as_json:
        import json

        typer.echo(json.dumps(listing, indent=2))
        return
    for one in listing["engines"]:
        typer.echo(f"{one['used'][:16].replace('T', ' ')}  {one['bytes'] / 2**20:8,.1f} MiB  {one['name']}")
    typer.echo(f"{listing['bytes'] / 2**30:,.1f} of {listing['limit_bytes'] / 2**30:,.1f} GiB in {listing['folder']}")


@app.command("clean")
def clean(
    max_gib: Annotated[
        float | None, typer.Option("--max-gib", min=0, help="Keep the engines used last, up to so many GiB (default: the cache's limit).")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Keep no engine that is not in use.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove the longest unused engines, and what interrupted builds left.

    Examples:
      trtllm-bench cache clean
      trtllm-bench cache clean --all --json
    """
    from trtllm_bench.errors import BenchError
    from trtllm_engines.engine import cache

    if everything and max_gib is not None:
        raise BenchError("give --all or --max-gib, not both")
    before = cache.total_bytes()
    limit = 0 if everything else cache.limit_bytes() if max_gib is None else int(min(max_gib, 2**30) * 2**30)
    removed: list[Path] = cache.clean(limit)
    freed, kept = before - cache.total_bytes(), len(cache.engines())
    if as_json:
        import json

        typer.echo(json.dumps({"removed": [str(path) for path in removed], "freed_bytes": freed, "kept": kept}))
        return
    typer.echo(f"removed {len(removed)} engines, {freed / 2**30:,.1f} GiB; {kept} are left")
