"""Output tokens/s of an engine that is kept full, by the step model and without a run.

In the steady state every place that falls free is taken by the next request, and each place serves one request in OSL steps. A step then
has D sequences that decode, on average at ISL + OSL / 2 tokens, and D * ISL / (OSL - 1) tokens of prompts; where that is more than a step
may have, prompts bound it and D is less. With less than one prompt per step, some steps have none. So two kinds of steps give the mean,
and a point costs milliseconds where the batcher's run (`predict.py`) costs seconds: published figures by the hundred can be held against
it. What it leaves out is how a run begins and ends: of the 25 cells recorded on the H100 it says 1% less to 8% more than the run, at the
median 1.2% more. A model of so little work that launches bound its steps, with prompts in them or not, runs in waves: of such it says too
little.
"""

from __future__ import annotations

import math

import numpy as np

from trtllm_bench.analysis.predict import pages_on
from trtllm_bench.analysis.step_model import StepModel
from trtllm_bench.roofline.counts import StepShape
from trtllm_bench.roofline.hardware import Hardware
from trtllm_engines.compiler.plan import Plan

KV_CACHE_FRACTION = 0.9


def places_on(plan: Plan, hardware: Hardware, isl: int, osl: int) -> int:
    """Sequences that the cache has room for to their last token, as far as the plan takes them. Raises as `pages_on`."""
    each = -(-(isl + osl) // plan.profile.page_size)
    return max(1, min(plan.profile.max_batch_size, pages_on(plan, hardware, KV_CACHE_FRACTION) // each))


def steady_rate(plan: Plan, hardware: Hardware, isl: int, osl: int, concurrency: int = 0) -> float:
    """Output tokens/s. `concurrency` 0: as many sequences as have room. Raises `BenchError` when the model does not fit."""
    places = places_on(plan, hardware, isl, osl)
    places = min(concurrency, places) if concurrency else places
    budget = plan.profile.max_num_tokens
    per_decode = isl / max(osl - 1, 1)
    decodes = min(places * (osl - 1) / osl, budget / (1 + per_decode)) if osl > 1 else 0.0
    prompts = decodes / (osl - 1) if osl > 1 else float(min(places, budget / isl))
    model, now = StepModel(plan, hardware), max(round(decodes), 1 if osl > 1 else 0)
    room = max(budget - now, 1)
    if isl > room:
        chunks = -(-isl // room)
        share, mixed = prompts * chunks, _chunk(isl // chunks, isl * (chunks + 1) // (2 * chunks))
    else:
        together = max(1, math.ceil(prompts))
        share, mixed = prompts / together, StepShape.prefill(together, isl)
    share = min(share, 1.0)
    decoding = StepShape.decode(now, isl + osl / 2) if now else None
    with_prompts = model.step(mixed if decoding is None else decoding + mixed).total_us
    without = model.step(decoding).total_us if decoding is not None else 0.0
    return prompts * osl / (share * with_prompts + (1 - share) * without) * 1e6


def _chunk(tokens: int, kv_len: int) -> StepShape:
    """One prompt's next tokens, behind those that the cache has."""
    return StepShape(np.array([tokens], np.int64), np.array([max(kv_len, tokens)], np.int64), 0, 0)
