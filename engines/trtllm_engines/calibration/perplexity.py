"""Perplexity of a text under an engine: exp of the mean negative log-likelihood of each token given those before it in its window.

Windows do not overlap and each is scored on all but its first token, so figures compare with other tools' "stride = context" ones. The
text goes through in chunks: whatever an earlier chunk wrote is read back from the KV cache, so the cache's rounding counts as it does in
serving (with the whole window at once, attention would read this step's keys and values, which were never rounded).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from trtllm_engines.calibration import text
from trtllm_engines.calibration.probe import Probe, Progress
from trtllm_engines.checkpoints.model_tokenizer import model_tokenizer
from trtllm_engines.compiler.plan import LOGITS, Op, Plan
from trtllm_engines.errors import EngineError
from trtllm_engines.models.presets import resolve_model
from trtllm_engines.quantization import check_types
from trtllm_engines.quantization.scheme import WIDE
from trtllm_engines.runtime.batch import IntArray

CHUNK = 32
_LARGEST_EXPONENT = math.log(sys.float_info.max)
_ROWS = 256
"""Tokens whose logits are held at once."""


@dataclass(frozen=True)
class Perplexity:
    value: float
    tokens: int
    """Scored."""
    windows: int
    losses: tuple[float, ...]
    """Of each window: the sum of its tokens' negative log-likelihoods, in nats."""
    counts: tuple[int, ...]
    """Tokens scored of each window."""


def perplexity(
    model: str | Path,
    precision: str,
    dataset: Path,
    *,
    kv_dtype: str = "auto",
    context_attention: str = WIDE,
    count: int | None = None,
    length: int = 1024,
    chunk: int = CHUNK,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Perplexity:
    """Of the first `count` windows of `length` tokens of `dataset`, under an engine of folder or file `model`. Raises `EngineError`."""
    check_types(precision, kv_dtype, context_attention=context_attention)
    source = resolve_model(model)
    windows = text.windows(dataset, model_tokenizer(source.path), length=length, count=count, vocab_size=source.config.vocab_size)
    longest = max(map(len, windows))
    with torch.inference_mode():
        types = {"kv_dtype": kv_dtype, "context_attention": context_attention}
        probe = Probe(model, precision, marks, window=longest, chunk=chunk, device=device, progress=progress, **types)
        return measure(probe, windows, progress)


def _head(plan: Plan) -> tuple[Op, str]:
    """The last product, and the hidden states [T, hidden] before sampled rows are taken from them."""
    head = next(op for op in plan.ops if LOGITS in op.outputs)
    gather = next(op for op in plan.ops if op.outputs[0] == head.inputs[0])
    return head, gather.inputs[0]


def marks(plan: Plan) -> list[str]:
    """Values to be read for `measure`."""
    return [_head(plan)[1]]


def measure(probe: Probe, windows: Sequence[IntArray], progress: Progress | None = None) -> Perplexity:
    """Over `windows`, through `probe`, which marks `marks`."""
    head, hidden = _head(probe.plan)
    weight = _quick(probe.tensors[head.inputs[1]])
    bias = _quick(probe.tensors[head.inputs[2]]) if head.inputs[2] else None
    losses: list[float] = []
    for done, ids in enumerate(windows, start=1):
        targets = torch.as_tensor(ids, dtype=torch.int64, device=probe.device)
        first, loss = 0, 0.0
        for outputs in probe.run(ids):
            states = outputs[hidden]
            following = targets[first + 1 : first + 1 + len(states)]
            loss += _loss(states[: len(following)], weight, bias, following)
            first += len(states)
        losses.append(loss)
        if not math.isfinite(loss):
            raise EngineError(f"the {LOGITS} of window {done} are NaN or infinite; the weights are damaged, or need a wider precision")
        if progress is not None:
            progress("perplexity", done, len(windows))
    counts = tuple(len(ids) - 1 for ids in windows)
    mean = math.fsum(losses) / sum(counts)
    value = math.exp(mean) if mean < _LARGEST_EXPONENT else math.inf
    return Perplexity(value, sum(counts), len(windows), tuple(losses), counts)


def _loss(states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> float:
    total = 0.0
    for first in range(0, len(targets), _ROWS):
        rows, row_targets = states[first : first + _ROWS], targets[first : first + _ROWS]
        logits = functional.linear(rows.to(weight.dtype), weight, bias).to(states.dtype).float()
        total += float(functional.cross_entropy(logits, row_targets, reduction="sum"))
    return total


def _quick(tensor: Tensor) -> Tensor:
    """On a CPU in fp32, whose products are several times as fast as bf16's there; the logits are rounded as the engine's all the same."""
    return tensor.float() if tensor.device.type == "cpu" else tensor
