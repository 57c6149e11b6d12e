"""What a sweep is to measure: a grid over a `MeasurementSpec`, written as flags, as a `sweep.toml`, or both (flags win).

Any knob may be an axis: one with several values. Settings that belong together are `[[cells]]` of a `sweep.toml`: the grid then has each of
them at each combination of the axes, and cells that share an engine are served by one. The folder of a sweep keeps its specification
(`sweep.json`), so that resuming needs nothing but the folder; keys are the names of the knobs or of their flags, so folders of earlier
versions are read too.
"""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from trtllm_bench.errors import BenchError
from trtllm_bench.spec.knobs import Knob, KnobField
from trtllm_bench.spec.measurement import HIDDEN, MeasurementSpec, all_knobs, engine_knobs, safe_target
from trtllm_bench.sweep.folder import MOST_SPEC_BYTES, read_spec, write_spec
from trtllm_results.errors import ResultsError, did_you_mean
from trtllm_results.record.flat import shown
from trtllm_results.store.files import read_text
from trtllm_results.store.layout import SWEEP

MIN_REQUESTS, WAVES = 8, 4
MOST_MEASUREMENTS = 100_000
REPEATS = KnobField("repeats", int, False, 1, Knob("Measurements of each cell (default 1).", least=1))
ACCURACY = KnobField("accuracy", str, False, "", Knob("A text to score every engine on, task, or both."))
ACCURACY_WINDOWS = KnobField("accuracy_windows", int, False, 32, Knob("Most windows of that text (default 32).", least=1))
OF_SWEEPS = (REPEATS, ACCURACY, ACCURACY_WINDOWS)
"""Knobs of a sweep as a whole."""
CELLS = "cells"
SHOWN = frozenset({"precision", "isl", "osl", "dataset", "concurrency", "request_rate"})
"""Knobs that a label shows in short form."""
Values = Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True)
class GridPoint:
    """One cell of the grid: what is measured, and its name among the others."""

    spec: MeasurementSpec
    label: str
    engine_label: str
    """Name of its engine among those of the grid."""
    refused: str = ""
    """Why it cannot be measured, where that is known before anything is built."""

    @property
    def engine_key(self) -> tuple[Any, ...]:
        """Points that share it are served by one engine."""
        return self.spec.target, self.spec.engine, self.spec.server


@dataclass(frozen=True)
class SweepSpec:
    """`values` holds what was given: for each knob its values, in the order of the grid."""

    values: Values
    repeats: int = 1
    accuracy: tuple[str, ...] = ()
    """What `--accuracy` names: texts, `task`."""
    accuracy_windows: int = 32
    cells: tuple[Mapping[str, Any], ...] = ()
    """Settings that belong together, each one value by knob; empty where the axes are all there is."""

    @classmethod
    def of(cls, **given: Any) -> Self:
        """From values by name, each one value, several, or a text with commas. Raises `BenchError`."""
        return cls.parse({name: (value, _flag_name(name)) for name, value in given.items()})

    @classmethod
    def parse(cls, given: Mapping[str, tuple[Any, str]]) -> Self:
        """From (value, name that the user gave it). Raises `BenchError` naming the field; every point of the grid is valid then."""
        knobs = _knobs_by_key()
        read: dict[str, tuple[Any, ...]] = {}
        for key, (value, name) in given.items():
            if key == CELLS:
                continue
            if key not in knobs:
                known, near = sorted({one.name for one in knobs.values()}), did_you_mean(key, (*knobs, CELLS))
                raise BenchError(f"{name.removesuffix(key)}unknown field {shown(key)[1:-1]}{near}; known are {', '.join(known)}")
            read[knobs[key].name] = knobs[key].values(value, name)
        accuracy = tuple(part for part in read.pop(ACCURACY.name, ()) if part)
        whole = {one.name: read.pop(one.name, (one.default,)) for one in (REPEATS, ACCURACY_WINDOWS)}
        for name, values in whole.items():
            if len(values) > 1:
                raise BenchError(f"{given[name][1]} takes one value, not {len(values)}")
        repeats = whole[REPEATS.name]
        cells = _cells(*given[CELLS], read) if CELLS in given else ()
        measurements = math.prod(len(values) for values in read.values()) * max(1, len(cells)) * repeats[0]
        if measurements > MOST_MEASUREMENTS:
            raise BenchError(f"the grid has {measurements:,} measurements; at most {MOST_MEASUREMENTS:,} make a sweep")
        axes = {one.name: read[one.name] for one in all_knobs() if one.name in read}
        spec = cls(axes, repeats[0], accuracy, whole[ACCURACY_WINDOWS.name][0], cells)
        assert spec.points
        return spec

    @property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        """The knobs that vary, and their values. Of the cells' knobs, only as many as tell cells apart; a cell without one has its
        default."""
        grid = {name: values for name, values in self.values.items() if len(values) > 1}
        names = dict.fromkeys(name for cell in self.cells for name in cell)
        apart = {tuple(cell.get(name) for name in names if name in SHOWN) for cell in self.cells}
        told = [name for name in names if name in SHOWN or len(apart) < len(self.cells)]
        defaults = {one.name: one.default for one in all_knobs()}
        several = {name: tuple(dict.fromkeys(cell.get(name, defaults[name]) for cell in self.cells)) for name in told}
        return grid | {name: values for name, values in several.items() if len(values) > 1}

    def axis(self, name: str) -> tuple[Any, ...]:
        """Values of one knob; empty where it was not given."""
        return tuple(self.values.get(name, ()))

    @cached_property
    def points(self) -> tuple[GridPoint, ...]:
        """The grid: engine by engine, since loading one costs more than many cells do; then shape, load and rate."""
        points: dict[MeasurementSpec, GridPoint] = {}
        order = sorted(self.values, key=lambda name: name == "request_rate")  # innermost
        axes = self.axes
        for *combination, cell in itertools.product(*(self.values[name] for name in order), self.cells or ({},)):
            chosen = {**dict(zip(order, combination, strict=True)), **cell}
            spec = _as_open_loop(MeasurementSpec.of(chosen)).with_defaults(MIN_REQUESTS, WAVES)
            varying = {name: _told(name, value) for name, value in chosen.items() if name in axes}
            of_engine = {name: value for name, value in varying.items() if name in engine_knobs()}
            engine_label = label(spec, of_engine, ("precision",)) or spec.engine.precision or safe_target(spec.target)
            points.setdefault(spec, GridPoint(spec, label(spec, varying), engine_label))
        place: dict[tuple[Any, ...], int] = {}
        for point in points.values():
            place.setdefault(point.engine_key, len(place))
        return tuple(sorted(points.values(), key=lambda point: place[point.engine_key]))

    def engines(self) -> Iterator[list[GridPoint]]:
        """The points of one engine after another."""
        for _, points in itertools.groupby(self.points, key=lambda point: point.engine_key):
            yield list(points)

    def save(self, folder: Path) -> None:
        """Writes everything but secrets, which `--resume` is given anew."""
        secret = {one.name for one in all_knobs() if one.knob.secret}
        values = {name: values for name, values in self.values.items() if name not in secret}
        if "target" in values:
            values["target"] = tuple(safe_target(one) for one in values["target"])
        listed = {name: [_plain(one) for one in several] for name, several in values.items()}
        content: dict[str, Any] = {name: values if len(values) > 1 else values[0] for name, values in listed.items()}
        if self.cells:
            content[CELLS] = [{name: _plain(value) for name, value in cell.items()} for cell in self.cells]
        asked = {ACCURACY.name: list(self.accuracy), ACCURACY_WINDOWS.name: self.accuracy_windows} if self.accuracy else {}
        write_spec(folder, {**content, REPEATS.name: self.repeats, **asked})


def _plain(value: Any) -> Any:
    """As JSON has it."""
    return str(value) if isinstance(value, Path) else value


def _cells(tables: Any, name: str, grid: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """`[[cells]]`, each setting checked. `grid`: what is given for all of them. Raises `BenchError` naming the cell."""
    if not isinstance(tables, list) or not tables or not all(isinstance(one, Mapping) and one for one in tables):
        raise BenchError(f"{name} must be tables of settings; write [[cells]], and below it isl = 1000")
    knobs = {key: one for one in all_knobs() if not one.knob.secret for key in one.keys}
    cells = []
    for number, table in enumerate(tables, 1):
        cell: dict[str, Any] = {}
        for key, value in table.items():
            where, one = f"{name} {number}: {key}", knobs.get(key.replace("-", "_"))
            if one is None:
                near, known = did_you_mean(key, knobs), sorted({one.name for one in knobs.values()})
                raise BenchError(f"{where} is not a setting of a cell{near}; known are {', '.join(known)}")
            if one.name in grid:
                raise BenchError(f"{where} is given for all cells too; give it in one place")
            if one.name in cell:
                raise BenchError(f"{where} is given twice in it, under two names of one setting; give it once")
            cell[one.name] = one.parsed(value, where, ", one in a cell")
        cells.append(cell)
    return tuple(cells)


def _named_by_cells(tables: Any, knobs: Mapping[str, KnobField]) -> set[str]:
    """Names of the knobs that `[[cells]]`, not checked yet, speak of."""
    keys = {key.replace("-", "_") for one in tables if isinstance(one, Mapping) for key in one} if isinstance(tables, list) else set()
    return {knobs[key].name for key in keys if key in knobs}


def _as_open_loop(spec: MeasurementSpec) -> MeasurementSpec:
    """In an open loop the grid's sequences in flight are what the engine holds, and bound nothing."""
    if not spec.workload.open_loop or not spec.load.concurrency:
        return spec
    engine = spec.engine if spec.engine.max_batch_size else replace(spec.engine, max_batch_size=spec.load.concurrency)
    return replace(spec, engine=engine, load=replace(spec.load, concurrency=0))


def label(spec: MeasurementSpec, varying: Mapping[str, Any], shown: Collection[str] = SHOWN) -> str:
    """Short name of a point among others, from what varies over the grid: `fp8 b64 128/128 4/s`.

    What stands in it in any case is left out where it does not vary and something else does.
    """
    isl, osl = spec.workload.lengths
    source = Path(spec.workload.dataset).stem if spec.workload.dataset else f"{isl}/{osl}"
    rate = f"{spec.workload.request_rate:g}/s" if spec.workload.request_rate else ""
    places = f"b{spec.places}" if spec.places else ""
    parts = (
        (spec.engine.precision, {"precision"}),
        (places, {"concurrency"}),
        (source, {"isl", "osl", "dataset"}),
        (rate, {"request_rate"}),
    )
    others = [f"{name.replace('_', '-')}={value}" for name, value in varying.items() if name not in SHOWN]
    usual = [text for text, names in parts if text and names & set(shown) and (not others or names & set(varying))]
    return " ".join([*usual, *others])


def _told(name: str, value: Any) -> Any:
    """A value as a label may show it."""
    knob = next((one.knob for one in all_knobs() if one.name == name), None)
    return HIDDEN if knob is not None and knob.secret else safe_target(value) if name == "target" else value


def work_of(spec: MeasurementSpec) -> float:
    """Relative cost of a cell, for the estimate of time left: decode steps, with context tokens as a small share of a step each."""
    places, requests = max(spec.places, 1), spec.workload.num_requests or MIN_REQUESTS
    isl, osl = spec.workload.lengths
    return math.ceil(requests / places) * osl * (1 + places / 256) + requests * isl / 256


def load_spec(
    flags: Mapping[str, Any],
    toml: Path | None = None,
    folder: Path | None = None,
    defaults: Mapping[str, Any] | Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
) -> SweepSpec:
    """The specification from a resumed sweep's folder or a TOML file, with flags that were given (not None) laid over it.

    `defaults` fill in what is left open; they may depend on what was given. Where nothing names a precision, it is what the model's
    checkpoint was quantized for, before the default's. Raises `BenchError` naming the field, and the file where one was read.
    """
    knobs = _knobs_by_key()
    content: dict[str, tuple[Any, str]] = {}

    def lay(source: Mapping[str, Any], called: Callable[[str], str]) -> None:
        given: dict[str, tuple[Any, str]] = {}
        for written, value in source.items():
            key = written.replace("-", "_")
            name = knobs[key].name if key in knobs else key
            if name in given:
                raise BenchError(f"{given[name][1]} and {written} are two names of one setting; give one of them")
            if value is not None:
                given[name] = value, called(key)
        if "dataset" in given:  # over lengths that came from elsewhere
            content.pop("isl", None), content.pop("osl", None)
        content.update(given)

    if folder is not None:
        lay(read_spec(folder), lambda key: f"{folder / SWEEP}: {key}")
    if toml is not None:
        lay(_read_toml(toml), lambda key: f"{toml}: {key}")
    lay(flags, _flag_name)
    models = _several(content["model"][0]) if "model" in content else []
    of_cells = _named_by_cells(content[CELLS][0], knobs) if CELLS in content else set()
    if callable(defaults):
        defaults = defaults({name: value for name, (value, _) in content.items()})
    for name, value in (defaults or {}).items():
        redundant = (
            name in content
            or name in of_cells
            or (name in ("isl", "osl") and "dataset" in {*content, *of_cells})
            or (name in ("model", "precision") and "engine_dir" in content)
            or (name == "precision" and len(models) > 1)
        )
        if redundant:
            continue
        checkpoint = _checkpoint_precision(str(models[0])) if name == "precision" and models else None
        content[name] = (checkpoint or value, _flag_name(name))
    return SweepSpec.parse(content)


def _checkpoint_precision(model: str) -> str | None:
    from trtllm_engines.checkpoints.checkpoint_precision import checkpoint_precision

    try:
        return checkpoint_precision(model)
    except OSError as error:
        raise BenchError(f"model {shown(model)} cannot be looked for: {error.strerror}") from error


def _knobs_by_key() -> dict[str, KnobField]:
    return {key: one for one in (*all_knobs(), *OF_SWEEPS) for key in one.keys}


def _several(value: Any) -> list[Any]:
    """The values of an axis as it was given."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return list(value) if isinstance(value, list | tuple) else [value]


def _flag_name(name: str) -> str:
    return next(("/".join(one.flags) for one in (*all_knobs(), *OF_SWEEPS) if name in one.keys), "--" + name.replace("_", "-"))


def _read_toml(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise BenchError(f"no sweep specification at {path}")
    try:
        content = tomllib.loads(read_text(path, MOST_SPEC_BYTES))
    except ResultsError as error:
        raise BenchError(str(error)) from error
    except RecursionError:
        raise BenchError(f"{path} is not valid TOML: it is nested too deep") from None
    except ValueError as error:  # tomllib's own, and Python's for a number of thousands of digits
        raise BenchError(f"{path} is not valid TOML: {error}") from error
    return content
