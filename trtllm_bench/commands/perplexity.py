"""`perplexity`: what a precision costs in quality, on a text, through the graph that an engine runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtllm_bench.commands import _options as options


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hugging Face folder, such as one quantize wrote.")],
    dataset: Annotated[Path, typer.Option("--dataset", help="Text: .txt, or .jsonl with text, prompt or input_ids.")],
    precision: options.Precision = None,
    kv_dtype: options.KvDtype = "auto",
    windows: Annotated[int | None, typer.Option("--windows", min=1, help="Most windows of text (default: all of it).")] = None,
    window_len: Annotated[int, typer.Option("--window-len", min=2, help="Tokens of a window; they do not overlap.")] = 1024,
    chunk: Annotated[int, typer.Option("--chunk", min=1, help="Tokens a step; those of earlier steps are read from the KV cache.")] = 32,
    device: options.Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Measure a text's perplexity in a precision and KV cache type.

    Examples:
      trtllm-bench perplexity smollm2 --dataset text.txt
      trtllm-bench perplexity smollm2-fp8 --precision fp8 --dataset text.txt
    """
    import time

    from trtllm_bench.build_progress import build_progress
    from trtllm_bench.targets.native import device_of
    from trtllm_engines.calibration.perplexity import perplexity
    from trtllm_engines.checkpoints.checkpoint_precision import default_precision
    from trtllm_engines.quantization import kv_cache_dtype

    place = device_of(device)
    chosen = precision or default_precision(model, place == "cuda")
    began = time.perf_counter()
    with build_progress() as report:
        result = perplexity(
            model, chosen, dataset, kv_dtype=kv_dtype, count=windows, length=window_len, chunk=chunk, device=place, progress=report
        )
    cache = kv_cache_dtype(chosen, kv_dtype)
    if as_json:
        import json

        facts = {"model": model, "precision": chosen, "kv_dtype": cache, "dataset": str(dataset), "windows": result.windows, "chunk": chunk}
        typer.echo(json.dumps({**facts, "tokens": result.tokens, "perplexity": result.value}))
        return
    typer.echo(f"{model} {chosen}, KV cache {cache}: perplexity {result.value:.3f}")
    typer.echo(f"{result.tokens:,} tokens in {result.windows} windows of {dataset}, {time.perf_counter() - began:.1f} s")
