"""Accuracy beside speed: what is asked for (`--accuracy`), and its figures for each engine of a sweep, measured once and kept in every row.

The engine that is timed is the engine that is scored, between loading it and its first cell. KL divergence and agreement are against the
widest engine of the same model in the sweep, which therefore runs first; what it expects is kept in the sweep's folder, so that a resumed
sweep need not run it again. Engines are of one model when their configurations agree but for the name, and for a head that a quantizer
stored apart from the embeddings: a checkpoint in another folder, in codes, still counts as the model it was made of.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtllm_bench.errors import BenchError
from trtllm_bench.spec.measurement import EngineSpec, MeasurementSpec
from trtllm_bench.targets.registry import is_own
from trtllm_results.record.row import NOT_SCORED

if TYPE_CHECKING:
    from trtllm_bench.measure.session import Session
    from trtllm_engines.accuracy.likelihood import Reference
    from trtllm_engines.llm import LLM
    from trtllm_engines.quantization.scheme import QuantPlan

TASK = "task"
WINDOWS, LONGEST = 32, 1024
FOLDER = "accuracy"
"""Where a sweep's folder keeps what the widest engines expect."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class AccuracySpec:
    """`text` None: no text is scored. `length`: tokens of a window."""

    text: Path | None
    task: bool
    windows: int = WINDOWS
    length: int = LONGEST

    @classmethod
    def of(cls, parts: Sequence[str], windows: int, engines: Sequence[MeasurementSpec]) -> AccuracySpec:
        """Of what `--accuracy` names (a file, `task`, or both) for these engines. Raises `BenchError`."""
        texts = [Path(part) for part in parts if part != TASK]
        if not parts or len(texts) > 1:
            raise BenchError(f"--accuracy takes one text, {TASK}, or both with a comma between, not {','.join(parts)}")
        if texts and not texts[0].is_file():
            raise BenchError(f"--accuracy {texts[0]}: no such file; give a .txt, or a .jsonl with text, prompt or input_ids, or {TASK}")
        if other := next((spec for spec in engines if not is_own(spec.target)), None):
            raise BenchError(f"--accuracy reads the logits of our own engine, and the target is {other.target!r}; leave it out")
        for spec in engines:
            _check_weights(spec)
        longest = min((spec.engine.max_seq_len or LONGEST for spec in engines), default=LONGEST)
        asked = cls(texts[0] if texts else None, TASK in parts, windows, min(longest, LONGEST))
        for spec in engines:
            asked.check_text(spec)
        return asked

    def check_text(self, spec: MeasurementSpec) -> None:
        """Raises `EngineError`, before anything is measured, where an engine of `spec` cannot be scored on the text."""
        from trtllm_bench.targets import native
        from trtllm_engines.calibration.text import windows

        if self.text is not None:
            tokenizer, vocabulary = native.tokenizer_of(None, spec.engine), native.vocabulary(spec.engine)
            windows(self.text, tokenizer, length=self.length, count=self.windows, vocab_size=vocabulary)

    def described(self) -> dict[str, Any]:
        """For rows."""
        text = (
            {}
            if self.text is None
            else {"text": self.text.name, "sha256": _hash(self.text), "windows": self.windows, "length": self.length}
        )
        return {**text, **({"task": True} if self.task else {})}


@dataclass(frozen=True)
class Accuracy:
    """Of one engine. `details` say what was read, and what it was compared with."""

    figures: Mapping[str, float]
    details: Mapping[str, Any]


@dataclass
class SweepAccuracy:
    """Measures engine by engine, the widest of a model first; `folder` is the sweep's."""

    spec: AccuracySpec
    folder: Path
    progress: Progress | None = None
    _known: dict[str, tuple[Reference, Any, str]] = field(default_factory=dict)
    """By model: what its widest engine expects, its losses, and its precision."""

    def measure(self, llm: LLM) -> Accuracy:
        """Of an idle engine. What cannot be measured of it is said in `details`."""
        from trtllm_engines.errors import EngineError

        figures: dict[str, float] = {}
        details, failed = self.spec.described(), list[str]()
        for part in ([self._text] if self.spec.text is not None else []) + ([self._task] if self.spec.task else []):
            try:
                figures |= part(llm, details)
            except EngineError as error:
                failed.append(str(error))
        return Accuracy(figures, {**details, **({NOT_SCORED: "; ".join(failed)} if failed else {})})

    def _text(self, llm: LLM, details: dict[str, Any]) -> dict[str, float]:
        import numpy as np

        from trtllm_engines.accuracy.likelihood import likelihood
        from trtllm_engines.calibration.text import windows
        from trtllm_results.metrics.quality import WindowSums, text_figures

        config = llm.plan.config
        read = windows(self.spec.text, llm.tokenizer, length=self.spec.length, count=self.spec.windows, vocab_size=config.vocab_size)
        model = self._model(config.to_dict())
        reference = self._reference(model)
        wide = not any(scheme.weights for scheme in llm.plan.schemes.values()) and llm.plan.quant.kv.granularity == "none"
        measured, made = likelihood(
            llm, read, None if reference is None else reference[0], keep=wide and reference is None, progress=self.progress
        )
        if made is not None:
            self._keep(model, made, measured.loss, llm.plan.precision)
        if reference is not None:
            details["against"] = reference[2]
        return text_figures(
            WindowSums(
                measured.tokens.astype(np.float64),
                measured.loss,
                measured.divergence,
                measured.agreed,
                None if reference is None else reference[1],
            )
        )

    def _task(self, llm: LLM, details: dict[str, Any]) -> dict[str, float]:
        from trtllm_engines.accuracy.task import exact_matches, questions
        from trtllm_results.metrics.quality import task_figures

        matches = exact_matches(llm, questions(), self.progress)
        return task_figures(sum(matches), len(matches))

    def _model(self, config: Mapping[str, Any]) -> str:
        """Names a model and what it is asked: 16 hex digits."""
        of_the_model = {name: value for name, value in config.items() if name not in ("name", "tie_embeddings")}
        content = {**of_the_model, "asked": self.spec.described()}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def _path(self, model: str) -> Path:
        return self.folder / FOLDER / f"{model}.npz"

    def _keep(self, model: str, made: Reference, loss: Any, precision: str) -> None:
        import numpy as np

        self._known[model] = (made, loss, precision)
        path = self._path(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        places = np.array(list(made.rows), np.int32).reshape(-1, 2)
        np.savez(path, places=places, ids=made.ids, logprobs=made.logprobs, loss=loss, precision=np.array(precision))

    def _reference(self, model: str) -> tuple[Reference, Any, str] | None:
        if model not in self._known and self._path(model).is_file():
            import numpy as np

            from trtllm_engines.accuracy.likelihood import Reference

            with np.load(self._path(model), allow_pickle=False) as stored:
                rows = {(int(window), int(position)): row for row, (window, position) in enumerate(stored["places"])}
                self._known[model] = (Reference(rows, stored["ids"], stored["logprobs"]), stored["loss"], str(stored["precision"]))
        return self._known.get(model)


def engine_of(session: Session) -> LLM:
    """The loaded engine of a session over our own. Raises `BenchError` for another."""
    from trtllm_bench.targets.native_engine import OpenEngine

    target = getattr(session, "target", None)
    if not isinstance(target, OpenEngine):
        raise BenchError("accuracy is measured on our own engine; leave --accuracy out")
    return target.engine


def _check_weights(spec: MeasurementSpec) -> None:
    """Raises `BenchError` for an engine whose weights are drawn at random."""
    from trtllm_engines.engine.folder import load_engine
    from trtllm_engines.models.presets import resolve_model

    engine = spec.engine
    if engine.engine_dir is not None:
        drawn, name = load_engine(engine.engine_dir).plan.weights_source.get("kind") == "dummy", str(engine.engine_dir)
    else:
        name = str(engine.model)
        drawn = str(engine.weights or "auto") == "dummy" or (engine.weights is None and resolve_model(name).path is None)
    if drawn:
        raise BenchError(f"--accuracy needs real weights, and those of {name} are random; give a Hugging Face folder or a .gguf file")


def widest_first(specs: Sequence[MeasurementSpec]) -> list[int]:
    """The order of engines in which wide weights come before codes and wider before narrower, wide caches before others; else as given."""
    from trtllm_engines.quantization.scheme import WIDE
    from trtllm_kernels.dialect.dtypes import bits_of

    def narrowness(spec: MeasurementSpec) -> tuple[bool, float, bool, bool]:
        quant = _plan_of(spec.engine)
        codes = {rule.scheme for rule in quant.rules if rule.scheme.weights is not None}
        bits = [bits_of(scheme.weights.dtype) for scheme in codes if scheme.weights is not None] or [bits_of(quant.wide_dtype)]
        return bool(codes), -sum(bits) / len(bits), quant.kv.granularity != "none", quant.context_attention != WIDE

    return sorted(range(len(specs)), key=lambda index: narrowness(specs[index]))


def _plan_of(engine: EngineSpec) -> QuantPlan:
    """That of an engine which is not built yet, too. `mixed` is whatever the checkpoint has; other names are one scheme."""
    from trtllm_engines.checkpoints.checkpoint_precision import plan_for
    from trtllm_engines.engine.folder import load_engine
    from trtllm_engines.models.presets import resolve_model
    from trtllm_engines.quantization.registry import MIXED, definition
    from trtllm_engines.quantization.scheme import WIDE

    if engine.engine_dir is not None:
        return load_engine(engine.engine_dir).plan.quant
    name = str(engine.precision)
    own = definition(name).name == MIXED and engine.weights in (None, "auto")
    return plan_for(
        resolve_model(str(engine.model)).path if own else engine.weights,
        name,
        engine.kv_dtype,
        context_attention=engine.context_attention or WIDE,
    )


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
