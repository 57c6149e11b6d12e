"""The command line's shape: a folder of commands, imported one at a time.

`commands/` *is* the registry: a file `commands/prepare_dataset.py` is the command `prepare-dataset`. It defines either `command` (a typed
function; its docstring is the help) or `app` (a `typer.Typer` with sub-commands), and imports what it works with inside the function,
so that `--help` loads neither torch nor pandas. Rejected: a table of names and summaries beside the files, since the two drift apart.

`-` and `_` are the same in every option and command (NVIDIA's tool spells `--num_requests`), and NVIDIA's habit of giving `--model` before
the command works: it becomes the default of the command's own `--model`.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import os
import pkgutil
import re
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from trtllm_bench import commands
from trtllm_bench.commands._other_names import add_other_names
from trtllm_bench.errors import BenchError, RunFailure

PANELS = {
    "Measure": ("sweep", "throughput", "latency", "search", "profile", "kernels", "tune", "ceilings"),
    "Engines": ("build", "inspect", "refit", "quantize", "perplexity", "fetch", "generate"),
    "Workloads": ("prepare-dataset", "trace"),
    "Results": ("results", "compare", "gate", "plot", "dashboard", "explain"),
    "Machine": ("doctor", "cache", "host"),
}


ENDLESS = ("request_rate",)
"""Options that may be infinite, and are checked where they are read: vLLM writes so that all requests come at once."""
TEXTS = ("prompts",)
"""Parameters that may be an empty text: models answer a prompt of nothing but their first token."""


class CommandFolder(MutableMapping[str, Any]):
    """The files of `commands/` as click commands, each imported when first looked up."""

    def __init__(self) -> None:
        known = [name for names in PANELS.values() for name in names]
        present = {module.name.replace("_", "-") for module in pkgutil.iter_modules(commands.__path__) if not module.name.startswith("_")}
        self._names = [name for name in known if name in present] + sorted(present.difference(known))
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def summary(self, name: str) -> str:
        """The first line of a command's help, without building its options (most of the cost of `--help`)."""
        function = getattr(self._module(name), "command", None)
        text = self[name].help if function is None else inspect.getdoc(function)
        return str(text or "").strip().split("\n")[0].rstrip(".")

    def _module(self, name: str) -> Any:
        return importlib.import_module(f"{commands.__name__}.{name.replace('-', '_')}")

    def _load(self, name: str) -> Any:
        module = self._module(name)
        sub_app = getattr(module, "app", None)
        if sub_app is None:
            sub_app = typer.Typer(add_completion=False)
            sub_app.command(name)(module.command)
        command = get_command(sub_app)
        command.name = name
        _finished(command, name)
        return command

    def __setitem__(self, name: str, command: Any) -> None:
        self._names.append(name)
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        self._names.remove(name)
        self._loaded.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _name_type(param: Any) -> None:
    """The type of one value: `<int>`, not `<int range>` or `<list[str]>`. Typer before 0.29 has other words, and keeps them."""
    if (shown := getattr(param, "display_type", None)) is not None:
        param.display_type = lambda context: re.sub(r"list\[(.*)\]| range", r"\1", shown(context))


def _as_written(text: str | None) -> str:
    """Help whose examples keep their lines."""
    return (text or "").replace("Examples:\n", "\b\nExamples:\n")


def _with_numbers_checked(command: Any) -> Callable[..., Any]:
    """The command's function, behind a check of every number it is given: `min` and `max` of an option let a NaN pass, and few options
    say how large is too large."""
    function: Callable[..., Any] = command.callback
    flags = {param.name: "/".join(param.opts) for param in command.params}

    @functools.wraps(function)
    def checked(*given: Any, **values: Any) -> Any:
        from trtllm_bench.spec.knobs import MOST

        for name, value in values.items():
            if isinstance(value, float) and not math.isfinite(value) and name not in ENDLESS:
                raise BenchError(f"{flags[name]} must be a finite number, not {value:g}")
            if isinstance(value, int) and abs(value) > MOST:
                raise BenchError(f"{flags[name]} must be at most {MOST}")
        return function(*given, **values)

    return checked


def _check_text(param: Any) -> None:
    """An empty text is no value, unless it is the default: as a path it would be the current folder, and it is what a script's unset
    variable leaves."""
    process: Callable[[Any, Any], Any] = param.process_value
    path = (param.metavar or "").startswith("<path")

    def checked(context: Any, value: Any) -> Any:
        if (value == "" and param.default != "") or (isinstance(value, list | tuple) and "" in value):
            name = "/".join(param.opts) if param.param_type_name == "option" else param.metavar
            raise BenchError(f"{name} is empty; give a value, or leave it out")
        taken = process(context, value)
        return [_from_home(one, path) for one in taken] if isinstance(taken, list | tuple) else _from_home(taken, path)

    param.process_value = checked


def _from_home(value: Any, path: bool) -> Any:
    """`~/runs` below the user's home: of `--out=~/runs` a shell leaves that to the command, which else made a folder named ~ here."""
    if str(value).startswith("~/") and (path or isinstance(value, Path)):
        return type(value)(os.path.expanduser(value))
    return value


def _finished(command: Any, path: str) -> None:
    """A command and its sub-commands with what all have: plain help (half the start-up time of rich's, and readable in a log), examples as
    they are written, and other tools' names of flags."""
    command.rich_markup_mode = None
    command.help = _as_written(command.help)
    command.short_help = command.help.split("\n")[0].rstrip(".")
    for param in command.params:
        if param.param_type_name == "argument":
            param.metavar = (param.metavar or param.name.upper()).strip("[].")
        _name_type(param)
        if param.name not in TEXTS:
            _check_text(param)
    add_other_names(command, path)
    if command.callback is not None:
        command.callback = _with_numbers_checked(command)
    for name, child in getattr(command, "commands", {}).items():
        _finished(child, f"{path} {name}")


class LazyGroup(TyperGroup):
    """A group whose commands are those of `commands/`, listed by what they are for."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.help = _as_written(self.help)
        add_other_names(self, "")
        self.commands = self.folder = CommandFolder()

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = max(len(name) for name in self.commands)
        listed = {name for names in PANELS.values() for name in names}
        others = tuple(name for name in self.commands if name not in listed)
        for panel, names in {**PANELS, "Other": others}.items():
            present = [(name.ljust(width), self.folder.summary(name)) for name in names if name in self.folder]
            if present:
                with formatter.section(panel):
                    formatter.write_dl(present)


def _hyphens(token: str) -> str:
    return token.replace("_", "-")


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"token_normalize_func": _hyphens, "help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"trtllm-bench {version('trtllm-bench')}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Default of the command's own --model.")] = None,
    workspace: Annotated[
        Path | None, typer.Option("--workspace", "-w", help="Folder for engines built on the way (default: the user's cache).")
    ] = None,
    version: Annotated[bool, typer.Option("--version", "-V", is_eager=True, callback=_print_version, help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error (accepted anywhere).")] = False,
) -> None:
    """Benchmark LLM inference on NVIDIA GPUs, with an ahead-of-time engine of its own.

    Examples:
      trtllm-bench doctor
      trtllm-bench sweep
    """
    try:
        Path.cwd()
    except FileNotFoundError:  # libraries end the process without a word there
        raise RunFailure("the current folder no longer exists; change to one that does") from None
    if workspace is not None:
        os.environ["TRTLLM_BENCH_CACHE"] = str(workspace.absolute())
    if model is not None:
        context.default_map = {name: {"model": model} for name in context.command.commands}  # type: ignore[attr-defined]
