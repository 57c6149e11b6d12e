"""MFU and MBU of rows that were measured before their device's ceilings were: from the request and step tables beside each row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from trtllm_bench.analysis.cells import plans_of
from trtllm_bench.errors import BenchError
from trtllm_bench.roofline.ceilings import Ceilings, key_of
from trtllm_bench.roofline.costs import ModelCost, utilisation
from trtllm_bench.targets.registry import is_own
from trtllm_results.metrics.requests import RequestLog
from trtllm_results.record.row import Row
from trtllm_results.store.table import Store


def fill(store: Path, ceilings: Ceilings) -> tuple[int, int, int]:
    """Fills what rows of our own engine lack. Returns (filled, left alone for want of request or step tables, left alone as of another
    device).

    Raises `BenchError` when all rows that lack them were measured on devices that `ceilings` are not of.
    """
    table = Store(store, create=False)
    lacking = [row for row in table.rows() if row.status == "ok" and is_own(row.cell.target) and "mbu" not in row.figures]
    same = [row for row in lacking if key_of(row.environment) == ceilings.key]
    if lacking and not same:
        row = lacking[0]
        raise BenchError(
            f"the ceilings are of {ceilings.device} with one driver, power limit and torch, and {row.cell.label} was measured with "
            f"others ({row.environment.gpu or row.environment.cpu}); measure that device with trtllm-bench ceilings"
        )
    filled = [complete for row in same if (complete := _filled(table, row, ceilings)) is not None]
    table.append(*filled)
    return len(filled), len(same) - len(filled), len(lacking) - len(same)


def _filled(table: Store, row: Row, ceilings: Ceilings) -> Row | None:
    requests, steps = table.read_side("requests", row), table.read_side("steps", row)
    if requests is None or steps is None:
        return None
    gpus = row.cell.gpus if row.environment.gpu else 1  # ranks on a CPU share it
    log = RequestLog.from_side(requests, gpus)
    records = steps.to_pandas().to_records(index=False)
    return replace(row, figures={**row.figures, **utilisation(ModelCost.of_stages(plans_of(row)), ceilings, log, records, gpus)})
