"""`perplexity`: what a precision costs in quality, on a text, through the graph that an engine runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from trtllm_bench.commands import _options as options
from trtllm_bench.errors import BenchError


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hugging Face folder, such as one quantize wrote.")],
    dataset: Annotated[Path, typer.Option("--dataset", help="Text: .txt, or .jsonl with text, prompt or input_ids.")],
    precision: options.Precision = None,
    kv_dtype: options.KvDtype = "auto",
    context_attention: options.ContextAttention = None,
    windows: Annotated[int | None, typer.Option("--windows", min=1, help="Most windows of text (default: all of it).")] = None,
    window_len: Annotated[int, typer.Option("--window-len", min=2, help="Tokens of a window; they do not overlap.")] = 1024,
    chunk: Annotated[int, typer.Option("--chunk", min=1, help="Tokens per step; those of earlier steps are read from the KV cache.")] = 32,
    against: Annotated[
        str | None, typer.Option("--against", help="Model to compare with on the same tokens, such as the one quantized.")
    ] = None,
    device: options.Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Measure a text's perplexity in a precision and KV cache type.

    Examples:
      trtllm-bench perplexity smollm2 --dataset text.txt
      trtllm-bench perplexity smollm2-int4 --against smollm2 --dataset text.txt
    """
    import time

    import numpy as np

    from trtllm_bench.build_progress import build_progress
    from trtllm_bench.targets.native import arch_for, device_of
    from trtllm_engines.calibration.perplexity import Perplexity, perplexity
    from trtllm_engines.checkpoints.checkpoint_precision import default_precision
    from trtllm_engines.quantization import kv_cache_dtype
    from trtllm_engines.quantization.precision import canonical
    from trtllm_engines.quantization.scheme import WIDE
    from trtllm_results.metrics.quality import WindowSums, text_figures

    place = device_of(device)
    chosen = canonical(precision) if precision else default_precision(model, place == "cuda")
    began = time.perf_counter()

    def measured(of: str, precision: str, **types: str) -> Perplexity:
        with build_progress() as report:
            return perplexity(of, precision, dataset, count=windows, length=window_len, chunk=chunk, device=place, progress=report, **types)

    result = measured(model, chosen, kv_dtype=kv_dtype, context_attention=context_attention or WIDE)
    base = None if against is None else measured(against, default_precision(against, place == "cuda"))
    if base is not None and base.counts != result.counts:
        raise BenchError(f"{model} and {against} do not make the same tokens of {dataset}; compare a model with what was made of it")
    sums = WindowSums(
        np.asarray(result.counts, np.float64),
        np.asarray(result.losses),
        reference_loss=None if base is None else np.asarray(base.losses),
    )
    figures = text_figures(sums)
    cache = kv_cache_dtype(chosen, kv_dtype, (arch_for(device),))
    if as_json:
        import json

        types = {"precision": chosen, "kv_dtype": cache, "context_attention": context_attention or WIDE}
        facts = {"model": model, **types, "dataset": str(dataset), "windows": result.windows, "chunk": chunk}
        del figures["accuracy_tokens"]
        typer.echo(json.dumps({**facts, "against": against, "tokens": result.tokens, **figures, "perplexity": result.value}))
        return
    context = f", context attention {context_attention}" if context_attention else ""
    typer.echo(f"{model} {chosen}, KV cache {cache}{context}: perplexity {result.value:.3f}{_ends(figures, 'perplexity', 1, '.3f')}")
    if base is not None:
        change = f"{100 * figures['perplexity_change']:+.2f}%{_ends(figures, 'perplexity_change', 100, '+.2f')}"
        typer.echo(f"against {against}: {base.value:.3f}, a change of {change}")
    typer.echo(f"{result.tokens:,} tokens in {result.windows} windows of {dataset}, {time.perf_counter() - began:.1f} s")


def _ends(figures: Mapping[str, float], name: str, scale: float, form: str) -> str:
    """The 95% interval over the windows, where there are several."""
    if f"{name}_low" not in figures:
        return ""
    return f" [{', '.join(format(scale * figures[f'{name}_{end}'], form) for end in ('low', 'high'))}]"
