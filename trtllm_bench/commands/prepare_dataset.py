"""`prepare-dataset`: write a workload as JSON lines in NVIDIA's format.

Sub-command and flag names are those of NVIDIA's tool where it has them.

NVIDIA's options come before the sub-command (`prepare-dataset --output F token-norm-dist ...`); so do ours. Equal options give equal bytes.
Here a prompt is token ids drawn from the vocabulary's size, so no tokenizer is needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtllm_bench.commands import _options as flags
from trtllm_bench.errors import BenchError

if TYPE_CHECKING:
    from trtllm_workloads import Workload
    from trtllm_workloads.arrivals import Arrivals
    from trtllm_workloads.lengths import Lengths

HELP = """Write a workload as JSON lines in NVIDIA's dataset format.

Examples:
  trtllm-bench prepare-dataset random --num-requests 9 --isl 64 --osl 16
  trtllm-bench prepare-dataset --out d.jsonl trace requests.csv
"""
app = typer.Typer(add_completion=False, no_args_is_help=True, help=HELP)

NumRequests = Annotated[int, typer.Option("--num-requests", help="Requests to write.")]


@app.callback()
def _options(
    context: typer.Context,
    output: Annotated[Path | None, typer.Option("--out", "-o", help="File to write (default: standard output).")] = None,
    stdout: Annotated[bool, typer.Option("--stdout", help="Write to standard output even when --out is given.")] = False,
    seed: Annotated[int, typer.Option("--random-seed", "--seed", min=0, help="Equal seeds give equal bytes.")] = 420,
    vocab_size: Annotated[int, typer.Option("--vocab-size", help="Token ids are drawn below this.")] = 32_000,
    request_rate: Annotated[
        float | None, typer.Option("--request-rate", help="Write Poisson arrival times at this rate (requests/s).")
    ] = None,
    burstiness: Annotated[float, typer.Option("--burstiness", help="Shape of gamma gaps; 1 is Poisson, below 1 burstier.")] = 1.0,
    arrivals: Annotated[str | None, flags.option("arrivals")] = None,
    lora: Annotated[int, typer.Option("--num-loras", min=0, help="Spread requests over this many LoRA ids.")] = 0,
    lora_pick: Annotated[str, typer.Option("--lora-pick", help="How: uniform, round-robin or zipf.")] = "uniform",
) -> None:
    if not lora and flags.given(context, ("lora_pick",)):
        raise BenchError("--lora-pick says how --num-loras are spread; give both")
    context.obj = {
        "output": None if stdout else output,
        "seed": seed,
        "vocab_size": vocab_size,
        "request_rate": request_rate,
        "burstiness": burstiness,
        "arrivals": arrivals,
        "lora": lora,
        "lora_pick": lora_pick,
    }


@app.command("token-norm-dist")
def token_norm_dist(
    context: typer.Context,
    num_requests: NumRequests,
    input_mean: Annotated[float, typer.Option("--input-mean", help="Mean prompt length, tokens.")],
    input_stdev: Annotated[float, typer.Option("--input-stdev", help="Its standard deviation, before clamping to at least 1.")],
    output_mean: Annotated[float, typer.Option("--output-mean", help="Mean output length, tokens.")],
    output_stdev: Annotated[float, typer.Option("--output-stdev", help="Its standard deviation.")],
) -> None:
    r"""Normally distributed lengths; a standard deviation of 0 makes them fixed.

    Examples:
      trtllm-bench prepare-dataset --out d.jsonl token-norm-dist \
        --num-requests 100 --input-mean 128 --input-stdev 0 \
        --output-mean 128 --output-stdev 0
      trtllm-bench prepare-dataset token-norm-dist --num-requests 9 \
        --input-mean 64 --input-stdev 8 --output-mean 16 --output-stdev 4
    """
    from trtllm_workloads.lengths import Normal

    _write_synthetic(context, num_requests, Normal(input_mean, input_stdev), Normal(output_mean, output_stdev))


@app.command("token-unif-dist")
def token_unif_dist(
    context: typer.Context,
    num_requests: NumRequests,
    input_min: Annotated[int, typer.Option("--input-min", help="Shortest prompt, tokens.")],
    input_max: Annotated[int, typer.Option("--input-max", help="Longest prompt.")],
    output_min: Annotated[int, typer.Option("--output-min", help="Shortest output.")],
    output_max: Annotated[int, typer.Option("--output-max", help="Longest output.")],
) -> None:
    r"""Uniformly distributed lengths, both ends included.

    Examples:
      trtllm-bench prepare-dataset --out d.jsonl token-unif-dist \
        --num-requests 100 --input-min 64 --input-max 256 \
        --output-min 16 --output-max 64
      trtllm-bench prepare-dataset token-unif-dist --num-requests 9 \
        --input-min 8 --input-max 8 --output-min 1 --output-max 4
    """
    from trtllm_workloads.lengths import Uniform

    _write_synthetic(context, num_requests, Uniform(input_min, input_max), Uniform(output_min, output_max))


@app.command("random")
def random_lengths(
    context: typer.Context,
    num_requests: NumRequests,
    isl: Annotated[str, typer.Option("--isl", help="Prompt lengths: 128, or uniform:64,256, lognormal:1155,1000, zipf:1.1,1,4096, ...")],
    osl: Annotated[str, typer.Option("--osl", help="Output lengths, written the same way.")],
    range_ratio: Annotated[
        float, typer.Option("--random-range-ratio", help="Spread whole-number lengths L over [L(1-r), L(1+r)], as vLLM does.")
    ] = 0.0,
    correlation: Annotated[float, typer.Option("--correlation", help="Gaussian-copula correlation of the two lengths.")] = 0.0,
) -> None:
    r"""Any length distribution the tool knows, by its short form.

    Examples:
      trtllm-bench prepare-dataset random --num-requests 9 --isl 64 --osl 16
      trtllm-bench prepare-dataset --out d.jsonl random --num-requests 100 \
        --isl lognormal:1155,1000 --osl zipf:1.1,1,4096
    """
    from trtllm_workloads.lengths import Fixed, around, parse

    given = (parse(isl), parse(osl))
    if range_ratio and not any(isinstance(one, Fixed) for one in given):
        raise BenchError("--random-range-ratio spreads whole-number lengths, and both --isl and --osl are distributions; leave it out")
    lengths = [around(one.tokens, range_ratio) if isinstance(one, Fixed) else one for one in given]
    _write_synthetic(context, num_requests, lengths[0], lengths[1], correlation)


@app.command("trace")
def trace(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A trace file, a workload .toml, or a shipped workload's name.")],
    num_requests: Annotated[int | None, typer.Option("--num-requests", min=1, help="Only so many requests.")] = None,
    time_scale: Annotated[float, typer.Option("--time-scale", help="Multiply arrival times; 0.1 is ten times as fast.")] = 1.0,
    skip_bad_rows: flags.SkipBadRows = False,
) -> None:
    """A recorded trace or a workload specification, with its arrival times and shared prefixes.

    Examples:
      trtllm-bench prepare-dataset --out d.jsonl trace requests.csv
      trtllm-bench prepare-dataset trace chat --num-requests 100
    """
    from trtllm_workloads.open_workload import open_workload
    from trtllm_workloads.synthetic import generator

    options: dict[str, Any] = context.obj
    workload = open_workload(
        source,
        requests=num_requests,
        vocab_size=options["vocab_size"],
        seed=options["seed"],
        time_scale=time_scale,
        skip_bad_rows=skip_bad_rows,
    )
    process = _arrivals(options)
    if process is not None:
        workload = workload.with_arrivals(process.times(workload.num_arrivals, generator(options["seed"], "arrivals")))
    _write(context, workload)


def _write_synthetic(context: typer.Context, num_requests: int, isl: Lengths, osl: Lengths, correlation: float = 0.0) -> None:
    from trtllm_workloads.lengths import Correlated
    from trtllm_workloads.synthetic import synthetic
    from trtllm_workloads.tokens import Vocabulary

    options: dict[str, Any] = context.obj
    pairs, vocabulary = Correlated(isl, osl, correlation), Vocabulary(options["vocab_size"])
    _write(context, synthetic(num_requests, pairs, arrivals=_arrivals(options), vocabulary=vocabulary, seed=options["seed"]))


def _arrivals(options: dict[str, Any]) -> Arrivals | None:
    from trtllm_workloads.arrivals import chosen

    return chosen(options["request_rate"], options["burstiness"], options["arrivals"])


def _write(context: typer.Context, workload: Workload) -> None:
    import sys

    from trtllm_workloads import dataset
    from trtllm_workloads.files import replacing
    from trtllm_workloads.structure import with_adapters
    from trtllm_workloads.synthetic import generator

    options: dict[str, Any] = context.obj
    if options["lora"]:
        workload = with_adapters(workload, options["lora"], options["lora_pick"], generator(options["seed"], "lora"))
    left_out = f", {workload.skipped} bad row{'s' * (workload.skipped > 1)} left out" if workload.skipped else ""
    if options["output"] is None:
        dataset.write(workload, sys.stdout)
        if left_out:
            typer.echo(f"{len(workload)} requests{left_out}", err=True)
        return
    with replacing(options["output"]) as stream:
        dataset.write(workload, stream)
    inputs, outputs = workload.input_tokens, workload.output_tokens
    typer.echo(
        f"{options['output']}: {len(workload)} requests{left_out}, prompts {inputs.mean():.1f} tokens on average "
        f"({inputs.min()}..{inputs.max()}), outputs {outputs.mean():.1f} ({outputs.min()}..{outputs.max()}), "
        f"workload {workload.content_hash}",
        err=True,
    )
