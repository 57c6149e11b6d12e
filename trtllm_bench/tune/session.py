"""Tuning on this machine's GPU: a model in several precisions, within one time limit, written down after each precision."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from trtllm_bench import interrupts
from trtllm_bench.errors import BenchError, RunFailure
from trtllm_bench.tune.decide import Decision
from trtllm_bench.tune.plan import TuningPlan, steps
from trtllm_bench.tune.run import Tuner
from trtllm_bench.tune.show import print_decisions, tuning_progress
from trtllm_engines.compiler.plan import Op
from trtllm_engines.models.presets import resolve_model
from trtllm_kernels import tactics
from trtllm_kernels.dialect.types import KernelSpec
from trtllm_kernels.lowering.gemm import ALGORITHM_SIZES, ALGORITHMS, LT_VERSION
from trtllm_kernels.lowering.space import TOKENS, Choice


@dataclass(frozen=True)
class Summary:
    changed: int
    kept: int
    skipped: int
    failed: tuple[str, ...]

    def __add__(self, other: Summary) -> Summary:
        return Summary(self.changed + other.changed, self.kept + other.kept, self.skipped + other.skipped, (*self.failed, *other.failed))


@dataclass(frozen=True)
class Asked:
    """What both ways of tuning are asked for. `tp`: ranks, of which one rank's shapes are taken; `path`: the tactics file."""

    model: str
    precisions: Sequence[str]
    kv_dtype: str
    kv_len: int
    page_size: int
    name: str
    tp: int
    arch: str
    gpu: str
    path: Path
    console: Console

    def compile(self, specs: Sequence[KernelSpec], limit: float, progress: Callable[[int, int], None]) -> Mapping[str, Any]:
        from trtllm_kernels.compile.pool import compile_many

        return compile_many(specs, self.arch, seconds=limit, progress=progress)

    def held(self) -> Mapping[str, tactics.Tactic]:
        """What a build takes, and what is recorded in `path` instead."""
        return _held(self.path, self.gpu, self.arch)

    def check_name(self, course: TuningPlan, ops: Sequence[Op]) -> None:
        """Raises `BenchError` where no op has the name."""
        if not course.choices:
            raise BenchError(f"no op of {self.model} is named '{self.name}'; it has {', '.join(sorted({op.op for op in ops}))}")


def tune_on_gpu(asked: Asked, m: Sequence[int], seconds: float) -> Summary:
    """Raises `BenchError` when no op has the name asked for, `KernelError` when `asked.path` is of another GPU."""
    import torch

    from trtllm_bench.micro.bench import Bench
    from trtllm_bench.micro.cases import prefill_case
    from trtllm_bench.micro.timing import CuptiTimer, StoppingRule
    from trtllm_bench.tracing.collect import prime

    deadline = time.perf_counter() + seconds
    tactics.merge(asked.path, asked.gpu, asked.arch, {}, {})
    prime("cuda")
    timer, rule = CuptiTimer(), StoppingRule(noise=0.003, batch=15, min_batches=4, max_batches=20, seconds=10.0)
    longest = resolve_model(asked.model).config.max_position_embeddings - 1
    cases = steps(m, asked.kv_len, longest)
    largest = prefill_case(min(max(*TOKENS, *ALGORITHM_SIZES), longest))
    done: frozenset[str] = frozenset()
    every: list[Decision] = []
    failed: list[str] = []
    skipped = 0
    for place, precision in enumerate(asked.precisions):
        with tuning_progress() as progress:
            progress(f"prepare {precision}", 0, 1)
            bench = Bench(asked.model, precision, asked.arch, [*cases, largest], asked.page_size, kv_dtype=asked.kv_dtype)
            progress(f"prepare {precision}", 1, 1)
            course = TuningPlan(bench.counter, asked.arch, done, asked.name)
            if not done:
                asked.check_name(course, bench.plan.ops)
            share = (deadline - time.perf_counter()) / (len(asked.precisions) - place)
            tuned = Tuner(bench, course, timer, rule, asked.compile, progress, precision).tune(cases, asked.held(), share)
        record(asked.path, asked.gpu, asked.arch, tuned.decisions)
        print_decisions(tuned.decisions, f"{asked.model} {precision} on {asked.gpu}: default against best", asked.console)
        done |= course.choices.keys()
        every += tuned.decisions
        failed += tuned.failed
        skipped += tuned.skipped
        del bench
        torch.cuda.empty_cache()
    changed = sum(bool(decision.winner) for decision in every)
    return Summary(changed, len(every) - changed, skipped, tuple(failed))


def tune_steps_on_gpu(asked: Asked, m: Sequence[int], seconds: float) -> Summary:
    """By whole decode steps of `m` sequences. Raises as `tune_on_gpu`."""
    import torch

    from trtllm_bench.micro.cases import decode_case
    from trtllm_bench.tune.show_steps import print_steps
    from trtllm_bench.tune.step_bench import StepBench
    from trtllm_bench.tune.steps import StepTuner

    deadline = time.perf_counter() + seconds
    tactics.merge(asked.path, asked.gpu, asked.arch, {}, {})
    longest = resolve_model(asked.model).config.max_position_embeddings - 1
    cases = [decode_case(tokens, min(asked.kv_len, longest)) for tokens in m]
    done: frozenset[str] = frozenset()
    changed = kept = skipped = 0
    for place, precision in enumerate(asked.precisions):
        with tuning_progress() as progress:
            progress(f"prepare {precision}", 0, 1)
            bench = StepBench(asked.model, precision, asked.arch, cases, asked.page_size, asked.kv_dtype, asked.tp, asked.gpu)
            progress(f"prepare {precision}", 1, 1)
            course = TuningPlan(bench.counter, asked.arch, done | bench.replaced, asked.name, whole_steps=True)
            if not done:
                asked.check_name(course, bench.plan.ops)
            share = (deadline - time.perf_counter()) / (len(asked.precisions) - place)
            tuner = StepTuner(bench, course, asked.compile, progress, partial(record_choice, asked.path, asked.gpu, asked.arch), precision)
            with interrupts.keeping(lambda: f"choices taken so far are in {asked.path}; run the command again for the others"):
                tuned = tuner.tune(cases, asked.held(), share)
        ranks = f", one rank of {asked.tp} without reductions" if asked.tp > 1 else ""
        print_steps(
            tuned,
            f"{asked.model} {precision} on {asked.gpu}{ranks}: whole decode steps of {bench.plan.stage.num_layers} layers",
            asked.console,
        )
        if tuned.failure:
            raise RunFailure(f"{tuned.failure}; choices taken before are in {asked.path}")
        changed += 0 if tuned.slower else sum(bool(one.winner) for one in tuned.decisions)
        kept += sum(not one.winner for one in tuned.decisions)
        skipped += tuned.skipped
        done |= course.choices.keys()
        del bench
        torch.cuda.empty_cache()
    return Summary(changed, kept, skipped, ())


def _held(path: Path, gpu: str, arch: str) -> Mapping[str, tactics.Tactic]:
    """What a build takes, and what is recorded in `path` instead."""
    return {**tactics.read_for(arch, gpu), **tactics.read(path)}


def record_choice(path: Path, gpu: str, arch: str, key: str, choice: Choice, values: tactics.Tactic) -> None:
    """Writes what one choice of one op came to; what it does not say goes back to the default."""
    tactics.merge(path, gpu, arch, {key: values}, {key: set(choice.tunables)})


def record(path: Path, gpu: str, arch: str, decisions: Sequence[Decision]) -> None:
    """Writes winners into the tactics file; a choice whose default won goes back to it.

    Choices of cuBLASLt's algorithms are of one version of it: those of another are dropped where a new one is written.
    """
    faster: dict[str, dict[str, int]] = {}
    measured: dict[str, set[str]] = {}
    for decision in decisions:
        faster.setdefault(decision.key, {}).update(decision.winner)
        measured.setdefault(decision.key, set()).update(decision.choice.tunables)
    recorded = _held(path, gpu, arch)
    for name, winner in faster.items():
        if not measured[name].isdisjoint(ALGORITHMS):
            _of_one_version(winner, measured[name], recorded.get(name, {}))
    tactics.merge(path, gpu, arch, faster, measured)


def _of_one_version(winner: dict[str, int], measured: set[str], recorded: tactics.Tactic) -> None:
    """Adds the version to the choices of one op, and what it makes obsolete to what was measured."""
    kept = {name for name in recorded if name in ALGORITHMS and name not in measured}
    if winner.keys().isdisjoint(ALGORITHMS):
        measured |= {LT_VERSION} if not kept else set()
        return
    from trtllm_kernels.launch import cublaslt

    version = cublaslt.library().version
    measured |= {LT_VERSION, *(kept if recorded.get(LT_VERSION) != version else ())}
    winner[LT_VERSION] = version
