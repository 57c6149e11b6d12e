"""Reads a gate's runs from its store as blocks again, so that a page can draw them and judge them as `gate run` did.

Rows carry their arm and the order in which they ran (`repeat`). Warm-up runs, which come first and in pairs, are kept in the store too and
belong to no block. The report that `gate run` writes (`gate.json` in the store, or what `--json` named: `ab.json` beside the store `ab`)
says margins and level; without one the defaults of `gate run` do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trtllm_results.gate.config import GateConfig
from trtllm_results.gate.report import to_json
from trtllm_results.gate.run import ORDERS, Arm, Blocks, RunResult, report_blocks
from trtllm_results.gate.verdict import GateReport
from trtllm_results.metrics.registry import METRICS
from trtllm_results.record.row import Row
from trtllm_results.store.document import read_document
from trtllm_results.store.layout import GATE_REPORT
from trtllm_results.store.table import Store
from trtllm_results.versions import WARMUP

SIZE = 4


def blocks_of(rows: Iterable[Row], count: int | None = None) -> Blocks:
    """The blocks of a gate's rows, the last `count` of them. Empty where the rows are in no order that a gate runs."""
    runs = sorted((row for row in rows if row.arm and row.status == "ok" and not row.extra.get(WARMUP)), key=lambda row: row.repeat)
    arms: list[tuple[Arm, RunResult]] = [
        ("A" if row.arm == "A" else "B", RunResult(row.figures, row.environment, row.warnings)) for row in runs
    ]
    starts = [len(arms) - SIZE * count] if count is not None and SIZE * count <= len(arms) else []
    for start in (*starts, *range(0, len(arms), 2)):
        blocks = [arms[at : at + SIZE] for at in range(start, len(arms) - SIZE + 1, SIZE)]
        if blocks and all(tuple(arm for arm, _ in block) in ORDERS for block in blocks) and (len(arms) - start) % SIZE == 0:
            return Blocks(blocks, seed=0)
    return Blocks([], seed=0)


def keep_report(store: Path, report: GateReport) -> None:
    """Writes the report into the store that holds its runs, for the dashboard."""
    Store(store).write(GATE_REPORT, lambda handle: handle.write(to_json(report).encode()))


def report_of(store: Path) -> Mapping[str, Any] | None:
    """What `gate run` wrote of the runs in `store`; None where there is no such file or it cannot be read."""
    for path in (store / GATE_REPORT, store.parent / f"{store.name}.json"):
        try:
            content = read_document(path)
        except (OSError, ValueError):
            continue
        if (
            isinstance(content, dict)
            and isinstance(content.get("findings"), list)
            and content.get("verdict") in ("pass", "fail", "inconclusive")
        ):
            return content
    return None


def judged_again(rows: Sequence[Row], said: Mapping[str, Any] | None) -> tuple[Blocks, GateReport] | None:
    """The blocks and the verdict on them, by the margins and the level that `said` names; None where there are no whole blocks."""
    count = said.get("blocks") if said else None
    blocks = blocks_of(rows, count if isinstance(count, int) and count > 0 else None)
    if not blocks.runs:
        return None
    config = GateConfig()
    names = {arm: next((str(row.extra.get("gate_name", "")) for row in rows if row.arm == arm), "") or arm for arm in ("A", "B")}
    margins, level = dict(config.margins), config.look_alphas[-1]
    if said:
        stated = {str(one.get("figure")): one.get("margin") for one in said["findings"] if isinstance(one, dict)}
        margins = {name: float(margin) for name, margin in stated.items() if name in METRICS and isinstance(margin, float)} or margins
        level = said["alpha"] if isinstance(said.get("alpha"), float) and 0 < said["alpha"] < 0.5 else level
    margins = {
        name: margin for name, margin in margins.items() if all(name in result.figures for block in blocks.runs for _, result in block)
    }
    if not margins:
        return None
    return blocks, report_blocks(blocks, GateConfig(margins=margins), names["A"], names["B"], level)
