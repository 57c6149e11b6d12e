"""One door for whatever a user names as a workload: a shipped specification, a TOML file, a dataset, or a trace in any known format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from trtllm_workloads import dataset
from trtllm_workloads.errors import WorkloadError
from trtllm_workloads.request import Workload
from trtllm_workloads.spec import read_spec
from trtllm_workloads.tokens import TokenPrompts, Vocabulary
from trtllm_workloads.traces import filters, reading


def data_folder(name: str) -> Path:
    """`specs` or `samples`: beside this package's folder in a source tree, inside the package in an installed wheel."""
    here = Path(__file__).parent
    inside = here / name
    return inside if inside.is_dir() else here.parent / name


def shipped() -> list[str]:
    """Names of the workloads that come with the package."""
    return sorted(path.stem for path in data_folder("specs").glob("*.toml"))


def open_workload(
    source: str | Path,
    *,
    requests: int | None = None,
    vocab_size: int | None = None,
    seed: int | None = None,
    time_scale: float = 1.0,
    skip_bad_rows: bool = False,
    tokenize: Callable[[str], Sequence[int]] | None = None,
) -> Workload:
    """The workload `source` names, its first `requests` requests when given.

    `skip_bad_rows` leaves out rows that are not requests, those of zero tokens among them. `tokenize` turns the prompts of a dataset of
    texts into token ids, as a target without a tokenizer needs them. Raises `WorkloadError`.
    """
    path = Path(source)
    if not path.exists():
        known = data_folder("specs") / f"{source}.toml"
        if not known.is_file():
            raise WorkloadError(f"no file at {source}, and no shipped workload of that name (there are {', '.join(shipped())})")
        path = known
    if path.is_dir():
        raise WorkloadError(f"{path} is a folder; name a dataset, a trace or a workload .toml")
    if path.suffix == ".toml":
        spec = read_spec(path)
        workload = spec.build(path.parent, requests=requests, vocab_size=vocab_size, seed=seed, skip_bad_rows=skip_bad_rows)
        return _scaled(workload, time_scale)
    format_name, _ = reading.format_of(path, "dataset")
    if format_name in (reading.DATASET, reading.TEXTS) or (not format_name and ".csv" not in path.suffixes[-2:]):
        workload, skipped = dataset.read(path, skip_bad_rows=skip_bad_rows)
        workload = replace(workload, skipped=skipped)
        workload = workload if requests is None else workload.head(requests)
        return _scaled(workload if tokenize is None else tokenized(workload, tokenize), time_scale)
    trace = reading.read_trace(path, skip_bad_rows=skip_bad_rows, limit=requests)
    if time_scale != 1:
        trace = filters.time_scale(trace, time_scale)
    return trace.to_workload(Vocabulary(vocab_size) if vocab_size else None, seed or 0)


def tokenized(workload: Workload, tokenize: Callable[[str], Sequence[int]]) -> Workload:
    """The workload with token ids in place of texts; unchanged where it has ids already.

    Raises:
        WorkloadError: a prompt has no token under `tokenize`.
    """
    texts = [workload.prompts.text(row) for row in range(len(workload))]
    if None in texts:
        return workload
    ids = [list(tokenize(text)) for text in texts if text is not None]
    if empty := [row for row, prompt in enumerate(ids) if not prompt]:
        raise WorkloadError(f"workload {workload.name}: the prompt of request {empty[0]} has no token under the model's tokenizer")
    prompts = TokenPrompts.of(ids)
    return replace(workload, prompts=prompts, input_tokens=np.diff(prompts.offsets).astype(np.int32))


def _scaled(workload: Workload, factor: float) -> Workload:
    if factor == 1:
        return workload
    if not len(workload.arrival_s):
        raise WorkloadError(f"workload {workload.name} has no arrival times, so a time scale has no meaning")
    if not 0 < factor < float("inf"):
        raise WorkloadError(f"the time scale is {factor:g}; it must be above 0")
    return workload.with_arrivals(workload.arrival_s[workload.arrival_s == workload.arrival_s] * factor)
