"""How far off the step model is, against everything measured: our own recorded runs, and other engines' published figures.

Our runs judge the model. Errors are kept apart: on cells that a constant follows (`fit.py`), on all others, by constants fitted without the
cell (leave one out), and by constants fitted without its precision, which say what to expect of a precision that was never run. Runs of an
earlier engine on an H200 are predicted by the H100's constants, which follow such an engine: they say how well constants serve a GPU that
they do not follow.

Of a published figure the model predicts our engine on that GPU, so an error is the model's and the engines' difference together; a factor
for each engine and GPU takes out what is common, and the error that remains is that of a row with the factor of the others. Figures are
predicted in the steady state (`steady.py`), except where so few requests ran that all were one batch.

Left out, and counted: models and GPUs that are not known here, figures whose precision is not stated, that the GPU cannot compute in, or
that are implausible (`trtllm_results.plausibility`).
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from trtllm_bench.analysis import fit
from trtllm_bench.analysis.cells import constants_of, is_quantized
from trtllm_bench.analysis.check import Checked, check
from trtllm_bench.analysis.fit import fixed_lengths, followed, follows
from trtllm_bench.analysis.predict import predict
from trtllm_bench.analysis.prediction_error import DIGITS, ELSEWHERE, FILE, LEAST, QUANTIZED, kind_of, read_errors
from trtllm_bench.analysis.steady import steady_rate
from trtllm_bench.analysis.step_constants import constants_for
from trtllm_bench.roofline.hardware import GPUS, Hardware, published
from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.plan import ParallelLayout, Plan, Profile
from trtllm_engines.errors import EngineError
from trtllm_engines.models.presets import PRESETS, preset_config
from trtllm_engines.quantization import check_types
from trtllm_results.compare.published import HANDFUL, Published, measured_on_gpus
from trtllm_results.gpus import gpu_class
from trtllm_results.model_sizes import canonical
from trtllm_results.record.cell import Cell
from trtllm_results.record.row import Row
from trtllm_workloads.synthetic import fixed

MAX_NUM_TOKENS = 8192
MAX_BATCH_SIZE = 2048
FACTOR_GPU, FACTOR_ENGINE = "H100", "TensorRT-LLM"
"""Of whose published figures a GPU without runs of ours has its errors."""
REDUCING_ARCH = "sm_90"
"""What has kernels in which ranks exchange rows."""


@dataclass(frozen=True)
class PeerPoint:
    """One published figure and what the step model says of our engine there."""

    theirs: Published
    predicted: float
    """Output tokens/s."""

    @property
    def error(self) -> float:
        return self.predicted / self.theirs.output_tokens_per_s - 1

    @property
    def engine(self) -> str:
        one = self.theirs
        return "project brief" if one.source.startswith("project") else one.source.split(" ")[0] + ", measured by us" * one.measured

    @property
    def gpu(self) -> str:
        return gpu_class(self.theirs.gpu)


@dataclass(frozen=True)
class Factor:
    """An engine's published figures on one GPU over predictions: their median, and what errors it leaves."""

    engine: str
    gpu: str
    errors: tuple[float, ...]
    """Of the model alone."""
    factor: float
    left_out: tuple[float, ...]
    """Each row's by the factor of the other rows; none where there is one row."""


@dataclass(frozen=True)
class OwnError:
    """Of one cell recorded here. `in_sample`: a constant of the model follows it."""

    gpu: str
    cell: Cell
    in_sample: bool
    error: float
    transferred: bool = False
    """By constants of another GPU, as it ran the engine that they follow."""
    left_out: bool = False
    """Whether the prediction is by constants fitted to all other runs on this GPU."""
    quantized: bool = False
    """Whether the engine is quantized (`cells.is_quantized`)."""
    precision_left_out: bool = False
    """Whether the prediction, of a quantized engine, is by constants fitted to all other precisions."""

    @property
    def of_no_fit(self) -> bool:
        """Whether no fit took part, with the cell or without it."""
        return not (self.in_sample or self.left_out or self.precision_left_out)

    @property
    def earlier(self) -> bool:
        """Whether the cell is of an earlier engine, whose constants follow another GPU."""
        return self.transferred and not self.in_sample


def coverage(figures: Iterable[Published], gpu: str | None = None) -> tuple[list[Published], Counter[str]]:
    """Those that can be predicted, and how many of the others by reason."""
    chosen: list[Published] = []
    why: Counter[str] = Counter()
    for one in figures:
        name = gpu_class(one.gpu).lower()
        if gpu is not None and gpu != name:
            continue
        reason = (
            f"model {one.model}"
            if canonical(one.model) not in PRESETS
            else f"GPU {one.gpu}"
            if name not in GPUS
            else "precision not stated"
            if not one.precision
            else f"no {one.precision} on {gpu_class(one.gpu)}"
            if not _exists(one.precision, published(name).arch)
            else f"longer than {one.model} has positions"
            if one.isl + one.osl > preset_config(canonical(one.model)).max_position_embeddings
            else f"several {gpu_class(one.gpu)}"
            if one.tp > 1 and published(name).arch != REDUCING_ARCH
            else "implausible"
            if one.implausible is not None
            else ""
        )
        if reason:
            why[reason] += 1
        else:
            chosen.append(one)
    return chosen, why


def _exists(precision: str, arch: str) -> bool:
    try:
        check_types(precision, arches=(arch,))
    except EngineError:
        return False
    return True


def predicted(chosen: Sequence[Published]) -> Iterator[PeerPoint]:
    """Raises `BenchError` for a model that does not fit its GPU."""
    longest: dict[tuple[str, str], int] = {}
    for one in chosen:
        key = (gpu_class(one.gpu), canonical(one.model))
        longest[key] = max(longest.get(key, 0), one.isl + one.osl)
    for one in sorted(chosen, key=lambda one: (gpu_class(one.gpu), canonical(one.model), one.precision, one.kv_dtype, one.tp)):
        hardware, model = published(gpu_class(one.gpu).lower()), canonical(one.model)
        kv_dtype = one.kv_dtype if one.kv_dtype == "fp8" else "auto"
        places, most = max(one.concurrency, MAX_BATCH_SIZE), longest[gpu_class(one.gpu), model]
        plan = _plan(model, one.precision, kv_dtype, one.tp, hardware.arch, places, most)
        yield PeerPoint(one, _rate(plan, hardware, one))


def _rate(plan: Plan, hardware: Hardware, one: Published) -> float:
    if 0 < one.requests <= HANDFUL:
        figures, _ = predict(plan, hardware, fixed(one.requests, one.isl, one.osl, vocab_size=100, seed=0), concurrency=one.requests)
        return figures["output_tokens_per_s"]
    return steady_rate(plan, hardware, one.isl, one.osl, one.concurrency)


@lru_cache(maxsize=4)
def _plan(model: str, precision: str, kv_dtype: str, tp: int, arch: str, places: int, longest: int) -> Plan:
    profile, source = Profile(places, max(MAX_NUM_TOKENS, places), longest), {"kind": "dummy", "seed": 0}
    config, layout = preset_config(model), ParallelLayout(tp)
    return compile_model(config, precision, profile, arches=(arch,), weights_source=source, kv_dtype=kv_dtype, layout=layout).plan


def factors(points: Iterable[PeerPoint]) -> list[Factor]:
    """By engine and GPU."""
    groups: dict[tuple[str, str], list[float]] = {}
    for point in points:
        groups.setdefault((point.engine, point.gpu), []).append(point.error)
    return [Factor(*key, tuple(errors), _factor(errors), left_out(errors)) for key, errors in sorted(groups.items())]


def _factor(errors: Sequence[float]) -> float:
    """What predictions are multiplied by: the median of published / predicted."""
    return statistics.median(1 / (1 + error) for error in errors)


def left_out(errors: Sequence[float]) -> tuple[float, ...]:
    """Each error with the factor of all others."""
    others = [[*errors[:i], *errors[i + 1 :]] for i in range(len(errors))] if len(errors) > 1 else []
    return tuple((1 + error) * _factor(rest) - 1 for error, rest in zip(errors, others, strict=False))


def own_errors(root: Path, hardware: Hardware | None = None) -> list[OwnError]:
    """Of every recorded cell with fixed lengths, on its GPU or on `hardware`."""
    rows = [row for folder in measured_on_gpus(root) for row in fixed_lengths(folder)]
    return [_own(one) for one in check(_without_earlier_versions(rows), hardware)]


def _without_earlier_versions(rows: Sequence[Row]) -> list[Row]:
    """All rows, except versions of a case that constants could follow but for a later one."""
    last = {row.key for group in followed(rows) for row in group}
    return [row for row in rows if row.key in last or not follows(row)]


def _own(one: Checked) -> OwnError:
    gpu = gpu_class(one.row.environment.gpu)
    transferred = not constants_of(one.row).fitted
    return OwnError(gpu, one.row.cell, in_sample(one.row), one.error, transferred, quantized=is_quantized(one.row))


def errors_left_out(root: Path) -> list[OwnError]:
    """Of each run that constants of today's engine follow, by those that the others give. Takes minutes."""
    names = [folder.name for folder in measured_on_gpus(root)]
    gpus = [gpu for gpu in names if (constants := constants_for(gpu)).gpu == gpu and not constants.earlier]
    measured: list[OwnError] = []
    for gpu in gpus:
        runs = fit.recorded_runs(root, gpu)
        quantized = [run for run in runs if run.quantized]
        others = [fit.GROUPS["precision"](run) for run in quantized]
        constants = constants_for(gpu)
        for chosen, whole, errors in (
            (runs, False, fit.left_out(runs, constants, range(len(runs)))),
            (quantized, True, fit.left_out(quantized, constants, others)),
        ):
            for run, error in zip(chosen, errors, strict=True):
                row = run.rows[-1]
                one = OwnError(gpu_class(row.environment.gpu), row.cell, False, error, quantized=run.quantized)
                measured.append(replace(one, left_out=not whole, precision_left_out=whole))
    return measured


def in_sample(row: Row) -> bool:
    """Whether a constant is from this row's whole run: all but those for the wait in reductions are of one GPU (`fit.py`)."""
    cell, gpu = row.cell, gpu_class(row.environment.gpu)
    waits = (cell.model, cell.precision, cell.isl, cell.osl, cell.tp) == ("llama-3.1-8b", "fp8", 128, 256, 2)
    return (follows(row) and cell.gpus == 1) or (gpu == "H200" and waits and cell.batch in (1, 64))


def tables_of_errors(own: Sequence[OwnError], points: Sequence[PeerPoint]) -> dict[tuple[str, str], tuple[str, list[float]]]:
    """What `prediction_errors.toml` holds, by GPU and kind of step: (basis, errors).

    A GPU whose constants are of today's engine has the errors of its runs left out of the fit. The H100, where that engine has not run, has
    the errors of runs of the earlier one that no constant follows, nearly all of which were on an H200. Engines of several ranks have
    published figures' errors, which are of up to four GPUs where ours are of two. Of figures of maximum throughput only: where few
    sequences are in flight, the factor between engines is another."""
    theirs = [point for point in points if point.engine == FACTOR_ENGINE and not point.theirs.at_once]
    factor = _factor([point.error for point in theirs if point.gpu == FACTOR_GPU and point.theirs.tp == 1])
    scaled: dict[tuple[str, str], list[float]] = {}
    for point in theirs:
        kind = kind_of(0, point.theirs.tp)
        if (point.gpu, kind) != (FACTOR_GPU, "many"):
            scaled.setdefault((point.gpu, kind), []).append((1 + point.error) * factor - 1)
    tables = {(gpu.lower(), kind): (_published_on(gpu), errors) for (gpu, kind), errors in sorted(scaled.items())}
    others = [gpu for gpu, kind in sorted(scaled) if kind == "many" and published(gpu.lower()).arch != published(FACTOR_GPU.lower()).arch]
    tables[ELSEWHERE, "many"] = (_published_on(" and ".join(others)), [error for gpu in others for error in scaled[gpu, "many"]])
    for gpu in sorted({one.gpu for one in own}):
        today = [one for one in own if one.left_out and one.gpu == gpu]
        earlier = [one for one in own if (one.transferred or one.gpu == gpu) and one.of_no_fit]
        basis = "each left out of the fit" if today else "of an earlier engine, that no constant follows"
        on = gpu if today else " and ".join(sorted({one.gpu for one in earlier}))
        for kind in ("few", "many"):
            errors = [one.error for one in today or earlier if not one.quantized and _kind_of(one.cell) == kind]
            if len(errors) >= LEAST:
                tables[gpu.lower(), kind] = f"this engine's runs on {on}, {basis}", errors
        if errors := [one.error for one in today if one.quantized]:
            tables[gpu.lower(), QUANTIZED] = f"this engine's quantized runs on {on}, {basis}", errors
    return tables


def _kind_of(cell: Cell) -> str:
    return kind_of(cell.batch // cell.replicas, cell.tp * cell.pp)


def _published_on(gpu: str) -> str:
    return f"{FACTOR_ENGINE}'s published figures on the {gpu}, by its factor on the {FACTOR_GPU}"


def write_tables(own: Sequence[OwnError], points: Sequence[PeerPoint]) -> None:
    """Rewrites `prediction_errors.toml`."""
    write_errors(tables_of_errors(own, points), FILE)
    read_errors.cache_clear()


def write_errors(tables: Mapping[tuple[str, str], tuple[str, Sequence[float]]], file: Path) -> None:
    lines = ["# Written by `python -m trtllm_bench.analysis.peers --write`; prediction_error.py says what for."]
    for (gpu, kind), (basis, errors) in sorted(tables.items()):
        lines += ["", f"[{gpu}.{kind}]", f'basis = "{basis}"', f"errors = [{', '.join(f'{error:.{DIGITS}f}' for error in sorted(errors))}]"]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
