"""Targets: what can be measured, each in a file of its own that registers itself.

A target says what serves (`Identity`), gives a `load.target.Target` to drive, and adds what only it knows of a finished run. Everything
that all targets share (warm-up, the driver, telemetry, validity) is the business of `measure`. `MODULES` is the only list of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from trtllm_bench.errors import BenchError
from trtllm_bench.spec.measurement import EngineSpec, MeasurementSpec
from trtllm_results.record.cell import OWN_TARGET
from trtllm_results.record.flat import shown

if TYPE_CHECKING:
    from trtllm_bench.load.target import Target
    from trtllm_results.metrics.requests import RequestLog
    from trtllm_workloads.request import Workload

MODULES = ("native", "scripted", "http")
DEFAULT_VOCABULARY = 32_000
OnBuild = Callable[[str, int, int], None]
"""(stage, done, total) of an engine being built or loaded."""


Tokenize = Callable[[str], Sequence[int]]


@dataclass(frozen=True)
class Identity:
    """What serves, as far as it can change a result; known before anything is measured."""

    target: str
    target_version: str = ""
    engine_fingerprint: str = ""
    weights_hash: str = ""
    kv_dtype: str = ""
    model: str = ""
    precision: str = ""
    """What the target says it serves; empty where it does not know."""
    places: int = 0
    """Most sequences it serves at once; 0 where it does not say."""
    engine: EngineSpec | None = None
    """The engine with every choice settled; None where the target has no such settings."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What else can change a result and only the target knows, such as a server's address."""


@dataclass(frozen=True)
class RunDetails:
    """What a target adds to a finished run: figures, a table of its steps (columns, one entry per step), warnings."""

    figures: Mapping[str, float] = field(default_factory=dict)
    steps: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class OpenTarget(Protocol):
    """A target, ready for any load that its engine takes."""

    gpus: int
    """GPUs of this machine that take part; their telemetry is recorded."""
    salt: int
    """Added to that of each measurement's prompts: a random number where the target outlives this command and may remember them, else 0."""

    def identity(self) -> Identity:
        """Builds what has to be built. Raises the components' user errors."""

    def ready(self) -> None:
        """Loads what serving needs, so that a cell's time is its own. Called after `identity`; cheap when it is ready."""

    def serve(self, workload: Workload) -> Target:
        """What to drive with this workload. Raises `BenchError` when it does not fit."""

    def details(self, log: RequestLog) -> RunDetails:
        """Of the run just driven; `log` is without warm-up."""

    def recover(self) -> None:
        """Gives everything back after a failed run; the next one starts afresh."""

    def close(self) -> None: ...


class StaticTarget:
    """The part of `OpenTarget` that needs no preparation: a target object that is there already."""

    gpus = 0

    def __init__(self, target: Target, identity: Identity, salt: int = 0) -> None:
        self._target, self._identity, self.salt = target, identity, salt

    def identity(self) -> Identity:
        return self._identity

    def ready(self) -> None:
        pass

    def serve(self, workload: Workload) -> Target:
        return self._target

    def details(self, log: RequestLog) -> RunDetails:
        return RunDetails()

    def recover(self) -> None:
        pass

    def close(self) -> None:
        pass


def _nothing(spec: MeasurementSpec) -> None:
    pass


@dataclass(frozen=True)
class TargetKind:
    """How a target is recognised and opened."""

    name: str
    open: Callable[[MeasurementSpec, OnBuild | None], OpenTarget]
    """Nothing is built or loaded until it is asked for its identity; `OnBuild` then sees it."""
    matches: Callable[[str], bool]
    shown: str
    """What the user writes for it, for the message on an unknown target."""
    check: Callable[[MeasurementSpec], None] = _nothing
    """Finds bad input before anything is built or measured. Raises `BenchError` or the engine's errors."""
    vocabulary: Callable[[EngineSpec], int] = lambda engine: DEFAULT_VOCABULARY
    """Token ids that prompts may be drawn from."""
    tokenize: Callable[[MeasurementSpec], Tokenize | None] = lambda spec: None
    """What makes token ids of a dataset's texts; None where it takes texts as they are. It may read a tokenizer when first called."""
    longest: Callable[[EngineSpec], int | None] = lambda engine: None
    """Most tokens of a sequence, prompt and output, as far as that is known before anything is built."""
    runs_on_gpu: Callable[[str], bool] = lambda device: False
    """Whether it runs on this machine's GPU, given `--device`."""
    names_its_model: bool = False
    """Whether it says itself which model it serves; otherwise a default is named."""


_KINDS: dict[str, TargetKind] = {}


def register(name: str, *, open: Callable[[MeasurementSpec, OnBuild | None], OpenTarget], shown: str = "", **facts: Any) -> None:
    """Makes a target known; `facts` are fields of `TargetKind`. `matches` defaults to the name itself."""
    facts.setdefault("matches", lambda address: address == name)
    _KINDS[name] = TargetKind(name, open, shown=shown or name, **facts)


def target_kind(address: str) -> TargetKind:
    """The target that a name or address means. Raises `BenchError` listing those there are."""
    for module in MODULES:
        importlib.import_module(f"trtllm_bench.targets.{module}")
    for kind in _KINDS.values():
        if kind.matches(address):
            return kind
    raise BenchError(f"unknown target {shown(address)}; choose from {', '.join(kind.shown for kind in _KINDS.values())}")


def runs_on_gpu(spec: MeasurementSpec) -> bool:
    return target_kind(spec.target).runs_on_gpu(spec.engine.device)


def vocabulary_of(spec: MeasurementSpec) -> int:
    return target_kind(spec.target).vocabulary(spec.engine)


def tokenize_of(spec: MeasurementSpec) -> Tokenize | None:
    return target_kind(spec.target).tokenize(spec)


def is_own(target: str) -> bool:
    """Whether rows of this target are of our own engine, whose plan and steps are known."""
    return target == OWN_TARGET
