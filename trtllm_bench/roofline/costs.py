"""FLOP and bytes that a workload needs, counted from the engine's own graph: the numerators of MFU and MBU.

MFU counts the FLOP of the model for the tokens served and not those a kernel happens to execute (padding, recomputation after
preemption), so it cannot be raised by wasting work. MBU counts the bytes that must move if nothing is kept on the chip between steps: all
weights once a step, the KV cache of each sequence once a decode step, every new key and value once. Both are given over whole runs and,
from the step log, over steps of one kind only.

Source of the definitions: Chowdhery et al., "PaLM" (2022), appendix B (MFU); Databricks, "LLM inference performance engineering" (MBU).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from trtllm_bench.roofline.ceilings import Ceilings
from trtllm_engines.compiler.plan import Plan
from trtllm_kernels.dialect.dtypes import nbytes
from trtllm_kernels.dialect.ops import OP_SPECS, Trait
from trtllm_results.metrics.requests import RequestLog

CEILING_SLACK = 1.2
"""Share of a ceiling above which it cannot be one: short bursts on a cool GPU pass a sustained ceiling by up to a tenth."""


@dataclass(frozen=True)
class ModelCost:
    """What one engine costs, summed over its layers and its ranks."""

    token_flops: float
    """Matrix products on every token of a step."""
    row_flops: float
    """Matrix products on rows whose logits are wanted."""
    pair_flops: float
    """Attention, a query token and one key it sees (2 for the score, 2 for the value, each head and element)."""
    weight_bytes: float
    """All weights but the embedding table, of which a step reads one row per token."""
    kv_bytes: float
    """Keys and values of one token; where ranks outnumber KV heads, each rank's own."""
    page_size: int
    compute_dtype: str
    """Number format of most products of a token (an fp8 model's head stays wide): the ceiling that MFU is measured against."""

    @classmethod
    def of(cls, plan: Plan) -> ModelCost:
        """`plan` is one rank's; all have the same."""
        flops = {"T": 0.0, "S": 0.0}
        used: set[str] = set()
        formats: dict[str, float] = {}
        layers = 0
        for op in plan.ops:
            traits = OP_SPECS[op.op].traits
            layers += Trait.READS_CACHE in traits
            if Trait.PICKS_ROWS in traits:
                continue
            rows = plan.values[op.outputs[0]].shape[0] if op.outputs and plan.values[op.outputs[0]].shape else 1
            for name in op.inputs:
                spec = plan.weights.get(name)
                if spec is None:
                    continue
                used.add(name)
                if len(spec.shape) == 2 and spec.shape[1] != 1 and rows in flops:
                    product = 2.0 * int(spec.shape[0]) * int(spec.shape[1])
                    flops[str(rows)] += product
                    formats[spec.dtype] = formats.get(spec.dtype, 0.0) + product * (rows == "T")
        config, ranks = plan.config, plan.parallel.tp
        return cls(
            token_flops=ranks * flops["T"],
            row_flops=ranks * flops["S"],
            pair_flops=4.0 * layers * config.num_heads * config.head_dim,
            weight_bytes=float(ranks * sum(nbytes(plan.weights[name]) for name in used)),
            kv_bytes=float(plan.quant.kv.nbytes(2 * layers * ranks * plan.kv_heads, config.head_dim)),
            page_size=plan.profile.page_size,
            compute_dtype=max(formats, key=formats.__getitem__, default=plan.precision),
        )

    @classmethod
    def of_stages(cls, plans: Sequence[Plan]) -> ModelCost:
        """Of a pipeline, all its stages together."""
        first, *others = (cls.of(plan) for plan in plans)
        summed = ("token_flops", "row_flops", "pair_flops", "weight_bytes", "kv_bytes")
        return replace(first, **{name: getattr(first, name) + sum(getattr(other, name) for other in others) for name in summed})

    def flops_of(self, log: RequestLog) -> float:
        """FLOP for all completed requests. The last output token is sampled but never fed back."""
        done = log.select(log.ok)
        prompt, output = done.input_tokens.astype(np.float64), done.output_tokens.astype(np.float64)
        tokens = np.maximum(prompt + output - 1, 0)
        return float((self.token_flops * tokens + self.row_flops * output + self.pair_flops * tokens * (tokens + 1) / 2).sum())

    def bytes_of(self, log: RequestLog, steps: int) -> float:
        """Bytes for all completed requests, served in so many steps."""
        done = log.select(log.ok)
        prompt, output = done.input_tokens.astype(np.float64), done.output_tokens.astype(np.float64)
        tokens = np.maximum(prompt + output - 1, 0)
        read_in_decode = tokens * (tokens + 1) / 2 - prompt * (prompt + 1) / 2
        return steps * self.weight_bytes + self.kv_bytes * float((tokens + prompt + np.maximum(read_in_decode, 0)).sum())


def utilisation(cost: ModelCost, ceilings: Ceilings, log: RequestLog, steps: npt.NDArray[Any], gpus: int = 1) -> dict[str, float]:
    """`mfu`, `mbu` over the run; with `_prefill` or `_decode` behind them, over steps of that kind. A figure without a basis is left out.

    `steps` is the engine's step log (`STEP_DTYPE`, with a column `replica` where there are several), `gpus` all that it ran on. In a step
    of one kind the cache length is taken from the pages in use, each sequence's last page counted half; in prefill steps every prompt is
    taken to be whole.
    """
    peak = ceilings.peak(cost.compute_dtype) * gpus
    band = ceilings.bytes_per_s * gpus
    done = log.select(log.ok)
    if not len(done) or not len(steps) or band <= 0:
        return {}
    seconds = float(np.nanmax(done.end_s) - log.intended_s.min())
    shares = _ratios("", cost.flops_of(log), cost.bytes_of(log, len(steps)), seconds, peak, band)
    replicas = [steps[whose] for whose in _replicas(steps)]
    phases = [_by_phase(cost, one) for one in replicas]
    for phase in ("decode", "prefill"):
        work = [one[phase] for one in phases if phase in one]
        total = {name: sum(one[name] for one in work) for name in ("flops", "bytes", "seconds")}
        shares |= _ratios(f"_{phase}", total["flops"], total["bytes"], total["seconds"], peak / len(replicas), band / len(replicas))
    return shares


def _replicas(steps: npt.NDArray[Any]) -> list[npt.NDArray[np.bool_]]:
    """[steps] for each copy of the engine, which of the steps are its own."""
    if "replica" not in (steps.dtype.names or ()):
        return [np.ones(len(steps), np.bool_)]
    return [steps["replica"] == one for one in np.unique(steps["replica"])]


def step_seconds(steps: Any) -> npt.NDArray[np.float64]:
    """[steps] how long each took: from the later of its launch and the end of the step before. `steps` has columns of `STEP_DTYPE`."""
    done, launched = np.asarray(steps["done_s"]), np.asarray(steps["launched_s"])
    return np.asarray(done - np.maximum(np.concatenate([[-np.inf], done[:-1]]), launched), dtype=np.float64)


def mean_step_ms(steps: Any) -> float:
    """From the first launch to the last end, over the number of steps: gaps between steps count."""
    return float((np.max(steps["done_s"]) - np.min(steps["launched_s"])) / len(steps["done_s"]) * 1e3)


def _by_phase(cost: ModelCost, steps: npt.NDArray[Any]) -> Mapping[str, Mapping[str, float]]:
    taken = step_seconds(steps)
    decode, context = steps["decode_tokens"].astype(np.float64), steps["context_tokens"].astype(np.float64)
    sequences = np.maximum(steps["context_seqs"].astype(np.float64), 1)
    held = np.maximum(steps["kv_pages_used"] * float(cost.page_size) - steps["running"] * cost.page_size / 2, decode)
    pairs = context * (context / sequences + 1) / 2
    phases = {
        "decode": (
            (context == 0) & (decode > 0),
            decode * (cost.token_flops + cost.row_flops) + cost.pair_flops * held,
            cost.weight_bytes + cost.kv_bytes * (held + decode),
        ),
        "prefill": (
            (decode == 0) & (context > 0),
            context * cost.token_flops + sequences * cost.row_flops + cost.pair_flops * pairs,
            cost.weight_bytes + 2 * cost.kv_bytes * context,
        ),
    }
    return {
        phase: {"flops": float(flops[chosen].sum()), "bytes": float(moved[chosen].sum()), "seconds": float(taken[chosen].sum())}
        for phase, (chosen, flops, moved) in phases.items()
        if chosen.any()
    }


def _ratios(suffix: str, flops: float, moved: float, seconds: float, peak: float, band: float) -> dict[str, float]:
    if seconds <= 0:
        return {}
    shares = {f"mbu{suffix}": moved / seconds / band}
    return shares | {f"mfu{suffix}": flops / seconds / peak} if peak > 0 else shares


def doubtful(figures: Mapping[str, float]) -> tuple[str, ...]:
    """A warning when a share of a ceiling is more than a ceiling leaves room for, which says that the ceiling is wrong."""
    beyond = [name for name, value in figures.items() if name.startswith(("mfu", "mbu")) and value > CEILING_SLACK]
    if not beyond:
        return ()
    worst = max(beyond, key=lambda name: figures[name])
    return (f"{worst} is {figures[worst]:.0%}: the ceilings were measured on a busy device; repeat trtllm-bench ceilings --again",)
