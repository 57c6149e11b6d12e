"""The row: one measurement of one cell (`cell.py`), with its environment and figures.

A row is flat on disk (scalar columns only) so that pandas, DuckDB and a spreadsheet read it without help, and structured in memory
(`Cell`, `Environment`, figures) so that code cannot confuse what was asked for with what was seen. Figures come from one registry that
gives each a unit, a direction and a definition; a name outside it is refused, because a misspelt column is a lost measurement.

Two notions of sameness, deliberately apart:

* `Row.key` hashes everything that can change a result (cell, settings, engine, software, GPU, driver, limits). `--resume` trusts only this.
* `Cell.align` names what a reader calls "the same case" (model, precision, shape, load), and `Row.varied` the other settings that its
  sweep varied. `compare` lines up two sets by these.

Rejected: nested Parquet columns (spreadsheets cannot read them), a long table of (cell, figure, value) (every reader would pivot it first).
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from trtllm_results.errors import ResultsError
from trtllm_results.metrics.registry import METRICS
from trtllm_results.plausibility import Claim, Implausible, judge, not_judged
from trtllm_results.record.cell import CELL_FIELDS, OWN_TARGET, Cell
from trtllm_results.record.environment import ENVIRONMENT_FIELDS, Environment
from trtllm_results.record.flat import STATUSES, Status, checked_figure, checked_flat

SCHEMA_VERSION = 1
"""Raised when a column changes meaning or disappears; a new figure or a new identity column with a default does not raise it."""

PREDICTED = "predicted"
"""The target of a row that the step model made and nobody measured."""
OUR_TARGETS = (OWN_TARGET, PREDICTED)
"""Of rows of our engine, measured or predicted."""
INTERVAL = "interval"
"""Of a prediction, in `extra`: `low` and `high` output tokens/s, their `cover`, how many `errors` they are from, and a `note` of which."""

ACCURACY = "accuracy"
"""In `extra`: what the row's accuracy was measured on, and against what."""
NOT_SCORED = "failed"
"""In `extra[ACCURACY]`: why a text or a task that was asked for was not scored."""
VARIED = "varied"
"""Key in `extra`: the row's values, by name, of settings that its sweep varied and that are not in `ALIGN_FIELDS`."""


def cell_key(cell: Cell, environment: Environment) -> str:
    """Content hash (16 hex digits) of everything that can change the result of `cell` on this machine."""
    content = {"schema": SCHEMA_VERSION, "cell": asdict(cell), "environment": environment.decisive()}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Row:
    """One measurement. A figure that does not exist (TPOT of one-token answers, power without NVML) is absent, never zero."""

    cell: Cell
    environment: Environment
    repeat: int = 0
    status: Status = "ok"
    reason: str = ""
    """Why the row is not `ok`, one sentence."""
    figures: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    """What makes an `ok` row suspect: throttling, short outputs, other processes on the GPU."""
    run_id: str = ""
    command: str = ""
    started_at: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"))
    extra: Mapping[str, Any] = field(default_factory=dict)
    row_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    stored_key: str = field(default="", compare=False, repr=False)
    """The key that a stored row was written with, by the rule of its day."""

    @property
    def key(self) -> str:
        return self.stored_key or cell_key(self.cell, self.environment)

    @property
    def arm(self) -> str:
        """`A` or `B` where a gate ran the row, else empty."""
        return str(self.extra.get("gate_arm", ""))

    @property
    def varied(self) -> Mapping[str, Any]:
        """The row's values, by name, of settings that its sweep varied and that are not in `ALIGN_FIELDS`."""
        varied = self.extra.get(VARIED)
        return varied if isinstance(varied, Mapping) else {}

    @property
    def settings(self) -> Mapping[str, Any]:
        """The cell's settings and those that its sweep varied, by the names they are asked for by; the limits of goodput as text."""
        from trtllm_results.metrics.requests import slo_text

        limits = self.cell.settings.get("slo_ms")
        goodput = {"goodput": slo_text(limits)} if isinstance(limits, Mapping) else {}
        return {**self.cell.settings, **goodput, **self.varied}

    @property
    def label(self) -> str:
        """The cell's label and the other settings that its sweep varied: `llama-3.1-8b fp8 b64 128/128 kv-cache-fraction=0.5`."""
        return " ".join([self.cell.label, *(f"{name.replace('_', '-')}={value}" for name, value in self.varied.items())])

    def case(self, varied: Iterable[str] = ()) -> tuple[tuple[str, Any], ...]:
        """(name, value) pairs by which result sets are lined up: `Cell.align`, and the settings in `varied`, which sweeps among them
        varied."""
        known = self.settings
        return (*self.cell.align, *((name, known.get(name)) for name in varied))

    @property
    def predicted(self) -> bool:
        """Whether the row is a prediction and no measurement."""
        return self.cell.target == PREDICTED

    @property
    def implausible(self) -> Implausible | None:
        """What is wrong with the throughput, by what it asks of the GPUs; None where nothing is or too little is known."""
        return judge(self._claim)

    @property
    def not_judged(self) -> str:
        """Why the throughput is not held against what the GPUs can do; empty where it is, and where there is none of a GPU."""
        return not_judged(self._claim)

    @property
    def _claim(self) -> Claim:
        cell, figures = self.cell, self.figures
        return Claim(
            gpu=self.environment.gpu,
            model=cell.model,
            precision=cell.precision,
            isl=figures.get("input_length_mean", cell.isl),
            osl=figures.get("output_length_mean", cell.osl),
            output_tokens_per_s=figures.get("output_tokens_per_s", 0.0),
            gpus=cell.gpus,
            kv_dtype=cell.kv_dtype,
            batch=cell.batch,
            prompt_share=1 - figures.get("prefix_hit_ratio", 0.0),
            replicas=cell.replicas,
        )

    def checked(self) -> Row:
        """This row, fit to store: unknown figures refused, figures that are not finite or out of bounds dropped with a warning, and a
        throughput that its GPUs cannot reach marked by one.

        Raises `ResultsError` for an unknown figure or status, and for what could not be read again.
        """
        if self.status not in STATUSES:
            raise ResultsError(f"row of {self.cell.label} has status '{self.status}'; use one of {', '.join(STATUSES)}")
        unknown = sorted(set(self.figures) - set(METRICS))
        if unknown:
            raise ResultsError(
                f"row of {self.cell.label} carries unknown figure '{unknown[0]}'; add it to trtllm_results/metrics/registry.py or use extra"
            )
        kept, notes = {}, []
        for name, value in self.figures.items():
            if not math.isfinite(value):
                notes.append(f"{name} was not a finite number and is left out")
                continue
            try:
                kept[name] = checked_figure(name, value)
            except ResultsError as error:
                notes.append(f"{error}, so it is left out")
        doubt = replace(self, figures=kept).implausible
        if doubt is not None and doubt.text not in self.warnings:
            notes.append(doubt.text)
        row = Row(**{**_shallow(self), "figures": kept, "warnings": (*self.warnings, *notes)})
        try:
            checked_flat(row.to_flat())
        except ResultsError as error:
            raise ResultsError(f"row of {self.cell.label} cannot be stored: {error}") from None
        return row

    def to_flat(self) -> dict[str, Any]:
        """Scalar columns: identity, environment (`env_*`), figures."""
        flat: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "row_id": self.row_id,
            "cell_key": self.key,
            "run_id": self.run_id,
            "repeat": self.repeat,
            "status": self.status,
            "reason": self.reason,
            "warnings": json.dumps(list(self.warnings)),
            "started_at": self.started_at,
            "command": self.command,
            "extra": json.dumps(dict(self.extra), sort_keys=True, default=str),
        }
        for name in CELL_FIELDS:
            flat[name] = getattr(self.cell, name)
        flat["settings"] = json.dumps(dict(self.cell.settings), sort_keys=True, default=str)
        for name in ENVIRONMENT_FIELDS:
            flat[f"env_{name}"] = getattr(self.environment, name)
        flat.update(self.figures)
        return flat

    @classmethod
    def from_flat(cls, flat: Mapping[str, Any]) -> Row:
        """Inverse of `to_flat`; absent columns take their defaults, unknown numeric columns are kept as figures.

        Raises `ResultsError` naming the field that is missing, of another type or out of bounds.
        """
        values, figures = checked_flat(flat)
        cell = Cell(**{name: values[name] for name in CELL_FIELDS if name in values})
        environment = Environment(**{name: values[f"env_{name}"] for name in ENVIRONMENT_FIELDS if f"env_{name}" in values})
        names = ("row_id", "run_id", "repeat", "status", "reason", "started_at", "command", "extra")
        return cls(
            cell=cell,
            environment=environment,
            figures=figures,
            warnings=tuple(values.get("warnings", ())),
            stored_key=values.get("cell_key", ""),
            **{name: values[name] for name in names if name in values},
        )


def _shallow(row: Row) -> dict[str, Any]:
    return {f.name: getattr(row, f.name) for f in fields(row)}
