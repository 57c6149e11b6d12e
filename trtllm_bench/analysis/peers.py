"""The step model against other engines' published points: output tokens/s at fixed concurrency, by engine, model and layout.

    python -m trtllm_bench.analysis.peers --gpu h200

What is predicted is our engine on that GPU, what was published is theirs, so an error is the model's and the engines' difference together.
It says whether predictions of layouts that were never run here are of the right size. Throughput is derived on both sides alike, from
medians of TTFT and TPOT (`trtllm_results.compare.published`); a point of unknown precision is taken to be bf16.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from trtllm_bench.analysis.predict import predict
from trtllm_bench.errors import BenchError
from trtllm_bench.roofline.hardware import GPUS, published
from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.plan import ParallelLayout, Profile
from trtllm_engines.models.presets import preset_config
from trtllm_results.compare.published import Published, load
from trtllm_workloads.synthetic import fixed

MODELS = ("llama-3.1-8b", "llama-3.1-70b")
MAX_NUM_TOKENS = 8192
MOST_TOKENS = 150_000
"""Concurrency times output tokens of the largest point: a prediction runs the real batcher step by step."""


@dataclass(frozen=True)
class PeerPoint:
    """One published point and what the step model says of our engine there."""

    theirs: Published
    predicted: float
    """Output tokens/s."""

    @property
    def error(self) -> float:
        return self.predicted / self.theirs.output_tokens_per_s - 1

    @property
    def group(self) -> tuple[str, str, str, str, int]:
        """Engine, GPU, model, precision, tp."""
        one = self.theirs
        return one.source.split(" ")[0], one.gpu, one.model, one.precision or "not stated", one.tp


def points(gpu: str | None = None, most_tokens: int = MOST_TOKENS) -> Iterator[Published]:
    """The published points that can be predicted, of one GPU or all."""
    for one in load():
        known = one.concurrency and one.model in MODELS and any(name in one.gpu.lower() for name in GPUS)
        if known and one.concurrency * one.osl <= most_tokens and (gpu is None or gpu in one.gpu.lower()):
            yield one


def predicted(chosen: Iterable[Published]) -> Iterator[PeerPoint]:
    """In order of engines. A point whose model does not fit is left out."""
    for one in sorted(chosen, key=lambda one: (one.gpu, one.model, one.precision, one.tp, one.concurrency * one.osl)):
        profile = Profile(one.concurrency, max(MAX_NUM_TOKENS, one.concurrency), one.isl + one.osl)
        layout, source = ParallelLayout(one.tp), {"kind": "dummy", "seed": 0}
        precision = one.precision or "bf16"
        plan = compile_model(preset_config(one.model), precision, profile, arches=("sm_90",), weights_source=source, layout=layout).plan
        load_of = fixed(2 * one.concurrency, one.isl, one.osl, vocab_size=100, seed=0)
        hardware = published(next(name for name in GPUS if name in one.gpu.lower()))
        try:
            found, _ = predict(plan, hardware, load_of, concurrency=one.concurrency)
        except BenchError:
            continue
        seconds = (found["ttft_p50_ms"] + found["tpot_p50_ms"] * (one.osl - 1)) / 1e3
        yield PeerPoint(one, one.concurrency * one.osl / seconds)


def summary(found: Iterable[PeerPoint]) -> list[str]:
    """A line for each engine, model and layout."""
    groups: dict[tuple[str, str, str, str, int], list[float]] = {}
    for point in found:
        groups.setdefault(point.group, []).append(point.error)
    return [
        f"{engine} {gpu} {model} {precision} tp {tp}: {len(errors)} points, median {statistics.median(errors):+.0%}, "
        f"{min(errors):+.0%} to {max(errors):+.0%}"
        for (engine, gpu, model, precision, tp), errors in sorted(groups.items())
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m trtllm_bench.analysis.peers")
    parser.add_argument("--gpu", choices=GPUS)
    parser.add_argument("--most-tokens", type=int, default=MOST_TOKENS, help="leave out points of more (concurrency x OSL)")
    options = parser.parse_args()
    print("\n".join(summary(predicted(points(options.gpu, options.most_tokens)))))


if __name__ == "__main__":
    main()
