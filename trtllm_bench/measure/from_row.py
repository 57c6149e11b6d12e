"""Makes the measurement of a cell again from its row, so that the cell can be profiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trtllm_bench.errors import BenchError
from trtllm_bench.measure.rows import ASKED
from trtllm_bench.spec.measurement import MeasurementSpec, all_knobs
from trtllm_bench.targets.registry import is_own
from trtllm_results.record.cell import CELL_FIELDS
from trtllm_results.record.row import Row

DUMMY = "dummy-"


def spec_of_row(row: Row) -> MeasurementSpec:
    """The measurement that gave the row. Raises `BenchError` for a cell whose requests or engine its row does not tell."""
    cell, settings = row.cell, row.cell.settings
    asked: Mapping[str, Any] = row.extra.get(ASKED, {})
    if not is_own(cell.target):
        raise BenchError(f"{cell.label} was served by {cell.target}; profile looks into our own engine only")
    from_dataset = bool(cell.named_workload)
    if from_dataset and "dataset" not in asked:
        raise BenchError(f"{cell.label} ran dataset {cell.workload}, which its row only names; give profile the flags it was measured with")
    dummy = not cell.weights_hash or cell.weights_hash.startswith(DUMMY)
    if not dummy:
        raise BenchError(f"{cell.label} ran weights of a checkpoint, which its row only names; give profile --engine-dir or --weights")
    seed = int(cell.weights_hash.removeprefix(DUMMY) or 0)
    values: dict[str, Any] = {"seed": seed, "weights": "dummy", "kv_dtype": cell.kv_dtype or "auto"}
    columns = set(CELL_FIELDS) - {"kv_dtype", "target"}
    values |= {one.name: getattr(cell, one.name) for one in all_knobs() if one.name in columns}
    values |= {one.name: settings[one.setting] for one in all_knobs() if settings.get(one.setting) is not None}
    values |= {name: value for name, value in asked.items() if name not in ("seed", "weights", "engine_dir")}
    if from_dataset:
        values["isl"] = values["osl"] = None
    if values.get("arrivals") or values.get("replay"):
        values["request_rate"] = 0.0
    values["num_requests"] = cell.num_requests or None
    values.setdefault("concurrency", cell.batch)  # rows of earlier versions have no setting of it
    given = {one.name: one.parsed(values[one.name], one.name) for one in all_knobs() if values.get(one.name) not in (None, one.default)}
    spec = MeasurementSpec.of(given)
    return spec if "seed" not in asked else _with_workload_seed(spec, int(asked["seed"]))


def _with_workload_seed(spec: MeasurementSpec, seed: int) -> MeasurementSpec:
    return replace(spec, workload=replace(spec.workload, seed=seed))
