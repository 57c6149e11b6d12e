"""A measured cell's load and engine, made again from its row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trtllm_bench.errors import BenchError
from trtllm_bench.measure.session import Load
from trtllm_bench.measure.spec import EngineWish, WorkloadWish
from trtllm_results.record.row import Row


def wishes_of(row: Row) -> tuple[EngineWish, WorkloadWish, Load]:
    """Raises `BenchError` for a cell whose requests or engine its row does not tell."""
    cell, settings = row.cell, row.cell.settings
    if cell.target != "native":
        raise BenchError(f"{cell.label} was served by {cell.target}; profile looks into our own engine only")
    if cell.workload not in ("", "fixed"):
        raise BenchError(f"{cell.label} ran dataset {cell.workload}, which its row only names; give profile the flags it was measured with")
    if not cell.weights_hash.startswith("dummy-") and cell.weights_hash:
        raise BenchError(f"{cell.label} ran weights of a checkpoint, which its row only names; give profile --engine-dir or --weights")
    seed = int(cell.weights_hash.removeprefix("dummy-") or 0)
    engine = EngineWish(
        model=cell.model,
        precision=cell.precision,
        weights="dummy",
        device=str(settings.get("device") or "auto"),
        max_batch_size=_whole(settings, "max_batch_size"),
        max_num_tokens=_whole(settings, "max_num_tokens"),
        max_seq_len=_whole(settings, "max_seq_len"),
        kv_cache_fraction=float(settings.get("kv_cache_fraction") or 0.9),
        policy=str(settings.get("policy") or "guaranteed_no_evict"),
        seed=seed,
        kv_dtype=cell.kv_dtype or "auto",
    )
    arrivals = settings.get("arrivals")
    workload = WorkloadWish(
        cell.num_requests or 32,
        cell.isl,
        cell.osl,
        request_rate=0.0 if arrivals else cell.request_rate,
        burstiness=float(settings.get("burstiness") or 1.0),
        seed=seed,
        arrivals=str(arrivals) if arrivals else None,
    )
    return engine, workload, Load(cell.batch, workload.open_loop, int(settings.get("warmup") or 0))


def _whole(settings: Mapping[str, Any], name: str) -> int | None:
    return int(settings[name]) if settings.get(name) else None
