"""Flags by other names: those of NVIDIA's `trtllm-bench`, and this tool's own earlier ones. All of it is data here; no command knows of it.

Of NVIDIA's options (TensorRT-LLM 0.12 to 1.2, `tensorrt_llm/bench`), most are this tool's own under the same name. The others either are
another spelling (`ALIASES`), or ask for what is done anyway, or for what is not done here; then one sentence says what to use
(`FOREIGN`). None is silently dropped: a run that was asked for something else must not look like the run that was asked for.

They are laid over a command's parameters once it is loaded, and help pages do not show them. Rejected: rewriting the arguments before
they are parsed, which cannot tell a flag from a value that looks like one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer.main import get_command

from trtllm_bench.errors import BenchError

MEASURING = ("throughput", "latency", "sweep", "search", "profile")


def _precision(name: str) -> str:
    """This tool's precision for NVIDIA's `QuantAlgo` names, in a list too. Raises `BenchError` for a scheme that is not there."""
    from trtllm_engines.errors import EngineError
    from trtllm_engines.quantization.registry import definition, definitions

    chosen = []
    for part in (part.strip() for part in name.split(",")):
        try:
            chosen.append(definition(part).name)
        except EngineError:
            known = ", ".join(one for each in definitions().values() for one in each.algorithms)
            raise BenchError(f"--quantization {part} is not built; choose from {known}, or give --precision") from None
    return ",".join(chosen)


def _weights(asked: str) -> str | None:
    return "dummy" if asked.lower() in ("true", "1", "yes", "on") else None


@dataclass(frozen=True)
class Alias:
    """Flags that set the parameter `name` of these commands, where they have it. `convert` makes this tool's value of the given one."""

    name: str
    flags: tuple[str, ...]
    commands: tuple[str, ...] = ()
    """Command paths such as `results ls`; "" is the tool itself. None named: all."""
    convert: Callable[[str], Any] | None = None


ALIASES = (
    # NVIDIA's
    Alias("model", ("--model-path",), ("",)),
    Alias("model", ("--model-path",), (*MEASURING, "build", "generate")),
    Alias("tp", ("--tp-size", "-tp")),
    Alias("pp", ("--pp-size", "-pp")),
    Alias("precision", ("--quantization", "-q"), (*MEASURING, "build", "generate", "perplexity", "tune"), _precision),
    Alias("precision", ("--quantization", "-q"), ("quantize",)),  # whose names say a method, too
    Alias("weights", ("--no-weights-loading",), ("build",), _weights),
    Alias("kv_dtype", ("--kv-cache-dtype",)),
    # one name for one thing: where results go, the engine, the model
    Alias("output", ("--output",), ("prepare-dataset",)),
    Alias("out", ("--output-dir",)),
    Alias("out", ("--json",), ("kernels",)),
    Alias("out", ("--out",), ("results export",)),
    Alias("engine", ("--engine-dir",), ("inspect", "refit")),
    Alias("model", ("--model", "-m"), ("quantize", "perplexity", "inspect")),
    Alias("name", ("--model", "-m"), ("fetch",)),
    Alias("model", ("--shapes",), ("kernels",)),
)


@dataclass(frozen=True)
class Foreign:
    """Flags of NVIDIA's that these commands have no use for. `advice` refuses a value that asks for more than is done anyway (`harmless`);
    with a `note` the run goes on."""

    flags: tuple[str, ...]
    commands: tuple[str, ...]
    advice: str = ""
    note: str = ""
    harmless: tuple[str, ...] = ()
    values: int = 1
    """How many it takes; 0 for a switch."""


_OWN_ENGINE = "is a setting of TensorRT-LLM's own runtime"
FOREIGN = (
    Foreign(
        ("--backend",),
        MEASURING,
        "names a runtime of TensorRT-LLM; leave it out to measure this tool's engine, or measure trtllm-serve with --target http://HOST:PORT",
    ),
    Foreign(
        ("--extra-llm-api-options", "--config"),
        MEASURING,
        "is a file of TensorRT-LLM's settings; give the flags instead (--max-batch-size, --kv-dtype, ...), or a sweep's TOML",
    ),
    Foreign(
        ("--sampler-options",), MEASURING, "is not read: requests are greedy; sampling is told with the flags of trtllm-bench generate"
    ),
    Foreign(("--custom-module-dirs",), MEASURING, f"{_OWN_ENGINE}; add a model family under engines/trtllm_engines/models instead"),
    Foreign(("--custom-tokenizer",), MEASURING, "names a Python class; give --tokenizer a folder with tokenizer.json"),
    Foreign(
        ("--eos-id",),
        MEASURING,
        "other than -1 would end requests early: each makes as many tokens as it asks for; leave it out, or see trtllm-bench generate",
        harmless=("-1",),
    ),
    Foreign(("--beam-width", "--max-beam-width"), MEASURING, "above 1 is not built; leave it at 1", harmless=("1",)),
    Foreign(("--ep",), MEASURING, "above 1 is not built: models here have no experts; use --tp", harmless=("1", "-1")),
    Foreign(("--cluster-size",), MEASURING, "above 1 is not built: models here have no experts; use --tp", harmless=("1", "-1")),
    Foreign(("--modality",), MEASURING, "is not built: models here take text and token ids only; leave it out"),
    Foreign(("--image-data-format", "--data-device"), MEASURING, "belongs to --modality, which is not built; leave it out"),
    Foreign(("--max-input-len",), MEASURING, note="has no effect: it belongs to --modality, and prompts are as long as the dataset says"),
    Foreign(
        ("--target-input-len", "--target-output-len"),
        (*MEASURING, "build"),
        "is a hint for TensorRT-LLM's choice of sizes; give --max-batch-size and --max-num-tokens",
    ),
    Foreign(("--medusa-choices",), MEASURING, "is not built: no draft tokens are made; leave it out"),
    Foreign(
        ("--iteration-log", "--request-json"),
        MEASURING,
        "is not written; --out FOLDER keeps every step and every request as Parquet (steps/ and requests/ in it)",
    ),
    Foreign(
        ("--output-json",),
        MEASURING,
        "is not written, since generated tokens are not kept; give --report-json FILE for figures, or see trtllm-bench generate --json",
    ),
    Foreign(("--streaming",), ("latency",), note="has no effect: every answer is streamed", values=0),
    Foreign(("--no-skip-tokenizer-init",), MEASURING, note="has no effect: a tokenizer is read when prompts are text", values=0),
    Foreign(
        ("--enable-chunked-context",),
        MEASURING,
        note="has no effect: prompts are always prefilled in chunks of up to --max-num-tokens",
        values=0,
    ),
    Foreign(
        ("--disable-chunked-context",),
        MEASURING,
        "is not built: prompts are prefilled in chunks of up to --max-num-tokens; make that as large as the longest prompt",
        values=0,
    ),
    Foreign(("--trust-remote-code",), ("build",), note="has no effect: no code of a checkpoint is ever run"),
    Foreign(("--dataset",), ("build",), "is not read for sizes; give --max-seq-len, --max-batch-size and --max-num-tokens"),
    Foreign(("--log-level",), ("",), note="has no effect; --debug shows where an error comes from"),
    Foreign(("--revision",), ("",), "names a version on a hub; give --model a local folder with that version"),
    Foreign(("--telemetry", "--no-telemetry"), ("",), note="has no effect: nothing is ever sent anywhere", values=0),
    Foreign(
        ("--tokenizer", "-t"),
        ("prepare-dataset",),
        "is not needed: prompts are token ids drawn below --vocab-size; give the model's vocabulary there",
    ),
    Foreign(
        ("--task-id", "--lora-dir"),
        ("prepare-dataset",),
        "is not written; --num-loras N spreads requests over N LoRA ids",
        harmless=("-1",),
    ),
    Foreign(("--rand-task-id",), ("prepare-dataset",), "is not written; --num-loras N spreads requests over N LoRA ids", values=2),
    Foreign(("--log-level",), ("prepare-dataset",), note="has no effect"),
    Foreign(("--trust-remote-code",), ("prepare-dataset",), note="has no effect: no code of a checkpoint is ever run", values=0),
)


def add_other_names(command: Any, path: str) -> None:
    """Lays aliases and foreign flags over a loaded command; `path` is its name, such as `results ls`, or "" for the tool itself."""
    taken = {flag for param in command.params for flag in (*param.opts, *param.secondary_opts)}
    for alias in ALIASES:
        for param in command.params if not alias.commands or path in alias.commands else ():
            free = tuple(flag for flag in alias.flags if flag not in taken)
            if param.name == alias.name and free:
                _also_called(param, free, alias.convert)
                taken.update(free)
    foreign = {flag: one for one in FOREIGN if path in one.commands for flag in one.flags if flag not in taken}
    command.params.extend(_answering(foreign))


def _also_called(param: Any, flags: tuple[str, ...], convert: Callable[[str], Any] | None) -> None:
    """Makes `flags` set `param`, an option or an argument, without showing them."""
    own, add_to_parser, consume_value = f"{param.name} by another name", param.add_to_parser, param.consume_value

    def added(parser: Any, context: Any) -> None:
        add_to_parser(parser, context)
        parser.add_option(obj=param, opts=list(flags), dest=own, action="store", nargs=1)

    def consumed(context: Any, given: Mapping[str, Any]) -> Any:
        value, source = consume_value(context, given)
        if own not in given:
            return value, source
        if given.get(param.name) is not None and param.param_type_name == "argument":
            raise BenchError(f"{param.metavar or param.name} and {flags[0]} say the same; give one of them")
        return (given[own] if convert is None else convert(given[own])), type(source).COMMANDLINE

    param.add_to_parser, param.consume_value = added, consumed


def _answering(foreign: Mapping[str, Foreign]) -> Iterator[Any]:
    """Hidden options that say what foreign flags mean here."""

    def command(**_: Any) -> None:
        pass

    parameters = []
    for number, (flag, one) in enumerate(foreign.items()):
        kind: Any = {0: bool, 1: str, 2: tuple[str, str]}[one.values]
        declared = typer.Option(flag, hidden=True, expose_value=False, callback=_answer(flag, one))
        annotation = Annotated[kind | None, declared]
        parameters.append(inspect.Parameter(f"foreign_{number}", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    shell = typer.Typer(add_completion=False)
    shell.command()(command)
    yield from (param for param in get_command(shell).params if param.name != "help")


def _answer(flag: str, one: Foreign) -> Callable[[Any], None]:
    def answer(value: Any) -> None:
        if value in (None, False) or str(value) in one.harmless:
            return
        said = flag if one.values == 0 else f"{flag} {value if one.values == 1 else ' '.join(value)}"
        if one.advice:
            raise BenchError(f"{said} {one.advice}")
        typer.echo(f"note: {said} {one.note}", err=True)

    return answer
