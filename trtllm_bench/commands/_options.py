"""Flags that several commands share. Those of a measurement are derived from its knobs (`spec.measurement`), under NVIDIA's name where its
tool has one (`_` and `-` are the same)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from trtllm_bench.errors import BenchError
from trtllm_bench.spec.knobs import KnobField
from trtllm_bench.spec.measurement import MeasurementSpec, all_knobs


def option(name: str, **settings: Any) -> Any:
    """The flag of one knob, for a command that takes it as a parameter of its own."""
    one = next(one for one in all_knobs() if one.name == name)
    return typer.Option(*one.flags, help=settings.pop("help", one.help), show_default=False, **settings)


Model = Annotated[str | None, option("model")]
EngineDir = Annotated[Path | None, option("engine_dir")]
Weights = Annotated[str | None, option("weights")]
Precision = Annotated[str | None, option("precision")]
KvDtype = Annotated[str, option("kv_dtype")]
ContextAttention = Annotated[str | None, option("context_attention")]
Device = Annotated[str, option("device")]
MaxBatchSize = Annotated[int | None, option("max_batch_size", min=1)]
MaxNumTokens = Annotated[int | None, option("max_num_tokens", min=1)]
MaxSeqLen = Annotated[int | None, option("max_seq_len", min=1)]
SkipBadRows = Annotated[bool, option("skip_bad_rows")]
Out = Annotated[str | None, typer.Option("--out", metavar="<path>", help="Also append the result to this store (or address, s3://...).")]
ReportJson = Annotated[Path | None, typer.Option("--report-json", help="Write the report here, with NVIDIA's field names.")]


def given(context: typer.Context, names: Sequence[str]) -> str:
    """The first of these parameters that the command line gave, as it is written there; empty where it gave none."""
    parameters = {one.name: one for one in context.command.params}
    there = (one for one in names if getattr(context.get_parameter_source(one), "name", "") == "COMMANDLINE")
    return next((parameters[one].opts[0] if parameters[one].param_type_name == "option" else one.upper() for one in there), "")


Asked = Mapping[str, Any]
"""What the user gave, by the name of the knob; what was left out is not in it."""


def measures(
    without: Collection[str] = (), grid: bool = False, help: Mapping[str, str] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the flags of a measurement, less those of the knobs `without`: it receives them as one mapping, `asked`.

    `grid`: each takes a list. `help`: what this command says of a knob instead of the knob's own words.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        def command(context: typer.Context, **given: Any) -> None:
            asked = {name: value for name, value in given.items() if name in names and value is not None}
            if "engine_dir" in asked and getattr(context.get_parameter_source("model"), "name", "") == "DEFAULT_MAP":
                del asked["model"]  # NVIDIA's tool wants a model before the command even where an engine is named
            function(asked=asked, **{name: value for name, value in given.items() if name not in names})

        own = list(inspect.signature(function, eval_str=True).parameters.values())
        knobs = {one.name: one for one in all_knobs() if one.name not in without}
        names = tuple(knobs)
        derived = [_parameter(one, grid, (help or {}).get(one.name, one.help)) for one in knobs.values()]
        parameters = [new for one in own for new in (derived if one.name == "asked" else [one])]
        context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        parameters = [context, *(one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters)]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        command.__doc__, command.__name__, command.__module__ = function.__doc__, function.__name__, function.__module__
        return command

    return decorate


def _parameter(one: KnobField, grid: bool, help: str) -> inspect.Parameter:
    """An option that is None where it was not given, so that the command knows what was."""
    taken: Any = one.type if one.type is bool or not grid else str
    shown: dict[str, Any] = {"metavar": f"<{one.type.__name__.lower()}{one.knob.separator}..>"} if grid and one.type is not bool else {}
    flag = typer.Option(*one.flags, help=help, **shown)
    return inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[taken | None, flag])


def single(asked: Asked) -> MeasurementSpec:
    """The measurement asked for on the command line. Raises `BenchError` naming the flag."""
    values = dict(asked)
    if values.get("concurrency", 1) <= 0:
        values.pop("concurrency")
    if values.get("num_requests") == 0 and "dataset" in values:  # NVIDIA's way to say: all of it
        values.pop("num_requests")
    rate = values.get("request_rate")
    if rate is not None and not rate > 0:
        raise BenchError(f"--request-rate must be above 0, not {rate:g}")
    if rate == math.inf:  # vLLM's default: all at once
        values.pop("request_rate"), values.pop("burstiness", None)
    return MeasurementSpec.of(dict(_checked(values)))


def _checked(values: Asked) -> Iterator[tuple[str, Any]]:
    for one in all_knobs():
        if one.name in values:
            yield one.name, one.parsed(values[one.name], "/".join(one.flags))
