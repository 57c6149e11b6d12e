"""What a profiled run leaves besides its trace: the steps of the window, the step log, the cell. As JSON, so that one process may run the
cell under another tool (`nsys`) and a second one analyse it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trtllm_bench.errors import RunFailure
from trtllm_bench.profiling.window import SeenStep
from trtllm_bench.roofline.counts import StepShape
from trtllm_results.store.document import read_document
from trtllm_results.store.files import write_text

LOG_COLUMNS = ("done_s", "launched_s", "decode_tokens", "context_tokens", "kv_pages_used")


@dataclass(frozen=True)
class Capture:
    engine: str
    """Folder of the engine, whose plan says what each step launched."""
    arch: str
    device: str
    """`cuda` or `cpu`."""
    device_name: str
    cell: Mapping[str, Any]
    figures: Mapping[str, float]
    seen: tuple[SeenStep, ...]
    lead_in: int
    log: Mapping[str, list[float]]
    """The whole run's steps, by `LOG_COLUMNS`."""
    ceilings: Mapping[str, Any]
    notes: tuple[str, ...]
    processes: tuple[int, ...] = ()
    """Of the ranks, in order, where there are several and another tool recorded them."""

    def save(self, path: Path) -> None:
        data = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "seen"}
        data["seen"] = [_step(step) for step in self.seen]
        write_text(path, json.dumps(data))

    @classmethod
    def load(cls, path: Path) -> Capture:
        """Raises `RunFailure`: the file is missing when the run under the other tool failed."""
        try:
            data = read_document(path)
            data["seen"] = tuple(_seen(step) for step in data["seen"])
            data["notes"], data["processes"] = tuple(data["notes"]), tuple(data["processes"])
            return cls(**data)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunFailure(f"the profiled run left no account of its steps at {path} ({type(error).__name__}); did it fail?") from error


def _step(step: SeenStep) -> dict[str, Any]:
    shape = step.shape
    return {
        "number": step.number,
        "query_lens": shape.query_lens.tolist(),
        "kv_lens": shape.kv_lens.tolist(),
        "num_decodes": shape.num_decodes,
        "samples": shape.samples,
        "symbols": dict(step.symbols),
        "graph": step.graph,
    }


def _seen(data: Mapping[str, Any]) -> SeenStep:
    lens = np.asarray(data["query_lens"], np.int64), np.asarray(data["kv_lens"], np.int64)
    return SeenStep(data["number"], StepShape(*lens, data["num_decodes"], data["samples"]), data["symbols"], data["graph"])
