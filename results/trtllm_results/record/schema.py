"""`docs/schema.md` as text: every column of a row, from the definitions in code, so that the document cannot fall behind.

python -m trtllm_results.record.schema > docs/schema.md
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trtllm_results.metrics.registry import METRICS
from trtllm_results.record.cell import ALIGN_FIELDS, CELL_FIELDS
from trtllm_results.record.environment import DECISIVE, ENVIRONMENT_FIELDS
from trtllm_results.record.flat import MOST_DEPTH, MOST_TEXT, ROW_FIELDS
from trtllm_results.record.row import SCHEMA_VERSION

MEANINGS: Mapping[str, str] = {
    "schema_version": "version of this schema",
    "row_id": "unique id of the row; merging is by it",
    "cell_key": "hash of everything that can change the result; `--resume` trusts only this",
    "run_id": "one invocation of a command",
    "repeat": "which repeat of the cell, from 0",
    "status": "`ok`, `failed`, `oom` or `void` (measured, but the driver was too late for the figures to be used)",
    "reason": "why it is not `ok`",
    "warnings": "JSON list: what makes an `ok` row suspect",
    "started_at": "UTC, ISO 8601",
    "command": "the command line that measured it",
    "extra": "JSON object: anything else worth keeping",
    "model": "preset or model name",
    "precision": "of weights and GEMMs",
    "batch": "sequences in flight; 0: not bounded",
    "isl": "input tokens per request (asked for)",
    "osl": "output tokens per request (asked for)",
    "kv_dtype": "type of the KV cache",
    "tp": "tensor-parallel GPUs",
    "pp": "pipeline stages",
    "replicas": "copies of the engine, each on GPUs of its own, with max_batch_size sequences and a KV cache of its own",
    "num_requests": "requests sent",
    "request_rate": "requests/s of an open loop; 0: closed loop or all at once",
    "workload": "name of the workload",
    "workload_hash": "hash of its content",
    "target": "what served: `native`, `vllm`, `tensorrt-llm`, `openai`, ...",
    "target_version": "its version",
    "engine_fingerprint": "of the engine folder",
    "weights_hash": "of the weights",
    "settings": "JSON object: policy, limits, sampling and whatever else can change the result",
}

HEAD = f"""# The result schema, version {SCHEMA_VERSION}

A store is a folder. `results.parquet` holds one row per (cell, repeat), scalar columns only: `pandas.read_parquet`, DuckDB's
`select * from 'results.parquet'`, and, after `trtllm-bench results export STORE rows.csv`, a spreadsheet read it as it is.
`results.json` holds the same rows. The schema version stands in the Parquet metadata (`trtllm_results.schema_version`) and in each row; a
newer one than the tool's is refused. New figures and new identity columns with a default do not raise it; a changed meaning or a removed
column does.

The store may be read at any moment, also while a sweep appends: each file is written beside its place, synced and renamed over it, and a
new `results.parquet` keeps the bytes of the version it replaces, so that a reader that opens the file twice (pandas does) reads the old
rows or the new ones, whole. The file is therefore up to three times as large as its rows; `results export` writes the rows alone.
Writers take a lock on the folder (`.lock` for one append, `.run.lock` for a sweep's whole run) that ends with its process. What a killed
process left (temporary files, side tables without a row) is removed by the next sweep in that folder and by `trtllm-bench results clean`.

A row is read only if every field is of its type and within bounds: counts from 0 to 2^53, figures 0 or from 1e-21 to 1e21 (lags and
window times may be negative), text of at most {MOST_TEXT:,} characters, nested at most {MOST_DEPTH} deep; a null is an absent figure.

Side tables of a row lie beside it, `<kind>/<cell key>-r<repeat>-<row id>.parquet`:

- `requests/`: one row per request. `intended_s`, `sent_s`, `scheduled_s`, `first_token_s`, `end_s` (s, one monotonic clock),
  `input_tokens`, `output_tokens`, `requested_tokens`, `ok`, the derived `ttft_s`, `tpot_s`, `e2e_s`, and
  `token_times_s` (list: arrival of each token). `resent`: sent again over a new connection, since the server had closed
  the idle one; times count from the first.
- `steps/`: one row per engine step, where the target knows its steps.
- `samples/`: one row per telemetry sample (power, clocks, temperature).

This file is printed from the code: `python -m trtllm_results.record.schema > docs/schema.md`.
"""


def markdown() -> str:
    """The whole document."""
    aligned = {name: " (aligned by `compare`)" if name in ALIGN_FIELDS else "" for name in CELL_FIELDS}
    cell = [(f"`{name}`", _kind(kind), MEANINGS[name] + aligned[name]) for name, kind in CELL_FIELDS.items()]
    row = [(f"`{name}`", _kind(kind), MEANINGS[name]) for name, kind in ROW_FIELDS.items()]
    environment = [(f"`env_{name}`", _kind(kind), "yes" if name in DECISIVE else "") for name, kind in ENVIRONMENT_FIELDS.items()]
    figures = [(f"`{name}`", one.unit, one.better, one.meaning) for name, one in METRICS.items()]
    parts = [
        HEAD,
        "## The row\n\n" + _table(("column", "type", "meaning"), row),
        "## The cell: what was asked for\n\n" + _table(("column", "type", "meaning"), cell),
        "## The environment: where it ran\n\nThose marked are part of the cell key.\n\n"
        + _table(("column", "type", "in the key"), environment),
        "## Figures\n\nA figure that does not exist for a row is null, never zero.\n\n"
        + _table(("column", "unit", "better", "definition"), figures),
    ]
    return "\n".join(parts)


def _kind(kind: str) -> str:
    words = {"str": "text", "float": "number", "int": "integer", "bool": "boolean"}
    return words.get(kind, "JSON text")


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
