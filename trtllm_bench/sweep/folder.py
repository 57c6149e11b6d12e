"""A sweep's folder: one sweep at a time, its specification always whole, and what to tell when a sweep ends early."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trtllm_bench.errors import BenchError
from trtllm_bench.measure.place import by_time
from trtllm_results.errors import ResultsError
from trtllm_results.record.flat import MOST_DEPTH, depth
from trtllm_results.store.files import read_text
from trtllm_results.store.layout import SWEEP
from trtllm_results.store.lock import RUN_LOCK, locked
from trtllm_results.store.table import Store

MOST_SPEC_BYTES = 2**20
STARTED_IN = "started_in"
"""What `sweep.json` has beside the specification."""


def holds_sweep(folder: Path) -> bool:
    """Whether there is something to resume. An empty `sweep.json` is what earlier versions left on a full disk, before any row."""
    path = folder / SWEEP
    return path.exists() and (not path.is_file() or path.stat().st_size > 0)


@contextlib.contextmanager
def new_folder(out: Path | None) -> Iterator[Path]:
    """Makes and claims the folder of a new sweep, `runs/<time>` by default. Raises `BenchError` where it holds a sweep already."""
    with _claimed(Store(out or by_time()).path) as folder:
        if holds_sweep(folder):
            raise BenchError(f"{folder} already holds a sweep; add --resume to go on with it, or choose another --out")
        yield folder


@contextlib.contextmanager
def resumed_folder(out: Path, grid_given: bool) -> Iterator[Path]:
    """Claims the folder of an earlier sweep. `grid_given`: whether the command line says itself what to measure."""
    if not out.is_dir():
        raise BenchError(f"no sweep to resume in {out}: the folder does not exist")
    with _claimed(out) as folder:
        if not holds_sweep(folder) and not grid_given:
            raise BenchError(f"no sweep to resume in {out}: it holds no {SWEEP}; give the flags of the sweep again")
        yield folder


@contextlib.contextmanager
def _claimed(folder: Path) -> Iterator[Path]:
    with locked(folder, RUN_LOCK, 0.0, "being measured into"):
        Store(folder).clean()
        yield folder


def write_spec(folder: Path, content: Mapping[str, Any]) -> None:
    """Beside what is to be measured, the folder from which relative paths in it are meant."""
    text = json.dumps({**content, STARTED_IN: str(Path.cwd())}, indent=1) + "\n"
    Store(folder).write(SWEEP, lambda handle: handle.write(text.encode()))


def read_spec(folder: Path) -> dict[str, Any]:
    """What `write_spec` was given, values unchecked. Raises `BenchError` naming the file where it is no JSON object."""
    return {name: value for name, value in _content(folder).items() if name != STARTED_IN}


def folder_of_paths(folder: Path) -> Path | None:
    """The folder in which an earlier sweep was started, if a relative path of its specification leads somewhere from there and nowhere
    from here; else None. Raises `BenchError` as `read_spec` does."""
    content = _content(folder)
    there = content.pop(STARTED_IN, "")
    if not isinstance(there, str) or not there:
        return None
    try:
        apart = any((Path(there) / text).exists() and not Path(text).exists() for text in _texts(content))
    except (OSError, ValueError):  # of a text that can be no path
        return None
    return Path(there) if apart else None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)


def _content(folder: Path) -> dict[str, Any]:
    path = folder / SWEEP
    try:
        content = json.loads(read_text(path, MOST_SPEC_BYTES))
    except ResultsError as error:
        raise BenchError(str(error)) from None
    except (ValueError, RecursionError):
        raise BenchError(f"{path} contains invalid JSON; remove it and give the flags of the sweep again with --resume") from None
    if not isinstance(content, dict) or depth(content) > MOST_DEPTH:
        raise BenchError(f"{path} must hold one object of flags; remove it and give the flags of the sweep again with --resume")
    return content


def what_is_kept(folder: Path, flags: str = "") -> str:
    """For the sentence on the way out. `flags`: what going on needs beside the folder."""
    if not holds_sweep(folder):
        return "nothing was measured yet; run the command again"
    done = len(Store(folder).finished())
    return (
        f"{done} finished measurement{'s are' if done != 1 else ' is'} kept; "
        f"go on with: trtllm-bench sweep {flags + ' ' if flags else ''}--resume --out {shlex.quote(str(folder))}"
    )
