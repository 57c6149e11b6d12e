"""Entry point: runs the command line and turns every error into one sentence on stderr and an exit code (`errors.py`).

Usage mistakes end in 3, not click's 2, since 2 means "inconclusive" for gates. `--debug` is taken out of the arguments here, wherever it
stands, because it must work even when parsing is what failed. Signals are taken over before anything else is imported (`interrupts.py`).
"""

from __future__ import annotations

import sys

from trtllm_bench import interrupts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, TextIO


def _say(message: str) -> None:
    """Prints a message on standard error: wrapped between words in a terminal, on one line in a log, so that it can be searched."""
    text = f"trtllm-bench: {message}"
    if sys.stderr.isatty():
        import shutil
        import textwrap

        width = shutil.get_terminal_size().columns
        text = "\n".join(textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False) for line in text.splitlines())
    print(text, file=sys.stderr)


def _explain(error: Exception) -> int:
    """Prints the error as one sentence; returns the exit code."""
    from trtllm_bench.errors import FAILURE, MISTAKEN_PATHS, USAGE, sentence_for, user_errors

    if hasattr(error, "format_message"):  # click's own errors, whichever click typer brings
        command = getattr(getattr(error, "ctx", None), "command_path", "trtllm-bench")
        if not error.format_message():
            error.show()  # type: ignore[attr-defined]
            return USAGE
        place = _place_of_option(error) if type(error).__name__ == "NoSuchOption" else ""
        _say("\n".join(filter(None, (error.format_message(), place, f"See: {command} --help"))))
        return USAGE if error.exit_code == 2 else int(error.exit_code)  # type: ignore[attr-defined]
    if isinstance(error, user_errors()):
        code = int(getattr(error, "exit_code", USAGE))
        _say("; ".join(part for part in (" ".join(str(error).split()), interrupts.kept() if code == FAILURE else "") if part))
        return code
    if isinstance(error, OSError):
        _say("; ".join(part for part in (sentence_for(error), interrupts.kept()) if part))
        return USAGE if error.errno in MISTAKEN_PATHS else FAILURE
    allocation = any(said in str(error) for said in ("DefaultCPUAllocator", "Cannot allocate memory"))
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or allocation:
        detail = " ".join(str(error).split())[:200]
        _say(f"out of memory{f' ({detail})' if detail else ''}; try a smaller --max-batch-size, --max-seq-len, model or file")
        return FAILURE
    _say(f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:400]} (this is a bug; --debug shows where)")
    return FAILURE


def _place_of_option(error: Any) -> str:
    """Where an option goes that a command does not have: before the command's name, or after the `--` of what it hands on."""
    context = error.ctx
    above = context.parent.command.params if context.parent is not None else ()
    if any(error.option_name in param.opts for param in above):
        return f"Write it before the word {context.info_name}: {context.parent.command_path} {error.option_name} ... {context.info_name}"
    return next((param.help for param in context.command.params if (param.metavar or "").startswith("-- ")), "")


def _nothing(descriptor: int) -> TextIO:
    """The null device as one of the three standard streams."""
    import os

    opened = os.open(os.devnull, os.O_RDWR)
    if opened != descriptor:
        os.dup2(opened, descriptor)
        os.close(opened)
    return open(descriptor, "w" if descriptor else "r", encoding="utf-8", closefd=False)


def _prepare_streams() -> None:
    """A character that the terminal's encoding lacks is written as an escape; libraries' warnings, which are for programmers, are not
    shown unless Python was asked for them."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # started with it closed: the next file opened would be taken for it
            setattr(sys, name, _nothing(descriptor))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if not sys.warnoptions:
        import warnings

        warnings.simplefilter("ignore")


def _run(given: Sequence[str]) -> int:
    """The exit code of a command line that was not interrupted."""
    from trtllm_bench.app import app
    from trtllm_bench.errors import CLOSED_PIPE, FAILURE, INTERRUPTED, USAGE

    debug = "--debug" in given
    try:
        result = app([argument for argument in given if argument != "--debug"], prog_name="trtllm-bench", standalone_mode=False)
    except Exception as error:
        if interrupts.received():
            raise KeyboardInterrupt from error
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()  # type: ignore[attr-defined]
            return USAGE
        if type(error).__name__ == "Abort":
            return INTERRUPTED
        if debug:
            import traceback

            traceback.print_exc()
        code = _explain(error)
        return USAGE if code == FAILURE and hasattr(error, "no_verdict") else code
    except SystemExit as error:
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        if interrupts.kept():
            _say(f"nobody reads standard output any more; {interrupts.kept()}")
        return CLOSED_PIPE
    if result == INTERRUPTED:  # what typer makes of a KeyboardInterrupt
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code. Without `arguments` it is the process's own, and takes its signals over."""
    try:
        if arguments is None:
            interrupts.install()
            _prepare_streams()
        code = _run(sys.argv[1:] if arguments is None else list(arguments))
        if arguments is None:
            interrupts.finished()
        return interrupts.farewell() if interrupts.received() else code
    except KeyboardInterrupt:
        return interrupts.farewell()


if __name__ == "__main__":
    sys.exit(main())
