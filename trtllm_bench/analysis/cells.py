"""Finds one measured cell in a result store, and what is needed to reason about it: its plan, constants and ceilings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from trtllm_bench.analysis.step_constants import StepConstants, constants_for
from trtllm_bench.errors import BenchError
from trtllm_bench.roofline import ceilings
from trtllm_bench.roofline.hardware import Hardware, published_for
from trtllm_bench.targets.registry import is_own
from trtllm_engines.checkpoints.checkpoint_precision import plan_for
from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.plan import ParallelLayout, Plan, Profile
from trtllm_engines.engine.build import USUAL_PROFILE
from trtllm_engines.models.presets import resolve_model
from trtllm_engines.quantization.precision import canonical
from trtllm_engines.quantization.registry import MIXED, definition
from trtllm_engines.quantization.scheme import WIDE, QuantPlan
from trtllm_results.gpus import has_sheet_rates
from trtllm_results.record.cell import Cell
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Row
from trtllm_results.store.selection import keep, path_and_filters
from trtllm_results.store.table import Store, read_rows, store_of

SHOWN = 6


@dataclass(frozen=True)
class MeasuredCell:
    """A row, the store it is from (None for a table file), and where its profile is (None without one). `repeats`: how many good runs its
    cell has."""

    row: Row
    store: Store | None
    profile: Path | None
    repeats: int = 1

    @property
    def label(self) -> str:
        return self.row.label


def find_cell(text: str) -> MeasuredCell:
    """`RESULTS` or `RESULTS@FILTER,FILTER`, a filter being `batch=64` or the beginning of a cell's key; the last good repeat.

    Raises `BenchError` when that names no measured cell, or several.
    """
    path, parts = path_and_filters(text)
    filters = [part for part in parts if any(symbol in part for symbol in "=<>")]
    prefixes = [part for part in parts if part not in filters]
    rows = [row for row in keep(read_rows(path), filters) if row.status == "ok" and all(row.key.startswith(p) for p in prefixes)]
    if not rows:
        raise BenchError(f"{text} names no measured cell; results ls shows what {path} holds")
    keys = {row.key: row for row in rows}
    if len(keys) > 1:
        names = ", ".join(f"{key[:6]} ({name})" for key, name in list(zip(keys, _names(keys.values()), strict=True))[:SHOWN])
        more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
        raise BenchError(f"{text} names {len(keys)} cells; choose one with {path}@KEY or {path}@batch=64,precision=fp8: {names}{more}")
    row = rows[-1]
    profiled = next((one for one in reversed(rows) if one.extra.get("profile")), None)
    home = None if profiled is None else store_of(profiled, Path(path))
    folder = None if profiled is None or home is None else home.path / str(profiled.extra["profile"])
    return MeasuredCell(row, store_of(row, Path(path)), folder if folder is not None and folder.is_dir() else None, len(rows))


def _names(rows: Iterable[Row]) -> list[str]:
    """Labels; of cells that have the same, with the revision that each was measured at."""
    labels = [(row.label, (row.environment.git_revision or "")[:7]) for row in rows]
    alike = Counter(label for label, _ in labels)
    return [f"{label} at {revision}" if alike[label] > 1 and revision else label for label, revision in labels]


def plans_of(row: Row, precision: str | None = None, kv_dtype: str | None = None) -> list[Plan]:
    """The plans, one a pipeline stage, of the engine that a row has, or would have at another precision or cache type, as they are compiled
    today; where the row's revision is one of an earlier engine, with all rows in the last layer, as that had. Raises `BenchError` for a
    target that is not ours."""
    cell = row.cell
    if row.predicted:
        raise BenchError(f"{row.label} is a prediction and no run; explain looks into runs")
    if not is_own(cell.target):
        raise BenchError(f"{cell.label} was served by {cell.target}, of which nothing is known inside; explain works on our own engine")
    settings = cell.settings
    longest = int(settings.get("max_seq_len") or cell.isl + cell.osl)
    batch = int(settings.get("max_batch_size") or max(cell.batch, 1))
    tokens = max(int(settings.get("max_num_tokens") or USUAL_PROFILE.max_num_tokens), batch)
    profile = Profile(batch, tokens, longest, int(settings.get("page_size") or USUAL_PROFILE.page_size))
    cache = kv_dtype or (cell.kv_dtype if precision is None and cell.kv_dtype else "auto")
    layout = layout_of(cell)
    name, every_row = precision or cell.precision, _earlier(row.environment)
    context = str(settings.get("context_attention") or WIDE) if precision is None and kv_dtype is None else WIDE
    return [_compiled(cell.model, name, profile, (cache, context), layout, stage, every_row) for stage in range(layout.pp)]


def layout_of(cell: Cell) -> ParallelLayout:
    """The layout of one copy of the engine."""
    return ParallelLayout(cell.tp, cell.pp, int(cell.settings.get("nnodes") or 1))


def constants_of(row: Row) -> StepConstants:
    """The step model's for the row's GPU and the engine of its revision."""
    return constants_for(row.environment.gpu, row.environment.git_revision)


def is_quantized(row: Row) -> bool:
    """Whether the row's engine has GEMMs whose weights are neither wide nor fp8 with one scale per tensor. It agrees with
    `step_model.is_quantized`, without compiling a plan."""
    scheme = definition(canonical(row.cell.precision)).scheme
    plain = scheme.weights is None or (scheme.weights.granularity, scheme.inputs.scaling) == ("tensor", "static")
    return row.cell.precision == MIXED or not plain


def _earlier(environment: Environment) -> bool:
    """Whether a run is of the engine that constants of earlier revisions follow, or of the first one, whose rows name no revision."""
    revision, constants = environment.git_revision, constants_for(environment.gpu, environment.git_revision)
    return constants.earlier and (revision.startswith(constants.revisions) if revision else constants.fitted)


def quantization_of(
    model: str, precision: str, kv_dtype: str, arches: tuple[str, ...] = (), context_attention: str = WIDE
) -> str | QuantPlan:
    """What `compile_model` takes: `precision`, but that of a checkpoint of several schemes, which has none by name, its own plan."""
    path = resolve_model(model).path
    own = definition(precision).name == MIXED and path is not None
    return plan_for(path, precision, kv_dtype, arches=arches, context_attention=context_attention) if own else precision


@lru_cache(maxsize=16)
def _compiled(
    model: str, precision: str, profile: Profile, attention: tuple[str, str], layout: ParallelLayout, stage: int, every_row: bool
) -> Plan:
    """`attention`: what the cache is in, and what attention of prompts multiplies."""
    kv_dtype, context = attention
    config, weights = resolve_model(model).config, {"kind": "dummy", "seed": 0}
    return compile_model(
        config,
        quantization_of(model, precision, kv_dtype, context_attention=context),
        profile,
        weights_source=weights,
        kv_dtype=kv_dtype,
        context_attention=context,
        layout=layout,
        stage=stage,
        every_row=every_row,
    ).plan


def hardware_of(environment: Environment) -> Hardware:
    """Ceilings of the row's device: measured where this machine has them, else its data sheet's; memory and power limit as the row says.

    Raises `BenchError` for neither.
    """
    measured = ceilings.cached(environment)
    sheet = published_for(environment.gpu)
    memory = environment.gpu_memory_gib * 2**30 if environment.gpu_memory_gib else sheet.memory_bytes if sheet else 0.0
    limit = environment.power_limit_w or (sheet.power_w if sheet else 0.0)
    if measured is not None:
        return replace(Hardware.of(measured), memory_bytes=memory, power_w=limit)
    if sheet is None or not has_sheet_rates(environment.gpu):
        name = environment.device or "the device of this row"
        raise BenchError(f"no ceilings of {name} are known; run trtllm-bench ceilings there, on the machine that measured the cell")
    return replace(sheet, memory_bytes=memory, power_w=limit)
